"""What `tempflow-fast train --dry-run` prints: who does what, whether it fits, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import unknown
from ..settings.run import TrainConfig
from .cards import CARDS, GB, SIZES, UTILISATION
from .options import require_option

if TYPE_CHECKING:
    from ..grpo.geometry import Cost, Geometry
    from ..policies.weightless import WeightlessPolicy
    from ..processes import Processes

TERA, PETA, GIB = 1e12, 1e15, 2**30
BACKWARD = 2
"""Forward passes that a backward pass counts as."""


@dataclass(frozen=True)
class Speed:
    """How fast a device computes, and what fits on it."""

    name: str
    tflops: float
    """That are reached."""
    memory: int | None = None
    """GB; None: not known."""

    @classmethod
    def of(cls, card: str | None, tflops: float | None) -> Speed | None:
        """That of the options.

        Args:
            card: a name of `CARDS`.
            tflops: what a device reaches, in 10^12 operations per second.

        Raises:
            ValueError: for an unknown card, both options, or a speed that is not positive.
        """
        require_option(card is None or tflops is None, "tflops", "left out with --card", tflops)
        if tflops is not None:
            require_option(0 < tflops < float("inf"), "tflops", "positive and finite", tflops)
            return cls(f"{tflops:g} TFLOPS", tflops)
        if card is None:
            return None
        if card not in CARDS:
            unknown("train", "--card", card, CARDS)
        return cls(card, UTILISATION * CARDS[card].tflops, CARDS[card].memory)


def dry_run(
    config: TrainConfig, processes: Processes, say: Callable[[object], None], allow_code: bool, speed: Speed | None
) -> int:
    """Prints the geometry of an iteration, the memory it needs and the operations it takes.

    Configuration files suffice where the calls of the network are known; any other model is loaded.

    Args:
        config: the settings.
        processes: who would share the run.
        say: prints in the main process.
        allow_code: whether the model's parts may be code.
        speed: of the device; None: common sizes of memory, and no times.

    Returns:
        The exit status.
    """
    from ..grpo.geometry import Geometry
    from ..run.prepare import fitted, most_sources, prepare_policy, weightless_policy
    from ..source_images import sources_of

    geometry = Geometry(config.grpo, config.task.prompts_per_iteration, processes.count, seed=config.task.seed << 32)
    say(geometry)
    if not processes.is_main:
        return 0
    times = ""
    try:
        shapes = weightless_policy(config.policy)
        if shapes is None:
            policy: Any = prepare_policy(replace(config.policy, device="cpu"), allow_code=allow_code)
        else:
            shapes.num_sources = len(sources_of(most_sources(config, shapes)))
            times = _times(geometry, shapes, config, speed)
            shapes.take_for_cpu()
            policy = shapes
    except ValueError as error:
        say(f"\nmemory: not known, because the model cannot be loaded: {error}")
        return 0
    config, page, total = fitted(config, policy, processes.count)
    say(f"\n{page}\n{_fits(total, speed)}")
    if times:
        say(f"\n{times}")
    return 0


def _fits(total: int, speed: Speed | None) -> str:
    """Whether so many bytes fit on the card, or on cards of common sizes."""
    sizes: Sequence[int] = SIZES if speed is None or speed.memory is None else (speed.memory,)
    needed = f"{total / GIB:.3g} GiB"
    answers = (f"fits {size} GB: {'yes' if total <= size * GB else 'no'}, {needed}" for size in sizes)
    return "\n".join(answers)


def _times(geometry: Geometry, policy: WeightlessPolicy, config: TrainConfig, speed: Speed | None) -> str:
    """Operations of an iteration, and how long a run takes at a speed, in the three ways to run it."""
    row, image = policy.operations(config.grpo.guidance_scale)
    trained, _ = policy.operations(config.grpo.training_guidance)
    backward = BACKWARD + config.policy.gradient_checkpointing

    def operations(cost: Cost) -> float:
        return cost.rollout * row + ((1 + backward) * cost.trained + cost.extra) * trained + cost.images * image

    costs = geometry.costs()
    lines = [f"one row of a network call takes {row / TERA:.3g} TFLOP, decoding one image {image / TERA:.3g}"]
    head, seconds = "PFLOP per iteration", None
    if speed is not None:
        seconds = 1 / (speed.tflops * TERA * geometry.num_processes)
        head += f", and time at {speed.tflops:.4g} TFLOPS in each of {geometry.num_processes} processes ({speed.name})"
    lines.append(head)
    num = config.run.num_iterations
    for cost in costs:
        line = f"{cost.name:<24}{operations(cost) / PETA:10.4g}"
        if seconds is not None:
            line += f"{operations(cost) * seconds / 60:10.3g} min"
            line += f"{operations(cost) * seconds * num / 3600:10.3g} h for {num} iterations" if num else ""
        lines.append(line)
    ours, _, flow = costs
    ratio = operations(ours) / operations(flow)
    why = "" if ratio <= 1 else "; every branch step gets images of its own, so that a reward tells of one step alone"
    lines.append(f"An iteration costs {ratio:.2g} times Flow-GRPO's{why}. Rewards, texts and waiting are not counted.")
    return "\n".join(lines)
