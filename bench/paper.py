"""One iteration in the structure of the paper's public scripts, in plain PyTorch, to be timed against ours.

Every branch step is carried to the end by network calls of its own, and in training every branch has a network row of
its own. The arithmetic is that of `bench.baselines`; the network, its texts and its precision are the same as ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempflow_fast import GRPOConfig, StepTable, group_advantages, ops
from tempflow_fast.grpo.attention import without_cudnn_attention
from tempflow_fast.grpo.step import StageClock
from tempflow_fast.policies import Condition, DiffusersPolicy

from . import baselines


@dataclass(frozen=True, eq=False)
class Drawn:
    """What one branch step left: states and velocities [N, *shape], branches and their ends [N K, *shape]."""

    step: int
    states: Tensor
    velocity: Tensor
    branches: Tensor
    latents: Tensor

    def of(self, rows: Tensor) -> Drawn:
        """The part of some trajectories.

        Args:
            rows: their indices.
        """
        branches, latents = (
            each.unflatten(0, (len(self.states), -1))[rows].flatten(0, 1) for each in (self.branches, self.latents)
        )
        return Drawn(self.step, self.states[rows], self.velocity[rows], branches, latents)


def iteration(
    policy: DiffusersPolicy,
    prompts: Sequence[str],
    optimizer: torch.optim.Optimizer,
    config: GRPOConfig,
    seed: int,
    max_rows: int,
) -> dict[str, float]:
    """Samples, scores and updates once; returns `seconds_<stage>` of rollout, decode and train, loss and grad_norm.

    Args:
        policy: acts and is trained.
        prompts: of the iteration; each gets `config.num_seeds` trajectories, and a branch step is one call for all.
        optimizer: holds the policy's parameters.
        config: the settings; one update, advantages within seed groups.
        seed: of the initial noise.
        max_rows: most rows in one training call.
    """
    clock, table = StageClock(), config.table(policy)
    names = [prompt for prompt in prompts for _ in range(config.num_seeds)]
    condition, num = policy.encode(names, guided=policy.guides(config.guidance_scale)), len(names)
    noise = ops.initial_noise(policy.latent_shape, seed, range(num), policy.device)
    with clock.stage("rollout"):
        drawn = roll_out(policy, condition, table, noise, config)
    with clock.stage("decode"):
        images = [policy.decode(each.latents) for each in drawn]
    rewards = torch.stack([image[:, 0].mean((1, 2)) for image in images], dim=1)  # [N K, B]
    rewards = rewards.unflatten(0, (num, -1)).transpose(1, 2).double().cpu()
    advantages = group_advantages(rewards, "seed", torch.zeros(num, dtype=torch.int64))
    with clock.stage("train"):
        loss, norm = update(policy, condition, table, drawn, advantages, optimizer, config, max_rows)
    return {**clock.seconds, "loss": loss, "grad_norm": float(norm)}


@torch.no_grad()
def roll_out(
    policy: DiffusersPolicy, condition: Condition, table: StepTable, noise: Tensor, config: GRPOConfig
) -> list[Drawn]:
    """The trunk, and from every branch step its branches and their tails, one network call after another."""
    k, g = config.num_branches, config.guidance_scale
    repeated = Condition({name: part.repeat_interleave(k, 0) for name, part in condition.tensors.items()})
    rows, drawn, x = _rows(table), [], noise
    for step in range(table.branch_steps[-1] + 1):
        v = _velocity(policy, x, table, step, condition, g)
        if step in table.branch_steps:
            _, branches, _ = baselines.script_branch_step(x.flatten(1), v.flatten(1), rows[step], k)
            branches = y = branches.flatten(0, 1).view(-1, *x.shape[1:])
            for later in range(step + 1, table.num_steps):
                y = y + rows[later].dt * _velocity(policy, y, table, later, repeated, g)
            drawn.append(Drawn(step, x, v, branches, y))
        x = x + rows[step].dt * v
    return drawn


@without_cudnn_attention()  # with it, FLUX's shape ends in an illegal memory access
def update(
    policy: DiffusersPolicy,
    condition: Condition,
    table: StepTable,
    drawn: Sequence[Drawn],
    advantages: Tensor,
    optimizer: torch.optim.Optimizer,
    config: GRPOConfig,
    max_rows: int,
) -> tuple[float, Tensor]:
    """One optimizer step on the branches of all steps, every branch a network row; returns loss and gradient norm."""
    optimizer.zero_grad(set_to_none=True)
    parts = (
        _train(policy, condition, table, each, advantages[:, column], config, max_rows, len(drawn))
        for column, each in enumerate(drawn)
    )
    total = sum(parts)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
    optimizer.step()
    return total, norm


def _train(
    policy: DiffusersPolicy,
    condition: Condition,
    table: StepTable,
    drawn: Drawn,
    advantages: Tensor,
    config: GRPOConfig,
    max_rows: int,
    num_steps: int,
) -> float:
    """Adds the gradient of one branch step; returns its part of the loss."""
    k, row, g = config.num_branches, _rows(table)[drawn.step], config.training_guidance
    owner = torch.arange(len(drawn.branches), device=drawn.branches.device) // k
    flat, total = advantages.flatten().to(drawn.branches.device, torch.float32), 0.0
    for start in range(0, len(owner), max_rows):
        rows = slice(start, start + max_rows)
        x, old, own = drawn.states[owner[rows]], drawn.velocity[owner[rows]].flatten(1), condition[owner[rows]]
        v = _velocity(policy, x, table, drawn.step, own, g).flatten(1)
        branches = drawn.branches[rows].flatten(1).unsqueeze(1)
        inputs = baselines.LossInputs(x.flatten(1), branches, old, flat[rows, None], row, config.clip_range)
        loss = baselines.script_policy_loss(v, inputs)
        if config.beta:
            with torch.no_grad(), policy.reference():
                reference = _velocity(policy, x, table, drawn.step, own, g).flatten(1)
            loss = loss + config.beta * baselines.kl(v, reference, row)
        share = loss * (len(x) / len(owner) / num_steps)
        share.backward()
        total += float(share.detach())  # as the scripts log it, step by step
    return total


def _velocity(
    policy: DiffusersPolicy, x: Tensor, table: StepTable, step: int, condition: Condition, guidance_scale: float
) -> Tensor:
    cond, uncond = policy.velocity(x, table.sigma[step].item(), condition, guidance_scale)
    return cond if uncond is None else baselines.guided(cond, uncond, guidance_scale)


def _rows(table: StepTable) -> list[baselines.Step]:
    return [baselines.Step(*row) for row in table.coefficients().tolist()]
