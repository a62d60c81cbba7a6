"""What the stages with large networks time: calls, rollouts and iterations, by weights and by compilation."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

import tempflow_fast as tff
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import compile_blocks, uncompiled
from tempflow_fast.policies.lora import adapters_disabled
from tempflow_fast.policies.merged import merged_weights

from .models import Shape, random_policy
from .plan import Plan

PROMPT = "a red fox in the snow"
GIB = 2**30


@contextmanager
def narrow_adapter(network: nn.Module) -> Iterator[None]:
    """Inside this context the adapter has the network's precision."""
    adapter = [weight for name, weight in network.named_parameters() if "lora_" in name]
    wide, dtype = [weight.data for weight in adapter], next(network.parameters()).dtype
    for weight in adapter:
        weight.data = weight.data.to(dtype)
    try:
        yield
    finally:
        for weight, data in zip(adapter, wide, strict=True):
            weight.data = data


WEIGHTS = {
    "fp32 adapter": lambda network: nullcontext(),
    "16-bit adapter": narrow_adapter,
    "merged": merged_weights,
    "no adapter": adapters_disabled,
}
"""Name -> a context for the network; the first is as trained."""


class Large:
    """A network of a published shape, made when it is first used, and its calls.

    Args:
        plan: where, and in which precision.
        shape: of the network.
        autoencoder: whether images are decoded by one of the published shape.
    """

    def __init__(self, plan: Plan, shape: Shape, autoencoder: bool = False) -> None:
        self.plan, self.shape, self.device = plan, shape, plan.device
        self._autoencoder, self._is_compiled = autoencoder, False

    @cached_property
    def policy(self) -> DiffusersPolicy:
        """The policy, with an adapter of rank 32 in fp32."""
        return random_policy(self.shape, self.device, self.plan.dtype, autoencoder=self._autoencoder)

    @contextmanager
    def computing(self, weights: str | None, compiled: bool) -> Iterator[None]:
        """Inside this context calls use these weights, without gradients; None: iterations choose, and train."""
        if compiled and not self._is_compiled:
            compile_blocks(self.policy.network)
            self._is_compiled = True
        with ExitStack() as stack:
            if weights is not None:
                stack.enter_context(torch.no_grad())
                stack.enter_context(WEIGHTS[weights](self.policy.network))
            if not compiled:
                stack.enter_context(uncompiled())
            yield

    def call(self, num_rows: int) -> Callable[[], object]:
        """A guided network call of so many rows."""
        policy = self.policy
        condition = policy.encode([PROMPT] * num_rows, guided=True)
        latents = torch.randn(num_rows, *policy.latent_shape, device=self.device)
        sigma = torch.full((num_rows,), 0.5, device=self.device)
        return lambda: policy.velocity(latents, sigma, condition, self.shape.guidance_scale)

    def rollout(self, config: tff.GRPOConfig, graphs: CudaGraphs | None = None) -> Callable[[], object]:
        """A whole rollout of one prompt."""
        policy, num = self.policy, config.num_seeds
        table, condition = config.table(policy), policy.encode([PROMPT] * num, guided=True)
        noise = tff.ops.initial_noise(policy.latent_shape, 0, range(num), self.device)
        limits = (config.max_batch, self.shape.guidance_scale, graphs)
        return lambda: tff.rollout(policy, condition, table, noise, config.num_branches, 0, None, *limits)

    @property
    def described(self) -> str:
        """The network in a sentence."""
        millions = sum(parameter.numel() for parameter in self.policy.network.parameters()) / 1e6
        precision = str(self.policy.dtype).removeprefix("torch.")
        return f"{millions:.0f} M parameters in {precision}, latents {list(self.policy.latent_shape)}"


def described(config: tff.GRPOConfig) -> str:
    """The sizes of an iteration."""
    names = ("num_seeds", "num_steps", "num_branches", "max_batch", "micro_batch")
    return ", ".join(f"{name} {getattr(config, name)}" for name in names)


def redness(images: Tensor, prompts: object, metadata: object) -> Tensor:
    """A reward that differs between images and takes no time."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def peak_gib(device: torch.device, call: Callable[[], object]) -> float:
    """The largest memory of all tensors during a call, in GiB; NaN on a CPU, whose allocator does not count."""
    release(device)
    if device.type != "cuda":
        call()
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / GIB


def release(device: torch.device) -> None:
    """Frees the memory that nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
