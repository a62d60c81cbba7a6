"""The colours of detected objects, by CLIP, as GenEval names them.

Each object is cut out, with the rest of its box grey (#999), and compared with three sentences per colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..clip_model import ClipModel
from ..pixels import clip_pixels, quantized
from .judge import Detection
from .names import COLORS

GREY = 0x99 / 255
TEMPLATES = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")


class ColorNamer:
    """Names colours with a CLIP model.

    Args:
        clip: the model.
    """

    def __init__(self, clip: ClipModel) -> None:
        self.clip = clip
        self._directions: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(self, image: Tensor, objects: Sequence[Detection], kind: str) -> list[str]:
        """The colour of each object, a name of `COLORS`.

        Args:
            image: [3, H, W] in [0, 1].
            objects: in the image, all of one class.
            kind: their class.
        """
        if not objects:
            return []
        pixels = torch.cat([clip_pixels(cut_out(image, found), self.clip.image_size) for found in objects])
        similarity = self.clip.image_embeddings(pixels) @ self.directions(kind, image.device).T
        return [COLORS[place] for place in similarity.argmax(1).tolist()]

    def directions(self, kind: str, device: torch.device) -> Tensor:
        """The embedding of each colour of a class, [10, E], of length 1: the mean over the sentences.

        Args:
            kind: the class.
            device: where to compute it.
        """
        key = (kind, device)
        if key not in self._directions:
            texts = [template.format(color=color, kind=kind) for color in COLORS for template in TEMPLATES]
            mean = self.clip.text_embeddings(texts, device).unflatten(0, (len(COLORS), -1)).mean(1)
            self._directions[key] = mean / mean.norm(dim=1, keepdim=True)
        return self._directions[key]


def cut_out(image: Tensor, found: Detection) -> Tensor:
    """The object's box [1, 3, h, w], grey outside its mask.

    Args:
        image: [3, H, W] in [0, 1].
        found: the object.
    """
    left, top, right, bottom = (round(edge) for edge in found.box)
    piece = quantized(image)[:, top:bottom, left:right]
    if found.mask is not None:
        piece = piece.where(found.mask[top:bottom, left:right], GREY)
    return piece[None]
