"""PickScore (arXiv 2305.01569): what people pick of two images. Weights of yuvalkirstain/PickScore_v1: see its card."""

from __future__ import annotations

from torch import Tensor

from .clip import Clip
from .clip_model import ClipModel

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SCALE = 26.0
"""The divisor that is customary for the published score (about 18 to 24), so that it is near 1."""


class PickScore(Clip):
    """The published score divided by 26."""

    name = "pickscore"
    range = (-100 / SCALE, 100 / SCALE)

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str = PROCESSOR,
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        """Loads the model.

        Args:
            model: directory or hub name.
            tokenizer: directory or hub name of the model whose tokenizer it was trained with.
            dtype: float32, bfloat16 or float16.
            batch_size: images, or texts, per call.

        Raises:
            OSError: if something cannot be loaded.
        """
        self.tokenizer = tokenizer
        super().__init__(model, dtype, batch_size)

    def load(self, model: str, dtype: str) -> ClipModel:
        """Loads the weights and their tokenizer.

        Args:
            model: directory or hub name.
            dtype: as for the class.
        """
        return ClipModel(model, dtype, self.tokenizer)

    def score(self, cosine: Tensor) -> Tensor:
        """The scaled cosine divided by 26, [R].

        Args:
            cosine: [R].
        """
        return cosine * self.clip.logit_scale.to(cosine.device) / SCALE
