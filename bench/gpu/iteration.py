"""Rollouts and whole iterations on networks of the published shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch

import tempflow_fast as tff
from tempflow_fast.graphs.capture import Capturer
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import compile_blocks

from .. import paper
from .checks import redness
from .results import Figures, Outcome
from .timing import seconds_of

PROMPT = "a red fox in the snow"


def rollout_figures(
    policy: DiffusersPolicy, config: tff.GRPOConfig, guidance_scale: float, capturer: Capturer, compiled: bool
) -> Outcome:
    """Seconds of a rollout: eager and captured, each also with compiled blocks if `compiled`."""
    rows: list[Figures] = []
    for blocks in (False, True) if compiled else (False,):
        preparing = seconds_of(lambda: compile_blocks(policy.network), policy.device) if blocks else 0.0
        name = "compiled" if blocks else "eager"
        for graphs in (None, CudaGraphs(capturer)):
            call = _rollout(policy, config, guidance_scale, graphs)
            # The second call captures what the first has seen; a compiler specialises in both.
            preparing += sum(seconds_of(call, policy.device) for _ in range(2))
            seconds = min(seconds_of(call, policy.device) for _ in range(2))
            label = f"{name}, captured" if graphs else name
            rows.append({"rollout": label, "seconds": seconds, "first two": preparing})
            preparing = 0.0
    for row in rows:
        row["eager / it"] = rows[0]["seconds"] / row["seconds"]
    return Outcome(f"{_described(policy, config)}", rows)


def _rollout(
    policy: DiffusersPolicy, config: tff.GRPOConfig, guidance_scale: float, graphs: CudaGraphs | None
) -> Callable[[], object]:
    table, num = config.table(policy), config.num_seeds
    condition = policy.encode([PROMPT] * num, guided=True)
    noise = tff.ops.initial_noise(policy.latent_shape, 0, range(num), policy.device)
    limits = (config.max_batch, guidance_scale, graphs)
    return lambda: tff.rollout(policy, condition, table, noise, config.num_branches, 0, None, *limits)


def iteration_figures(policy: DiffusersPolicy, config: tff.GRPOConfig, max_rows: int) -> Outcome:
    """Seconds and memory of one iteration: the paper's structure, ours, ours captured.

    Ours is timed at its second iteration, and captured at its third, when nothing is left to warm up.
    """
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)
    rows: list[Figures] = []

    def timed(name: str, call: Callable[[int], object], warm_up: int, rounds: int) -> None:
        for seed in range(warm_up):
            call(seed)
        _forget_peak(policy.device)
        seconds = min(seconds_of(lambda: call(9), policy.device) for _ in range(rounds))
        rows.append({"iteration": name, "seconds": seconds, "peak GiB": _peak_gib(policy.device)})

    def ours(captured: bool) -> Callable[[int], object]:
        settings = {**vars(config), "cuda_graphs": captured}
        return lambda seed: tff.grpo_step(policy, [PROMPT], redness, optimizer, tff.GRPOConfig(**settings), seed)

    timed("ours", ours(False), warm_up=1, rounds=1)
    timed("ours, captured", ours(True), warm_up=2, rounds=1)
    timed(
        "the paper's structure", lambda seed: paper.iteration(policy, [PROMPT], optimizer, config, seed, max_rows), 0, 1
    )
    for row in rows:
        row["paper / it"] = rows[-1]["seconds"] / row["seconds"]
    return Outcome(_described(policy, config), rows)


def _described(policy: DiffusersPolicy, config: tff.GRPOConfig) -> str:
    millions = sum(parameter.numel() for parameter in policy.network.parameters()) / 1e6
    precision, latents = str(policy.dtype).removeprefix("torch."), list(policy.latent_shape)
    return (
        f"{millions:.0f} M parameters in {precision}, latents {latents}, "
        f"N = {config.num_seeds}, T = {config.num_steps}, K = {config.num_branches}, max_batch {config.max_batch}"
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
