"""The protocol of remote rewards: requests are safetensors, answers JSON; nothing is a pickle.

POST /score   a safetensors file: the tensor `images` [R, 3, H, W] of levels 0 to 255 as uint8, and in its metadata
              `request`, JSON: {"prompts": [...], "metadata": [...]}
answer 200    {"scores": [R numbers]}
answer 4xx    {"error": text, "sample": number or null}: a retry would not help
answer 5xx    {"error": text}: a retry may help
GET /health   {"protocol": 1, "reward": name, "range": [low or null, high or null]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import fail, finite, require
from .base import one_line

PROTOCOL = 1


def pack_request(levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
    """The body of a request for scores.

    Args:
        levels: the images, uint8 [R, 3, H, W] on the host.
        prompts: R texts.
        metadata: R entries of the prompt set.
    """
    from safetensors.torch import save

    return save(
        {"images": levels.contiguous()}, {"request": json.dumps({"prompts": [*prompts], "metadata": [*metadata]})}
    )


def unpack_request(body: bytes) -> tuple[Tensor, list[str], list[dict[str, Any]]]:
    """Reads the body of a request for scores.

    Args:
        body: as `pack_request` made it.

    Returns:
        Images [R, 3, H, W], float32 in [0, 1], R prompts and R metadata.

    Raises:
        ValueError: if the body has another form.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        levels = load(body)["images"]
        length = int.from_bytes(body[:8], "little")
        request = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"])
        prompts, metadata = list(request["prompts"]), list(request["metadata"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        fail("unpack_request", "body", "as documented", f"{len(body)} bytes: {one_line(repr(error))}")
    fits = levels.dtype == torch.uint8 and levels.dim() == 4 and levels.shape[1] == 3 and len(levels) > 0
    require(fits, "unpack_request", "images", "uint8 [R, 3, H, W]", f"{levels.dtype} {list(levels.shape)}")
    for argument, values, kind in (("prompts", prompts, str), ("metadata", metadata, dict)):
        fits = len(values) == len(levels) and all(isinstance(value, kind) for value in values)
        expected = f"{len(levels)} of type {kind.__name__}"
        require(fits, "unpack_request", argument, expected, one_line(values))
    return levels.float() / 255, prompts, metadata


def unpack_scores(body: bytes, num: int) -> list[float]:
    """Reads the answer to a request.

    Args:
        body: of the answer.
        num: number of images in the request.

    Returns:
        `num` finite numbers.

    Raises:
        ValueError: if the body has another form.
    """
    try:
        scores = [float(score) for score in json.loads(body)["scores"]]
    except (KeyError, TypeError, ValueError):
        fail("unpack_scores", "body", "JSON with scores", one_line(body[:80]))
    return checked(scores, num)


def checked(scores: list[float], num: int) -> list[float]:
    """The scores of an answer, if they are what was asked for.

    Args:
        scores: of the answer.
        num: number of images in the request.

    Raises:
        ValueError: if they are not `num` finite numbers.
    """
    require(len(scores) == num, "unpack_scores", "scores", f"{num} numbers", len(scores))
    for score in scores:
        finite("unpack_scores", "scores", score)
    return scores


def pack_range(ends: tuple[float, float]) -> list[float | None]:
    """A range for JSON, which has no infinities.

    Args:
        ends: the lowest and the highest score.
    """
    return [end if math.isfinite(end) else None for end in ends]


def unpack_range(ends: Sequence[float | None]) -> tuple[float, float]:
    """The range that `pack_range` packed.

    Args:
        ends: the lowest and the highest score; None: infinite.
    """
    low, high = ends
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)
