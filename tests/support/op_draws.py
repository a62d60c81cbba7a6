"""Random valid calls of the ops: schedules, layouts in memory and values, from one source of random numbers.

The property tests pass hypothesis's source, which shrinks; tests/faults/fuzz_ops.py passes one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tempflow_fast import StepTable, linear_sigmas, step_table

OPS = ("guided_velocity", "euler_step", "branch_step", "initial_noise", "log_prob", "policy_loss")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 127, 1023, 1024, 1025, 2049)  # around vectors, sums and chunks
LARGEST = 3  # rows
KINDS = ("unit", "unit", "unit", "equal", "zero", "tiny", "subnormal", "large", "huge", "special")


class Call(NamedTuple):
    """A call of a public function."""

    op: str
    arguments: dict[str, Any]


def draw_table(rng: Random) -> StepTable:
    """A schedule and a sampler: short and long, uneven, of float32, close to 0 and 1; with tiny and large noise."""
    num_steps = rng.choice((1, 2, 3, 8, 40))
    levels = linear_sigmas(num_steps, rng.choice((1.0, 1.18, 3.0, 12.0, 0.3)))
    kind = rng.choice(("linear", "linear", "float32", "uneven", "close", "near 0"))
    if kind == "float32":
        levels = torch.tensor(levels).tolist()
    elif kind == "uneven":
        levels = sorted({rng.random() for _ in range(num_steps + 1)}, reverse=True)
    elif kind == "close":
        levels = [*levels[:-1], levels[-2] * (1 - 2**-24), 0.0]
    elif kind == "near 0":
        levels = [level * 1e-6 for level in levels]
    sampler, noise = rng.choice(("flow_sde", "dance_sde", "cps")), rng.choice((0.7, 0.9, 0.1, 1e-4, 1e-9, 0.999, 3.0))
    noise = min(noise, 1.0) if sampler == "cps" else noise
    silent = step_table(levels, sampler, noise, branch_steps=()).silent_steps
    return step_table(levels, sampler, noise, branch_steps=[i for i in range(len(levels) - 1) if i not in silent])


def noisy_steps(table: StepTable) -> list[int]:
    """The steps at which branches leave: all that have noise."""
    return list(table.branch_steps)


def draw_values(rng: Random, kinds: tuple[str, ...], *shape: int) -> Tensor:
    """Float64 values of one of KINDS; among special ones are infinities or NaN."""
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    kind = rng.choice(kinds)
    if kind == "equal":
        return torch.full_like(values, rng.choice((1.0, -0.5, 3.25)))
    if kind == "special" and values.numel():
        flat = values.flatten()
        for _ in range(rng.randrange(1, 3)):
            flat[rng.randrange(len(flat))] = rng.choice((math.inf, -math.inf, math.nan))
        return flat.view(shape)
    return values * {"zero": 0.0, "tiny": 1e-6, "subnormal": 1e-40, "large": 1e3, "huge": 1e30}.get(kind, 1.0)


def laid_out(rng: Random, values: Tensor, dtype: torch.dtype, num_leading: int = 1) -> Tensor:
    """The values in memory: contiguous, with gaps, from an odd place, one row repeated, or rows that overlap."""
    tensor = values.to(dtype).contiguous()
    kind = rng.choice(("contiguous", "contiguous", "gaps", "offset", "expanded", "overlapping"))
    rows, numel = tensor.shape[0], tensor[0].numel() if len(tensor) else 0
    if kind == "gaps" and rows:
        flat = tensor.flatten(num_leading)
        wide = flat.new_full((*flat.shape[:-1], flat.shape[-1] + rng.choice((1, 4, 7))), math.nan)
        wide[..., 1 : flat.shape[-1] + 1] = flat
        return wide[..., 1 : flat.shape[-1] + 1].unflatten(-1, tensor.shape[num_leading:])
    if kind == "offset" and numel:
        memory = tensor.new_full((tensor.numel() + 5,), math.nan)
        memory[3 : 3 + tensor.numel()] = tensor.flatten()
        return memory[3 : 3 + tensor.numel()].view(tensor.shape)
    if kind == "expanded" and rows:
        return tensor[:1].expand(tensor.shape)
    if kind == "overlapping" and rows > 1 and numel > 1 and num_leading == 1:
        memory = tensor.flatten()[: numel + rows - 1].clone()
        return memory.as_strided((rows, numel), (1, 1)).unflatten(1, tensor.shape[1:])
    return tensor


def draw_call(rng: Random, op: str | None = None) -> Call:
    """A valid call of one of the ops (of `op`, if it is given) on float32, bfloat16 or float16 tensors."""
    op = op or rng.choice(OPS)
    num_rows, dtype, table = rng.randrange(LARGEST + 1), rng.choice(DTYPES), draw_table(rng)
    numel, kinds = rng.choice(SIZES), KINDS if rng.random() < 0.4 else ("unit",)
    shape = rng.choice(((numel,), (1, numel), (numel, 1)))
    if not noisy_steps(table):
        table = step_table(linear_sigmas(8, 3.0))

    def rows() -> Tensor:
        return laid_out(rng, draw_values(rng, kinds, num_rows, *shape), dtype)

    guidance: dict[str, Any] = {"velocity": rows()}
    if op == "guided_velocity" or (op != "log_prob" and rng.random() < 0.4):
        guidance |= {"velocity_uncond": rows(), "guidance_scale": rng.choice((4.5, 0.0, -1.0, 1.0, 1e3))}
    noise = {
        "seed": rng.choice((0, 7, 2**40, 2**63 - 1)),
        "trajectory_ids": [rng.randrange(2**50) for _ in range(num_rows)],
    }
    steps = [rng.choice(noisy_steps(table)) for _ in range(num_rows)]
    if op == "guided_velocity":
        return Call(op, guidance)
    if op == "initial_noise":
        return Call(op, {"shape": shape, **noise})
    if op == "euler_step":
        return Call(op, {"latents": rows(), "table": table, "step": rng.randrange(table.num_steps), **guidance})
    if op == "branch_step":
        step = {"step": rng.choice(noisy_steps(table)), "num_branches": rng.choice((1, 2, 3, 5, 9))}
        return Call(op, {"latents": rows(), "table": table, **step, **noise, **guidance})
    if op == "log_prob":
        return Call(op, {"latents_next": rows(), "latents": rows(), "table": table, "steps": steps, **guidance})
    return Call(op, _draw_loss(rng, kinds, table, steps, rows, guidance, num_rows, shape, dtype))


def _draw_loss(
    rng: Random, kinds: tuple[str, ...], table: StepTable, steps: list[int], rows: Callable[[], Tensor],
    guidance: dict[str, Any], num_rows: int, shape: tuple[int, ...], dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of policy_loss: a policy that has not changed, has changed a little, or is another."""
    latents, num_branches = rows(), rng.choice((2, 2, 3, 5, 1, 9))
    change, old = rng.choice((0.0, 1e-4, 1e-2, 1e-2, None)), rows()
    if change is not None:
        moved = guidance["velocity"].double() + change * draw_values(rng, kinds, num_rows, *shape)
        old = moved.to(dtype).contiguous()
    _, a, b, s, _ = table.coefficients()[steps].view(num_rows, 5, *[1] * (1 + len(shape))).unbind(1)
    noise = draw_values(rng, kinds, num_rows, num_branches, *shape)
    branches = a * latents.double()[:, None] + b * old.double()[:, None] + s * noise
    advantages = draw_values(rng, kinds, num_rows, num_branches).float()
    options = {"clip_range": rng.choice((1e-4, 1e-3, 0.2, 0.99, 1e-8))}
    if rng.random() < 0.5:
        options |= {"velocity_ref": rows(), "beta": rng.choice((0.0, 0.04, 10.0))}
    return {
        "latents": latents, "branches": laid_out(rng, branches, dtype, num_leading=2), "velocity_old": old,
        "advantages": advantages, "table": table, "steps": steps, **guidance, **options,
    }  # fmt: skip
