"""Whether what a policy makes is finite, and if not, why: a NaN would become a black image that rewards score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NotFiniteError
from .base import Policy
from .sharding import is_sharded


def finite_rows(latents: Tensor, images: Tensor) -> Tensor:
    """Which latents and which of their images are finite, without waiting for the device.

    Args:
        latents: [R, *latent_shape].
        images: [R, 3, H, W] or [R, F, 3, H, W], decoded from them.

    Returns:
        bool [2, R] on their device: the latents, then the images.
    """
    # A maximum is NaN if any value is; `isfinite` of all values would take as much memory again.
    largest = [torch.linalg.vector_norm(part.flatten(1), torch.inf, dim=1) for part in (latents, images)]
    return torch.stack([norm.isfinite() for norm in largest])


def require_finite(policy: Policy, finite: Tensor, prompts: Sequence[str], numbers: Sequence[int]) -> None:
    """Refuses latents and images that are not finite, and says what can be told of the cause. Waits for the device.

    Args:
        policy: made them.
        finite: [2, R] from `finite_rows`.
        prompts: R texts.
        numbers: R numbers of the images, for the message.

    Raises:
        NotFiniteError: naming the first row that is not finite.
    """
    fine_latents, fine_images = finite.tolist()
    for row, fine in enumerate(zip(fine_latents, fine_images, strict=True)):
        if not all(fine):
            cause = _decoder(policy) if fine[0] else _velocity(policy)
            raise NotFiniteError(f"image {numbers[row]} (prompt {prompts[row]!r}) is not finite: {cause}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite; of sharded tensors, those of this process. Waits for the device.

    Args:
        tensors: of any shapes, devices and dtypes; integers are finite.
    """
    largest: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        sharded: Any = tensor
        own = sharded.to_local() if is_sharded(tensor) else tensor.detach()
        if own.is_floating_point() and own.numel():
            # The largest absolute value is NaN if any value is; `isfinite` would make a copy first.
            largest.setdefault(own.device, []).append(torch.linalg.vector_norm(own, torch.inf).float())
    return all(bool(torch.stack(values).isfinite().all()) for values in largest.values())


def _velocity(policy: Policy) -> str:
    if not all_finite(policy.network.parameters()):
        return "weights of the policy are infinite or NaN"
    dtype = str(policy.dtype).removeprefix("torch.")
    advice = "a smaller learning rate or guidance scale, or more precision, may help"
    return f"the velocity of the policy overflows or is NaN, while its weights ({dtype}) are finite; {advice}"


def _decoder(policy: Policy) -> str:
    vae = getattr(getattr(policy, "pipeline", None), "vae", None)
    dtype = "" if vae is None else f" in {str(vae.dtype).removeprefix('torch.')}"
    return f"its latents are finite, but the decoder overflows or gives NaN{dtype}"
