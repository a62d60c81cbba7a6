"""The training loop: evaluate, iterate within the budget, save, evaluate again, draw."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .evaluate import Evaluation, evaluate
from .grpo import grpo_step
from .plots import sample_sheet, training_curve
from .policies.base import Policy
from .progress import Budget, ProgressBar, StopRequest
from .prompts import get_prompts
from .rewards import get_reward
from .run_directory import RunDirectory
from .train_config import TrainConfig


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    before: Evaluation
    after: Evaluation | None
    """None where the second Ctrl-C left it out."""
    num_iterations: int
    seconds: float
    """Wall seconds of the iterations."""


def train(
    config: TrainConfig,
    policy: Policy,
    run: RunDirectory,
    stop: StopRequest | None = None,
    report: Callable[[str], None] = print,
) -> Trained:
    """Trains the policy and fills the run directory (see `run_directory`); the same config gives the same metrics.

    Whatever ends the iterations, the weights they led to are written.

    Args:
        config: the settings.
        policy: the model that `config` names; changed in place.
        run: where to write; must be new or empty.
        stop: a `made` request ends the run after its current iteration.
        report: takes one sentence now and then.

    Raises:
        ValueError: before any work, for a directory that holds something, or an unknown prompt set or reward.
        KeyboardInterrupt: from a second Ctrl-C during the iterations.
    """
    get_prompts(config.prompts), get_reward(config.reward), get_reward(config.accuracy)
    run.claim()
    run.write_config(config)
    before = score(config, policy)
    run.write_evaluation("before", before)
    report(f"before training: {summary(before)}")
    budget = _iterate(config, policy, run, stop or StopRequest())
    seconds = budget.seconds
    try:
        after = _finish(config, policy, run, before)
        report(f"after training: {summary(after)}")
    except KeyboardInterrupt:
        after = None
    return Trained(before, after, budget.num_done, seconds)


def score(config: TrainConfig, policy: Policy) -> Evaluation:
    """The policy's evaluation as a run with these settings does it."""
    return evaluate(
        policy,
        config.grpo.table(policy),
        config.prompts,
        config.reward,
        config.accuracy,
        config.eval_images,
        config.eval_seed,
        config.grpo.guidance_scale,
        config.grpo.max_batch,
    )


def summary(evaluation: Evaluation) -> str:
    """The overall result in one phrase."""
    row = evaluation.table()["overall"]
    return f"strict accuracy {row['accuracy']:.3f}, reward {row['reward']:.3f} on {row['num_images']} held-out images"


def _iterate(config: TrainConfig, policy: Policy, run: RunDirectory, stop: StopRequest) -> Budget:
    """Runs iterations until the budget is used up or a stop is asked for; the weights are written in any case."""
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda iteration: min(1.0, (iteration + 1) / (config.warmup_iterations + 1))
    )
    budget, bar = Budget(config.num_iterations, config.minutes), ProgressBar()
    try:
        while budget.fraction < 1 and not stop.made:
            metrics = _iteration(config, policy, optimizer, budget.num_done)
            warmup.step()
            budget.num_done += 1
            run.append_metrics({"iteration": budget.num_done, "seconds": budget.seconds, **metrics})
            bar.show(budget, metrics)
    finally:
        bar.close()
        run.write_model(policy)
    return budget


def _iteration(config: TrainConfig, policy: Policy, optimizer: torch.optim.Optimizer, index: int) -> dict[str, float]:
    """One `grpo_step`; its prompts and noise depend on (seed, index) alone."""
    source = get_prompts(config.prompts)
    rng = random.Random(f"{config.seed}/{index}")
    metadata = source.draw(source.train_prompts(), config.prompts_per_iteration, rng)
    metrics = grpo_step(
        policy,
        [entry["prompt"] for entry in metadata],
        get_reward(config.reward),
        optimizer,
        config.grpo,
        seed=(config.seed << 32) + index,
        metadata=metadata,
    )
    return {name: float(value) for name, value in metrics.items()}


def _finish(config: TrainConfig, policy: Policy, run: RunDirectory, before: Evaluation) -> Evaluation:
    """Writes the pictures and the scores of the tuned policy."""
    if metrics := run.read_metrics():
        training_curve(run.curve, metrics)
    after = score(config, policy)
    run.write_evaluation("after", after)
    sample_sheet(run.sheet, {"before": before, "after": after})
    return after
