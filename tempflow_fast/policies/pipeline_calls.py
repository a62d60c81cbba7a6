"""The calls of a pipeline with the settings of one policy, and what they say about its network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..quiet import quiet
from .families import Family
from .format import Format
from .learn import PROBED_SCALE, Facts, check_constants, learn, learn_halves
from .model_files import LIBRARIES
from .probe import Probe, Trace
from .prompt_cache import Row
from .template import BATCH, Rows, argument, leaves

SHORT_TEXT, LONG_TEXT = "a", "a red circle next to the blue squares"
"""Prompts of different lengths, from which the network's arguments are learnt."""
LEARNT_STEPS = 3
CURVE_STEPS = 1000
"""Training timesteps, at whole numbers of which some pipelines take their steps."""


class PipelineCalls:
    """A pipeline's `__call__` for one family, format and text length; the network is never run.

    What is learnt about the network is learnt when it is first needed, and kept.

    Args:
        owner: whose error it is if something cannot be learnt.
        pipeline: of diffusers.
        family: its row.
        format: of what it makes.
        text_length: tokens at which a prompt is cut; None: the family's, or else the pipeline's default.
    """

    def __init__(self, owner: str, pipeline: Any, family: Family, format: Format, text_length: int | None) -> None:
        self._owner, self._pipeline, self._family = owner, pipeline, family
        self.format = format
        # A copy: a policy can be copied, and what inspect returns cannot.
        self._parameters = dict(inspect.signature(type(pipeline).__call__).parameters)
        self.text_length = self._default_length if text_length is None else text_length
        self.encoders_at_hand: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def _default_length(self) -> int:
        known = self._parameters.get("max_sequence_length")
        own = self._family.longest_text if known is None else known.default
        return own if self._family.text_length is None else self._family.text_length

    @property
    def _network(self) -> Any:
        return getattr(self._pipeline, self._family.network)

    @property
    def has_guidance(self) -> bool:
        """Whether guidance takes a second velocity. Distilled models say so in their pipeline's configuration."""
        distilled = getattr(self._pipeline.config, "is_distilled", False)
        return self._family.guidance is not None and not self.embeds_guidance and not distilled

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input and needs no second evaluation."""
        return self._family.embedded(self._network.config)

    def arguments(
        self, prompt: str | list[str], num_steps: int = LEARNT_STEPS, scale: float | None = None
    ) -> dict[str, Any]:
        """The arguments of the pipeline's `__call__`.

        Args:
            prompt: one or several.
            num_steps: T.
            scale: of guidance; None: without guidance.
        """
        family = self._family
        arguments: dict[str, Any] = {
            "prompt": prompt,
            **self.format.arguments,
            "num_inference_steps": num_steps,
        }
        if "max_sequence_length" in self._parameters:
            arguments["max_sequence_length"] = self.text_length
        if self.embeds_guidance:
            arguments["guidance_scale"] = 1.0 if scale is None else scale
        elif family.guidance is not None:
            arguments[family.guidance] = (1.0 if scale is None else scale) + family.above - 1.0
            if scale is not None and "negative_prompt" in self._parameters:
                arguments["negative_prompt"] = family.negative
        return {**arguments, **family.call(self._pipeline, self.text_length)}

    @property
    def _probe(self) -> Probe:
        device = self._network.device
        # Values can be compared on the host where the network has none.
        return Probe(self._pipeline, self._family.network, torch.device("cpu") if device.type == "meta" else device)

    def _encoding(self, arguments: Mapping[str, Any], num_steps: int = 1) -> Trace:
        """A call that runs the text encoders."""
        with self.encoders_at_hand(), quiet(*LIBRARIES):
            return self._probe.trace(arguments, num_steps)

    @cached_property
    def _still(self) -> Trace:
        """A call for a short prompt, without guidance; what the pipeline has prepared for it serves other calls."""
        return self._encoding(self.arguments(SHORT_TEXT), LEARNT_STEPS)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return tuple(self._still.latents.shape[1:])

    @cached_property
    def facts(self) -> Facts:
        """What calls of the network are like."""
        known, scaled = self._still.encoded, None
        batch = self._encoding(self.arguments([SHORT_TEXT, *[LONG_TEXT] * (BATCH - 1)]))
        if self.embeds_guidance:
            scaled = self._probe.trace(self.arguments(SHORT_TEXT, scale=2.0), encoded=known)
        levels = self._probe.trace(self.arguments(SHORT_TEXT, CURVE_STEPS), 0, known)
        return learn(self._owner, self._still, batch, scaled, levels).to(self._network.device)

    @cached_property
    def rows(self) -> list[Rows]:
        """The arguments of which every prompt brings its own."""
        return [slot for slot in leaves(self.facts.slots) if isinstance(slot, Rows)]

    @cached_property
    def negative(self) -> Row:
        """The encoding of the negative prompt."""
        trace = self._encoding(self.arguments(self._family.negative, scale=PROBED_SCALE))
        halves = learn_halves(self._owner, trace, self._family.combine)
        return self._row_of(trace.calls[0][halves.call].arguments, halves.row)

    def encode(self, prompts: Sequence[str]) -> dict[str, Row]:
        """The encodings of prompts, one after the other: the bits of one do not depend on the others.

        Args:
            prompts: texts.

        Returns:
            What each brings to a call of the network, without a dimension of rows.
        """
        facts, rows = self.facts, {}
        if prompts:
            with self.encoders_at_hand(), quiet(*LIBRARIES):
                for prompt in prompts:
                    arguments = self._probe.trace(self.arguments(prompt)).calls[0][0].arguments
                    check_constants(self._owner, facts.slots, arguments)
                    rows[prompt] = self._row_of(arguments)
        return rows

    def _row_of(self, arguments: Mapping[str, Any], row: int = 0) -> Row:
        device, dtype = self._network.device, self._network.dtype
        tensors = {slot.name: slot.of(argument(arguments, slot.name), row) for slot in self.rows}
        return {
            # A copy: a part would keep the other half of the call in memory.
            name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
            for name, tensor in tensors.items()
        }

    def images(self, latents: Tensor) -> Tensor:
        """What the pipeline makes of finished latents.

        Args:
            latents: [R, *latent_shape].

        Returns:
            [R, 3, H, W], or [R, F, 3, H, W] for videos; in [0, 1], or NaN.
        """
        arguments = self.arguments(SHORT_TEXT)
        images = self._probe.images(arguments, latents, self._still)
        if len(images) == len(latents):
            return images
        # What the pipeline has prepared is for one row, and some take no more rows than that.
        return torch.cat([self._probe.images(arguments, row, self._still) for row in latents.split(1)])

    def sigmas(self, num_steps: int) -> list[float]:
        """The noise levels of the pipeline's schedule.

        Args:
            num_steps: T.

        Returns:
            T + 1 noise levels.
        """
        return self._probe.trace(self.arguments(SHORT_TEXT, num_steps), 0, self._still.encoded).sigmas

    def described(self) -> dict[str, str]:
        """What has been learnt, in words."""
        family, facts, network = self._family, self.facts, type(self._network).__name__
        texts = [f"{slot.name}{'' if slot.text_dim is None else ' (by length)'}" for slot in self.rows]
        guidance = f"{family.guidance} above {family.above:g}, against {family.negative!r}"
        if self.embeds_guidance:
            guidance = "an input of the network"
        return {
            "time": f"{network} takes {facts.time}",
            "output": f"{network} gives {'' if facts.sign > 0 else 'the negative of '}dx/dsigma",
            "every prompt brings": ", ".join(texts),
            "guidance": guidance if self.has_guidance or self.embeds_guidance else "none",
            "steps": f"Euler's, at the noise levels of {type(self._pipeline.scheduler).__name__}",
        }
