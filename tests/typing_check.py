"""Programs that users write, for the type checker of `make check` alone; nothing runs this file.

It fails where two public types do not fit together, such as a policy that `grpo_step` refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tempflow_fast as tff
from tempflow_fast.policies import (
    POLICIES,
    Condition,
    DiffusersPolicy,
    FluxPolicy,
    NetworkPolicy,
    Policy,
    QwenImagePolicy,
    SD3Policy,
)
from tempflow_fast.rewards import REWARDS, BackgroundScorer, Reward, RewardError, Scores, WeightedReward


def redness(images: Tensor, texts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Sharpness:
    range = (0.0, 1.0)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[dict[str, Any]]) -> Tensor:
        return images.diff(dim=3).abs().mean((1, 2, 3))


class OwnPolicy(NetworkPolicy):
    latent_shape, device, dtype = (3, 8, 8), torch.device("cpu"), torch.float32

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        return Condition({"length": torch.tensor([float(len(prompt)) for prompt in prompts])})

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        return self.acting(latents), None

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(0, 1)

    def sigmas(self, num_steps: int) -> list[float]:
        return tff.linear_sigmas(num_steps)

    def save(self, directory: str | Path) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        torch.save(self.network.state_dict(), Path(directory) / "network.pt")


def whole_iterations() -> None:
    policy = SD3Policy.from_pretrained(
        "stabilityai/stable-diffusion-3.5-medium", device="cuda", dtype=torch.bfloat16, resolution=512
    )
    policy.add_lora(rank=32, alpha=64)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)
    config = tff.GRPOConfig(num_steps=10, num_branches=6, num_seeds=4, guidance_scale=4.5, max_batch=16, micro_batch=4)
    for iteration in range(100):
        metrics = tff.grpo_step(policy, ["a fox", "a city"], redness, optimizer, config, seed=iteration)
        print(iteration, float(metrics["reward_mean"]))
    policy.save("tuned")


def policies() -> list[Policy]:
    loaded: DiffusersPolicy = tff.load_policy("Qwen/Qwen-Image", "cuda", torch.bfloat16, resolution=(512, 768))
    loaded.add_lora(rank=32, alpha=64)
    loaded.enable_gradient_checkpointing()
    loaded.offload_text_encoders()
    loaded.save_lora(Path("tuned"))
    loaded.network = torch.nn.DataParallel(loaded.network)
    POLICIES["MyStableDiffusion3Pipeline"] = SD3Policy
    return [
        loaded,
        OwnPolicy(nn.Conv2d(3, 3, 3)),
        FluxPolicy.from_pretrained("dev"),
        QwenImagePolicy.from_pretrained("qwen"),
    ]


def rewards(images: Tensor, prompts: list[str], metadata: list[dict[str, Any]]) -> Scores:
    one: Reward = Sharpness()
    several: WeightedReward = WeightedReward({"red": redness, "sharp": one}, {"red": 1.0, "sharp": 0.5})
    tff.get_reward("ocr=1.0,clip=0.1").score(images, prompts, metadata).parts["ocr"].mean()
    made = [tff.get_reward(reward) for reward in (redness, one, several)] + [tff.get_reward(name) for name in REWARDS]
    tff.get_reward({"red": {"reward": redness, "cache": 100}, "sharp": 0.5})(images, prompts, metadata).mean()
    made[0].score(images, prompts, metadata).total.mean()
    try:
        with BackgroundScorer(several) as scorer:
            scorer.submit(images, prompts, metadata)
            return scorer.collect()
    except RewardError as error:
        raise SystemExit(f"{error.name}: {error.prompt}") from error


def the_parts(policy: Policy, prompts: list[str]) -> dict[str, Tensor]:
    table: tff.StepTable = tff.step_table(policy.sigmas(8), "flow_sde", 0.7, branch_steps=[0, 2])
    noise = tff.ops.initial_noise(policy.latent_shape, 0, range(len(prompts)), policy.device)
    drawn: tff.Rollout = tff.rollout(policy, policy.encode(prompts), table, noise, num_branches=4)
    images = policy.decode(drawn.latents.flatten(0, 2))
    scores = redness(images, prompts, []).view(drawn.log_prob.shape)
    advantages = tff.group_advantages(scores, "prompt", prompt_ids=torch.arange(len(prompts)))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with policy.reference():
        policy.velocity(noise, 1.0, drawn.condition[0:2].to("cpu"))
    return tff.update(policy, drawn, advantages, optimizer, tff.GRPOConfig(num_branches=4))


def the_ops(latents: Tensor, velocity: Tensor, advantages: Tensor) -> Tensor:
    table = tff.step_table(tff.linear_sigmas(4))
    acted = velocity.detach()
    moved = tff.ops.euler_step(latents, tff.ops.guided_velocity(acted, acted, 4.5), table, 0)
    _trunk, branches, _log_prob = tff.ops.branch_step(moved, acted, table, 1, 4, 0, [0, 1])
    steps = [1] * len(latents)
    tff.ops.log_prob(branches[:, 0], latents, velocity, table, steps).sum().backward()
    found = tff.ops.policy_loss(velocity, latents, branches, acted, advantages, table, steps, clip_range=1e-3)
    return found.loss + found.clip_fraction


def many_processes(policy: Policy, prompts: list[str]) -> None:
    config = tff.GRPOConfig(num_seeds=4, micro_batch=8)
    processes: tff.Processes = tff.launched()
    print(tff.Geometry(config, num_prompts=len(prompts), num_processes=processes.count), tff.info()["native_cuda"])
    optimizer = processes.prepare(policy, torch.optim.AdamW(policy.parameters()))
    tff.grpo_step(policy, prompts, "shapes", optimizer, config, seed=1, metadata=[{}], processes=processes)
    print(tff.__version__, processes.trained_state(policy.network).keys())
