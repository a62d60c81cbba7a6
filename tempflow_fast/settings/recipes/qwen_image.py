"""Qwen-Image with the settings of the method's authors."""

from __future__ import annotations

from ..iteration import GRPOConfig
from ..run import EvaluationConfig, OptimizerConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig
from .adapters import ATTENTION, feed_forward


def qwen_image_pickscore() -> TrainConfig:
    """Qwen-Image with LoRA on PickScore: 48 prompts x 4 seeds x 6 branches, 512 px, guidance 4, no KL, no EMA.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md.
    """
    return TrainConfig(
        policy=PolicyConfig(
            model="Qwen/Qwen-Image",
            precision="bf16",
            resolution=512,
            max_text_length=512,
            lora_rank=64,
            lora_alpha=128,
            lora_targets=(*ATTENTION, *feed_forward("img_mlp"), *feed_forward("txt_mlp")),
            gradient_checkpointing=True,
            offload_text_encoders=True,
        ),
        task=TaskConfig(
            prompts="dataset/pickscore/train.txt",
            eval_prompts="dataset/pickscore/test.txt",
            prompts_per_iteration=48,
            reward="pickscore",
        ),
        grpo=GRPOConfig(
            num_steps=10,
            sampler="flow_sde",
            noise_level=1.2,
            num_seeds=4,
            num_branches=6,
            guidance_scale=4.0,
            clip_range=1e-4,
            num_updates=2,
            micro_batch=3,
            max_batch=12,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-4),
        evaluation=EvaluationConfig(eval_images=512, eval_every=20, eval_steps=50),
        run=RunConfig(num_iterations=250, checkpoint_every=10),
    )
