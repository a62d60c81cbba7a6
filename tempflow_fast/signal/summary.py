"""Gradients of many iterations -> what is known about each setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..grpo.budget import allotted, branch_range
from ..grpo.draw import possible_draws, step_shares
from ..grpo.geometry import Geometry
from ..settings.iteration import GRPOConfig, Trunk
from .choose import best_steps
from .estimates import Estimate, GradientMoments, Moments, iterations_to_distinguish
from .sample import Sample

RESOLVED = 2.0
"""Standard errors by which a signal has to be above 0."""


@dataclass(frozen=True)
class StepSignal:
    """One branch step of one setting."""

    step: int
    num_branches: int
    """K."""
    tail: int
    """Network calls after the branch step."""
    cost: float
    """Forward passes per prompt for its branches and training rows, without the trunks, on average over draws."""
    variance: float
    """Of its gradient, per iteration, summed over elements."""
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
    trunk: Trunk
    """Whether branches leave the trajectories ("ode"), or these take the noisy steps themselves ("sde")."""
    draws: tuple[tuple[float, tuple[int, ...]], ...]
    """The sets of branch steps that a trajectory may have, each with its share of the draws."""
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
    kept: Estimate | None
    """The squared correlation of its noise with that of the reference at the same branch steps: the relative signal if
    all that differs is noise. It is known long before the signal is. None where the reference has no such steps."""
    iterations_to_tell: int | None
    """Iterations that would tell its signal per evaluation from the reference's; None: no number would."""

    @property
    def has_branches(self) -> bool:
        """Whether every trajectory takes all branch steps, and branches leave them."""
        return self.trunk == "ode" and len(self.draws) == 1

    def cost_of(self, steps: Sequence[StepSignal]) -> float:
        """Forward passes per prompt of some of the steps alone, with their trunks, on average over draws.

        Args:
            steps: of this setting.
        """
        own, numbers = sum(step.cost for step in steps), {step.step for step in steps}
        if self.trunk == "sde":  # an image takes all steps, whichever of them are trained
            return self.evaluations + own * (1 - self.evaluations / self.cost)
        lengths = [share * (max(numbers.intersection(drawn), default=-1) + 1) for share, drawn in self.draws]
        return own + self.num_seeds * sum(lengths)


@dataclass(frozen=True)
class SignalReport:
    """What M iterations at a fixed policy say about settings."""

    num_iterations: int
    settings: tuple[SettingSignal, ...]
    correlations: tuple[tuple[float, ...], ...]
    """Of the noise of the reference's branch steps, [B][B]."""
    iterations_to_tell: tuple[tuple[int | None, ...], ...]
    """Iterations that would tell the signal per evaluation of two settings apart, for all pairs in the order of
    `settings`; None: no number would."""

    @property
    def is_resolved(self) -> bool:
        """Whether the signal of the reference stands out from its error; without that, ratios to it mean nothing."""
        own = self.settings[0].snr2
        return own.value > RESOLVED * own.error

    @property
    def order(self) -> list[int]:
        """The settings from the most signal per evaluation to the least, as positions; unknown ones are left out."""
        figures = [setting.per_evaluation.value for setting in self.settings]
        known = [place for place, figure in enumerate(figures) if math.isfinite(figure)]
        return sorted(known, key=figures.__getitem__, reverse=True) or [0]

    def recommended(self, budget: float | None = None) -> Recommendation:
        """What to use of the setting with the most signal per evaluation.

        Args:
            budget: the most forward passes that a prompt may cost; None: the best step per cost.
        """
        best = self.settings[self.order[0]]
        chosen = best_steps(
            [step.snr2.value for step in best.steps],
            lambda places: best.cost_of([best.steps[place] for place in places]),
            budget,
        )
        return Recommendation.of(best, [best.steps[place] for place in chosen])


@dataclass(frozen=True)
class Recommendation:
    """What to use of a setting."""

    name: str
    """Of the setting."""
    branch_steps: tuple[int, ...]
    num_branches: tuple[int, ...] | None
    """K of each of these steps, so that the same evaluations have the least variance; None: as in the setting."""
    tail_steps: tuple[int, ...] | None
    """Network calls after each of these steps; None: as in the setting."""

    @classmethod
    def of(cls, setting: SettingSignal, steps: Sequence[StepSignal]) -> Recommendation:
        """Steps of a setting, with their branches allotted anew.

        Args:
            setting: the setting.
            steps: those of its steps to use.
        """
        own = tuple(step.step for step in steps)
        if not setting.has_branches:
            return cls(setting.name, own, None, None)
        costs = [max(step.tail, 1) for step in steps]
        budget = sum(step.num_branches * cost for step, cost in zip(steps, costs, strict=True))
        moments = [step.num_branches * step.variance for step in steps]
        counts = allotted(moments, costs, [branch_range(step.num_branches) for step in steps], budget)
        return cls(setting.name, own, tuple(counts), tuple(step.tail for step in steps))

    def __str__(self) -> str:
        tables = ("branch_steps", "num_branches", "tail_steps")
        known = [(name, getattr(self, name)) for name in tables if getattr(self, name) is not None]
        return " ".join(f"{name}=[{','.join(map(str, table))}]" for name, table in known)


def summarised(settings: Mapping[str, GRPOConfig], samples: Mapping[str, Sequence[Sample]]) -> SignalReport:
    """Estimates from the gradients of all iterations.

    Args:
        settings: the settings by name, the reference first.
        samples: of each setting, one per iteration.
    """
    names = list(settings)
    steps = {name: sorted({step for one in samples[name] for step in one.gradients}) for name in names}
    sources = [(name, step) for name in names for step in steps[name]]
    moments = GradientMoments(torch.stack([_gradients(samples[name], step) for name, step in sources]))
    place = {source: index for index, source in enumerate(sources)}
    reference = names[0]
    wholes = [[float(source[0] == name) for source in sources] for name in names]
    same = [[float(source[0] == reference and source[1] in steps[name]) for source in sources] for name in names]
    sums = torch.tensor(wholes + same)
    costs = {name: _cost(config) for name, config in settings.items()}

    def effective(index: int) -> Callable[[Moments], Tensor]:
        return lambda m: m.combined(sums).effective_snr2(index, 0)

    def per_evaluation(index: int, other: int) -> Estimate:
        scale = costs[names[other]][0] / costs[names[index]][0]
        return moments.ratio(lambda m: scale * effective(index)(m), effective(other))

    def kept(index: int) -> Estimate | None:
        has_all = set(steps[names[index]]) <= set(steps[reference])
        if not has_all or settings[names[index]].trunk != settings[reference].trunk:
            return None
        return moments.estimate(lambda m: m.combined(sums).correlation(index, len(names) + index).square())

    def to_tell(index: int, other: int) -> int | None:
        return iterations_to_distinguish(per_evaluation(index, other), moments.num_iterations)

    def setting(index: int) -> SettingSignal:
        name = names[index]
        return SettingSignal(
            name=name,
            num_seeds=settings[name].num_seeds,
            trunk=settings[name].trunk,
            draws=_draws(settings[name]),
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
            per_evaluation=per_evaluation(index, 0),
            kept=kept(index),
            iterations_to_tell=to_tell(index, 0),
        )

    own = [place[reference, step] for step in steps[reference]]
    correlations = tuple(tuple(moments.all.correlation(a, b).item() for b in own) for a in own)
    places = range(len(names))
    pairs = tuple(tuple(to_tell(a, b) for b in places) for a in places)
    return SignalReport(moments.num_iterations, tuple(map(setting, places)), correlations, pairs)


def _gradients(samples: Sequence[Sample], step: int) -> Tensor:
    """The gradient of a branch step in each iteration, [M, size]; 0 where no trajectory has drawn the step."""
    drawn = [one.gradients.get(step) for one in samples]
    absent = torch.zeros_like(next(gradient for gradient in drawn if gradient is not None))
    return torch.stack([absent if gradient is None else gradient for gradient in drawn])


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
        num_branches=dict(config.branch_counts)[step],
        tail=dict(config.tail_lengths)[step],
        variance=moments.all.covariance[source, source].item(),
        cost=_step_cost(config, step),
        spread=_mean([one.spread[step] for one in samples if step in one.spread]),
        snr2=moments.estimate(lambda m: m.snr2(source)),
        cosine=None if reference is None else moments.estimate(lambda m: m.cosine(source, reference)),
    )


def _draws(config: GRPOConfig) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """Every set of branch steps that a trajectory may have: (share of the draws, steps)."""
    steps = [step for step, _ in config.branch_counts]
    return tuple((share, tuple(steps[place] for place in places)) for share, places in possible_draws(config))


def _step_cost(config: GRPOConfig, step: int) -> float:
    """Forward passes of one branch step per prompt, without trunks, on average over draws; its share of the trained
    rows where steps share all costs."""
    shares = step_shares(config)
    if config.trunk == "sde":
        return _cost(config)[1] * shares[step] / sum(shares.values())
    own: dict[str, Any] = {"branch_steps": (step,), "num_branches": dict(config.branch_counts)[step]}
    own |= {"tail_steps": dict(config.tail_lengths)[step] or None, "tail_levels": "uniform"}  # levels cost nothing
    own |= dict.fromkeys(("branches_per_trajectory", "branch_probabilities", "branch_budget", "gate_every"))
    alone = dataclasses.replace(config, **own)
    return shares[step] * (_cost(alone)[1] - config.num_seeds * (step + 1))


def _cost(config: GRPOConfig) -> tuple[float, float]:
    """Network evaluations of the rollout, and forward passes with training, per prompt, on average over draws."""
    geometry = Geometry(dataclasses.replace(config, num_updates=1, branch_budget=None), 1)
    cost, rollout = geometry.costs()[0], config.num_seeds * geometry.evaluations
    return rollout, rollout + cost.total - cost.rollout


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
