"""The embedded default: a small pipeline of coloured shapes, trained in minutes on a CPU."""

from __future__ import annotations

from ..config import GRPOConfig
from ..schedule import linear_sigmas
from ..train_config import TrainConfig

NUM_STEPS = 6


def shapes() -> TrainConfig:
    """Full fine-tuning of the packaged pipeline on the six GenEval tasks, in float32 and without guidance."""
    return TrainConfig(
        grpo=GRPOConfig(
            num_steps=NUM_STEPS,
            # The pipeline's own schedule spends its last step on sigma 0.001 -> 0; this one ends a step earlier.
            sigmas=tuple(linear_sigmas(NUM_STEPS)),
            branch_steps=(0, 1, 2, 3, 4),
            num_seeds=1,
            num_branches=8,
            noise_level=0.7,
            num_updates=1,
        ),
        prompts_per_iteration=16,
        num_iterations=60,
        learning_rate=3e-4,
        betas=(0.9, 0.99),
    )
