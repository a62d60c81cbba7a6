"""How an op is registered: one schema, a reference body, a fake and, where it has one, a derivative.

Every schema is registered twice: in `tempflow_fast`, where compiled bodies serve their devices and the reference serves
the others, and in `tempflow_fast_reference`, where the reference alone serves float64.
Latents of any shape are viewed as rows [N, D]; log-densities and the KL are means over the D elements.

The compiled bodies know first derivatives in reverse mode, of the ops of the update. The reference is plain PyTorch, so
PyTorch itself derives it in every mode; whatever else is asked for (forward mode, a derivative of a derivative, a
transform of torch.func, a derivative of an op of the rollout) is computed from the reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference

Save = Callable[[Any, Any], tuple[Tensor, ...]]
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
        save: called after the forward with (ctx, outputs); returns the tensors that `backward` needs in addition to the
            arguments.
        backward: called with (those tensors, arguments by name, a gradient or None per output); returns gradients by
            argument. Arguments that it leaves out have none.
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
        others, tensors = (
            list(inputs),
            {place: value for place, value in enumerate(inputs) if isinstance(value, Tensor)},
        )
        for place in tensors:
            others[place] = None
        ctx.others, ctx.places = others, tuple(tensors)
        ctx.save_for_backward(*tensors.values(), *save(ctx, outputs))
        ctx.set_materialize_grads(False)  # no zeros as large as the gradient for outputs without one
        return outputs

    def ordered(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, inputs = ctx.saved_tensors, list(ctx.others)
        for place, tensor in zip(ctx.places, saved, strict=False):
            inputs[place] = tensor
        by_argument = dict(zip(names, inputs, strict=True))
        if torch.is_grad_enabled():  # create_graph=True
            found = _derived(name, by_argument, gradients)
        else:
            found = backward(saved[len(ctx.places) :], by_argument, *gradients)
        return tuple(found.get(each) for each in names)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(ordered)}
    function: Any = type(f"Differentiable_{op.__name__}", (torch.autograd.Function,), methods)

    def kernel(*inputs: Any) -> Any:
        if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
            return getattr(reference, name)(*inputs)
        return (function.apply if _requires_grad(inputs) else below)(*inputs)

    return kernel


def _derived(name: str, inputs: Mapping[str, Any], gradients: tuple[Tensor | None, ...]) -> Mapping[str, Tensor | None]:
    """The gradients of an op's arguments, differentiable in their turn, from the reference."""
    outputs = getattr(reference, name)(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    reached = [output for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    given = [gradient for gradient in gradients if gradient is not None]
    leaves = {each: value for each, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad}
    return torch.autograd.grad(reached, leaves, given, create_graph=True, allow_unused=True) if reached else {}


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
