"""What the rest of the package knows about a model: `Condition` and the `Policy` protocol."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..errors import fail, require
from ..source_images import Sources, sources_of


def guides(guidance_scale: float) -> bool:
    """Whether a guidance scale calls for guidance: above 1, as in the pipelines of diffusers.

    There, 0 means "off" to models such as FLUX.1-schnell, and so does every scale up to 1; the formula
    v_uncond + g (v_cond - v_uncond) would ignore the prompt at 0.

    Args:
        guidance_scale: g.
    """
    return guidance_scale > 1.0


@dataclass(frozen=True)
class Condition:
    """Encoded prompts, one per row.

    Args:
        tensors: name -> [N, ...]. The policy chooses the names; all tensors have the same number of rows.
        kinds: N values, on the host, that tell the policy which rows a call of its network may hold together; None: all
            of them.

    Raises:
        ValueError: if these differ in their number of rows.
    """

    tensors: dict[str, Tensor]
    kinds: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        rows = {name: len(tensor) for name, tensor in self.tensors.items()}
        require(len(set(rows.values())) == 1, "Condition", "tensors", "of the same length", rows)
        same = self.kinds is None or len(self.kinds) == len(self)
        require(same, "Condition", "kinds", f"{len(self)} like the rows", self.kinds and len(self.kinds))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        """Some of the rows: a view for a slice, a copy for an index tensor, which is best on the host."""
        if isinstance(rows, slice):
            return Condition(
                {name: tensor[rows] for name, tensor in self.tensors.items()}, self.kinds and self.kinds[rows]
            )
        taken = {name: tensor[rows.to(tensor.device, non_blocking=True)] for name, tensor in self.tensors.items()}
        return Condition(taken, self.kinds and tuple(self.kinds[row] for row in rows.tolist()))

    def to(self, device: torch.device | str) -> Condition:
        """The same rows on another device.

        Args:
            device: where to copy them.
        """
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.kinds)


class Policy(Protocol):
    """A flow model that makes images or videos from prompts, and whose velocity can be trained.

    A policy that edits images has `num_images`, the fewest and the most that a prompt brings, and its `encode` takes
    them as a third argument, `images`: P tuples of paths.

    Shapes: P prompts, R rows, T steps; `latent_shape` is the shape of one latent. Latents and velocities are passed in
    float32 (or float64), whatever the precision of the network.
    """

    network: nn.Module
    """The module that training changes and that `velocity` calls. It may be assigned: a wrapper (data-parallel,
    sharded, compiled) replaces it, and every method then uses the wrapper."""

    @property
    def device(self) -> torch.device:
        """Where the network is, and every tensor that it takes and returns."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the dimension of rows."""
        ...

    def guides(self, guidance_scale: float) -> bool:
        """Whether `velocity` needs prompts that were encoded with `guided` at this scale.

        Args:
            guidance_scale: g.
        """
        ...

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        """Encodes prompts.

        Args:
            prompts: P texts.
            guided: also encode what `velocity` needs for guidance.

        Returns:
            [P] rows.
        """
        ...

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity dx/dsigma.

        Args:
            latents: [R, *latent_shape].
            sigma: noise level, one number or [R].
            condition: R rows of `encode`.
            guidance_scale: g, see `guides`.

        Returns:
            In the dtype of `latents`, either (conditional, unconditional), which the caller combines into
            v_uncond + g (v_cond - v_uncond), or (velocity, None) if nothing is left to combine: without guidance, and
            for a model with its own kind of guidance.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes finished latents.

        Args:
            latents: [R, *latent_shape].

        Returns:
            Images [R, 3, H, W] or videos [R, F, 3, H, W], float32 in [0, 1].
        """
        ...

    def sigmas(self, num_steps: int) -> list[float]:
        """The noise levels that the model's own pipeline uses.

        Args:
            num_steps: T.

        Returns:
            T + 1 noise levels, from the noisiest to 0.
        """
        ...

    def parameters(self) -> list[Parameter]:
        """The parameters that training changes: those of `network` that require a gradient."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context `velocity` is that of the frozen policy from which training started."""
        ...

    def freeze_reference(self) -> None:
        """Makes the current weights those of `reference`. Only the first call counts.

        Call it before the first update, and before tuned weights are loaded to resume from; otherwise the first use of
        `reference` calls it. An adapter needs no copy: without it, the network is what training started from.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the model as safetensors, in a layout that its own library loads.

        Args:
            directory: where to write it.
        """
        ...


def check_policy(function: str, policy: object, *members: str) -> None:
    """Refuses a policy without the members that a function uses.

    Args:
        function: the caller, for the error.
        policy: what was given.
        members: names of attributes and methods of `Policy`.

    Raises:
        ValueError: naming what is missing.
    """
    if missing := [name for name in members if not hasattr(policy, name)]:
        got = f"{type(policy).__name__} without {', '.join(missing)}"
        fail(function, "policy", "a Policy, such as load_policy returns", got)


def images_of(function: str, policy: Any, metadata: Sequence[Mapping[str, Any]]) -> list[Sources]:
    """The source images of prompts.

    Args:
        function: the caller, for the error.
        policy: a policy or its class.
        metadata: of P prompts.

    Raises:
        ValueError: if it takes another number of images than a prompt has.
    """
    images, (fewest, most) = [sources_of(entry) for entry in metadata], getattr(policy, "num_images", (0, 0))
    numbers = f"{fewest} to {most}" if fewest < most else f"{most or 'no'}"
    for row in images:
        expected = f"that of {numbers} source image{'' if most == 1 else 's'} per prompt, as this model takes"
        require(fewest <= len(row) <= most, function, "image", expected, f"{len(row)}{f': {row}' if row else ''}")
    return images


def encoded(
    function: str, policy: Policy, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], guided: bool
) -> Condition:
    """Encodes prompts with their source images.

    Args:
        function: the caller, for the error.
        policy: the policy.
        prompts: P texts.
        metadata: of P prompts.
        guided: as in `Policy.encode`.

    Returns:
        [P] rows.

    Raises:
        ValueError: if the policy takes another number of images than a prompt has.
    """
    images = images_of(function, policy, metadata)
    more: dict[str, Any] = {"images": images} if any(images) else {}
    return policy.encode(prompts, guided=guided, **more)
