"""The least time of every op on a card: bytes, instructions, and the waves of blocks that its multiprocessors hold."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

CUDA_REGISTERS = Path(__file__).parents[2] / "csrc" / "cuda" / "registers.json"

# The example: SD3.5 Medium at 512 px, four seeds of six prompts. Latents are float32, whatever the network's dtype.
NUM_ROWS, NUMEL, K = 24, 65_536, 6
ITEMSIZES = {"fp32": 4, "bf16": 2}
THREADS, ACCESS_BYTES = 256, 16
"""Of a block, and what a thread of it moves of each tensor (csrc/cuda/kernels.h)."""
REGISTERS, MOST_BLOCKS, UNIT = 65_536, 8, 8
"""Of a multiprocessor: its registers, the blocks of 256 threads that its 2048 threads allow, and the registers per
thread in which they are given out."""


@dataclass(frozen=True)
class Card:
    """Rates of a card, by its data sheet."""

    name: str
    model: str
    terabytes: float
    """TB/s of its memory."""
    instructions: float
    """T/s per thread: four warps of 32 threads per clock and multiprocessor."""
    multiprocessors: int
    architecture: str


CARDS = (
    Card("A100", "A100 80 GB SXM", 2.04, 19.5, 108, "sm_80"),
    Card("H100", "H100 SXM", 3.35, 29.7, 132, "sm_90"),
    Card("H200", "H200", 4.8, 29.7, 132, "sm_90"),
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
    kernel: str
    """The launch that moves the data."""
    rows: Cost
    """Latents read or written, of e bytes each."""
    cuda: Cost
    """Instructions counted in the sm_90 machine code of the bf16 kernel."""
    triton: Cost
    float32: int = 0
    """Latents written in float32 whatever the dtype is."""

    def num_bytes(self, itemsize: int) -> int:
        """Bytes per latent element in the example."""
        return self.rows.of(K) * itemsize + 4 * self.float32

    def formula(self) -> str:
        """As "(5 + K) e + 4"."""
        if not self.rows.of(K):
            return f"{4 * self.float32} (fp32)"
        branches = "K" if self.rows.per_branch == 1 else f"{self.rows.per_branch} K"
        factor = f"({self.rows.fixed} + {branches})" if self.rows.per_branch else f"{self.rows.fixed}"
        return f"{factor} e" + (f" + {4 * self.float32}" if self.float32 else "")

    def floors(self, card: Card, itemsize: int) -> dict[str, float]:
        """Microseconds of the example on a card, by what bounds them; the body with fewer instructions counts."""
        elements = NUM_ROWS * NUMEL / 1e6
        instructions = min(self.cuda.of(K), self.triton.of(K))
        return {
            "memory": self.num_bytes(itemsize) / card.terabytes * elements,
            "instructions": instructions / card.instructions * elements,
        }

    def waves(self, card: Card, itemsize: int) -> float:
        """How often the example's blocks fill the card; the last of them is paid in full."""
        blocks = NUM_ROWS * math.ceil(NUMEL * itemsize / (THREADS * ACCESS_BYTES))
        return blocks / (card.multiprocessors * _resident(self.kernel, itemsize, card))


def _resident(kernel: str, itemsize: int, card: Card) -> int:
    """Blocks of a CUDA kernel that a multiprocessor holds at once, by their registers."""
    table = json.loads(CUDA_REGISTERS.read_text())["kernels"][card.architecture]
    facts = table.get(f"{kernel} {'fp32' if itemsize == 4 else 'bf16'}") or table[kernel]
    per_thread = -(-facts["registers"] // UNIT) * UNIT
    return min(MOST_BLOCKS, REGISTERS // (per_thread * THREADS))


OPS = (
    Op("guided_velocity", "guided_velocity_kernel", Cost(3), Cost(16), Cost(15)),
    Op("euler_step", "euler_step_kernel", Cost(4), Cost(20), Cost(20)),
    Op("initial_noise", "initial_noise_kernel", Cost(0), Cost(69), Cost(76), float32=1),
    Op("branch_step", "branch_step_kernel", Cost(4, 1), Cost(40, 54), Cost(45, 56)),
    Op("log_prob", "log_prob_kernel", Cost(3), Cost(31), Cost(29)),
    Op("log_prob_backward", "log_prob_backward_kernel", Cost(4), Cost(40), Cost(26)),
    Op(
        "policy_loss, unchanged policy: read once",
        "loss_sums_kernel",
        Cost(5, 1),
        Cost(90, 12),
        Cost(75, 13),
        float32=1,
    ),
    Op("policy_loss, changed: read twice", "loss_gradient_kernel", Cost(9, 2), Cost(145, 17), Cost(110, 24), float32=1),
)


def floor_seconds(op: str, num_bytes: int, num_elements: int, num_branches: int, card: Card) -> float:
    """The least seconds of a call: its bytes, or the instructions of its kernel if they are known.

    Args:
        op: its name.
        num_bytes: that it has to move.
        num_elements: R D.
        num_branches: K.
        card: where it runs.
    """
    known = [min(each.cuda.of(num_branches), each.triton.of(num_branches)) for each in OPS if each.name == op]
    instructions = sum(known) * num_elements / (card.instructions * 1e12)
    return max(num_bytes / (card.terabytes * 1e12), instructions)
