"""Stable Diffusion 3.5 Large, in the spirit of the public scripts for Medium."""

from __future__ import annotations

from ..run import TrainConfig
from .sd35m import sd35m_ocr, sd35m_pickscore


def sd35l_pickscore() -> TrainConfig:
    """SD3.5-Large with LoRA on PickScore: as sd35m-pickscore, with the guidance of its model card.

    Prompts: lines of text, a training and a test file as in dataset/pickscore of the Flow-GRPO repository.
    Source: ours, not run: nobody has published settings for this model.
    """
    return _large(sd35m_pickscore())


def sd35l_ocr() -> TrainConfig:
    """SD3.5-Large with LoRA on rendered text: as sd35m-ocr, with the guidance of its model card.

    Prompts: lines of text with the words to draw in quotes, as in dataset/ocr of the Flow-GRPO repository.
    Source: ours, not run: nobody has published settings for this model.
    """
    return _large(sd35m_ocr())


def _large(medium: TrainConfig) -> TrainConfig:
    return medium.with_settings(
        model="stabilityai/stable-diffusion-3.5-large",
        guidance_scale=3.5,
        gradient_checkpointing=True,
        micro_batch=3,
        max_batch=12,
    )
