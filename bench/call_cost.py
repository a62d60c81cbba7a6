"""Kernels and memory traffic of one network call of a rollout, counted on tensors without data.

python -m bench.call_cost        SD3.5-Medium's shape, 24 guided rows at 512 px, with a LoRA of rank 32
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tempflow_fast.policies.lora import adapters_disabled
from tempflow_fast.policies.merged import merged_weights

from .gpu.models import SD35_MEDIUM, Shape, policy_without_weights

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view"}


@dataclass
class Cost:
    """Of a call."""

    kernels: int = 0
    """Operators that are no views, a kernel each."""
    traffic: int = 0
    """Bytes read and written outside products in 16 bits, which read their operands many times over from caches."""

    def __str__(self) -> str:
        return f"{self.kernels} kernels, {self.traffic / 1e9:.0f} GB"


class CallCounter(TorchDispatchMode):
    """Counts the operators inside it; views of their inputs are free."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operator: Any = func
        name = operator.overloadpacket.__name__
        if operator.is_view or name in FREE:
            return out
        self.cost.kernels += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if name not in PRODUCTS or any(tensor.dtype == torch.float32 for tensor in tensors):
            self.cost.traffic += sum(tensor.nbytes for tensor in tensors)
        return out


class _FusedAttention(TorchFunctionMode):
    """Attention as the one kernel that it is on a GPU: without data, torch takes it apart into softmax and products."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.cost.kernels += 1
        query: Tensor = args[0] if args else (kwargs or {})["query"]
        return torch.empty_like(query)


def call_cost(shape: Shape, num_rows: int, weights: str) -> Cost:
    """What one guided call costs in bf16.

    Args:
        shape: of the network, which gets a LoRA of rank 32.
        num_rows: before guidance doubles them.
        weights: "bare" (without the adapter), "as trained" or "merged".
    """
    policy = policy_without_weights(shape)
    latents = torch.empty(num_rows, *policy.latent_shape, device="meta")
    condition = policy.encode(["a prompt"] * num_rows, guided=True)
    contexts = {"bare": adapters_disabled, "merged": merged_weights}
    context = contexts[weights](policy.network) if weights in contexts else nullcontext()
    with torch.no_grad(), context, CallCounter() as counter, _FusedAttention(counter.cost):
        policy.velocity(latents, torch.empty(num_rows, device="meta"), condition, shape.guidance_scale)
    return counter.cost


if __name__ == "__main__":
    for kind in ("bare", "as trained", "merged"):
        print(f"{kind:>10}: {call_cost(SD35_MEDIUM, 24, kind)}")
