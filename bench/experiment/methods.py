"""Who competes. Every method trains the same pipeline on the same reward with six images per group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tempflow_fast.settings.methods import with_method
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import TrainConfig

NUM_STEPS, NUM_BRANCHES = 10, 6


@dataclass(frozen=True)
class Competitor:
    """A method: a name of `--method`, what is set on top of it, and the prompts of an iteration."""

    title: str
    method: str
    prompts: int
    """Prompts per iteration, so that an iteration of each costs 1,600 to 3,400 evaluations."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    step: Literal["package", "awm", "paper"] = "package"
    """What an iteration is: `grpo_step`, `awm_step`, which has no noise level to tune, or `paper_step`."""
    ablation: bool = False
    """A method with a part taken away; its curve is dashed, without a band."""

    def config(self) -> TrainConfig:
        """Its settings before tuning."""
        base = get_recipe("shapes").with_settings(
            num_steps=NUM_STEPS,
            sigmas=tuple(1 - step / NUM_STEPS for step in range(NUM_STEPS + 1)),
            branch_steps=None,
            num_branches=NUM_BRANCHES,
            prompts_per_iteration=self.prompts,
            # A constant rate, so that a longer budget continues the same run.
            learning_rate_decay=0.0,
        )
        grpo = with_method(base.grpo, self.method)
        return TrainConfig(
            run=base.run,
            policy=base.policy,
            task=base.task,
            grpo=grpo,
            optimizer=base.optimizer,
            evaluation=base.evaluation,
        ).with_settings(**self.settings)


COMPETITORS = {
    "flow_grpo": Competitor("Flow-GRPO", "flow_grpo", 30),
    "flow_grpo_fast": Competitor("Flow-GRPO-Fast", "flow_grpo_fast", 30),
    "flow_grpo_weighted": Competitor("TempFlow-GRPO without branching", "flow_grpo_weighted", 30, ablation=True),
    "tempflow": Competitor("TempFlow-GRPO", "tempflow", 12),
    "tempflow_unweighted": Competitor("TempFlow-GRPO without weighting", "tempflow_unweighted", 12, ablation=True),
    "tempflow_prompt_groups": Competitor(
        "TempFlow-GRPO with prompt groups", "tempflow_prompt_groups", 6, {"num_seeds": 2}, ablation=True
    ),
    "tempflow_short": Competitor(
        "TempFlow-GRPO, steps 1 to 4, tails of two", "tempflow", 30, {"branch_steps": (1, 2, 3, 4), "tail_steps": 2}
    ),
    "awm": Competitor("AWM", "flow_grpo", 30, step="awm"),
}
"""Name -> method. The first is what the others are compared with."""

ARMS = {
    "paper_eager": Competitor("the paper's structure, eager fp32", "tempflow", 12, step="paper"),
    "structure": Competitor("wavefront, one row per state", "tempflow", 12),
    "compiled": Competitor("compiled blocks", "tempflow", 12, {"compile_blocks": True}),
    "budget": Competitor(
        "branches at steps 1 to 4", "tempflow", 20, {"compile_blocks": True, "branch_steps": (1, 2, 3, 4)}
    ),
    "tails": Competitor(
        "tails of two", "tempflow", 20, {"compile_blocks": True, **COMPETITORS["tempflow_short"].settings}
    ),
}
"""Name -> what `bench.time_to_reward` times: each adds one thing to the one before. They have the noise level and, as a
rule, the learning rate of "tempflow"."""
ARM_RATES = {"budget": 8e-4, "tails": 8e-4}
"""Learning rates of arms whose updates are noisier, tuned with their prompts: see the page."""
SAME_UPDATE = ("structure", "compiled")
"""Arms whose update is that of the first, to rounding: they are timed for some iterations instead of to the target."""
METHODS = COMPETITORS | ARMS
