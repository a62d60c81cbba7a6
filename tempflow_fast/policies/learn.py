"""What traces of a pipeline tell about its network: where the time goes, the sign of the output, which half guides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import fail, require
from .places import Place, place_of
from .probe import Trace
from .template import Constant, Guidance, Slot, Time, adapted, template_of

Combine = Callable[[Tensor, Tensor, float], Tensor]
"""(conditional, unconditional, scale) -> the guided velocity."""

TIMES: dict[str, Callable[[Any], Any]] = {
    "1000 sigma": lambda sigma: sigma * 1000,
    "sigma": lambda sigma: sigma,
    "1 - sigma": lambda sigma: 1 - sigma,
    "1000 (1 - sigma)": lambda sigma: (1 - sigma) * 1000,
    "1000 sigma - 1": lambda sigma: sigma * 1000 - 1,
    "1000 sigma, rounded down": lambda sigma: (sigma * 1000 + 1e-4) // 1,  # float32 may be below a whole number
}
"""The times that networks take, as functions of the noise level."""
TIMESTEP = "the scheduler's timestep"
"""The time of networks whose scheduler shifts its noise levels and not its timesteps."""
NEAR = 1e-4
"""The largest difference, relative to the largest value, between what is noted in float32 and what explains it."""
PROBED_SCALE = 3.0
"""A guidance scale at which every pipeline guides."""


@dataclass(frozen=True)
class Kept:
    """The part of an output that belongs to the latents, where the input has source images next to them."""

    dim: int
    start: int
    size: int

    def of(self, output: Tensor) -> Tensor:
        """That part.

        Args:
            output: of the network.
        """
        return output.narrow(self.dim, self.start, self.size)


@dataclass(frozen=True)
class Facts:
    """What calls of a network are like without guidance.

    Args:
        slots: argument -> how it is filled.
        time: key of `TIMES`, or `TIMESTEP`.
        curve: [2, S]: noise levels and the scheduler's timesteps there, from the smallest.
        sign: 1 or -1: what the output is multiplied by to give dx/dsigma.
        kept: the part of the output that is used; None: all of it.
        place: of the latents.
    """

    slots: dict[str, Slot]
    time: str
    sign: int
    kept: Kept | None
    curve: Tensor
    place: Place

    def to(self, device: torch.device) -> Facts:
        """The same for a network on this device.

        Args:
            device: where it is.
        """
        return replace(self, curve=self.curve.to(device))

    def adapted(self, arguments: Mapping[str, Any], device: torch.device) -> dict[str, Slot]:
        """The slots for the sizes of a prompt's source images.

        Args:
            arguments: of the call for this prompt, separated.
            device: of the network.
        """
        return {name: adapted(slot, arguments[name], device) for name, slot in self.slots.items()}

    def time_of(self, sigma: Tensor) -> Tensor:
        """The network's time.

        Args:
            sigma: noise levels, float32 [R].
        """
        if self.time != TIMESTEP:
            return TIMES[self.time](sigma)
        levels, times = self.curve
        upper = torch.searchsorted(levels, sigma.contiguous()).clamp(1, len(levels) - 1)
        share = (sigma - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
        return torch.lerp(times[upper - 1], times[upper], share)


@dataclass(frozen=True)
class Halves:
    """Where a guided step has the arguments of the negative prompt.

    Args:
        call: number of the network's call.
        row: of that call.
    """

    call: int
    row: int


def learn(owner: str, trace: Trace, batch: Mapping[str, Any], scaled: Trace | None, levels: Trace) -> Facts:
    """Explains what a network is called with.

    Args:
        owner: whose error it is if that cannot be explained.
        trace: of one prompt, over three steps, without guidance.
        batch: arguments for `BATCH` prompts; the first is the same and the shortest, the others are longer.
        scaled: as `trace`, with twice the guidance scale, for a network that takes the scale as an input.
        levels: of a schedule of many steps.

    Raises:
        ValueError: naming the argument or the output that cannot be explained.
    """
    require(all(len(calls) == 1 for calls in trace.calls), owner, "pipeline", "one call per step", len(trace.calls[0]))
    first, *later = (calls[0].arguments for calls in trace.calls)
    slots = template_of(first, batch, trace.latents)
    moving = [name for name in first if any(differ(first[name], other[name]) for other in later)]
    require(len(moving) == 1, owner, "pipeline", "one whose network is told the time and nothing else by step", moving)
    values = [calls[0].arguments[moving[0]] for calls in trace.calls]
    fits = all(isinstance(value, Tensor) and value.numel() == 1 for value in values)
    require(fits, owner, "pipeline", f"one with a number as {moving[0]} of every row", values[0])
    slots[moving[0]] = Time()
    if scaled is not None:
        name = _changed(owner, first, scaled.calls[0][0].arguments)
        slots[name] = Guidance(float(first[name]))
    time = _time(owner, values, trace)
    return Facts(slots, time, *_output(owner, trace), _curve(levels), place_of(first, trace.latents))


def learn_halves(owner: str, trace: Trace, combine: Combine | None, kept: Kept | None) -> Halves:
    """Finds the negative prompt in a guided step.

    Args:
        owner: whose error it is if it cannot be found.
        trace: of one prompt and one step at `PROBED_SCALE`.
        combine: how the pipeline combines the two velocities; None: linearly.
        kept: of `Facts`.

    Raises:
        ValueError: if the step is not explained by two velocities.
    """
    parts = [call.output if kept is None else kept.of(call.output) for call in trace.calls[0]]
    outputs = [row for part in parts for row in part.reshape(-1, *trace.latents.shape[1:])]
    require(len(outputs) == 2, owner, "pipeline", "one whose guidance takes two velocities", len(outputs))
    places = [(number, row) for number, call in enumerate(trace.calls[0]) for row in range(3 - len(trace.calls[0]))]
    prediction = trace.predictions[0].float().reshape(outputs[0].shape)
    for negative in (0, 1):
        u, c = outputs[negative], outputs[1 - negative]
        guided = linear(c, u, PROBED_SCALE) if combine is None else combine(c[None], u[None], PROBED_SCALE)[0]
        if min(_distance(prediction, guided), _distance(prediction, -guided)) <= NEAR:
            return Halves(*places[negative])
    fail(owner, "pipeline", "one whose guidance is u + g (c - u), or c + g (c - u)", "another combination")


def linear(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance."""
    return uncond + scale * (cond - uncond)


def _time(owner: str, values: Sequence[Tensor], trace: Trace) -> str:
    sigmas = trace.sigmas[: len(values)]
    timesteps = trace.scheduler.timesteps[: len(values)]
    known = {name: [form(sigma) for sigma in sigmas] for name, form in TIMES.items()}
    if not timesteps.is_floating_point():
        del known["1000 sigma"]  # which may be whole numbers at the few levels that are compared
    known[TIMESTEP] = timesteps.tolist()
    noted = [float(value) for value in values]
    for name, expected in known.items():
        rounded = torch.tensor(expected).to(values[0].dtype).tolist()  # some pipelines round it to 16 bits
        if all(abs(a - b) <= NEAR * max(abs(b), 1e-2) for a, b in zip(noted, rounded, strict=True)):
            return name
    got = ", ".join(f"{value:.6g} at {sigma:.6g}" for value, sigma in zip(noted, sigmas, strict=False))
    fail(owner, "pipeline", f"one whose network takes {' or '.join([*TIMES, TIMESTEP])} for the time", got)


def _curve(levels: Trace) -> Tensor:
    sigmas, timesteps = torch.tensor(levels.sigmas), levels.scheduler.timesteps.float().cpu()
    curve = torch.stack([sigmas[: len(timesteps)], timesteps])
    return curve.unique(dim=1).contiguous()  # sorted


def _output(owner: str, trace: Trace) -> tuple[int, Kept | None]:
    """The sign of the output, and the part of it that the step takes."""
    output, prediction = trace.calls[0][0].output, trace.predictions[0].float()
    for kept in _ends(output.shape, prediction.shape):
        used = output if kept is None else kept.of(output)
        for sign in (1, -1):
            if used.numel() == prediction.numel() and _distance(prediction, sign * used.reshape_as(prediction)) <= NEAR:
                return sign, kept
    fail(owner, "pipeline", "one whose step takes the network's output as it is, or its negative", "another function")


def _ends(output: torch.Size, prediction: torch.Size) -> list[Kept | None]:
    """Everything, or one end of the only dimension in which an output is longer than what the step takes of it."""
    differ = [dim for dim, (a, b) in enumerate(zip(output, prediction, strict=False)) if a != b]
    if len(output) != len(prediction) or len(differ) != 1:
        return [None]
    dim, size = differ[0], prediction[differ[0]]
    return [Kept(dim, start, size) for start in (0, output[dim] - size)]


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def differ(one: Any, other: Any) -> bool:
    """Whether two arguments differ.

    Args:
        one: an argument.
        other: another.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return not torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) != len(other) or any(differ(a, b) for a, b in zip(one, other, strict=True))
    return bool(one != other)


def _changed(owner: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [name for name in one if differ(one[name], other[name])]
    require(len(names) == 1, owner, "pipeline", "one whose network takes the guidance scale as one argument", names)
    return names[0]


def check_constants(owner: str, slots: Mapping[str, Slot], arguments: Mapping[str, Any]) -> None:
    """Refuses a prompt for which the network gets another value than for the prompts that were compared.

    Args:
        owner: whose error it is.
        slots: of the network's arguments.
        arguments: of its call for the prompt.

    Raises:
        ValueError: naming the argument.
    """
    for name, slot in slots.items():
        if isinstance(slot, Constant) and differ(slot.value, arguments[name]):
            expected = f"one whose network gets the same {name} for all prompts"
            fail(owner, "pipeline", expected, "one where it depends on the prompt")
