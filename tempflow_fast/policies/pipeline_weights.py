"""The weights of a pipeline: those that are trained, adapters for them, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..quiet import quiet
from . import lora, lora_file
from .families import Family
from .model_files import LIBRARIES
from .network import NetworkPolicy
from .offload import ALIGNMENT
from .pipeline_parts import encoders

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PipelineWeights(NetworkPolicy):
    """The network of a pipeline, which is trained, and its other parts, which are frozen.

    Args:
        pipeline: the loaded pipeline. The VAE is moved to float32. Of a network that has an adapter, this alone is
            trained.
    """

    family: ClassVar[Family]
    """Of the pipelines that a subclass takes."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline: Any = pipeline  # diffusers declares no types for its parts
        network, vae = self._network, self.pipeline.vae
        self.dtype: torch.dtype = network.dtype
        if vae.dtype != torch.float32:
            vae.to(torch.float32)
        for part in (vae, *self._encoders):
            _aligned(part.requires_grad_(False).eval())
        if not lora.has_adapter(network):  # else that alone is trained, whoever added it: the reference is without it
            network.requires_grad_(True)
        super().__init__(_aligned(network.eval()))
        for name in self.family.idle(network):
            self.network.get_submodule(name).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """The network's device."""
        device: torch.device = self._network.device
        return device

    @property
    def _network(self) -> Any:
        """The network in the pipeline, without a wrapper."""
        return getattr(self.pipeline, self.family.network)

    @property
    def _encoders(self) -> list[nn.Module]:
        return encoders(self.pipeline, self.family)

    def enable_gradient_checkpointing(self) -> None:
        """The backward pass recomputes each block instead of keeping its activations: slower, but far less memory."""
        self._network.enable_gradient_checkpointing()

    @quiet(*LIBRARIES)
    def add_lora(
        self,
        rank: int = 32,
        alpha: float = 64,
        targets: Sequence[str] | None = None,
        init: str | bool = "gaussian",
        seed: int = 0,
    ) -> None:
        """Trains a low-rank adapter in float32 instead of the network, which is frozen and becomes the reference.

        Args:
            rank: inner dimension of the adapter.
            alpha: the adapter's output is scaled by alpha / rank.
            targets: the layers whose names end in one of these are adapted; all of them must be linear. None: those of
                attention.
            init: peft's `init_lora_weights`, one that leaves the network's own weights as they are.
            seed: decides the initial weights, which are the same in every process.

        Raises:
            ValueError: if the rank or alpha is not positive, a target names no layer or one that is not linear, or
                there is an adapter already.
        """
        network = self._network
        lora.add_lora(network, rank, alpha, targets, init, seed, excluded=self.family.idle(network))

    @quiet(*LIBRARIES)
    def save_lora(self, directory: str | Path) -> None:
        """Writes `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` reads.

        Args:
            directory: where to write it.

        Raises:
            ValueError: if there is no adapter.
        """
        lora_file.save_lora(self.pipeline, directory)

    @quiet(*LIBRARIES)
    def load_lora(self, path: str | Path) -> None:
        """Adds the adapter of such a directory or file, to sample with it or to train it further.

        Args:
            path: the file, or its directory.

        Raises:
            ValueError: if there is no such file, anything in it does not fit or would not be applied, or there is an
                adapter already. The policy is then as it was.
        """
        lora_file.load_lora(self._network, path)

    @quiet(*LIBRARIES)
    def save(self, directory: str | Path) -> None:
        """Writes the whole pipeline, with an adapter merged into it, for `from_pretrained` here and in diffusers.

        Args:
            directory: where to write it.
        """
        transformer = self.pipeline.transformer
        try:
            if lora.has_adapter(transformer):
                self.pipeline.transformer = lora.merged(transformer)
            self.pipeline.save_pretrained(str(directory), safe_serialization=True)
        finally:
            self.pipeline.transformer = transformer


def _aligned(module: nn.Module) -> nn.Module:
    """`module` with every weight at an aligned address.

    Weights mapped from a safetensors file have the file's offsets, and matrix kernels round differently at unaligned
    addresses: a loaded policy would not give the bits of its own copy, nor those of the policy that was saved.
    """
    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module
