"""A cache of scores, by what was scored."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import integer, require
from ..source_images import IMAGE, pixels, sources_of
from .base import AroundReward, FinalError, Metadata, Reward


class CachedReward(AroundReward):
    """A reward that scores equal images of equal prompts once, for rewards slower than hashing an image."""

    def __init__(self, reward: Reward, num_entries: int) -> None:
        """Wraps a reward.

        Args:
            reward: scores what is not in the cache.
            num_entries: number of scores to keep, those used last.

        Raises:
            ValueError: if `num_entries` is not a positive integer.
        """
        num_entries = integer("CachedReward", "num_entries", num_entries)
        require(num_entries >= 1, "CachedReward", "num_entries", ">= 1", num_entries)
        super().__init__(reward)
        self.num_entries = num_entries
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float64 [R]; the reward is called once, with the images that are new.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            FinalError: from the reward, counted in this call.
            ValueError: if the reward returns another number of scores.
        """
        keys = [_key(*row) for row in zip(images.detach().cpu(), prompts, metadata, strict=True)]
        known = {key: self._scores[key] for key in keys if key in self._scores}
        first_of = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        if rows := sorted(first_of.values()):
            try:
                new = self.reward(images[rows], [prompts[row] for row in rows], [metadata[row] for row in rows])
            except FinalError as error:
                raise FinalError(rows[error.sample], str(error)) from error
            new = torch.as_tensor(new).detach().to("cpu", torch.float64)
            expected = f"[{len(rows)}], one per image"
            require(new.shape == (len(rows),), "CachedReward", "scores", expected, list(new.shape))
            known |= {keys[row]: score for row, score in zip(rows, new.tolist(), strict=True)}
        self._remember({key: known[key] for key in keys})
        return torch.tensor([known[key] for key in keys], dtype=torch.float64)

    def _remember(self, scores: dict[bytes, float]) -> None:
        for key, score in scores.items():
            self._scores[key] = score
            self._scores.move_to_end(key)
        while len(self._scores) > self.num_entries:
            self._scores.popitem(last=False)


def _key(image: Tensor, prompt: str, metadata: Metadata) -> bytes:
    """A digest of an image [3, H, W] on the host, its prompt with source images, and its metadata."""
    digest = hashlib.blake2b(digest_size=16)
    sources = [pixels(source) for source in sources_of(metadata)]
    described = [str(image.dtype), [list(part.shape) for part in (image, *sources)], prompt, {**metadata, IMAGE: None}]
    digest.update(json.dumps(described, sort_keys=True, default=repr).encode())
    for part in (image, *sources):
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
