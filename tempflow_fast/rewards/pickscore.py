"""PickScore (arXiv 2305.01569): what people pick of two images. Weights of yuvalkirstain/PickScore_v1: see its card."""

from __future__ import annotations

from torch import Tensor

from .clip import Clip
from .clip_model import ClipModel

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SCALE = 26.0
"""By which the field divides the published score (about 18 to 24), so that it lies near 1."""


class PickScore(Clip):
    """The published score over 26."""

    name = "pickscore"
    range = (-100 / SCALE, 100 / SCALE)

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str = PROCESSOR,
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        """As `Clip`; `tokenizer` is the model whose tokenizer it was trained with."""
        self.tokenizer = tokenizer
        super().__init__(model, dtype, batch_size)

    def load(self, model: str, dtype: str) -> ClipModel:
        """The weights and their tokenizer."""
        return ClipModel(model, dtype, self.tokenizer)

    def score(self, cosine: Tensor) -> Tensor:
        """The scaled cosine over 26."""
        return cosine * self.clip.logit_scale.to(cosine.device) / SCALE
