"""One candidate for all ops, timed: `python -m bench.gpu.op_figures CANDIDATE --rows R --numel D`.

Candidates are native and triton (our bodies), eager and compile (PyTorch), and copy (of as many bytes as an op moves).
All are timed alike, by replays of a captured graph of calls on rotating inputs. A line of JSON per op is printed as
soon as it is measured, so that whatever ends this process loses no earlier figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tempflow_fast import linear_sigmas, ops, step_table
from tempflow_fast.graphs.capture import Capturer
from tempflow_fast.ops import bodies

from .. import baselines
from .results import Figures, first_line
from .roofline import CARDS, floor_seconds
from .timing import CALLS_PER_GRAPH, capturer_of, replayed_seconds

TABLE, STEP, K, SCALE, CLIP_RANGE = step_table(linear_sigmas(10, 3.0)), 3, 6, 4.5, 1e-4
BODIES = ("native", "triton")
CANDIDATES = ("copy", "eager", "compile", *BODIES)
DTYPES = (torch.float32, torch.bfloat16)
"""Latents travel in float32; 16 bits are what a caller may choose."""


@dataclass(frozen=True)
class Case:
    """An op, what it replaces, and the least number of bytes that it has to move."""

    op: str
    ours: Callable[[], object]
    eager: Callable[..., object]
    arguments: tuple[object, ...]
    num_bytes: int
    differentiated: bool = False
    """Whether what it replaces is a loss that is differentiated with respect to the arguments."""

    def replaced(self, function: Callable[..., object]) -> object:
        """Calls `function`, eager or compiled, as the op is called."""
        result = function(*self.arguments)
        return torch.autograd.grad(result, self.arguments) if self.differentiated else result


def measure(
    candidate: str,
    device: torch.device,
    num_rows: int,
    numel: int,
    rotated_bytes: int,
    budget: float,
    capturer: Callable[[], Capturer],
) -> Iterator[Figures]:
    """Times a candidate for all ops on [num_rows, numel] latents with K branches, in fp32 and bf16.

    Args:
        candidate: one of `CANDIDATES`.
        device: where it runs.
        num_rows: R.
        numel: D.
        rotated_bytes: what the inputs of the calls of one op take together at least.
        budget: seconds of the timed replays of an op, about.
        capturer: makes what captures a graph.

    Yields:
        A row per op and dtype; `problem` instead of the figure where it failed.
    """
    for dtype in DTYPES:
        sets = [list(cases(device, dtype, num_rows, numel))]
        smallest = min(case.num_bytes for case in sets[0])
        num_sets = max(2, min(CALLS_PER_GRAPH, -(-rotated_bytes // smallest)))
        sets += [list(cases(device, dtype, num_rows, numel)) for _ in range(num_sets - 1)]
        for same in zip(*sets, strict=True):
            row: Figures = {
                "op": same[0].op,
                "dtype": str(dtype).removeprefix("torch."),
                "R x D": f"{num_rows} x {numel}",
            }
            row |= {"MB": same[0].num_bytes / 1e6, **_floor(same[0], num_rows * numel, device)}
            try:
                calls = _calls(candidate, same, device)
                row[f"{candidate} us"] = replayed_seconds(calls, device, capturer(), budget) * 1e6
            except Exception as error:  # the other rows are worth having
                row["problem"] = f"{type(error).__name__}: {first_line(error)}"
            yield row


def _calls(candidate: str, same: tuple[Case, ...], device: torch.device) -> list[Callable[[], object]]:
    """The candidate's calls for one op on different memory."""
    if candidate == "copy":
        return [_copy(case.num_bytes, device) for case in same]
    if candidate in BODIES:
        return [case.ours for case in same]
    functions = [case.eager for case in same]
    if candidate == "compile":
        torch.compiler.reset()  # sizes and dtypes before this one must not make it dynamic
        functions = [torch.compile(function, dynamic=False) for function in functions]  # the same code, compiled once
    return [lambda case=case, of=of: case.replaced(of) for case, of in zip(same, functions, strict=True)]


def _copy(num_bytes: int, device: torch.device) -> Callable[[], object]:
    """Reads half of the bytes and writes the other half."""
    source = torch.zeros(num_bytes // 8, dtype=torch.float32, device=device)
    return source.clone


def _floor(case: Case, num_elements: int, device: torch.device) -> Figures:
    """The least time by the card's data sheet, if it is a known card."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    card = next((card for card in CARDS if card.name in name), None)
    return {} if card is None else {"floor us": floor_seconds(case.op, case.num_bytes, num_elements, K, card) * 1e6}


def cases(device: torch.device, dtype: torch.dtype, num_rows: int, numel: int) -> Iterator[Case]:
    """All ops on random data, with guidance for those that take it."""

    def rows() -> Tensor:
        return torch.randn(num_rows, numel, device=device).to(dtype)

    x, v, u, ids = rows(), rows(), rows(), torch.arange(num_rows, device=device)
    seed, step = torch.zeros((), dtype=torch.int64, device=device), baselines.Step(*TABLE.coefficients()[STEP].tolist())
    guided = {"velocity_uncond": u, "guidance_scale": SCALE}
    size = x.nbytes
    yield Case("guided_velocity", lambda: ops.guided_velocity(v, u, SCALE), baselines.guided, (v, u, SCALE), 3 * size)
    yield Case(
        "euler_step",
        lambda: ops.euler_step(x, v, TABLE, STEP, **guided),
        baselines.euler_step,
        (x, v, u, SCALE, step),
        4 * size,
    )
    yield Case(
        "branch_step",
        lambda: ops.branch_step(x, v, TABLE, STEP, K, seed, ids, **guided),
        baselines.guided_branch_step,
        (x, v, u, SCALE, step, K),
        (4 + K) * size,
    )
    yield Case(
        "initial_noise",
        lambda: ops.initial_noise((numel,), seed, ids),
        lambda: torch.randn(num_rows, numel, device=device),
        (),
        num_rows * numel * 4,
    )
    _, branches, _ = ops.branch_step(x, v, TABLE, STEP, K, seed, ids, **guided)
    steps, child = torch.full((num_rows,), STEP, device=device), branches[:, 0].contiguous()
    yield Case(
        "log_prob", lambda: ops.log_prob(child, x, v, TABLE, steps), baselines.log_prob, (child, x, v, step), 3 * size
    )
    trained = v.clone().requires_grad_()
    yield Case(
        "log_prob, both passes",
        lambda: torch.autograd.grad(ops.log_prob(child, x, trained, TABLE, steps).sum(), trained),
        lambda velocity: baselines.log_prob(child, x, velocity, step).sum(),
        (trained,),
        (3 + 4) * size,
        differentiated=True,
    )
    changed = [(t.float() + 0.01 * torch.randn_like(t, dtype=torch.float32)).to(dtype) for t in (v, u)]
    yield _loss_case("policy_loss, both passes", changed, x, branches, ops.guided_velocity(v, u, SCALE))
    yield _loss_case("policy_loss, unchanged policy", [v, u], x, branches, ops.guided_velocity(v, u, SCALE))


def _loss_case(name: str, velocities: list[Tensor], x: Tensor, branches: Tensor, old: Tensor) -> Case:
    """policy_loss and its gradients for a policy with the given conditional and unconditional velocities."""
    leaves = [velocity.clone().requires_grad_() for velocity in velocities]
    advantages = torch.randn(branches.shape[:2], device=x.device)
    steps = torch.full((len(x),), STEP, device=x.device)
    step = baselines.Step(*TABLE.coefficients()[STEP].tolist())
    inputs = baselines.LossInputs(x, branches, old, advantages, step, CLIP_RANGE)

    def ours() -> object:
        options = {"clip_range": CLIP_RANGE, "velocity_uncond": leaves[1], "guidance_scale": SCALE}
        result = ops.policy_loss(leaves[0], x, branches, old, advantages, TABLE, steps, **options)
        return torch.autograd.grad(result.loss, leaves)

    def eager(cond: Tensor, uncond: Tensor) -> Tensor:
        return baselines.tuned_policy_loss(baselines.guided(cond, uncond, SCALE), inputs)

    return Case(name, ours, eager, tuple(leaves), (6 + K) * x.nbytes, differentiated=True)


def main() -> None:
    """Print the rows of one candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidate", choices=CANDIDATES)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--numel", type=int, required=True)
    parser.add_argument("--rotated-bytes", type=int, default=2**27)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of the timed replays of an op")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    live = bodies.body("euler_step", device.type)
    if options.candidate in BODIES and live != options.candidate:
        sys.exit(f"there is no {options.candidate} body on {device.type} here")
    sizes = (options.rows, options.numel, options.rotated_bytes, options.budget)
    for row in measure(options.candidate, device, *sizes, lambda: capturer_of(device)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
