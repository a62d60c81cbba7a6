"""The protocol of remote rewards: requests are safetensors, answers JSON; nothing is a pickle.

POST /score   a safetensors file: the tensor `images` [R, 3, H, W] of levels 0 to 255 as uint8, the source images of
              the prompts as `source.0`, ... [3, H, W], and in its metadata `request`, JSON: {"prompts": [...],
              "metadata": [...]}, where `image` of an entry is a list of the numbers of its source images
answer 200    {"scores": [R numbers], "reward": described, "settings": digest}
answer 4xx    {"error": text, "sample": number or null}: a retry would not help, except after 408
answer 5xx    {"error": text}: a retry may help
GET /health   {"protocol": 2, "reward": described, "settings": digest, "range": [low or null, high or null]}

A server with a token wants it in every request, as "Authorization: Bearer TOKEN".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import fail, finite, require
from ..source_images import IMAGE, pixels, sources_of
from .base import one_line

PROTOCOL = 2
TOKEN = "TEMPFLOW_FAST_TOKEN"
"""Environment variable with the secret of servers and their clients."""
MIN_TOKEN = 16
"""Characters of the shortest token."""


class Identity(NamedTuple):
    """What a server serves; it comes with every answer, since a server may be replaced at any time."""

    reward: str
    """Its names and weights, as `described` writes them."""
    settings: str
    """A digest of its description."""


def read_token() -> str | None:
    """The token of the environment; None: there is none.

    Raises:
        ValueError: if it is short, or cannot be sent.
    """
    token = os.environ.get(TOKEN)
    if token is not None:
        fits = len(token) >= MIN_TOKEN and token.isascii() and token.isprintable() and " " not in token
        require(fits, "rewards", TOKEN, f"at least {MIN_TOKEN} letters, digits and signs", f"{len(token)} characters")
    return token or None


def pack_request(levels: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> bytes:
    """The body of a request for scores.

    Args:
        levels: the images, uint8 [R, 3, H, W] on the host.
        prompts: R texts.
        metadata: R entries of the prompt set.

    Raises:
        ValueError: if a source image cannot be read.
    """
    from safetensors.torch import save

    rows = [sources_of(entry) for entry in metadata]
    numbers = {source: number for number, source in enumerate(dict.fromkeys(chain.from_iterable(rows)))}
    tensors = {f"source.{number}": pixels(source) for source, number in numbers.items()}
    entries = [
        {**entry, IMAGE: [numbers[source] for source in row]} if row else entry
        for entry, row in zip(metadata, rows, strict=True)
    ]
    request = json.dumps({"prompts": [*prompts], "metadata": entries})
    return save({"images": levels.contiguous(), **tensors}, {"request": request})


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
        tensors = load(body)
        levels = tensors["images"]
        length = int.from_bytes(body[:8], "little")
        request = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"])
        prompts, metadata = request["prompts"], request["metadata"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        fail("unpack_request", "body", "as documented", f"{len(body)} bytes: {one_line(repr(error))}")
    fits = levels.dtype == torch.uint8 and levels.dim() == 4 and levels.shape[1] == 3 and levels.numel() > 0
    require(fits, "unpack_request", "images", "uint8 [R, 3, H, W], not empty", f"{levels.dtype} {list(levels.shape)}")
    for argument, values, kind in (("prompts", prompts, str), ("metadata", metadata, dict)):
        fits = isinstance(values, list) and all(isinstance(value, kind) for value in values)
        expected = f"a list of {len(levels)} of type {kind.__name__}"
        require(fits, "unpack_request", argument, expected, type(values).__name__)
        require(len(values) == len(levels), "unpack_request", argument, expected, len(values))
    return levels.float() / 255, prompts, [_with_sources(entry, tensors) for entry in metadata]


def _with_sources(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entry with its source images; no path of a request is ever opened."""
    if IMAGE not in entry:
        return entry
    given = entry[IMAGE]
    sources = [tensors.get(f"source.{number}") for number in given] if isinstance(given, list) else [None]
    for source in sources:
        fits = source is not None and source.dtype == torch.uint8 and source.dim() == 3 and len(source) == 3
        require(fits, "unpack_request", IMAGE, "numbers of source images, uint8 [3, H, W]", one_line(given, 80))
    return {**entry, IMAGE: sources}


def unpack_scores(body: bytes, num: int) -> tuple[list[float], Identity]:
    """Reads the answer to a request.

    Args:
        body: of the answer.
        num: number of images in the request.

    Returns:
        `num` finite numbers, and the identity of what the server serves.

    Raises:
        ValueError: if the body has another form.
    """
    answer = _object("unpack_scores", body)
    return checked(answer.get("scores"), num), _identity(answer)


def unpack_health(body: bytes) -> tuple[Identity, tuple[float, float]]:
    """Reads a server's health.

    Args:
        body: of the answer.

    Returns:
        The identity of what it serves, and the lowest and the highest score.

    Raises:
        ValueError: if the body has another form.
    """
    health = _object("unpack_health", body)
    protocol = health.get("protocol")
    require(protocol == PROTOCOL, "unpack_health", "protocol", f"{PROTOCOL}", one_line(protocol, 80))
    return _identity(health), unpack_range(health.get("range"))


def checked(scores: Any, num: int) -> list[float]:
    """The scores of an answer, if they are what was asked for.

    Args:
        scores: of the answer.
        num: number of images in the request.

    Raises:
        ValueError: if they are not a list of `num` finite numbers.
    """
    require(isinstance(scores, list), "unpack_scores", "scores", f"a list of {num} numbers", type(scores).__name__)
    require(len(scores) == num, "unpack_scores", "scores", f"{num} numbers", len(scores))
    return [_number("scores", score) for score in scores]


def described(weights: Mapping[str, float]) -> str:
    """A reward as one text, which servers of one reward have in common.

    Args:
        weights: name -> weight.
    """
    return ",".join(f"{name}={weight:g}" for name, weight in weights.items())


def pack_range(ends: tuple[float, float]) -> list[float | None]:
    """A range for JSON, which has no infinities.

    Args:
        ends: the lowest and the highest score.
    """
    return [end if math.isfinite(end) else None for end in ends]


def unpack_range(ends: Any) -> tuple[float, float]:
    """The range that `pack_range` packed.

    Args:
        ends: the lowest and the highest score; None: infinite.

    Raises:
        ValueError: if they are not two such numbers in order.
    """
    is_pair = isinstance(ends, list) and len(ends) == 2
    require(is_pair, "unpack_range", "range", "a list of two numbers", type(ends).__name__)
    low = -math.inf if ends[0] is None else _number("range", ends[0])
    high = math.inf if ends[1] is None else _number("range", ends[1])
    require(low <= high, "unpack_range", "range", "in order", f"{low:g}..{high:g}")
    return low, high


def _object(function: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fail(function, "body", "JSON with scores or health", one_line(body[:80]))
    return found


def _identity(answer: Mapping[str, Any]) -> Identity:
    reward, settings = answer.get("reward"), answer.get("settings")
    is_told = isinstance(reward, str) and isinstance(settings, str)
    require(is_told, "unpack", "reward and settings", "texts", f"{type(reward).__name__}, {type(settings).__name__}")
    return Identity(one_line(reward), one_line(settings, 80))


def _number(argument: str, value: Any) -> float:
    """A finite number of JSON, of which a boolean and a text are none, however much they look like one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(is_number, "unpack_scores", argument, "numbers", f"one of type {type(value).__name__}")
    try:
        return finite("unpack_scores", argument, float(value))
    except OverflowError:
        fail("unpack_scores", argument, "finite", "an integer that no float can hold")
