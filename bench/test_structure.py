"""Rollout and training in the paper's structure and in ours: seconds, and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tempflow_fast import group_advantages, ops, rollout
from tempflow_fast.grpo.update import update
from tempflow_fast.policies import Condition, DiffusersPolicy

from . import paper
from .clocks import peak_mib
from .networks import LARGE, MAX_BATCH, MIDDLE, SMALL, Work, optimizer_of

NETWORKS = [SMALL, pytest.param(MIDDLE, marks=pytest.mark.full), pytest.param(LARGE, marks=pytest.mark.full)]
ROUNDS = {SMALL: 5, MIDDLE: 2, LARGE: 1}


@dataclass
class Prepared:
    """A policy with what its rollout starts from."""

    work: Work
    policy: DiffusersPolicy
    condition: Condition
    noise: Tensor

    def wavefront(self, max_batch: int | None, **settings: object):
        config = self.work.changed(**settings)
        arguments = (self.policy, self.condition, config.table(self.policy), self.noise, config.num_branches)
        return rollout(*arguments, max_batch=max_batch)

    def sequential(self, **settings: object):
        config = self.work.changed(**settings)
        return paper.roll_out(self.policy, self.condition, config.table(self.policy), self.noise, config)


def prepare(work: Work) -> Prepared:
    policy = work.policy()
    noise = ops.initial_noise(policy.latent_shape, 0, range(work.num_prompts))
    return Prepared(work, policy, policy.encode(work.prompts), noise)


@pytest.mark.gate("tests/grpo/test_rollout.py")
@pytest.mark.parametrize("network", [SMALL, pytest.param(MIDDLE, marks=pytest.mark.full)])
def test_rollout(compare, network):
    ready = prepare(Work(network))
    candidates = {
        "wavefront": lambda: ready.wavefront(None),
        "wavefront in pieces": lambda: ready.wavefront(MAX_BATCH[network]),
        "sequential": ready.sequential,
    }
    compare("rollout", str(ready.work), candidates, ROUNDS[network], max_batch=MAX_BATCH[network])


@pytest.mark.gate("tests/grpo/test_objective.py")
@pytest.mark.parametrize("network", NETWORKS)
def test_training(compare, network):
    training = Training(prepare(Work(network)))
    candidates = {
        "stacked": lambda: training.ours(micro_batch=None),
        "shared": lambda: training.ours(micro_batch=1),
        "naive": training.naive,
    }
    compare("training", str(training.work), candidates, ROUNDS[network])


class Training:
    """One update on one rollout, in either structure, with the same advantages."""

    def __init__(self, ready: Prepared, **settings: object) -> None:
        self.work, self.policy, self.ready = ready.work, ready.policy, ready
        self.settings, self.optimizer = settings, optimizer_of(ready.policy)
        self.rollout, self.drawn = ready.wavefront(None, **settings), ready.sequential(**settings)
        rewards = torch.randn(self.rollout.branches.shape[:3], dtype=torch.float64)
        self.advantages = group_advantages(rewards, "seed", torch.arange(len(rewards)))

    def ours(self, micro_batch: int | None) -> None:
        config = self.work.changed(micro_batch=micro_batch, **self.settings)
        update(self.policy, self.rollout, self.advantages, self.optimizer, config)

    def naive(self) -> None:
        config = self.work.changed(**self.settings)
        table, num_rows = config.table(self.policy), config.num_branches * self.work.num_prompts
        arguments = (self.drawn, self.advantages, self.optimizer, config, num_rows)
        paper.update(self.policy, self.ready.condition, table, *arguments)


@pytest.mark.gate("tests/grpo/test_objective.py", "-k", "activations")
@pytest.mark.parametrize("num_branches", [2, 6, 12])
def test_training_memory(compare, num_branches):
    """Peaks of one call per branch step in both structures."""
    training = Training(prepare(Work(SMALL)), num_branches=num_branches)
    calls = {"shared": lambda: training.ours(micro_batch=1), "naive": training.naive}
    training.naive()  # AdamW's moments are made in the first step
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    compare("training memory", f"K = {num_branches}", calls, 1, mib=peaks)


@pytest.mark.gate("tests/grpo/test_rollout.py", "-k", "max_batch")
@pytest.mark.parametrize("max_batch", [6, 12, 24, None])
def test_rollout_memory(compare, max_batch):
    ready = prepare(Work(SMALL))
    calls = {"wavefront": lambda: ready.wavefront(max_batch), "sequential": ready.sequential}
    peaks = {name: peak_mib(call) for name, call in calls.items()}
    row = f"max_batch = {'no limit' if max_batch is None else max_batch}"
    compare("rollout memory", row, calls, 1, mib=peaks)
