"""Checks of a rollout and an iteration on this device, in addition to the comparison of the ops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import tempflow_fast as tff
from tempflow_fast.graphs.capture import Capturer, host_syncs
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.policies import DiffusersPolicy
from tempflow_fast.policies.compiled import compile_blocks

from .results import Outcome, Skip

PROMPTS = ("a red fox", "a city at night")
FIELDS = ("states", "branches", "log_prob", "latents")


def draw(
    policy: DiffusersPolicy, guidance_scale: float, iteration: int, graphs: CudaGraphs | None = None
) -> tff.Rollout:
    """A rollout with the noise, ids and seed of an iteration."""
    table = tff.step_table(policy.sigmas(4))
    ids = torch.arange(len(PROMPTS)) + 100 * iteration
    noise = tff.ops.initial_noise(policy.latent_shape, iteration, ids, policy.device)
    condition = policy.encode(PROMPTS, guided=True)
    return tff.rollout(policy, condition, table, noise, 3, iteration, ids, 4, guidance_scale, graphs)


@torch.no_grad()
def nudge(policy: DiffusersPolicy) -> None:
    """Changes the weights in place, as an optimizer does."""
    for parameter in policy.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))


def graphs_equal_eager(policy: DiffusersPolicy, guidance_scale: float, capturer: Capturer) -> Outcome:
    """Four captured rollouts equal eager ones bit for bit, with an update after each."""
    graphs = CudaGraphs(capturer)
    for iteration in range(4):
        captured, eager = (draw(policy, guidance_scale, iteration, each) for each in (graphs, None))
        for field in FIELDS:
            got, want = getattr(captured, field), getattr(eager, field)
            assert want.isfinite().all(), f"{field} is not finite"
            assert torch.equal(got, want), f"{field} of rollout {iteration} differs by {(got - want).abs().max():.2e}"
        nudge(policy)
    assert graphs.num_replays, "nothing was captured"
    return Outcome(f"{graphs.num_graphs} graphs, {graphs.num_replays} replays, equal bits")


def compiled_graphs_equal_compiled(policy: DiffusersPolicy, guidance_scale: float, capturer: Capturer) -> Outcome:
    """Captured rollouts with compiled blocks equal compiled ones; the policy stays compiled."""
    blocks = compile_blocks(policy.network)
    for iteration in range(2):  # before the comparison, the compiler sees every shape that it may specialise on
        draw(policy, guidance_scale, iteration)
    return Outcome(f"{blocks} blocks; {graphs_equal_eager(policy, guidance_scale, capturer).detail}")


def first_ratio_is_one(policy: DiffusersPolicy, guidance_scale: float) -> Outcome:
    """The first update of an iteration starts at a log-ratio of exactly 0."""
    metrics = _iteration(policy, guidance_scale, seed=1, num_updates=1)
    assert metrics["log_ratio_rms"] == 0, f"log_ratio_rms is {float(metrics['log_ratio_rms']):.2e}"
    assert metrics["signal_fraction"] > 0, "no branch had an advantage"
    return Outcome(f"loss {float(metrics['loss']):.3g}, gradient norm {float(metrics['grad_norm']):.3g}")


def iterations_repeat(policy: DiffusersPolicy, guidance_scale: float) -> Outcome:
    """Two iterations from the same weights and seed give the same weights, bit for bit."""
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    ends: list[list[Tensor]] = []
    for _ in range(2):
        with torch.no_grad():
            for parameter, value in zip(policy.parameters(), start, strict=True):
                parameter.copy_(value)
        _iteration(policy, guidance_scale, seed=2)
        ends.append([parameter.detach().clone() for parameter in policy.parameters()])
    differ = sum(not torch.equal(a, b) for a, b in zip(*ends, strict=True))
    if differ:  # attention's backward adds in an arbitrary order by default; the ops do not
        raise Skip(f"{differ} of {len(start)} weights differ, by the backward of the network's own kernels")
    return Outcome(f"{len(start)} weights")


def no_host_sync(policy: DiffusersPolicy, guidance_scale: float) -> Outcome:
    """Within an iteration, only the transfer of rewards to the host waits for the device."""
    if policy.device.type != "cuda":
        raise Skip("CUDA's sync debug mode needs a CUDA device")
    _iteration(policy, guidance_scale, seed=3)
    with host_syncs() as places:
        _iteration(policy, guidance_scale, seed=4)
    rewards = [place for place in places if _is_reward(place)]
    others = sorted({place for place in places if place not in rewards})
    assert not others, f"{len(others)} places wait for the device: {', '.join(others)}"
    return Outcome(f"{len(rewards)} waits, all for the rewards")


def _is_reward(place: str) -> bool:
    path = Path(place.rpartition(":")[0])
    return path.name == "scoring.py" or "rewards" in path.parts


def _iteration(
    policy: DiffusersPolicy, guidance_scale: float, seed: int, num_updates: int = 2
) -> dict[str, Tensor | float]:
    config = tff.GRPOConfig(
        num_steps=4, num_branches=3, num_seeds=2, guidance_scale=guidance_scale, max_batch=4, num_updates=num_updates
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    return tff.grpo_step(policy, PROMPTS, redness, optimizer, config, seed)


def redness(images: Tensor, prompts: object, metadata: object) -> Tensor:
    """A reward that differs between images."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


Check = Callable[[DiffusersPolicy, float], Outcome]
ITERATION_CHECKS: dict[str, Check] = {
    "first update at ratio 1": first_ratio_is_one,
    "iterations repeat bit for bit": iterations_repeat,
    "no host sync in an iteration": no_host_sync,
}
