"""Settings of an iteration -> how much signal they give for their cost, at a fixed policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import fail, instance, integer, integers, require
from ..grpo.levels import with_levels
from ..grpo.sketch import SKETCH_SIZE, Sketch
from ..grpo.trainable import check_trainable
from ..policies.base import Policy, check_policy
from ..rewards import get_reward
from ..rewards.registry import Spec
from ..settings.iteration import GRPOConfig
from .contained import part_of, sources
from .estimates import MIN_ITERATIONS
from .sample import Sample, sample
from .store import SampleStore
from .summary import SignalReport, summarised

ALL = "as set"
"""Name of a single setting."""

Draw = Callable[[int], Sequence[Mapping[str, Any]]]
"""Iteration -> its prompts, as `{"prompt": text, ...}`; the other fields are metadata for the reward."""


def measure_signal(
    policy: Policy,
    prompts: Sequence[str] | Draw,
    reward_fn: Spec,
    settings: GRPOConfig | Mapping[str, GRPOConfig],
    num_iterations: int = 20,
    seed: int = 0,
    sketch_size: int | None = SKETCH_SIZE,
    store: SampleStore | None = None,
    on_iteration: Callable[[int], None] | None = None,
) -> SignalReport:
    """Measures what an iteration teaches, by branch step and in all, for one or more settings.

    Independent iterations are drawn at the policy as it is, and nothing is trained. Iteration i has the same prompts
    and the same noise in all settings, so that their difference is known better than each of them. A setting with some
    of the branch steps of another one, and otherwise the same, takes its gradients from there.

    Args:
        policy: the policy; it does not change.
        prompts: P prompts, used in every iteration, or a function that draws those of an iteration.
        reward_fn: anything that `get_reward` takes.
        settings: the settings of an iteration, or several by name. The first ones are the reference: the signal of
            the others counts in the direction of their gradient. Branch steps that are drawn must be drawn at random,
            not in turn.
        num_iterations: M, 3 or more; errors fall as 1 / sqrt(M).
        seed: key of the noise.
        sketch_size: elements kept of a gradient; None: all of them.
        store: keeps the samples, and has those of an interrupted measurement; None: nothing is kept.
        on_iteration: called with the number of iterations done.

    Returns:
        The report: print it, or see its fields.

    Raises:
        ValueError: naming the argument that does not fit.
        RewardError: if a reward failed.
    """
    check_policy("measure_signal", policy, "encode", "velocity", "decode", "parameters")
    check_trainable("measure_signal", policy)
    if not isinstance(settings, GRPOConfig):
        instance("measure_signal", "settings", settings, Mapping, "a GRPOConfig, or several by name")
    named = {ALL: settings} if isinstance(settings, GRPOConfig) else dict(settings)
    require(bool(named), "measure_signal", "settings", "a GRPOConfig, or several by name", "none")
    check_draws(named)
    least = integer("measure_signal", "num_iterations", num_iterations) >= MIN_ITERATIONS
    require(least, "measure_signal", "num_iterations", f">= {MIN_ITERATIONS}", num_iterations)
    sketch = Sketch(sum(parameter.numel() for parameter in policy.parameters()), sketch_size)
    integers("measure_signal", "seed", [seed])
    if not callable(prompts):
        instance("measure_signal", "prompts", prompts, Sequence, "a list of texts or a function")
    reward, draw = get_reward(reward_fn), prompts if callable(prompts) else _fixed(prompts)
    samples: dict[str, list[Sample]] = {name: [] for name in named}
    source_of = sources(named)

    @cache
    def chosen(config: GRPOConfig) -> GRPOConfig:
        return with_levels(config, policy, draw(0), seed << 32)

    for iteration in range(num_iterations):
        known = {} if store is None else store.read(iteration)
        missing = [name for name, source in source_of.items() if source == name and name not in known]
        if missing:
            entries, key = draw(iteration), (seed << 32) + iteration
            known |= {name: sample(policy, entries, reward, chosen(named[name]), key, sketch) for name in missing}
            if store is not None:
                store.write(iteration, known)
        for name, source in source_of.items():
            samples[name].append(known[name] if source == name else part_of(known[source], named[name]))
        if on_iteration is not None:
            on_iteration(iteration + 1)
    return summarised(named, samples)


def check_draws(settings: Mapping[str, GRPOConfig]) -> None:
    """Refuses settings whose iterations are not draws of one distribution: a few of them are no sample of all.

    Args:
        settings: by name.

    Raises:
        ValueError: naming the setting.
    """
    expected = "'weighted' or 'random': other draws take the branch steps in turn, and no two iterations are alike"
    for name, config in settings.items():
        got = f"{config.branch_draw!r} in {name!r}"
        require(not config.draws_in_turn, "measure_signal", "branch_draw", expected, got)


def _fixed(prompts: Sequence[str]) -> Draw:
    if isinstance(prompts, str) or not len(prompts):
        fail("measure_signal", "prompts", "a list of at least one text, or a function", repr(prompts))
    entries = [{"prompt": prompt} for prompt in prompts]
    return lambda iteration: entries
