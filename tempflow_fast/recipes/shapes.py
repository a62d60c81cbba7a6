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
            branch_steps=(0, 1, 2),
            num_seeds=1,
            num_branches=8,
            # CPS keeps the marginals of the flow at any strength: its branches explore without losing quality.
            sampler="cps",
            noise_level=0.8,
            num_updates=2,
            # A log-ratio averages over D elements and so spreads as 1 / sqrt(D): 432 here, 65,536 for SD3.5.
            clip_range=1e-2,
            # Small enough for the activations to stay in a processor's cache.
            max_batch=64,
        ),
        prompts_per_iteration=20,
        num_iterations=110,
        learning_rate=3e-4,
        betas=(0.9, 0.99),
    )
