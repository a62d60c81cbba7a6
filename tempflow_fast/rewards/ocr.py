"""Accuracy of rendered text, read by RapidOCR, whose package contains its models (`pip install tempflow-fast[ocr]`).

The score is that of Flow-GRPO (arXiv 2505.05470): 1 - edit distance / length of the wanted text, ignoring spaces, case
and whether an accent is a character of its own, and 1 if the wanted text occurs anywhere in what was read. Flow-GRPO
reads with PaddleOCR; RapidOCR runs models of the same family.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import fail, require
from .base import Metadata
from .pixels import as_bytes


class Ocr:
    """How much of the wanted text an image shows, in [0, 1].

    The wanted text is `metadata["text"]`, or else the text between the first two double quotes of the prompt. Images
    are read on the CPU, one by one.
    """

    name = "ocr"
    range = (0.0, 1.0)

    def __init__(self, num_threads: int = -1) -> None:
        """Loads the reader.

        Args:
            num_threads: CPU threads for one image; -1: all.

        Raises:
            ValueError: if RapidOCR is not installed.
        """
        self._reader = _reader(num_threads)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        """Scores, float64 [R].

        Args:
            images: [R, 3, H, W] in [0, 1], on any device.
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            ValueError: if a prompt asks for no text.
        """
        wanted = _wanted_texts(prompts, metadata)
        scores = [accuracy(self.read(image), text) for image, text in zip(as_bytes(images).cpu(), wanted, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> None:
        """Refuses prompts that ask for no text.

        Args:
            prompts: R texts.
            metadata: R entries of the prompt set.

        Raises:
            ValueError: naming the first one.
        """
        _wanted_texts(prompts, metadata)

    def read(self, image: Tensor) -> str:
        """The text in an image, its lines from top to bottom without breaks.

        Args:
            image: uint8 [3, H, W] on the host.
        """
        bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
        return "".join(self._reader(bgr).txts or ())


def wanted_text(prompt: str, metadata: Metadata) -> str:
    """The text that an image of the prompt should show.

    Args:
        prompt: may quote the text.
        metadata: may have it as `text`, also an integer, which has priority.

    Raises:
        ValueError: if there is none.
    """
    pieces = prompt.split('"')
    told = metadata.get("text")
    is_text = told is None or (isinstance(told, (str, int)) and not isinstance(told, bool))
    require(is_text, "ocr", "text in the metadata", "a text or an integer", repr(told))
    text = (pieces[1] if len(pieces) > 2 else "") if told is None or told == "" else str(told)
    expected = 'one that quotes a text in "..." or has one in its metadata'
    require(bool(normalized(text)), "ocr", "prompt", expected, repr(prompt))
    return text


def _wanted_texts(prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[str]:
    return [wanted_text(prompt, entry) for prompt, entry in zip(prompts, metadata, strict=True)]


def accuracy(read: str, wanted: str) -> float:
    """1 - edit distance / length of the wanted text, at least 0; 1 if the wanted text occurs in what was read.

    Args:
        read: what the image shows.
        wanted: what it should show; not empty.
    """
    read, wanted = normalized(read), normalized(wanted)
    if wanted in read:
        return 1.0
    return 1 - min(edit_distance(read, wanted), len(wanted)) / len(wanted)


def normalized(text: str) -> str:
    """The text without spaces and case, its accents joined to their letters.

    Args:
        text: any text.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", "".join(text.split())).casefold())


def edit_distance(a: str, b: str) -> int:
    """The Levenshtein distance: the fewest insertions, deletions and replacements that turn `a` into `b`.

    Args:
        a: one text.
        b: the other one.
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@functools.cache
def _reader(num_threads: int) -> Any:
    try:
        import onnxruntime  # noqa: F401  RapidOCR does not list it as a requirement
        from rapidocr import RapidOCR
    except ImportError as error:
        fail("ocr", "RapidOCR", "installed (pip install tempflow-fast[ocr])", error)
    settings = {
        "Global.log_level": "critical",  # each image without text would be a warning
        "Global.use_cls": False,  # text upside down does not count
        "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
    }
    return RapidOCR(params=settings)
