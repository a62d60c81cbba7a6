"""Gradients of many iterations -> what is known about each setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..grpo.geometry import Geometry
from ..settings.iteration import GRPOConfig
from .choose import best_steps
from .estimates import Estimate, GradientMoments, iterations_to_distinguish
from .sample import Sample

RESOLVED = 2.0
"""Standard errors by which a signal has to be above 0."""


@dataclass(frozen=True)
class StepSignal:
    """One branch step of one setting."""

    step: int
    cost: float
    """Forward passes per prompt for its branches and training rows, without the trunks."""
    spread: float
    """Mean standard deviation of the rewards in a group."""
    snr2: Estimate
    """|E g|^2 / variance of its gradient, per iteration."""
    cosine: Estimate | None
    """Of its expected gradient and that of the reference at the same step; None if the reference has no such step."""


@dataclass(frozen=True)
class SettingSignal:
    """One setting; the first one measured is the reference."""

    name: str
    num_seeds: int
    """Trajectories per prompt."""
    steps: tuple[StepSignal, ...]
    evaluations: float
    """Network evaluations of the rollout, per prompt."""
    cost: float
    """The same and training, where a row counts as three, in forward passes per prompt."""
    seconds: float
    """Of one iteration, mean."""
    reward: float
    """Mean."""
    snr2: Estimate
    """Of the whole gradient, per iteration."""
    effective: Estimate
    """The same, counting only the signal along the reference's expected gradient."""
    relative: Estimate
    """The effective snr2 over that of the reference."""
    per_evaluation: Estimate
    """The same, divided by the ratio of evaluations."""
    iterations_to_tell: int | None
    """Iterations that would tell its signal per evaluation from the reference's; None: no number would."""


@dataclass(frozen=True)
class SignalReport:
    """What M iterations at a fixed policy say about settings."""

    num_iterations: int
    settings: tuple[SettingSignal, ...]
    correlations: tuple[tuple[float, ...], ...]
    """Of the noise of the reference's branch steps, [B][B]."""

    @property
    def is_resolved(self) -> bool:
        """Whether the signal of the reference stands out from its error; without that, ratios to it mean nothing."""
        own = self.settings[0].snr2
        return own.value > RESOLVED * own.error

    def recommended(self, budget: float | None = None) -> tuple[str, tuple[int, ...]]:
        """The setting with the most signal per evaluation, and the branch steps of it to use.

        Args:
            budget: the most forward passes that a prompt may cost; None: the best step per cost.

        Returns:
            The name of the setting and the steps.
        """
        known = [setting for setting in self.settings if math.isfinite(setting.per_evaluation.value)]
        best = max(known or self.settings[:1], key=lambda setting: setting.per_evaluation.value)
        chosen = best_steps(
            [step.snr2.value for step in best.steps],
            [step.cost for step in best.steps],
            lambda last: best.num_seeds * (best.steps[last].step + 1),
            budget,
        )
        return best.name, tuple(best.steps[place].step for place in chosen)


def summarised(settings: Mapping[str, GRPOConfig], samples: Mapping[str, Sequence[Sample]]) -> SignalReport:
    """Estimates from the gradients of all iterations.

    Args:
        settings: the settings by name, the reference first.
        samples: of each setting, one per iteration.
    """
    names = list(settings)
    steps = {name: sorted(samples[name][0].gradients) for name in names}
    sources = [(name, step) for name in names for step in steps[name]]
    moments = GradientMoments(
        torch.stack([torch.stack([one.gradients[step] for one in samples[name]]) for name, step in sources])
    )
    place = {source: index for index, source in enumerate(sources)}
    sums = torch.tensor([[float(source[0] == name) for source in sources] for name in names])
    reference = names[0]
    costs = {name: _cost(config) for name, config in settings.items()}

    def setting(index: int) -> SettingSignal:
        name = names[index]
        ratio = costs[reference][0] / costs[name][0]

        def effective(which: int, scale: float = 1.0) -> Any:
            return lambda m: scale * m.combined(sums).effective_snr2(which, 0)

        per_evaluation = moments.ratio(effective(index, ratio), effective(0))
        told = iterations_to_distinguish(per_evaluation, moments.num_iterations)
        return SettingSignal(
            name=name,
            num_seeds=settings[name].num_seeds,
            steps=tuple(
                _step(settings[name], place[name, step], step, samples[name], moments, place.get((reference, step)))
                for step in steps[name]
            ),
            evaluations=costs[name][0],
            cost=costs[name][1],
            seconds=_mean([one.seconds for one in samples[name]]),
            reward=_mean([one.reward for one in samples[name]]),
            snr2=moments.estimate(lambda m: m.combined(sums).snr2(index)),
            effective=moments.estimate(effective(index)),
            relative=moments.ratio(effective(index), effective(0)),
            per_evaluation=per_evaluation,
            iterations_to_tell=told,
        )

    own = [place[reference, step] for step in steps[reference]]
    correlations = tuple(tuple(moments.all.correlation(a, b).item() for b in own) for a in own)
    return SignalReport(moments.num_iterations, tuple(map(setting, range(len(names)))), correlations)


def _step(
    config: GRPOConfig,
    source: int,
    step: int,
    samples: Sequence[Sample],
    moments: GradientMoments,
    reference: int | None,
) -> StepSignal:
    """One branch step, whose gradients are a source of `moments`; `reference` is the source to compare it with."""
    return StepSignal(
        step=step,
        cost=_step_cost(config, step),
        spread=_mean([one.spread[step] for one in samples]),
        snr2=moments.estimate(lambda m: m.snr2(source)),
        cosine=None if reference is None else moments.estimate(lambda m: m.cosine(source, reference)),
    )


def _step_cost(config: GRPOConfig, step: int) -> float:
    """Forward passes of one branch step per prompt, without trunks; an equal share where steps share all costs."""
    if config.trunk == "sde":
        return _cost(config)[1] / len(config.branch_counts)
    own: dict[str, Any] = {"branch_steps": (step,), "num_branches": dict(config.branch_counts)[step]}
    own["tail_steps"] = dict(config.tail_lengths)[step] or None
    own |= dict.fromkeys(("branches_per_trajectory", "branch_probabilities", "branch_budget"))
    alone = dataclasses.replace(config, **own)
    return _cost(alone)[1] - config.num_seeds * (step + 1)


def _cost(config: GRPOConfig) -> tuple[float, float]:
    """Network evaluations of the rollout, and forward passes with training, per prompt."""
    cost = Geometry(dataclasses.replace(config, num_updates=1, gate_every=None, branch_budget=None), 1).costs()[0]
    return cost.rollout, cost.total


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
