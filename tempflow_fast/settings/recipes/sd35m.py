"""Stable Diffusion 3.5 Medium with the settings of the method's authors."""

from __future__ import annotations

from ..iteration import GRPOConfig
from ..run import EvaluationConfig, OptimizerConfig, PolicyConfig, RunConfig, TaskConfig, TrainConfig
from .adapters import ATTENTION


def sd35m_geneval() -> TrainConfig:
    """SD3.5-Medium with LoRA on GenEval: 48 prompts x 4 seeds x 6 branches at 9 of 10 steps, 512 px, guidance 4.5.

    Prompts: GenEval's metadata, a training and a test file as in dataset/geneval of the Flow-GRPO repository.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md; they compute in fp16 instead of bf16.
    """
    return _sd35m(
        TaskConfig(
            prompts="dataset/geneval/train_metadata.jsonl",
            eval_prompts="dataset/geneval/test_metadata.jsonl",
            prompts_per_iteration=48,
            reward="geneval_partial",
            accuracy="geneval",
        ),
        beta=0.004,
        eval_images=2212,
        num_iterations=3000,
    )


def sd35m_pickscore() -> TrainConfig:
    """SD3.5-Medium with LoRA on PickScore: as sd35m-geneval, with a KL weight of 0.001.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md.
    """
    return _sd35m(_texts("pickscore", "pickscore"), beta=0.001, eval_images=2048, num_iterations=1000)


def sd35m_ocr() -> TrainConfig:
    """SD3.5-Medium with LoRA on rendered text: as sd35m-geneval, rewarded by what an OCR model reads.

    Prompts: lines of text with the words to draw in quotes, as in dataset/ocr of the Flow-GRPO repository.
    Source: the public TempFlow-GRPO scripts, value by value in docs/recipes.md. They have no branching run with OCR:
    the branching settings are those of their GenEval run, the others those of their OCR run without branches.
    """
    config = _sd35m(_texts("ocr", "ocr"), beta=0.004, eval_images=1018, num_iterations=3000)
    return config.with_settings(adv_scale="global", eval_every=60)


def _texts(folder: str, reward: str) -> TaskConfig:
    return TaskConfig(
        prompts=f"dataset/{folder}/train.txt",
        eval_prompts=f"dataset/{folder}/test.txt",
        prompts_per_iteration=48,
        reward=reward,
    )


def _sd35m(task: TaskConfig, beta: float, eval_images: int, num_iterations: int) -> TrainConfig:
    return TrainConfig(
        policy=PolicyConfig(
            model="stabilityai/stable-diffusion-3.5-medium",
            precision="bf16",
            resolution=512,
            max_text_length=128,
            lora_rank=32,
            lora_alpha=64,
            lora_targets=ATTENTION,
            offload_text_encoders=True,
        ),
        task=task,
        grpo=GRPOConfig(
            num_steps=10,
            sampler="flow_sde",
            noise_level=0.7,
            num_seeds=4,
            num_branches=6,
            guidance_scale=4.5,
            clip_range=1e-4,
            beta=beta,
            num_updates=2,
            micro_batch=6,
            max_batch=24,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, weight_decay=1e-4, ema_decay=0.9, ema_every=8),
        evaluation=EvaluationConfig(eval_images=eval_images, eval_every=20, eval_steps=40),
        run=RunConfig(num_iterations=num_iterations, checkpoint_every=10),
    )
