"""The tables of docs/gpu.md: `python -m bench.gpu.page` writes them between their markers.

Registers are those in csrc/cuda/registers.json and kernels/registers.json, which the compilers' tests write. Floors are
computed here from bytes, instructions and the data sheets of the cards. What was measured comes from the reports in
`REPORTS`: ops and calls from an H200, iterations from an H100. No GPU is needed.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

from .. import marked
from ..page import table
from .predictions import tables_of
from .report import table as lines_of
from .results import Figures
from .roofline import CARDS, ITEMSIZES, NUM_ROWS, NUMEL, OPS, Card, K, Op

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"
REPORTS = ROOT / "bench" / "reports"
H100, H200 = REPORTS / "h100-2026-11-26", REPORTS / "h200-2026-11-26"
LINE = 128  # characters, as on the rest of the page
WAVES = CARDS[1]

# What is launched -> its kernel, which has the same name in CUDA C++ and in Triton.
KERNELS = {
    "guided_velocity": "guided_velocity_kernel",
    "euler_step": "euler_step_kernel",
    "branch_step": "branch_step_kernel",
    "initial_noise": "initial_noise_kernel",
    "log_prob": "log_prob_kernel",
    "log_prob_backward": "log_prob_backward_kernel",
    "policy_loss": "loss_sums_kernel",
    "policy_loss, 2nd launch": "loss_gradient_kernel",
    "branch_step and log_prob, 2nd": "log_density_kernel",
}
# As the two compilers' tables name the dtypes; a kernel without a dtype has one entry.
CUDA_DTYPES, TRITON_DTYPES = ("fp32", "bf16"), ("float32", "bfloat16")
CUDA_TARGETS, TRITON_TARGETS = ("sm_80", "sm_90", "sm_100"), ("sm_80", "sm_90", "sm_100", "gfx942")


def registers() -> str:
    """The table of registers."""
    cuda = json.loads((ROOT / "csrc/cuda/registers.json").read_text())["kernels"]
    triton = json.loads((ROOT / "kernels/registers.json").read_text())["registers"]

    def of_cuda(kernel: str, target: str) -> str:
        names = (*(f"{kernel} {dtype}" for dtype in CUDA_DTYPES), kernel)
        return " / ".join(str(cuda[target][name]["registers"]) for name in names if name in cuda[target])

    def of_triton(kernel: str, target: str) -> str:
        found = [triton[kernel][dtype][target] for dtype in TRITON_DTYPES if dtype in triton[kernel]]
        # Partial sums are float32 for every dtype of latents: one figure.
        return " / ".join(map(str, dict.fromkeys(found) if kernel == "log_density_kernel" else found))

    return table(
        {"launch": launch}
        | {f"CUDA {target}": of_cuda(kernel, target) for target in CUDA_TARGETS}
        | {f"Triton {target}": of_triton(kernel, target) for target in TRITON_TARGETS}
        for launch, kernel in KERNELS.items()
    )


def roofline() -> str:
    """The conditions of the floors, and their table."""
    rates = ", ".join(f"{card.model} {card.terabytes} TB/s" for card in CARDS)
    issue = ", ".join(f"{card.name} {card.instructions}" for card in CARDS)
    conditions = (
        f"Floors are for {NUM_ROWS} rows of D = {NUMEL:,} (SD3.5 Medium at 512 px, four seeds of six prompts) with "
        f"K = {K}, in fp32 / bf16: the larger of the memory's floor at the rate of the data sheet ({rates}) and the "
        f"instructions' floor at four warps per clock and multiprocessor ({issue} T/s per thread). Waves are how often "
        f"the blocks of the CUDA kernel fill the {WAVES.name}, by its registers; the last column pays the last wave in "
        "full, which a kernel that is bound by instructions does."
    )
    return f"{textwrap.fill(conditions, LINE)}\n\n{table(map(_roofline_line, OPS))}"


def _roofline_line(op: Op) -> dict[str, str]:
    sizes = list(ITEMSIZES.values()) if op.rows.of(K) else [ITEMSIZES["fp32"]]

    def floor(card: Card, itemsize: int) -> float:
        return max(op.floors(card, itemsize).values())

    def rounded_up(itemsize: int) -> float:
        waves = op.waves(WAVES, itemsize)
        return floor(WAVES, itemsize) * math.ceil(waves) / waves

    bounds = [max(floors, key=floors.__getitem__) for floors in (op.floors(WAVES, size) for size in sizes)]
    return {
        "op": op.name,
        "bytes": op.formula(),
        "MB": " / ".join(f"{op.num_bytes(size) * NUM_ROWS * NUMEL / 1e6:.1f}" for size in sizes),
        "instructions, CUDA": op.cuda.text(),
        "Triton": op.triton.text(),
        **{f"{card.name}, us": " / ".join(_number(floor(card, size)) for size in sizes) for card in CARDS},
        f"{WAVES.name} bound by": " / ".join(dict.fromkeys(bounds)),
        "waves": " / ".join(f"{op.waves(WAVES, size):.2f}" for size in sizes),
        "whole waves, us": " / ".join(_number(rounded_up(size)) for size in sizes),
    }


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def ops() -> str:
    """Microseconds of every op at the sizes of the roofline, next to what replaces it."""
    rows = [row for row in tables_of(H200)["ops", "ops"] if row["R x D"] == f"{NUM_ROWS} x {NUMEL}"]
    names = ("floor us", "copy us", "eager us", "compile us", "native us", "triton us")
    heads = ("floor", "copy", "eager", "torch.compile", "CUDA C++", "Triton")
    of = {(row["op"], row["dtype"]): row for row in rows}
    return table(
        {"op": str(op)}
        | {
            head: " / ".join(_number(float(of[op, dtype][name])) for dtype in ("float32", "bfloat16"))
            for head, name in zip(heads, names, strict=True)
        }
        for op in dict.fromkeys(row["op"] for row in rows)
    )


def calls() -> str:
    """Milliseconds of a network call, by weights and by compilation."""
    return "\n".join(lines_of(tables_of(H200)["calls", "one call, ms"]))


def iterations(stage: str = "iteration") -> str:
    """Seconds of whole iterations, and how many times faster than the paper's structure they are.

    Args:
        stage: `iteration` or `flux`.
    """
    rows = tables_of(H100)[stage, "iterations"]
    paper = next(float(row["seconds"]) for row in rows if row["iteration"] == "the paper's structure")
    shown: list[Figures] = [
        {**row, "times faster": f"{paper / float(row['seconds']):.2f}x"} for row in rows if "seconds" in row
    ]
    return "\n".join(lines_of(shown))


PARTS: dict[str, Callable[[], str]] = {
    "registers": registers,
    "roofline": roofline,
    "ops": ops,
    "calls": calls,
    "iterations": iterations,
    "flux": lambda: iterations("flux"),
}


def filled(page: str) -> str:
    """A page with every part between its markers replaced by what the code gives."""
    for name, part in PARTS.items():
        page = marked.filled(page, name, "python -m bench.gpu.page", part())
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
