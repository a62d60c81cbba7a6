"""Evaluations with invented measures."""

from __future__ import annotations

import torch

from tempflow_fast.evaluation.result import Evaluation, Noise


def made_up(values: list[float], tags: str = "", prompts: str = "", **changes) -> Evaluation:
    tags, prompts = tags or "a" * len(values), prompts or "pqrstuvw"[: len(values)]
    metadata = [{"tag": tag, "prompt": prompt} for tag, prompt in zip(tags, prompts, strict=True)]
    measures = {"reward": torch.tensor(values, dtype=torch.float64)}
    parts = {"tasks": tuple(dict.fromkeys(tags)), "metadata": metadata, "measures": measures}
    return Evaluation(**{**parts, "images": torch.zeros(1, 3, 4, 4), "noise": Noise(0, (1, 2)), **changes})
