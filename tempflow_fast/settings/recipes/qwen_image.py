"""Qwen-Image with the settings of the method's authors."""

from __future__ import annotations

from ..iteration import GRPOConfig
from ..run import EvaluationConfig, OptimizerConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig


def qwen_image_pickscore() -> TrainConfig:
    """Qwen-Image with LoRA on PickScore: 48 prompts x 4 seeds x 6 branches, 512 px, guidance 4, no KL, no EMA.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: config/dgx.py (pickscore_qwenimage_pr) of the public TempFlow-GRPO scripts; the noise level is that of
    their shared step function; learning rate, clip range and weight decay are Flow-GRPO's config/base.py.
    """
    return TrainConfig(
        policy=PolicyConfig(
            model="Qwen/Qwen-Image",
            precision="bf16",
            resolution=512,
            lora_rank=32,
            lora_alpha=64,
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
            noise_level=0.7,
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
