"""The default recipe: the packaged pipeline of coloured shapes, trained in minutes on a CPU."""

from __future__ import annotations

from ..iteration import GRPOConfig
from ..run import EvaluationConfig, OptimizerConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig

NUM_STEPS = 6


def shapes() -> TrainConfig:
    """Full fine-tuning of the packaged pipeline on the six GenEval tasks, in float32, without guidance, in minutes.

    Source: tuned here, see LAB.md.
    """
    return TrainConfig(
        policy=PolicyConfig(model="embedded", device="cpu"),
        task=TaskConfig(prompts="shapes", reward="shapes", accuracy="shapes_strict", prompts_per_iteration=30),
        grpo=GRPOConfig(
            num_steps=NUM_STEPS,
            # The pipeline's own schedule spends its last step on sigma 0.001 -> 0; this one ends a step earlier.
            sigmas=(*(1.0 - step / NUM_STEPS for step in range(NUM_STEPS)), 0.0),
            # Earlier branches teach little after the first minute; later ones change little.
            branch_steps=(1, 2, 3),
            num_seeds=1,
            num_branches=6,
            # CPS keeps the marginals of the flow at any noise level, so its branches explore without losing quality.
            sampler="cps",
            noise_level=0.8,
            num_updates=2,
            # Rewards of a group that barely differ do not deserve a full advantage.
            adv_eps=0.3,
            # A log-ratio is a mean over D elements, so it spreads as 1 / sqrt(D); D is 432 here, 65,536 for SD3.5.
            clip_range=1e-2,
            # Small enough for the activations to fit in a processor's cache.
            max_batch=64,
        ),
        optimizer=OptimizerConfig(
            learning_rate=8e-4,
            betas=(0.9, 0.99),
            # About the size of a gradient's elements: pure noise moves a weight less than with Adam's usual 1e-8.
            adam_eps=2e-5,
            learning_rate_decay=1.0,
        ),
        # As usual in the field, evaluation takes more steps than rollouts.
        evaluation=EvaluationConfig(eval_steps=10),
        run=RunConfig(num_iterations=100),
    )
