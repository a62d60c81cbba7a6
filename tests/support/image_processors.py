"""Image processors of transformers that read with Pillow alone, without torchvision."""

from __future__ import annotations

from typing import Any


def pil_processor(name: str, **settings: Any) -> Any:
    """An image processor; until transformers 5.0 its class has no suffix.

    Args:
        name: of its model, as in its class: "CLIP".
        settings: of the processor.
    """
    import transformers

    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return kind(**settings)
