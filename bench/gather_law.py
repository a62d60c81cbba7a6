"""What all-gathers of sharded weights cost a rollout on eight GPUs, by counted bytes and products and assumed rates.

python -m bench.gather_law

In a forward pass FSDP2 gathers the next block while the current one computes, so that a call takes the longer of its
products and its gathers. Bytes and products are those of the real networks on tensors without data; rates are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch.utils.flop_counter import FlopCounterMode

from tempflow_fast import StepTable, linear_sigmas, step_table
from tempflow_fast.batching import equal_pieces
from tempflow_fast.grpo.branches import Branches
from tempflow_fast.grpo.tails import full_tails
from tempflow_fast.grpo.wavefront import Wavefront

from .gpu.models import FLUX, SD35_LARGE, Shape, network_without_weights, policy_without_weights

NUM_GPUS = 8
FLOPS = 400e12
"""Products of a GPU in bf16 per second: 40 % of the 989 T/s in the data sheet of an H100 SXM."""
LINKS = {"NVLink": 360e9, "400 Gb/s": 45e9}
"""Bytes per second through the narrowest link of a ring: 80 % of the 450 GB/s that NVLink 4 carries one way,
and 90 % of the one network card that joins two machines of four GPUs each."""
NETWORKS = {"SD3.5-L": (SD35_LARGE, 24), "FLUX.1": (replace(FLUX, resolution=1024), 6)}
"""At the resolution of the recipes for models of the kind, and with their most rows of a call."""
NUM_STEPS, NUM_BRANCHES = 10, 6
TRAJECTORIES = (1, 4, 24)
"""Per GPU."""


@dataclass(frozen=True)
class Network:
    """What a call costs."""

    bytes: int
    """Of all weights in bf16."""
    largest_unit: int
    """Bytes of the largest all-gather: a block, or all weights outside of the blocks."""
    num_units: int
    flop_per_row: float
    """With guidance, where the recipe has it."""


def network(shape: Shape) -> Network:
    """Counts a network on tensors without data.

    Args:
        shape: of the network.
    """
    bare = network_without_weights(shape, torch.bfloat16)
    blocks = [block for name, block in bare.named_modules() if type(block).__name__ in (bare._no_split_modules or ())]
    units = [sum(p.nbytes for p in block.parameters()) for block in blocks]
    total = sum(p.nbytes for p in bare.parameters())
    units.append(total - sum(units))
    policy = policy_without_weights(shape)
    rows = torch.empty(1, *policy.latent_shape, device="meta")
    guided = shape.kind == "sd3"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.velocity(rows, torch.empty(1, device="meta"), policy.encode(["x"], guided), 4.5 if guided else 1.0)
    return Network(total, max(units), len(units), counter.get_total_flops())


def per_branch(table: StepTable, num: int, max_batch: int | None) -> Iterator[int]:
    """Rows of each call where every branch step is carried to the end by calls of its own.

    Args:
        table: of the rollout.
        num: trajectories.
        max_batch: most rows of a call.
    """
    for step in range(table.branch_steps[-1] + 1):
        tails = [num * NUM_BRANCHES] * (table.num_steps - 1 - step) if step in table.branch_steps else []
        for rows in (num, *tails):
            yield from (piece.stop - piece.start for piece in equal_pieces(rows, max_batch))


def wavefront(table: StepTable, num: int, max_batch: int | None) -> Iterator[int]:
    """Rows of each call of the wavefront.

    Args:
        table: of the rollout.
        num: trajectories.
        max_batch: most rows of a call.
    """
    branches = Branches.everywhere(num, dict.fromkeys(table.branch_steps, NUM_BRANCHES))
    plan = Wavefront(branches, full_tails(table), max_batch)
    for step in range(table.num_steps):
        yield from (len(call.rows) for call in plan.calls(step))


def seconds(network: Network, rows: list[int], link: float) -> tuple[float, float]:
    """(seconds of all gathers of a rollout, those of them that products do not hide).

    Args:
        network: what a call costs.
        rows: of each call.
        link: bytes per second through the narrowest link.
    """
    gather = network.bytes * (NUM_GPUS - 1) / NUM_GPUS / link
    return gather * len(rows), sum(max(0.0, gather - count * network.flop_per_row / FLOPS) for count in rows)


def page() -> str:
    """The tables of the docs."""
    counted = {name: network(shape) for name, (shape, _) in NETWORKS.items()}
    head = ("network", "GB", "units", "MB of the largest", "TFLOP per row", *(f"{link}: ms, rows" for link in LINKS))
    columns = ("calls", *(f"s of gathers, {link}" for link in LINKS), *(f"not hidden, {link}" for link in LINKS))
    law = _table(("network", "N per GPU", "rows of a call", *columns), list(_compared(counted)))
    return f"{_table(head, [_facts(name, each) for name, each in counted.items()])}\n\n{law}"


def _facts(name: str, counted: Network) -> tuple[object, ...]:
    """A call, and the number of rows from which on its products take longer than its gathers."""
    gathers = [counted.bytes * (NUM_GPUS - 1) / NUM_GPUS / link for link in LINKS.values()]
    times = [f"{1e3 * gather:.0f}, {gather * FLOPS / counted.flop_per_row:.1f}" for gather in gathers]
    sizes = (f"{counted.bytes / 1e9:.1f}", counted.num_units, f"{counted.largest_unit / 1e6:.0f}")
    return (f"{name}, {NETWORKS[name][0].resolution} px", *sizes, f"{counted.flop_per_row / 1e12:.0f}", *times)


def _compared(counted: dict[str, Network]) -> Iterator[tuple[object, ...]]:
    """One call per branch step / the wavefront."""
    table = step_table(linear_sigmas(NUM_STEPS))
    for (name, each), num in product(counted.items(), TRAJECTORIES):
        for limit in (None, NETWORKS[name][1]):
            ways = [list(rows(table, num, limit)) for rows in (per_branch, wavefront)]
            costs = [[seconds(each, rows, link) for rows in ways] for link in LINKS.values()]
            cells = [" / ".join(f"{way[part]:.1f}" for way in cost) for part in (0, 1) for cost in costs]
            yield (name, num, limit or "no limit", " / ".join(str(len(rows)) for rows in ways), *cells)


def _table(head: tuple[object, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    print(page())
