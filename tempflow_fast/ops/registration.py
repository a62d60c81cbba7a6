"""How an op is registered: one schema, a reference body, a fake and, where it has one, a derivative.

Every schema is registered twice: in `tempflow_fast`, where compiled bodies serve their devices and the reference serves
the others, and in `tempflow_fast_reference`, where the reference alone serves float64.
Latents of any shape are viewed as rows [N, D]; log-densities and the KL are means over the D elements.

The compiled bodies know first derivatives in reverse mode, of the ops of the update. The reference is plain PyTorch, so
PyTorch itself derives it in every mode; whatever else is asked for (forward mode, a derivative of a derivative, a
transform of torch.func, a derivative of an op of the rollout) is computed from the reference, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference

Save = Callable[[Any, Mapping[str, Any], Any], None]
Backward = Callable[..., Mapping[str, Tensor | None]]

_arguments: dict[str, tuple[str, ...]] = {}  # op -> the names of its arguments
_libraries = [torch.library.Library(name, "DEF") for name in ("tempflow_fast", "tempflow_fast_reference")]


def define(schema: str, fake: Callable[..., Any]) -> None:
    """Registers an op with the reference body of its name.

    Args:
        schema: name, arguments and results, in PyTorch's notation.
        fake: makes outputs of the right shapes and dtypes from the same arguments.
    """
    name, arguments, _ = re.split(r"[()]", schema, maxsplit=2)
    _arguments[name] = tuple(argument.split()[-1] for argument in arguments.split(", "))
    for library in _libraries:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
        library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")
        library.impl(name, getattr(reference, name), "FuncTorchBatched")  # vmap batches each operation in it
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def differentiable(name: str, save: Save, backward: Backward) -> None:
    """Gives an op its derivative.

    It does what torch.library.register_autograd does, with the same private guard of torch, but without the work that
    costs a small op up to 90 us in every call (figures in LAB.md).

    Args:
        name: the op.
        save: called after the forward with (ctx, arguments by name, outputs).
        backward: called with (ctx, a gradient or None per output); returns gradients by argument. Arguments that it
            leaves out have none. With gradients enabled (create_graph=True) it must be differentiable.
    """
    for library in _libraries:
        op = getattr(getattr(torch.ops, library.ns), name).default
        library.impl(name, _autograd_kernel(op, name, save, backward), "Autograd")


def _autograd_kernel(op: Callable[..., Any], name: str, save: Save, backward: Backward) -> Callable[..., Any]:
    names = _arguments[name]

    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def forward(ctx: Any, *inputs: Any) -> Any:
        outputs = below(*inputs)
        save(ctx, dict(zip(names, inputs, strict=True)), outputs)
        return outputs

    def ordered(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        by_name = backward(ctx, *gradients)
        return tuple(by_name.get(name) for name in names)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(ordered)}
    function: Any = type(f"Differentiable_{op.__name__}", (torch.autograd.Function,), methods)

    def kernel(*inputs: Any) -> Any:
        if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
            return getattr(reference, name)(*inputs)
        return (function.apply if _requires_grad(inputs) else below)(*inputs)

    return kernel


def _requires_grad(values: Iterable[object]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def namespace(dtype: torch.dtype) -> str:
    """The library that serves a dtype."""
    return "tempflow_fast_reference" if dtype == torch.float64 else "tempflow_fast"


def registered(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The registered op for tensors of a dtype."""
    return getattr(getattr(torch.ops, namespace(dtype)), name)


def underived(name: str, dtype: torch.dtype, *tensors: Tensor | None) -> Callable[..., Any]:
    """The registered op, which has no derivative, or the reference if one of these tensors is being differentiated."""
    if forward_ad._current_level >= 0 or _requires_grad(tensors):
        return getattr(reference, name)
    return registered(name, dtype)
