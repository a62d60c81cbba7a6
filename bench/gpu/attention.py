"""Gradients of attention by one of torch's kernels: `python -m bench.gpu.attention KERNEL --device cuda`.

The gradient that comes in is dense, a slice of a wider tensor, and dense again, as the blocks of FLUX give it. A JSON
line per case says how far (relative) the gradients of queries, keys and values are from those of plain attention in
float64. A kernel that reads the wrong memory may end the process, so each has its own.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .children import run
from .plan import Plan
from .results import Check, Figures, Outcome, Session

KERNELS = {
    "plain": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
CASES = {"tiny FLUX": (4, 9, 2, 16), "FLUX.1 at 512 px": (1, 1536, 24, 128)}
"""Rows, tokens, heads, width of a head."""
WIDER = 5
"""How much wider the tensor is of which the gradient is a slice: FLUX's single blocks have 1 + 4 parts."""


def gradients(inputs: list[Tensor], incoming: Tensor, kernel: SDPBackend) -> list[Tensor]:
    """Those of queries, keys and values.

    Args:
        inputs: queries, keys and values [R, heads, tokens, width].
        incoming: the gradient of the result, of the same shape.
        kernel: the only one allowed.
    """
    leaves = [each.detach().requires_grad_() for each in inputs]
    with sdpa_kernel(kernel):
        result = scaled_dot_product_attention(*leaves)
    return list(torch.autograd.grad(result, leaves, incoming))


def differences(kernel: SDPBackend, case: tuple[int, int, int, int], device: torch.device) -> list[float]:
    """Relative differences with an incoming gradient that is dense, a slice, and dense again."""
    rows, tokens, heads, width = case
    generator = torch.Generator(device).manual_seed(0)

    def drawn(parts: int = 1) -> Tensor:
        size = (rows, tokens, parts * heads * width)
        flat = torch.randn(size, generator=generator, device=device).to(torch.bfloat16)[..., : heads * width]
        return flat.unflatten(-1, (heads, width)).transpose(1, 2)

    inputs, slice_of_wider = [drawn() for _ in range(3)], drawn(WIDER)
    dense = slice_of_wider.transpose(1, 2).contiguous().transpose(1, 2)
    exact = gradients([each.double() for each in inputs], dense.double(), SDPBackend.MATH)
    found = []
    for incoming in (dense, slice_of_wider, dense):
        got = gradients(inputs, incoming, kernel)
        found.append(max(float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)))
    return found


def check(plan: Plan, session: Session) -> Check:
    """All kernels, each in a process of its own; a wrong one is torch's fault, and a figure."""

    def attempt() -> Outcome:
        rows: list[Figures] = []
        options = ["--device", plan.device.type, *(["--quick"] if plan.quick else [])]
        for kernel in KERNELS:
            command = [sys.executable, "-m", "bench.gpu.attention", kernel, *options]
            ran = run(command, min(30.0, session.seconds_left))
            found: list[Figures] = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
            ended = {} if ran.in_time and not ran.status else {"ended": ran.last_line[:100]}
            rows += found + ([{"kernel": kernel, **ended}] if ended else [])
        return Outcome("training does not use cuDNN's", rows)

    return Check("gradients of attention", attempt, needs=60)


def main() -> None:
    """Prints a line per case."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.attention")
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="the first case only")
    options = parser.parse_args()
    for name, case in list(CASES.items())[: 1 if options.quick else None]:
        dense, part, again = differences(KERNELS[options.kernel], case, torch.device(options.device))
        errors = {"dense": dense, "then a slice": part, "then dense": again}
        print(json.dumps({"kernel": options.kernel, "case": name, **errors}), flush=True)


if __name__ == "__main__":
    main()
