"""Checks of rollouts and iterations of tiny networks on this device, in addition to the comparison of the ops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import tempflow_fast as tff
from tempflow_fast.graphs.capture import Capturer, host_syncs
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.grpo import acting
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
        metrics = _iteration(policy, guidance_scale, seed=2)
        assert math.isfinite(metrics["grad_norm"]), "there was no finite gradient, and no step"
        ends.append([parameter.detach().clone() for parameter in policy.parameters()])
    assert not all(map(torch.equal, start, ends[0])), "no weight has changed"
    differ = sum(not torch.equal(a, b) for a, b in zip(*ends, strict=True))
    if differ:  # attention's backward adds in an arbitrary order by default; the ops do not
        raise Skip(f"{differ} of {len(start)} weights differ, by the backward of the network's own kernels")
    return Outcome(f"{len(start)} weights")


def no_host_sync(policy: DiffusersPolicy, guidance_scale: float) -> Outcome:
    """Within an iteration, only asking the pipeline for texts and noise levels, and rewards, wait for the device."""
    if policy.device.type != "cuda":
        raise Skip("CUDA's sync debug mode needs a CUDA device")
    _iteration(policy, guidance_scale, seed=3)
    with host_syncs() as places, _asking_may_wait(policy):
        _iteration(policy, guidance_scale, seed=4)
    rewards = [place for place in places if _is_reward(place)]
    others = sorted({place for place in places if place not in rewards})
    assert not others, f"{len(others)} places wait for the device: {', '.join(others)}"
    return Outcome(f"{len(rewards)} waits, all for the rewards")


@contextmanager
def _asking_may_wait(policy: DiffusersPolicy) -> Iterator[None]:
    """Inside this context, waits while the pipeline is asked are not noted: they come before the network's calls."""

    def unnoted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode("default")
            try:
                return function(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("warn")

        return call

    with (
        patch.object(policy, "encode", unnoted(policy.encode)),
        patch.object(policy, "sigmas", unnoted(policy.sigmas)),
    ):
        yield


def _is_reward(place: str) -> bool:
    path = Path(place.rpartition(":")[0])
    return path.name in ("scoring.py", "background.py") or "rewards" in path.parts


def graphs_equal_eager_while_rewards_wait(
    policy: DiffusersPolicy, guidance_scale: float, capturer: Capturer
) -> Outcome:
    """Iterations with graphs score the same images as iterations without, while their rewards wait for the device."""
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    scores: list[list[Tensor]] = []
    graphs = CudaGraphs(capturer)
    for each in (None, graphs):
        with torch.no_grad():
            for parameter, value in zip(policy.parameters(), start, strict=True):
                parameter.copy_(value)
        scores.append([])
        with replaying(each):
            for seed in range(3):
                _iteration(policy, guidance_scale, seed, reward=_waiting(scores[-1]), learning_rate=0.0)
    for eager, captured in zip(*scores, strict=True):
        assert torch.equal(eager, captured), f"scores differ by {(eager - captured).abs().max():.2e}"
    assert graphs.num_replays, "nothing was captured"
    return Outcome(f"{len(scores[0])} pieces of images in 3 iterations, {graphs.num_replays} replays")


def _waiting(scores: list[Tensor]) -> Callable[[Tensor, object, object], Tensor]:
    """A slow reward that waits for the device in the middle of the network's calls, and keeps its scores."""

    def reward(images: Tensor, prompts: object, metadata: object) -> Tensor:
        time.sleep(0.005)
        scores.append(redness(images, prompts, metadata).cpu())
        return scores[-1]

    return reward


@contextmanager
def replaying(graphs: CudaGraphs | None) -> Iterator[None]:
    """Inside this context iterations use these graphs; None: none."""
    usual = acting.graphs_of
    acting.graphs_of = lambda policy: graphs
    try:
        yield
    finally:
        acting.graphs_of = usual


def failed_capture_leaves_nothing(device: torch.device, capturer: Capturer) -> Outcome:
    """After a capture that failed, memory that two streams have used is freed, and the next capture works."""
    data = torch.arange(4.0, device=device)
    capturer.warm_up(lambda: data + 1)
    try:
        capturer.capture(lambda: (data + 1).sum().item())
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
    else:
        raise AssertionError("a capture in which the host waits did not fail")
    sizes = [_reserved_after_use(device) for _ in range(8)]
    replay, result = capturer.capture(lambda: data * 2)
    replay()
    assert torch.equal(result, data * 2), "the next graph computes something else"
    assert sizes[-1] <= sizes[1], f"reserved memory grows from {sizes[1]} to {sizes[-1]} bytes"
    return Outcome(f"{sizes[-1] / 2**20:.0f} MiB reserved in every round; {cause}")


def _reserved_after_use(device: torch.device) -> int:
    """Memory that the allocator holds after a block of 256 MiB was used by two streams; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    block = torch.zeros(2**28, dtype=torch.uint8, device=device)
    other = torch.cuda.Stream(device)
    other.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(other):
        block.add_(1)
    block.record_stream(other)
    del block
    torch.cuda.synchronize(device)
    return torch.cuda.memory_reserved(device)


def _iteration(
    policy: DiffusersPolicy,
    guidance_scale: float,
    seed: int,
    num_updates: int = 2,
    reward: Callable[[Tensor, object, object], Tensor] | None = None,
    learning_rate: float = 1e-4,
) -> dict[str, Tensor | float]:
    config = tff.GRPOConfig(
        num_steps=4,
        num_branches=3,
        num_seeds=2,
        guidance_scale=guidance_scale,
        max_batch=4,
        num_updates=num_updates,
        cuda_graphs=reward is not None,
    )
    fused = policy.device.type == "cuda"  # others read the gradient's norm on the host
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0, fused=fused)
    return tff.grpo_step(policy, PROMPTS, reward or redness, optimizer, config, seed)


def redness(images: Tensor, prompts: object, metadata: object) -> Tensor:
    """A reward that differs between images."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


ITERATION_CHECKS: dict[str, Callable[[DiffusersPolicy, float], Outcome]] = {
    "first update at ratio 1": first_ratio_is_one,
    "iterations repeat bit for bit": iterations_repeat,
    "no host sync in an iteration": no_host_sync,
}
