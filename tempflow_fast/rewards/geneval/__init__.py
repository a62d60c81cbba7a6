"""GenEval (arXiv 2310.11513) as rewards, in three forms that share their models.

Licences: GenEval's protocol MIT; Mask2Former's weights see their model card; CLIP's weights MIT.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...batching import equal_pieces
from ..clip_model import ClipModel
from . import detector as detectors
from .colors import ColorNamer
from .judge import Detection, Verdict, check, judged

CLIP = "openai/clip-vit-large-patch14"


class GenEval:
    """1 if the official protocol calls an image correct, else 0."""

    name = "geneval"
    range = (0.0, 1.0)
    exact = False

    def __init__(
        self,
        detector: str = detectors.MODEL,
        clip: str = CLIP,
        shorter_side: int = detectors.SHORTER_SIDE,
        dtype: str = "float32",
        batch_size: int = 8,
    ) -> None:
        """Loads the models, once for all forms with the same settings.

        Args:
            detector: a Mask2Former for instances of COCO, directory or hub name.
            clip: a CLIP model, directory or hub name.
            shorter_side: pixels to which the shorter side is resized for the detector.
            dtype: float32, bfloat16 or float16, of both models.
            batch_size: images per call of the detector.

        Raises:
            ValueError: if a model does not fit or the dtype is unknown.
            OSError: if something cannot be loaded.
        """
        self._eyes = _eyes(detector, clip, shorter_side, dtype, batch_size)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float64 [R] on the host.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of GenEval's JSONL.

        Raises:
            ValueError: if the metadata have another form.
        """
        verdicts = self.verdicts(images, metadata)
        return torch.tensor([self.score(verdict) for verdict in verdicts], dtype=torch.float64)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Refuses metadata that are not of GenEval's form or that no image can satisfy.

        Args:
            prompts: R texts, which play no part.
            metadata: R entries of GenEval's JSONL.

        Raises:
            ValueError: naming the field, and the nearest class or colour.
        """
        for entry in metadata:
            check(entry)

    def score(self, verdict: Verdict) -> float:
        """The reward of a verdict.

        Args:
            verdict: on one image.
        """
        return float(verdict.correct)

    def verdicts(self, images: Tensor, metadata: Sequence[dict[str, Any]]) -> list[Verdict]:
        """The verdict on each image, with reasons.

        Args:
            images: [R, 3, H, W] in [0, 1].
            metadata: R entries of GenEval's JSONL.

        Raises:
            ValueError: if the metadata have another form.
        """
        self.check_prompts((), metadata)  # before anything is detected
        found = self._eyes.detections(images)
        return [
            judged(seen, entry, functools.partial(self._eyes.name_colors, image), self.exact)
            for image, seen, entry in zip(images, found, metadata, strict=True)
        ]


class GenEvalStrict(GenEval):
    """1 if an image holds exactly the wanted numbers of objects, in their colours and places, else 0."""

    name = "geneval_strict"
    exact = True


class GenEvalPartial(GenEval):
    """The strict form with partial credit, with which Flow-GRPO trains: the mean over everything a prompt asks for.

    A number earns 1 - |found - wanted| / wanted, at least 0; a colour and a place count only if the number is right.
    """

    name = "geneval_partial"
    exact = True

    def score(self, verdict: Verdict) -> float:
        """The credit of a verdict.

        Args:
            verdict: on one image.
        """
        return verdict.credit


class _Eyes:
    """Detector and colour namer; it keeps the last detections, which several forms may ask for."""

    def __init__(self, detector: detectors.Detector, clip: ClipModel, batch_size: int) -> None:
        self.detector, self.name_colors, self.batch_size = detector, ColorNamer(clip), batch_size
        self._last: tuple[Tensor, list[list[Detection]]] | None = None

    @torch.no_grad()
    def detections(self, images: Tensor) -> list[list[Detection]]:
        """The objects in each of images [R, 3, H, W]."""
        # Every form is called with a copy of its own, so equal pixels tell that the images are the same.
        same = self._last is not None and self._last[0].shape == images.shape and torch.equal(self._last[0], images)
        if self._last is None or not same:
            pieces = equal_pieces(len(images), self.batch_size)
            found = [seen for rows in pieces for seen in self.detector(images[rows])]
            self._last = (images, found)
        return self._last[1]


@functools.cache
def _eyes(detector: str, clip: str, shorter_side: int, dtype: str, batch_size: int) -> _Eyes:
    model = ClipModel(clip, dtype)
    return _Eyes(detectors.Detector(detector, shorter_side, model.dtype), model, batch_size)
