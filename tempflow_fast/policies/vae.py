"""An autoencoder that decodes in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import require
from .offload import own_tensors, swapped


class Bf16Decoder:
    """An autoencoder's decoder with bf16 weights next to its own.

    Its last block and what follows stay in float32: there the image has its full size, and bf16 has 8 bits where
    an image needs 8 bits without those for rounding. The autoencoder itself remains exact, and so does what is saved.

    Args:
        vae: has a `decoder` with `up_blocks`, as diffusers' autoencoders have.

    Raises:
        ValueError: if it has not.
    """

    def __init__(self, vae: Any) -> None:
        self._tensors = bf16_weights(vae)
        for part in (*_first(vae), *_last(vae)):
            part.register_forward_pre_hook(_in_precision_of_weights)
        self._copies = [tensor.detach().to(torch.bfloat16) for tensor in self._tensors]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside this context the decoder computes in bf16, and gives float32 pixels."""
        with swapped(self._tensors, self._copies):
            yield


def bf16_weights(vae: Any) -> list[Tensor]:
    """The weights of which `Bf16Decoder` makes copies.

    Args:
        vae: as for that class.

    Raises:
        ValueError: as that class.
    """
    exact = {id(tensor) for tensor in own_tensors(_last(vae))}
    return [tensor for tensor in own_tensors(_first(vae)) if id(tensor) not in exact]


def _first(vae: Any) -> list[nn.Module]:
    """What decodes."""
    parts = (getattr(vae, "post_quant_conv", None), vae.decoder)
    return [part for part in parts if part is not None]


def _last(vae: Any) -> list[nn.Module]:
    """The decoder's last block and what follows it."""
    decoder: Any = getattr(vae, "decoder", None)
    blocks: Any = getattr(decoder, "up_blocks", None)
    expected = "'fp32' for an autoencoder whose decoder has no up_blocks"
    require(decoder is not None and bool(blocks), "Bf16Decoder", "vae_precision", expected, type(vae).__name__)
    return [blocks[-1], *(part for name, part in decoder.named_children() if name.endswith("_out"))]


def _in_precision_of_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(value.to(dtype) if isinstance(value, Tensor) else value for value in inputs)
