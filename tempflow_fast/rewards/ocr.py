"""Accuracy of rendered text, read by RapidOCR, whose models come inside its package (`pip install tempflow-fast[ocr]`).

The score is that of Flow-GRPO (arXiv 2505.05470): 1 - edit distance / length of the wanted text, spaces and case left
out, and 1 where the wanted text stands somewhere within what was read. Flow-GRPO reads with PaddleOCR; RapidOCR runs
models of the same family.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Metadata
from .pixels import as_bytes


class Ocr:
    """How much of the wanted text an image shows, in [0, 1].

    The wanted text is `metadata["text"]`, else what stands between the first two double quotes of the prompt. Images
    are read on the CPU, one by one.
    """

    name = "ocr"
    range = (0.0, 1.0)

    def __init__(self, num_threads: int = -1) -> None:
        """`num_threads`: CPU threads for one image; -1: all. ValueError if RapidOCR is not installed."""
        self._reader = _reader(num_threads)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float64 [R], of images [R, 3, H, W]; ValueError for a prompt that asks for no text."""
        wanted = [wanted_text(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]
        scores = [accuracy(self.read(image), text) for image, text in zip(as_bytes(images).cpu(), wanted, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def read(self, image: Tensor) -> str:
        """The text in a uint8 image [3, H, W] on the host, its lines from top to bottom without a break."""
        bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
        return "".join(self._reader(bgr).txts or ())


def wanted_text(prompt: str, metadata: Metadata) -> str:
    """What an image of the prompt should spell."""
    pieces = prompt.split('"')
    text = metadata.get("text") or (pieces[1] if len(pieces) > 2 else "")
    if not normalized(text):
        raise ValueError(f'ocr: prompt must quote a text in "..." or its metadata must hold one, got {prompt!r}')
    return text


def accuracy(read: str, wanted: str) -> float:
    """1 - edit distance / length of the wanted text, not below 0; 1 where it stands within the text that was read."""
    read, wanted = normalized(read), normalized(wanted)
    if wanted in read:
        return 1.0
    return 1 - min(edit_distance(read, wanted), len(wanted)) / len(wanted)


def normalized(text: str) -> str:
    """`text` without spaces and case."""
    return "".join(text.split()).casefold()


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements of a character that turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@functools.cache
def _reader(num_threads: int) -> Any:
    try:
        import onnxruntime  # noqa: F401  RapidOCR does not name it as a requirement
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(f"ocr: RapidOCR must be installed: pip install tempflow-fast[ocr] ({error})") from error
    settings = {
        "Global.log_level": "critical",  # an image without text would be a warning each
        "Global.use_cls": False,  # text upside down is not what was asked for
        "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
    }
    return RapidOCR(params=settings)
