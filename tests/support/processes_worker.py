"""What each process of `test_processes.py` does: every case, its results written to a directory.

python processes_worker.py DIRECTORY [ddp] [fsdp] [die]      alone, or under `accelerate launch`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import Parameter

from support.families import tiny_policy
from support.families.editing import painted, shrink_sources
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS, TinyPolicy, brightness
from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo import step as grpo
from tempflow_fast.grpo.rollout import Rollout
from tempflow_fast.grpo.shares import Shares
from tempflow_fast.policies import SD3Policy
from tempflow_fast.processes import AcceleratedProcesses, Processes, ProcessLostError, launched, shard_on_cpu
from tempflow_fast.rewards import RewardError

SMALL = {"num_steps": 4, "num_branches": 3, "num_updates": 2, "clip_range": 1e-3}
GUIDED = {"guidance_scale": 3.0, "beta": 0.1, "micro_batch": 2, "max_batch": 5}
SEVEN = [f"prompt number {n}" + "!" * n for n in range(7)]


def rounded(images, prompts, metadata):
    """Scores that a rounding of the images does not reach."""
    return brightness(images, prompts, metadata).double().round(decimals=2)


def mostly_silent(images, prompts, metadata):
    scores = brightness(images, prompts, metadata)
    return scores * torch.tensor([prompt != "silent" for prompt in prompts])


def adapted() -> SD3Policy:
    """A transformer in 16 bits with an adapter in 32, computed again block by block in the backward pass."""
    with TemporaryDirectory() as directory:
        policy = SD3Policy(sd3_pipeline(Path(directory)).to(torch.bfloat16))
    policy.add_lora(rank=4, alpha=8)
    policy.enable_gradient_checkpointing()
    return policy


def of_family(name: str) -> Any:
    """An adapter on another transformer."""
    with TemporaryDirectory() as directory:
        policy = tiny_policy(name, Path(directory))
    policy.add_lora(rank=4, alpha=8)
    return policy


def sources(directory: Path) -> list[dict[str, str]]:
    """What `PROMPTS` are about: source images of different sizes, the same in every process."""
    return [{"image": painted(directory, n, size, n)} for n, size in enumerate([(64, 64), (128, 64), (64, 64)])]


CASES = {
    # Seven trajectories: 4 + 3, or 3 + 2 + 2.
    "seed groups": (TinyPolicy, SEVEN, brightness, GRPOConfig(**SMALL, num_seeds=1)),
    # Two prompts of five seeds each, whose groups no number of processes keeps together; one spread for all of them.
    "prompt groups": (
        TinyPolicy,
        PROMPTS[:2],
        rounded,
        GRPOConfig(**SMALL, num_seeds=5, group="prompt", adv_scale="global", **GUIDED),
    ),
    # Two trajectories, so that the third of three processes has none.
    "few": (TinyPolicy, PROMPTS[:1], brightness, GRPOConfig(**SMALL, num_seeds=2, micro_batch=1)),
    # Trajectories whose branches leave at steps of their own, and a gate in some of them, so that processes have
    # different numbers of rows.
    "drawn": (
        TinyPolicy,
        SEVEN,
        brightness,
        GRPOConfig(
            **SMALL,
            num_seeds=1,
            branches_per_trajectory=2,
            branch_probabilities=(1.0, 2.0, 3.0),
            max_batch=4,
            tail_steps=1,
            gate_every=1,
            gate_share=0.3,
        ),
    ),
    # Gradients summed after each group of pairs, to be measured.
    "measured": (
        TinyPolicy,
        SEVEN,
        brightness,
        GRPOConfig(**SMALL, num_seeds=1, branches_per_trajectory=2, branch_budget="adaptive", micro_batch=2),
    ),
    # Signal in one trajectory alone, so that all other processes only keep step.
    "silent": (
        TinyPolicy,
        ["silent"] * 4 + PROMPTS[2:],
        mostly_silent,
        GRPOConfig(**SMALL, num_seeds=1, micro_batch=2),
    ),
}


def coarse_brightness(images, prompts, metadata):
    """Brightness in steps of 1e-4, so that images which differ by rounding (1e-7) have one reward.

    The adapted network computes in bf16, in which the smallest change of a weight can move a velocity by one unit in
    its last place: a difference in the rewards would not stay small.
    """
    stills = images if images.dim() == 4 else images.mean(1)
    return brightness(stills, prompts, metadata).mul(1e4).round().div(1e4)


# As trained, so that sharded and whole networks compute the same.
AS_TRAINED = GRPOConfig(**SMALL, num_seeds=1, **GUIDED, rollout_weights="as trained")
ADAPTER = {
    "adapter": (adapted, PROMPTS, coarse_brightness, AS_TRAINED),
    # It takes lists of rows, and texts of one length in a call.
    "lists": (partial(of_family, "z_image"), PROMPTS[:3], coarse_brightness, AS_TRAINED),
}
WHOLE = {
    "merged": (adapted, PROMPTS, coarse_brightness, replace(AS_TRAINED, rollout_weights="merged")),
    # Packed latents next to those of source images, of one size in a call.
    "edits": (partial(of_family, "flux_kontext"), PROMPTS[:3], coarse_brightness, AS_TRAINED, sources),
    "videos": (partial(of_family, "wan"), PROMPTS[:3], coarse_brightness, AS_TRAINED),
}
"""Cases without FSDP."""


def train(
    processes: Processes,
    make_policy,
    prompts: list[str],
    reward_fn,
    config: GRPOConfig,
    make_metadata=lambda place: None,
) -> dict:
    """Two iterations of two updates: everything that must not depend on the number of processes."""
    policy = make_policy()
    policy.freeze_reference()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    optimizer = processes.prepare(policy, optimizer)
    if isinstance(getattr(policy, "calls", None), list):
        policy.calls.clear()
    start = processes.trained_state(policy.network)
    with recorded_updates() as seen, TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        shrink_sources(patch)
        more = (make_metadata(Path(place)), processes)
        metrics = [grpo_step(policy, prompts, reward_fn, optimizer, config, seed, *more) for seed in (5, 6)]
    drawn, advantages = seen[0]
    num_trajectories = len(prompts) * config.num_seeds
    own = Shares(num_trajectories, config.num_updates, processes.count, processes.index).own
    return {
        "ids": drawn.trajectory_ids[: len(own)],
        "noise": drawn.states[: len(own), 0] if drawn.branch_list.common_steps else drawn_steps(drawn)[: len(own)],
        "latents": by_trajectory(drawn)[: len(own)],
        "advantages": advantages.view(num_trajectories, -1),
        "metrics": [{name: float(value) for name, value in row.items()} for row in metrics],
        "calls": list(policy.calls) if isinstance(getattr(policy, "calls", None), list) else [],
        "start": start,
        "weights": processes.trained_state(policy.network),
        "replica": [parameter.detach().clone() for parameter in policy.parameters() if type(parameter) is Parameter],
        "wrapper": type(policy.network).__name__,
    }


def drawn_steps(drawn: Rollout) -> torch.Tensor:
    """The branch steps of each trajectory, which all have the same number of them."""
    return drawn.branch_list.steps.unflatten(0, (len(drawn.trajectory_ids), -1))


def by_trajectory(drawn: Rollout) -> torch.Tensor:
    """The finished branches of each trajectory, which all have the same number of them."""
    return drawn.flat_latents.unflatten(0, (len(drawn.trajectory_ids), -1))


@contextmanager
def recorded_updates() -> Iterator[list]:
    """Notes what `grpo_step` hands to `update`, which runs all the same."""
    real, seen = grpo.update, []

    def noting(policy, drawn, advantages, *rest):
        seen.append((drawn, advantages))
        return real(policy, drawn, advantages, *rest)

    grpo.update = noting
    yield seen
    grpo.update = real


def errors(processes: Processes) -> dict[str, str]:
    """What every process says when one of them was given something wrong."""
    policy, config = TinyPolicy(), GRPOConfig(**SMALL, num_seeds=1)
    optimizer = processes.prepare(policy, torch.optim.SGD(policy.parameters()))
    nan = lambda images, *_: torch.full((len(images),), torch.nan if processes.index == 0 else 0.0)  # noqa: E731
    texts = {}
    for name, prompts, reward_fn in (("other work", SEVEN[processes.index :], brightness), ("nan", SEVEN, nan)):
        try:
            grpo_step(policy, prompts, reward_fn, optimizer, config, processes=processes)
        except (ValueError, RewardError) as error:
            texts[name] = str(error)
    return texts


def spoiled(processes: Processes, **options: bool) -> dict[str, object]:
    """Two updates with a NaN in the gradient of the last process alone, by AdamW with these options."""
    policy = TinyPolicy()
    if processes.index == processes.count - 1:  # before it is wrapped: the gradient is not yet shared
        policy.network.register_full_backward_pre_hook(lambda _, grads: (grads[0] * torch.nan,))
    optimizer = processes.prepare(policy, torch.optim.AdamW(policy.parameters(), weight_decay=0.5, **options))
    before = processes.trained_state(policy.network)
    config = GRPOConfig(**SMALL, num_seeds=1)
    metrics = grpo_step(policy, SEVEN, brightness, optimizer, config, processes=processes)
    after = processes.trained_state(policy.network)
    same = all(torch.equal(before[name], after[name]) for name in before)
    return {"skipped": int(metrics["skipped_updates"]), "same": same}


def shard(processes: AcceleratedProcesses, policy: str) -> None:
    """From here on `prepare` shards as after `accelerate launch --use_fsdp`."""
    from accelerate import FullyShardedDataParallelPlugin

    processes.accelerator.free_memory()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy=policy, min_num_params=100, cpu_ram_efficient_loading=False
    )
    shard_on_cpu(processes.accelerator, plugin)


def changed_between_calls(processes: AcceleratedProcesses) -> dict[str, bool]:
    """What a sharded network, all of it one unit, makes of weights that change without a backward pass."""
    policy, plain = TinyPolicy(), TinyPolicy()
    processes.prepare(policy, torch.optim.SGD(policy.parameters()))
    latents, condition = torch.ones(2, *policy.latent_shape), policy.encode(PROMPTS[:2])
    with torch.no_grad():
        policy.velocity(latents, 0.5, condition)
        for parameter in (*policy.parameters(), *plain.parameters()):
            parameter.mul_(2)
        velocities = [each.velocity(latents, 0.5, condition)[0] for each in (policy, plain)]
    with processes.whole(policy):
        whole = policy.network.state_dict()
        is_whole = all(type(tensor) is torch.Tensor for tensor in whole.values())
        same = is_whole and all(torch.equal(whole[name], tensor) for name, tensor in plain.network.state_dict().items())
    with torch.no_grad():
        after = policy.velocity(latents, 0.5, condition)[0]
    return {"seen": torch.equal(*velocities), "whole": same, "sharded again": torch.equal(after, velocities[1])}


def refusal_of_merging(processes: Processes) -> str:
    """What a sharded network says to weights that are to be merged."""
    shard(processes, "transformer_based_wrap")
    try:
        train(processes, *WHOLE["merged"])
    except ValueError as error:
        return str(error)
    return "nothing"


def die(processes: Processes, directory: Path) -> None:
    """The last process is killed while it scores its images."""
    # The launcher ends the survivors as soon as it sees the dead one; here they are to finish their sentence.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def deadly(images, prompts, metadata):
        if processes.index == processes.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return brightness(images, prompts, metadata)

    policy = TinyPolicy()
    optimizer = processes.prepare(policy, torch.optim.SGD(policy.parameters()))
    try:
        grpo_step(policy, SEVEN, deadly, optimizer, GRPOConfig(**SMALL, num_seeds=1), processes=processes)
    except ProcessLostError as error:
        (directory / f"lost-{processes.index}").write_text(str(error))
        raise


def main(directory: Path, *parts: str) -> None:
    processes = launched(cpu=True)
    cases = CASES | (ADAPTER if "two" in parts else {})
    whole = cases | (WHOLE if "two" in parts else {})
    results = {name: train(processes, *case) for name, case in whole.items()}
    results["errors"] = errors(processes)
    results["spoiled"] = [spoiled(processes), spoiled(processes, fused=True)]
    results["loading"] = os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]
    if "two" in parts:
        for name, case in cases.items():
            shard(processes, "transformer_based_wrap" if name in ADAPTER else "size_based_wrap")
            results[f"sharded {name}"] = train(processes, *case)
        results["refused"] = refusal_of_merging(processes)
        shard(processes, "no_wrap")
        results["spoiled"] += [spoiled(processes), spoiled(processes, fused=True)]
        shard(processes, "no_wrap")
        results["changed"] = changed_between_calls(processes)
        if processes.is_main:
            save_file(results["sharded seed groups"]["weights"], directory / "sharded.safetensors")
    torch.save(results, directory / f"{processes.count}-{processes.index}.pt")
    processes.wait()
    if "die" in parts:
        die(processes, directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
