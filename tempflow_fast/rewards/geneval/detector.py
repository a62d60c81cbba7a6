"""The object detector of GenEval: Mask2Former with COCO's classes, through transformers.

GenEval runs mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco under mmdet; the default here is the same architecture with
the weights of its authors. Preprocessing and scoring of queries follow mmdet's test pipeline: shorter side at 800
pixels unless the longer one would exceed 1333, ImageNet's mean and deviation, sides padded to a multiple of 32;
score of a query = class probability x mean mask probability within its mask; box = bounds of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ...errors import require
from ...quiet import quiet
from ..pixels import IMAGENET_MEAN, IMAGENET_STD, as_bytes, normalized
from ..resize import resized
from ..weights import loaded
from .judge import THRESHOLD, Box, Detection
from .names import OBJECTS

MODEL = "facebook/mask2former-swin-small-coco-instance"
SHORTER_SIDE, LONGER_SIDE, MULTIPLE = 800, 1333, 32
MAX_QUERIES = 100
"""How many of the best (query, class) pairs of an image are considered."""


class Detector:
    """Finds objects of `OBJECTS`."""

    @quiet("transformers")
    def __init__(
        self, model: str = MODEL, shorter_side: int = SHORTER_SIDE, dtype: torch.dtype = torch.float32
    ) -> None:
        """Loads a Mask2Former for instances of COCO's 80 classes.

        Args:
            model: directory or hub name.
            shorter_side: pixels to which the shorter side is resized.
            dtype: of the network.

        Raises:
            ValueError: if the model has fewer classes, or weights are missing.
            OSError: if it cannot be loaded.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        network = loaded(Mask2FormerForUniversalSegmentation, model)
        num_classes = network.config.num_labels
        require(num_classes >= len(OBJECTS), "Detector", "model", "one of COCO's 80 classes", f"{num_classes} classes")
        self.network: Any = network.to(dtype).eval().requires_grad_(False)
        self.shorter_side = shorter_side

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """The objects in each image above the lower threshold.

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
        """
        network = self.network.to(images.device)
        pixels, inner = self.pixels(images)
        output = network(pixel_values=pixels.to(network.dtype))
        classes, masks = output.class_queries_logits.float(), output.masks_queries_logits.float()
        frames = (pixels.shape[-2:], inner, images.shape[-2:])
        return [_detections(*query, *frames) for query in zip(classes, masks, strict=True)]

    def pixels(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The network's padded input, and the height and width of the images in it.

        Args:
            images: [R, 3, H, W] in [0, 1].
        """
        height, width = images.shape[-2:]
        scale = min(self.shorter_side / min(height, width), LONGER_SIDE / max(height, width))
        inner = int(height * scale + 0.5), int(width * scale + 0.5)
        levels = resized(as_bytes(images), *inner, mode="bilinear")
        small = normalized(levels.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        below, right = (-side % MULTIPLE for side in inner)
        return pad(small, (0, right, 0, below)), inner


def _detections(
    classes: Tensor, masks: Tensor, padded: Sequence[int], inner: Sequence[int], outer: Sequence[int]
) -> list[Detection]:
    """The detections of one image.

    Args:
        classes: [Q, C + 1], logits of the classes of each query; the last one is "no object".
        masks: [Q, h, w], logits.
        padded: height and width of the network's input.
        inner: height and width of the image in it.
        outer: height and width of the image itself.
    """
    likely = classes.softmax(-1)[:, :-1]
    scores, places = likely.flatten().topk(min(MAX_QUERIES, likely.numel()))
    # A mask's probability is at most 1, so a query whose class is below the threshold needs no mask.
    chosen = (scores > THRESHOLD) & (places % likely.shape[1] < len(OBJECTS))
    scores, places = scores[chosen], places[chosen]
    if not len(places):
        return []
    full = interpolate(masks[places // likely.shape[1]][None], padded, mode="bilinear", align_corners=False)
    full = interpolate(full[..., : inner[0], : inner[1]], outer, mode="bilinear", align_corners=False)[0]
    inside = full > 0
    within = (full.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    kinds = (places % likely.shape[1]).tolist()
    rows = zip(kinds, (scores * within).tolist(), inside, strict=True)
    return [Detection(OBJECTS[kind], score, bounds(mask), mask) for kind, score, mask in rows if score > THRESHOLD]


def bounds(mask: Tensor) -> Box:
    """The smallest box around a mask: left, top, right, bottom, the last two exclusive.

    Args:
        mask: bool [H, W], not empty.
    """
    left, right = _ends(mask.any(0))
    top, bottom = _ends(mask.any(1))
    return left, top, right, bottom


def _ends(filled: Tensor) -> tuple[int, int]:
    places = filled.nonzero()
    return int(places[0]), int(places[-1]) + 1
