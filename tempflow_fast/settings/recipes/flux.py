"""FLUX.1-dev with the settings of the method's authors."""

from __future__ import annotations

from ..iteration import GRPOConfig
from ..run import EvaluationConfig, OptimizerConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig
from .adapters import ATTENTION, feed_forward


def flux_pickscore() -> TrainConfig:
    """FLUX.1-dev with LoRA on PickScore: 48 prompts x 4 seeds x 6 branches, 1024 px, embedded guidance 3.5.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md; reward and prompts are those of their
    PickScore runs.
    """
    return _flux("pickscore", "pickscore")


def flux_hps() -> TrainConfig:
    """FLUX.1-dev with LoRA on the human preference score: as flux-pickscore, with the prompts of HPSv2.

    Prompts: lines of text in dataset/hpsv2/train.txt and test.txt.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md; they use HPSv3 instead of HPSv2.
    """
    return _flux("hpsv2", "hpsv2")


def _flux(folder: str, reward: str) -> TrainConfig:
    return TrainConfig(
        policy=PolicyConfig(
            model="black-forest-labs/FLUX.1-dev",
            precision="bf16",
            resolution=1024,
            max_text_length=128,
            lora_rank=32,
            lora_alpha=64,
            lora_targets=(*ATTENTION, *feed_forward("ff"), *feed_forward("ff_context")),
            gradient_checkpointing=True,
            offload_text_encoders=True,
        ),
        task=TaskConfig(
            prompts=f"dataset/{folder}/train.txt",
            eval_prompts=f"dataset/{folder}/test.txt",
            prompts_per_iteration=48,
            reward=reward,
        ),
        grpo=GRPOConfig(
            num_steps=10,
            sampler="flow_sde",
            noise_level=0.9,
            num_seeds=4,
            num_branches=6,
            guidance_scale=3.5,
            clip_range=1e-4,
            beta=0.004,
            num_updates=2,
            micro_batch=3,
            max_batch=6,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-4, ema_decay=0.9, ema_every=8),
        evaluation=EvaluationConfig(eval_images=512, eval_every=20, eval_steps=50),
        run=RunConfig(num_iterations=250, checkpoint_every=10),
    )
