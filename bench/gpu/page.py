"""The tables of docs/gpu.md: `python -m bench.gpu.page` writes them between their markers.

Registers are those in csrc/cuda/registers.json and kernels/registers.json, which the compilers' tests write. Floors are
computed here from bytes, instructions and the data sheets of the cards. No GPU is needed.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..page import table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"
LINE = 128  # characters, as on the rest of the page

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

# The example of the floors: SD3.5 Medium at 512 px, four seeds of six prompts, in bf16.
NUM_ROWS, NUMEL, K, ITEMSIZE = 24, 65_536, 6, 2


@dataclass(frozen=True)
class Card:
    """Rates of a card, by its data sheet."""

    name: str
    model: str
    terabytes: float
    """TB/s of its memory."""
    instructions: float
    """T/s per thread: four warps of 32 threads per clock and multiprocessor."""


CARDS = (
    Card("A100", "A100 80 GB SXM", 2.04, 19.5),
    Card("H100", "H100 SXM", 3.35, 29.7),
    Card("H200", "H200", 4.8, 29.7),
)


@dataclass(frozen=True)
class Cost:
    """`fixed + per_branch K`, for a latent element."""

    fixed: int
    per_branch: int = 0

    def of(self, num_branches: int) -> int:
        """The value for K branches."""
        return self.fixed + self.per_branch * num_branches

    def text(self) -> str:
        """As "54 K + 40"."""
        return f"{self.per_branch} K + {self.fixed}" if self.per_branch else f"{self.fixed}"


@dataclass(frozen=True)
class Op:
    """What an op moves and executes per latent element."""

    name: str
    rows: Cost
    """Latents read or written, of e bytes each."""
    cuda: Cost
    """Instructions counted in the sm_90 machine code of the bf16 kernel."""
    triton: Cost
    float32: int = 0
    """Latents written in float32 whatever the dtype is."""

    @property
    def num_bytes(self) -> int:
        """Bytes in the example."""
        return self.rows.of(K) * ITEMSIZE + 4 * self.float32

    def formula(self) -> str:
        """As "(5 + K) e + 4"."""
        if not self.rows.of(K):
            return f"{4 * self.float32} (fp32)"
        branches = "K" if self.rows.per_branch == 1 else f"{self.rows.per_branch} K"
        factor = f"({self.rows.fixed} + {branches})" if self.rows.per_branch else f"{self.rows.fixed}"
        return f"{factor} e" + (f" + {4 * self.float32}" if self.float32 else "")

    def floors(self, card: Card) -> dict[str, float]:
        """Microseconds on a card, by what bounds them; the body with fewer instructions counts."""
        elements = NUM_ROWS * NUMEL / 1e6
        instructions = min(self.cuda.of(K), self.triton.of(K))
        return {
            "memory": self.num_bytes / card.terabytes * elements,
            "instructions": instructions / card.instructions * elements,
        }


OPS = (
    Op("guided_velocity", Cost(3), Cost(16), Cost(15)),
    Op("euler_step", Cost(4), Cost(20), Cost(20)),
    Op("initial_noise", Cost(0), Cost(69), Cost(76), float32=1),
    Op("branch_step", Cost(4, 1), Cost(40, 54), Cost(45, 56)),
    Op("log_prob", Cost(3), Cost(31), Cost(29)),
    Op("log_prob_backward", Cost(4), Cost(40), Cost(26)),
    Op("policy_loss, unchanged policy: read once", Cost(5, 1), Cost(90, 12), Cost(75, 13), float32=1),
    Op("policy_loss, changed: read twice", Cost(9, 2), Cost(145, 17), Cost(110, 24), float32=1),
)


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
        f"Floors are for {NUM_ROWS} rows of D = {NUMEL:,} (SD3.5 Medium at 512 px, four seeds of six prompts) in bf16 "
        f"with K = {K}: the larger of the memory's floor at the rate of the data sheet ({rates}) and the instructions' "
        f"floor at four warps per clock and multiprocessor ({issue} T/s per thread)."
    )
    return f"{textwrap.fill(conditions, LINE)}\n\n{table(map(_roofline_line, OPS))}"


def _roofline_line(op: Op) -> dict[str, str]:
    floors = {card.name: op.floors(card) for card in CARDS}
    bounds = {max(floor, key=floor.__getitem__) for floor in floors.values()}
    line = {
        "op": op.name,
        "bytes": op.formula(),
        f"K = {K}, bf16": f"{op.num_bytes}",
        "MB": f"{op.num_bytes * NUM_ROWS * NUMEL / 1e6:.1f}",
        "instructions, CUDA": op.cuda.text(),
        "Triton": op.triton.text(),
    }
    return (
        line
        | {name: _microseconds(max(floor.values())) for name, floor in floors.items()}
        | {"bound by": " or ".join(sorted(bounds))}
    )


def _microseconds(value: float) -> str:
    return f"{value:.1f} us" if value < 10 else f"{value:.0f} us"


PARTS: dict[str, Callable[[], str]] = {"registers": registers, "roofline": roofline}


def filled(page: str) -> str:
    """A page with every part between its markers replaced by what the code gives."""
    for name, part in PARTS.items():
        head, tail = f"<!-- {name}: written by python -m bench.gpu.page -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(head) + ".*?" + re.escape(tail), re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise SystemExit(f"docs/gpu.md must have one part between {head!r} and {tail!r}")
        content = f"{head}\n\n{part()}\n\n{tail}"
        page = pattern.sub(lambda _, content=content: content, page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)}")
