"""Wrong and odd arguments for the ops: what a program may pass by mistake, for every kind of argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.op_draws import Call

TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.flatten(1).to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "complex": lambda t: torch.complex(t.float(), t.float()),
    "imaginary": lambda t: torch.complex(t.float(), t.float()).imag,
    "integers": lambda t: t.nan_to_num().long(),
    "booleans": lambda t: t.bool(),
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "float64": lambda t: t.double(),
    "half": lambda t: t.half(),
    "meta": lambda t: t.to("meta"),
    "transposed": lambda t: t.unsqueeze(-1).expand(*t.shape, 2),
    "columns": lambda t: t.mT,
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "flipped": lambda t: t.flip(-1),
    "fewer rows": lambda t: t[1:],
    "more rows": lambda t: torch.cat([t, t]),
    "fewer elements": lambda t: t[..., 1:],
    "no elements": lambda t: t[..., :0],
    "one dimension": lambda t: t.flatten(),
    "no dimension": lambda t: t.sum(),
    "one more dimension": lambda t: t[None],
    "a parameter": lambda t: torch.nn.Parameter(t.clone()),
    "of a graph": lambda t: t.clone().requires_grad_() * 2,
    "negative view": lambda t: torch._neg_view(t),
    "overlapping": lambda t: torch.zeros(1, dtype=t.dtype).expand(t.shape),
    "rows without end": lambda t: t[:1].expand(2**50, *t.shape[1:]) if len(t) else t,
    "elements without end": lambda t: t.new_empty(0, 2**62),
    "zero rows of two dimensions without end": lambda t: t.new_empty(0, 2**31, 2**31),
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.float().numpy(),
    "nothing": lambda t: None,
    "a number": lambda t: 1.0,
    "a text": lambda t: "latents",
}  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 0, -0.0, 2, 1e300, -1e39, 5e-324, 10**400, 2**63, -(2**63) - 1, 65537, True,
    None, "1", Fraction(1, 3), Decimal("0.5"), np.float64(0.5), np.int64(1), np.float32(math.nan), 1j, torch.tensor(1),
    torch.tensor(0.5), [1], (), b"1", 1.5,
)  # fmt: skip
LISTS: dict[str, Callable[[list[int]], Any]] = {
    "longer": lambda v: [*v, 0],
    "shorter": lambda v: v[1:],
    "floats": lambda v: [0.5] * len(v),
    "negative": lambda v: [-1] * len(v),
    "large": lambda v: [2**62] * len(v),
    "too large": lambda v: [2**64] * len(v),
    "texts": lambda v: ["0"] * len(v),
    "lists": lambda v: [v],
    "nothing": lambda v: None,
    "a number": lambda v: 3,
    "a text": lambda v: "12",
    "a range": lambda v: range(len(v)),
    "an array": lambda v: np.array(v, dtype=np.int64),
    "int64": lambda v: torch.tensor(v, dtype=torch.int64),
    "int32": lambda v: torch.tensor([i % 100 for i in v], dtype=torch.int32),
    "float32": lambda v: torch.tensor(v, dtype=torch.float32),
    "two dimensions": lambda v: torch.tensor([v], dtype=torch.int64),
    "strided": lambda v: torch.tensor(v, dtype=torch.int64).repeat_interleave(2)[::2],
    "meta": lambda v: torch.tensor(v, dtype=torch.int64, device="meta"),
    "sparse": lambda v: torch.tensor(v, dtype=torch.int64).to_sparse(),
    "out of range": lambda v: torch.full((len(v),), 10**12),
    "negative tensor": lambda v: torch.full((len(v),), -1),
    "without end": lambda v: torch.zeros(1, dtype=torch.int64).expand(2**50),
}  # fmt: skip
SHAPES: tuple[Any, ...] = (
    (), (0,), (-1,), (2**62,), (2**35,), (2**31, 2**31, 2**31), (2.5,), ("a",), "ab", None, 5, (True,), torch.Size([2]),
    torch.zeros(2), [3, 0], (10**400,), np.array([2, 3]),
)  # fmt: skip
SEEDS: tuple[Any, ...] = (
    torch.tensor(3), torch.tensor([3]), torch.tensor([3, 4]), torch.tensor(3, dtype=torch.int32), torch.tensor(0.5),
    torch.tensor(3, device="meta"), torch.tensor([3]).to_sparse(), torch.tensor(-5), *NUMBERS,
)  # fmt: skip
TABLES: tuple[Any, ...] = (None, "flow_sde", {}, [1.0, 0.5, 0.0], torch.zeros(8, 5))
DEVICES: tuple[Any, ...] = (
    "cpu",
    "meta",
    "cuda",
    "cuda:7",
    "tpu",
    "",
    None,
    3,
    -1,
    torch.device("cpu"),
    "cpu:99",
    1.5,
    "mps",
)


def spoiled(rng: Random, call: Call) -> tuple[Call, str]:
    """The call with one argument, or all tensors, replaced, and a sentence about it.

    An argument that torch itself cannot make of the drawn one is left as it was.
    """
    arguments = dict(call.arguments)
    if call.op == "initial_noise":
        arguments["device"] = None
    name = rng.choice(sorted(arguments))
    names = [name]
    if isinstance(arguments[name], Tensor):
        kind = rng.choice(sorted(TENSORS))
        if rng.random() < 0.4:
            names = [each for each, value in arguments.items() if isinstance(value, Tensor)]
        for each in names:
            arguments[each] = _made(TENSORS[kind], arguments[each])
    elif isinstance(arguments[name], list):
        kind = rng.choice(sorted(LISTS))
        arguments[name] = _made(LISTS[kind], arguments[name])
    else:
        others = {"shape": SHAPES, "seed": SEEDS, "table": TABLES, "device": DEVICES}
        arguments[name] = rng.choice(others.get(name, NUMBERS))
        kind = repr(arguments[name])[:60]
    return Call(call.op, arguments), f"{' and '.join(names)}: {kind}"


def _made(make: Callable[[Any], Any], value: Any) -> Any:
    try:
        return make(value)
    except (RuntimeError, IndexError, NotImplementedError):  # such as rows of nothing in a nested tensor
        return value


def plain(call: Call) -> Call | None:
    """The call with contiguous copies of its tensors and usual numbers; None if a tensor is not dense or is empty."""
    copies: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if isinstance(value, Tensor):
            if value.is_meta or value.layout != torch.strided or value.is_nested:
                return None
            value = value.detach().resolve_neg().contiguous().clone()
        elif isinstance(value, Real):
            value = int(value) if name in ("step", "num_branches", "seed") else float(value)
        copies[name] = value
    return Call(call.op, copies)
