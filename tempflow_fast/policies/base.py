"""What the rest of the package knows of a model: `Condition` and the `Policy` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter


@dataclass(frozen=True)
class Condition:
    """Encoded prompts, one per row. The tensors' names belong to the policy; all share their leading dimension."""

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        rows = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"Condition: tensors must share one number of rows, got {rows}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        """The given rows: a view for a slice, a copy for an index tensor."""
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def tile(self, num_blocks: int) -> Condition:
        """The block of all N rows `num_blocks` times over, [num_blocks * N]: row r conditions trajectory r % N."""
        return Condition(
            {name: tensor.repeat(num_blocks, *[1] * (tensor.dim() - 1)) for name, tensor in self.tensors.items()}
        )

    def to(self, device: torch.device | str) -> Condition:
        """The same rows on `device`."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})


class Policy(Protocol):
    """A flow model that draws images from prompts, and whose velocity can be trained.

    Shapes: R rows, `latent_shape` the shape of one latent. Latents and velocities travel in float32 (or float64),
    whatever the precision of the network.
    """

    network: nn.Module
    """The one module that training changes and that `velocity` calls. It may be assigned: a wrapper around it
    (data-parallel, sharded, compiled) takes its place, and every method goes on with the wrapper."""
    device: torch.device
    """Where the network and every tensor it takes and returns live."""
    dtype: torch.dtype
    """Precision of the network."""
    latent_shape: tuple[int, ...]

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        """Encodings of P prompts, [P] rows; with `guided`, also what `velocity` needs for guidance."""
        ...

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Velocity dx/dsigma of latents [R, *latent_shape] at `sigma` (one number, or [R]), with guidance g; 1: none.

        Returns, in the dtype of `latents`, either (conditional, unconditional), of which the caller makes
        v_uncond + g (v_cond - v_uncond), or (velocity, None) where nothing is left to do: without guidance, and for a
        model that has its own way of guidance.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images [R, 3, H, W], float32 in [0, 1], of finished latents [R, *latent_shape]."""
        ...

    def sigmas(self, num_steps: int) -> list[float]:
        """The T + 1 noise levels that the model's own pipeline takes for `num_steps` steps, from the noisiest to 0."""
        ...

    def parameters(self) -> list[Parameter]:
        """The parameters that training changes: those of `network` that take a gradient."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context `velocity` is that of the frozen policy from which training started."""
        ...

    def freeze_reference(self) -> None:
        """Makes the present weights those of `reference`. The first such call counts, later ones change nothing.

        To be called before the first update, and before tuned weights are loaded to go on from them; the first use of
        `reference` calls it. An adapter needs no copy: without it, the network is what training started from.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the model as safetensors, in a layout that its own library loads."""
        ...
