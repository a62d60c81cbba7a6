"""What an iteration will hold in memory, measured on tensors without data, before anything is run."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..policies.base import Condition, Policy
from ..policies.compiled import uncompiled
from ..policies.merged import merges, num_merged_bytes
from ..rewards.background import WAITING_BYTES
from ..settings.iteration import GRPOConfig
from .budget import most_branches

GIB = 2**30
ADAM_BYTES = 8
"""AdamW's two moments of a parameter in float32."""
ROWS = 64
DECODED_ROWS = 4
MEASURED_IMAGES = 5
"""An image and what its statistics take at their peak, in images."""
PROMPT = "a prompt"


@dataclass(frozen=True)
class Memory:
    """Bytes in one process that holds the whole network (sharding divides `weights` and `state`).

    An estimate from below: the reward, the workspaces of libraries, what an allocator loses between its blocks, and
    the pool of captured graphs (about a rollout call's rows once more) come on top.
    """

    weights: int
    """Parameters and buffers of the network, and the copies with a merged adapter."""
    frozen: int
    """Text encoders and autoencoder, where they are on the network's device."""
    state: int
    """Gradients and AdamW's moments of the parameters that training changes."""
    trajectory: int
    """What a trajectory keeps from the rollout to the update: latents, and its text."""
    training_row: int
    """What a row adds to the peak of a training call."""
    rollout_row: int
    """What a row adds to the peak of a rollout call."""
    decoded_row: int
    """What an image adds to the peak of decoding it and measuring it."""
    images: int
    """The images of a trajectory, of which those wait for their scores that `WAITING_BYTES` allows."""

    def total(self, num_trajectories: int, training_rows: int, rollout_rows: int, decoded_rows: int) -> int:
        """The peak with so many trajectories of this process, and so many rows in its calls."""
        calls = max(self.training_row * training_rows, self.rollout_row * rollout_rows, self.decoded_row * decoded_rows)
        waiting = min(self.images * num_trajectories, WAITING_BYTES)
        return self.weights + self.frozen + self.state + self.trajectory * num_trajectories + waiting + calls

    def fitting(self, limit: float, num_trajectories: int) -> tuple[int, int, int]:
        """(micro_batch, max_batch, decode_batch): the most rows in calls of each kind that stay below `limit` bytes.

        Raises:
            ValueError: if not even calls of one row do.
        """
        left = limit - self.total(num_trajectories, 0, 0, 0)
        rows = int(left // self.training_row), int(left // self.rollout_row), int(left // self.decoded_row)
        if min(rows) < 1:
            need = self.total(num_trajectories, 1, 1, 1) / GIB
            raise ValueError(f"Memory: limit must be at least {need:.2f} GiB, got {limit / GIB:.2f} GiB")
        return rows

    def __str__(self) -> str:
        parts = {
            "network": self.weights,
            "text encoders and autoencoder": self.frozen,
            "gradients and optimizer": self.state,
            "per trajectory": self.trajectory,
            "per row of a training call": self.training_row,
            "per row of a rollout call": self.rollout_row,
            "per decoded image": self.decoded_row,
        }
        listed = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
        return f"GiB without rewards and workspaces: {listed}"


def measure(policy: Policy, config: GRPOConfig) -> Memory:
    """The memory that `policy` needs in an iteration; one prompt is encoded and one network row computed for it.

    To be called before the network is wrapped for many processes.
    """
    parameters = list(policy.network.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    scale = config.guidance_scale
    condition = policy.encode([PROMPT], guided=policy.guides(scale))
    with torch.no_grad(), uncompiled():
        # Networks keep tables from their first call (rotary embeddings); those must not be tensors without data.
        policy.velocity(torch.zeros(1, *policy.latent_shape, device=policy.device), 0.5, condition, scale)
    merged = num_merged_bytes(policy.network) if merges(policy.network, config.rollout_weights) else 0
    text = _num_bytes(list(condition.tensors.values()))  # gathered for every row of a call
    decoded, image = _decoded_bytes(policy)
    return Memory(
        weights=_num_bytes([*parameters, *policy.network.buffers()]) + merged,
        frozen=_num_bytes(_frozen(policy)),
        state=_num_bytes(trained) + ADAM_BYTES * sum(parameter.numel() for parameter in trained),
        trajectory=_trajectory_bytes(policy, condition, config),
        training_row=_row_bytes(policy, condition, config.training_guidance, with_gradient=True),
        rollout_row=_row_bytes(policy, condition, scale, with_gradient=False) + text,
        decoded_row=max(decoded, MEASURED_IMAGES * image),
        images=image * sum(most_branches(config)),
    )


def _frozen(policy: Policy) -> list[Tensor]:
    """The weights of a pipeline's other parts, where they are on the device of its network."""
    parts = getattr(getattr(policy, "pipeline", None), "components", {}).values()
    others = [part for part in parts if isinstance(part, nn.Module) and part is not policy.network]
    return [weight for part in others for weight in part.parameters() if weight.device == policy.device]


def _num_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _trajectory_bytes(policy: Policy, condition: Condition, config: GRPOConfig) -> int:
    counts = most_branches(config)
    # The buffer of the rollout (trunk and finished latents), then the states and the branches as they were drawn; a
    # multistep solver also remembers a latent of each branch.
    per_branch: float = 2 if config.tail_solver == "euler" else 3
    per_branch += 0 if config.gate_every is None else config.gate_share  # finished a second time
    num_latents = 1 + math.ceil(per_branch * sum(counts)) + len(counts)
    latents = 4 * torch.Size(policy.latent_shape).numel() * num_latents
    return latents + _num_bytes(list(condition.tensors.values()))


def _decoded_bytes(policy: Policy) -> tuple[int, int]:
    """What one of many images adds to the peak of a decoding call, and the image itself."""
    peaks, sizes = [], []
    for rows in (DECODED_ROWS, 2 * DECODED_ROWS):
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
            latents = torch.empty(rows, *policy.latent_shape, device=policy.device)
            with _WithoutData(fake) as bytes_:
                sizes.append(policy.decode(latents).nbytes)
        peaks.append(bytes_.peak)
    return (peaks[1] - peaks[0]) // DECODED_ROWS, (sizes[1] - sizes[0]) // DECODED_ROWS


def _row_bytes(policy: Policy, condition: Condition, guidance_scale: float, with_gradient: bool) -> int:
    """What one of many rows adds to the peak of a call; with few, the gradients of the weights may be the peak."""
    few, many = (_peak(policy, condition, rows, guidance_scale, with_gradient) for rows in (ROWS, 2 * ROWS))
    return -((few - many) // ROWS)


def _peak(policy: Policy, condition: Condition, num_rows: int, guidance_scale: float, with_gradient: bool) -> int:
    """Most bytes alive at once in one call of `num_rows` rows, beyond weights and inputs."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, uncompiled():
        latents = torch.empty(num_rows, *policy.latent_shape, device=policy.device)
        sigma = torch.full((num_rows,), 0.5, device=policy.device)
        rows = Condition(
            {name: tensor.expand(num_rows, *tensor.shape[1:]) for name, tensor in condition.tensors.items()}
        )
        with _WithoutData(fake) as bytes_, torch.set_grad_enabled(with_gradient):
            velocity, uncond = policy.velocity(latents, sigma, rows, guidance_scale)
            if with_gradient:
                # Not .backward(): the gradients of real parameters must not become tensors without data.
                total = velocity.sum() if uncond is None else velocity.sum() + uncond.sum()
                torch.autograd.grad(total, policy.parameters(), allow_unused=True)
    return bytes_.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make inside it, from their making to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, self._entering, (args, kwargs or {}))
        out = func(*args, **kwargs)
        tree_map_only(Tensor, self._count, out)
        return out

    def _entering(self, tensor: Tensor) -> Tensor:
        """An input, whose storage was there before."""
        self._seen.add(tensor.untyped_storage())
        return tensor

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


class _WithoutData(LiveBytes):
    """The same for tensors without data; others that are used are taken for such."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def _entering(self, tensor: Tensor) -> Tensor:
        return super()._entering(tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor))
