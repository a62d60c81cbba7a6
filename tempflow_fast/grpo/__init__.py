"""The algorithm. Read in the order of the data:

    step          grpo_step: one iteration, from prompts to a better policy
    acting        prompts -> branches, their rewards and advantages; calls the next three
    rollout       noise -> trunk, branches and finished latents, one network call per step
    scoring       finished latents -> images -> rewards
    advantages    rewards -> advantages, relative to their seed or prompt group
    objective     velocity -> loss of a micro-batch of (trajectory, branch step) pairs
    update        rollout and advantages -> optimizer steps, by finite_step only where they are finite

What they use: branches (the list of branches), draw (at which steps a trajectory branches), tails (how a branch is
finished), meter (signal and noise of each branch step, by sketch), budget (the probabilities that follow), gate
(whether cheap tails keep the order of rewards), lengths (the tails that follow), levels (noise levels of short tails),
wavefront (which rows are in which network call), wave (the rollout as it runs), shares (which process has which
trajectories), stage_clock (where the seconds go), image_statistics (signs of reward hacking), trainable (what of a
policy would make training wrong), rounding (a warning of trained weights in 16 bits). Before anything runs: geometry
(what an iteration does and costs), memory (what it holds), by measure (the parts of a policy and its calls) and
live_bytes (the counter).
"""
