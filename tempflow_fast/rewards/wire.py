"""What client and server of remote rewards say to each other: safetensors one way, JSON the other; never a pickle.

POST /score   a safetensors file: the tensor `images` [R, 3, H, W] of levels 0 to 255 as uint8, and in its metadata
              `request`, JSON: {"prompts": [...], "metadata": [...]}
answer 200    {"scores": [R numbers]}
answer 4xx    {"error": text, "sample": number or null}: asking again would not help
answer 5xx    {"error": text}: it may
GET /health   {"protocol": 1, "reward": name, "range": [low or null, high or null]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import one_line

PROTOCOL = 1


def pack_request(levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
    """The body of a request to score images of `levels` uint8 [R, 3, H, W] on the host."""
    from safetensors.torch import save

    return save(
        {"images": levels.contiguous()}, {"request": json.dumps({"prompts": [*prompts], "metadata": [*metadata]})}
    )


def unpack_request(body: bytes) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """Images [R, 3, H, W], float32 in [0, 1], with prompts and metadata; ValueError for any other body."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        levels = load(body)["images"]
        length = int.from_bytes(body[:8], "little")
        request = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"])
        prompts, metadata = list(request["prompts"]), list(request["metadata"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"request must be as documented, got {len(body)} bytes: {one_line(repr(error))}") from error
    if levels.dtype != torch.uint8 or levels.dim() != 4 or levels.shape[1] != 3 or not len(levels):
        raise ValueError(f"images must be uint8 [R, 3, H, W], got {levels.dtype} {list(levels.shape)}")
    if not len(levels) == len(prompts) == len(metadata):
        raise ValueError(
            f"request must have {len(levels)} prompts and metadata, got {len(prompts)} and {len(metadata)}"
        )
    if not all(isinstance(prompt, str) for prompt in prompts) or not all(isinstance(entry, dict) for entry in metadata):
        raise ValueError("prompts must be texts and metadata objects")
    return levels.float() / 255, prompts, metadata


def unpack_scores(body: bytes, num: int) -> list[float]:
    """The scores in an answer to a request of `num` images; ValueError for any other body."""
    try:
        scores = [float(score) for score in json.loads(body)["scores"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"answer must hold scores, got {one_line(body[:80])}") from error
    return checked(scores, num)


def checked(scores: list[float], num: int) -> list[float]:
    """`scores` if they are `num` finite numbers; ValueError if not."""
    if len(scores) != num:
        raise ValueError(f"answer must hold {num} scores, got {len(scores)}")
    if wrong := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(f"scores must be finite, got {wrong[0]}")
    return scores


def pack_range(ends: tuple[float, float]) -> list[float | None]:
    """A range as JSON has it, without infinities."""
    return [end if math.isfinite(end) else None for end in ends]


def unpack_range(ends: Sequence[float | None]) -> tuple[float, float]:
    """The range that `pack_range` packed."""
    low, high = ends
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)
