"""A pipeline's own `__call__`, on a double of the pipeline whose network and scheduler only take notes."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .places import bound, place_of

DRAWS = "one that draws its noise in prepare_latents, or by diffusers' randn_tensor imported in its module"
ENCODERS = ("encode_prompt", "encode_image")
"""The methods of pipelines that run text and image encoders."""


@dataclass(frozen=True)
class Call:
    """One call of the network: its arguments by name, and the random numbers that it answered with."""

    arguments: dict[str, Any]
    output: Tensor


@dataclass
class Trace:
    """What a pipeline did on its way through its first steps."""

    scheduler: Any
    """The copy of the pipeline's scheduler that was used, as the pipeline has set it up."""
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    """[R, *latent_shape], random: what the pipeline got for its initial noise, and for its latents at every step."""
    calls: list[list[Call]] = field(default_factory=lambda: [[]])
    """Of every step."""
    predictions: list[Tensor] = field(default_factory=list)
    """What every step gave its scheduler for the velocity."""
    encoded: dict[str, list[Any]] = field(default_factory=dict)
    """Which of `ENCODERS` the pipeline has -> what every call of it returned."""
    seen: list[Any] = field(default_factory=list)
    """What every call of the autoencoder's `encode` returned, for source images."""
    prepared: Any = None
    """What `prepare_latents` returned."""
    answer: Any = None
    """What the network's first call returned."""

    @cached_property
    def sigmas(self) -> list[float]:
        """The noise levels of the scheduler, from the noisiest to 0."""
        levels: list[float] = self.scheduler.sigmas.tolist()
        return levels


class _DoneError(Exception):
    """The pipeline has shown what was asked for."""


@dataclass(frozen=True)
class Probe:
    """Runs a pipeline's `__call__` without its network.

    The pipeline itself stays as it is: a shallow copy of it is called, whose network notes its arguments and answers
    with random numbers, and whose scheduler notes what it is given and leaves the latents alone. Nothing is drawn from
    torch's own generators.

    Args:
        pipeline: of diffusers.
        network: name of the part that predicts the velocity.
        device: where the copy works.
    """

    pipeline: Any
    network: str
    device: torch.device

    def trace(self, arguments: Mapping[str, Any], num_steps: int = 1, known: Trace | None = None) -> Trace:
        """Follows a call of the pipeline up to its scheduler's step number `num_steps`.

        Args:
            arguments: of `__call__`.
            num_steps: how many steps to follow; 0: only until the network is called.
            known: a call with the same prompts and source images, whose encodings are used; None: they are encoded.

        Returns:
            What it did.
        """
        trace = Trace(copy.deepcopy(self.pipeline.scheduler))  # a copy keeps `set_shift`, which no config holds
        generator = torch.Generator().manual_seed(0)
        seen = None if known is None else iter(known.seen)

        def random(shape: torch.Size) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        def encode(image: Tensor, *args: Any, **kwargs: Any) -> Any:
            trace.seen.append(encoded_image(self.pipeline.vae, image, *args, **kwargs) if seen is None else next(seen))
            return trace.seen[-1]

        def prepare_latents(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            own = type(self.pipeline).prepare_latents(pipeline, *args, **kwargs)
            first, *rest = own if isinstance(own, tuple) else (own,)
            trace.latents = random(first.shape)
            trace.prepared = (trace.latents, *rest) if rest else trace.latents
            return trace.prepared

        def draw(shape: tuple[int, ...], **kwargs: Any) -> Tensor:
            trace.latents = random(torch.Size(shape))
            return trace.latents

        def call(network: Any, *args: Any, **kwargs: Any) -> Any:
            if not num_steps:
                raise _DoneError
            is_drawn, got = trace.latents.numel() > 0, f"a {type(self.pipeline).__name__}"
            require(is_drawn, "DiffusersPolicy", "pipeline", DRAWS, got)
            noted = bound(network, args, kwargs)
            place = place_of(noted, trace.latents)
            output = random(place.output_shape)
            trace.calls[-1].append(Call(noted, output))
            answer = list(output) if place.listed else output
            answered = (answer,) if noted.get("return_dict") is False else _Output(answer)
            trace.answer = trace.answer or answered
            return answered

        def step(prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Stepped:
            trace.predictions.append(prediction)
            if len(trace.predictions) == num_steps:
                raise _DoneError
            trace.calls.append([])
            return Stepped((sample,))

        trace.scheduler.step = step
        hooks = self._noting(trace) if known is None else _repeating(known)
        trace.encoded = trace.encoded if known is None else known.encoded
        if hasattr(self.pipeline, "prepare_latents"):
            hooks["prepare_latents"] = prepare_latents
        with suppress(_DoneError), torch.no_grad(), self._drawing(draw):
            parts = {"scheduler": trace.scheduler, "vae": _shadow(self.pipeline.vae, {}, encode=encode)}
            self._double(hooks, call, **parts)(**arguments, generator=_generator())
        return trace

    def images(self, arguments: Mapping[str, Any], latents: Tensor, trace: Trace) -> Tensor:
        """What the pipeline makes of finished latents. Nothing but the autoencoder is run.

        Args:
            arguments: of `__call__`, for one prompt.
            latents: [R, *latent_shape].
            trace: of the same call.

        Returns:
            [R, 3, H, W], or [R, F, 3, H, W] for videos; in [0, 1], NaN where the autoencoder overflows: the library's
            clamp would make white or black.
        """
        seen = iter(trace.seen)

        def decode(*args: Any, **kwargs: Any) -> Any:
            made = self.pipeline.vae.decode(*args, **kwargs)
            pixels = made[0].masked_fill(made[0].isinf(), torch.nan)
            return (pixels, *made[1:]) if isinstance(made, tuple) else type(made)(sample=pixels)

        scheduler = copy.copy(trace.scheduler)
        steps_left = iter(range(len(scheduler.timesteps) - 1, -1, -1))

        def step(prediction: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Stepped:
            return Stepped((sample if next(steps_left) else latents,))  # before: as many rows as were prepared

        scheduler.step = step
        own = scheduler.set_timesteps  # the pipelines look at its parameters
        scheduler.sigmas = trace.sigmas  # numbers, which some pipelines ask for: a measurement has tensors without data
        scheduler.set_timesteps = functools.wraps(own)(lambda *args, **kwargs: None)
        hooks = _repeating(trace)
        if hasattr(self.pipeline, "prepare_latents"):
            hooks["prepare_latents"] = lambda *args, **kwargs: trace.prepared
        vae = _shadow(self.pipeline.vae, {}, decode=decode, encode=lambda *args, **kwargs: next(seen))
        parts = {"scheduler": scheduler, "vae": vae}
        double = self._double(hooks, lambda *args, **kwargs: trace.answer, **parts)
        images: Tensor = double(**{**arguments, "output_type": "pt"}, generator=_generator())[0]
        return images

    def _noting(self, trace: Trace) -> dict[str, Callable[..., Any]]:
        """The pipeline's own `ENCODERS`, whose answers are noted."""

        def noting(name: str) -> Callable[..., Any]:
            own, answers = getattr(type(self.pipeline), name), trace.encoded.setdefault(name, [])

            def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
                answers.append(own(pipeline, *args, **kwargs))
                return answers[-1]

            return call

        return {name: noting(name) for name in ENCODERS if hasattr(self.pipeline, name)}

    @contextmanager
    def _drawing(self, draw: Callable[..., Tensor]) -> Iterator[None]:
        """Lets `draw` make the initial noise of a pipeline without `prepare_latents`."""
        found: list[Any] = [sys.modules[kind.__module__] for kind in type(self.pipeline).__mro__]
        drawing = [] if hasattr(self.pipeline, "prepare_latents") else [m for m in found if hasattr(m, "randn_tensor")]
        own = {module: module.randn_tensor for module in drawing}
        for module in own:
            module.randn_tensor = draw
        try:
            yield
        finally:
            for module, function in own.items():
                module.randn_tensor = function

    def _double(self, hooks: dict[str, Callable[..., Any]], call: Callable[..., Any], **parts: Any) -> Any:
        place = property(lambda pipeline: self.device)  # also while the text encoders wait elsewhere
        parts[self.network] = _shadow(getattr(self.pipeline, self.network), {"__call__": call})
        still = {"_progress_bar_config": {"disable": True}, "maybe_free_model_hooks": lambda: None}
        return _shadow(self.pipeline, {**hooks, "_execution_device": place, "device": place}, **parts, **still)


def _repeating(trace: Trace) -> dict[str, Callable[..., Any]]:
    """What answers as `ENCODERS` have in an earlier call, without running them."""

    def repeating(answers: Iterator[Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: next(answers)

    return {name: repeating(iter(answers)) for name, answers in trace.encoded.items()}


def encoded_image(vae: Any, image: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What an autoencoder makes of a source image, which pipelines give it in the precision of their network.

    Args:
        vae: of a pipeline.
        image: [1, 3, ...].
        *args: further arguments.
        **kwargs: further arguments.
    """
    return type(vae).encode(vae, image.to(vae.dtype), *args, **kwargs)


class Stepped(tuple[Tensor]):
    """What a scheduler's step returns, whether or not it was asked for a tuple."""

    @property
    def prev_sample(self) -> Tensor:
        return self[0]


@dataclass
class _Output:
    """What a network returns that was not asked for a tuple."""

    sample: Any

    def __getitem__(self, index: int) -> Any:
        return (self.sample,)[index]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _shadow(original: Any, members: Mapping[str, Any], **attributes: Any) -> Any:
    """A shallow copy with other members of its class and other attributes; assignments do not reach the original."""
    kind = type(original)
    made: Any = object.__new__(type(kind.__name__, (kind,), dict(members)))
    vars(made).update(vars(original), **attributes)
    return made
