"""The sizes of all checks: the published shapes on a card, tiny ones in a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tempflow_fast import GRPOConfig
from tempflow_fast.graphs.capture import Capturer

from . import models
from .timing import capturer_of


@dataclass(frozen=True)
class Plan:
    """What to run, and where."""

    device: torch.device
    dtype: torch.dtype
    """Of the networks."""
    output: Path
    """Folder of the reports."""
    capturer: Callable[[], Capturer]
    compiled: bool
    """Whether torch.compile is measured."""
    quick: bool
    """Whether the ops are compared at small sizes only."""
    draws: int
    """Random calls of each op for the kernels without torch."""
    tiny: tuple[models.Shape, ...]
    small: models.Shape
    """A network so small that launching a kernel takes longer than running it."""
    medium: models.Shape
    flux: models.Shape
    op_sizes: tuple[tuple[int, int], ...]
    """(R, D)"""
    budget: float
    """Seconds of the timed calls of one kind, about."""
    rotated_bytes: int
    """What the inputs of a timed op take together at least, so that no cache holds them."""
    call_rows: tuple[int, ...]
    rollout: GRPOConfig
    iteration: GRPOConfig
    fewer: GRPOConfig
    """The same with the settings of the cheapest learning: few branch steps, and tails of two steps."""
    flux_rows: tuple[int, ...]
    flux_iteration: GRPOConfig
    learning_iterations: int


def on_card(device: torch.device, output: Path) -> Plan:
    """The plan for a card."""
    iteration = GRPOConfig(num_seeds=4, guidance_scale=4.5, max_batch=24, micro_batch=6, decode_batch=12, num_updates=1)
    return Plan(
        device=device,
        dtype=torch.bfloat16,
        output=output,
        capturer=lambda: capturer_of(device),
        compiled=True,
        quick=False,
        draws=40,
        tiny=(models.TINY_SD3, models.TINY_FLUX),
        small=models.SD3_SMALL,
        medium=models.SD35_MEDIUM,
        flux=models.FLUX,
        op_sizes=((24, 65_536), (192, 65_536)),
        budget=1.0,
        rotated_bytes=2**27,
        call_rows=(1, 8, 24),
        rollout=GRPOConfig(num_seeds=4, guidance_scale=4.5, max_batch=24, num_updates=1),
        iteration=iteration,
        fewer=replace(iteration, branch_steps=(1, 2, 3, 4), tail_steps=2),
        flux_rows=(1, 2),
        flux_iteration=GRPOConfig(
            num_steps=4,
            num_seeds=1,
            num_branches=4,
            guidance_scale=3.5,
            max_batch=4,
            micro_batch=1,
            decode_batch=2,
            num_updates=1,
        ),
        learning_iterations=60,
    )


def rehearsal(device: torch.device, output: Path) -> Plan:
    """The same on tiny networks, where the figures mean nothing; on a CPU with a stand-in for stream capture."""
    on_gpu = device.type == "cuda"
    few = GRPOConfig(num_steps=3, num_branches=2, num_seeds=1, guidance_scale=4.5, num_updates=1, max_batch=2)
    return Plan(
        device=device,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        output=output,
        capturer=lambda: capturer_of(device),
        compiled=on_gpu,
        quick=True,
        draws=1,
        tiny=(models.TINY_SD3, models.TINY_FLUX),
        small=models.TINY_SD3,
        medium=models.TINY_SD3,
        flux=models.TINY_FLUX,
        op_sizes=((2, 256),),
        budget=0.01,
        rotated_bytes=2**14,
        call_rows=(1, 2),
        rollout=few,
        iteration=few,
        fewer=replace(few, branch_steps=(1,), tail_steps=1),
        flux_rows=(1, 2),
        flux_iteration=few,
        learning_iterations=2,
    )
