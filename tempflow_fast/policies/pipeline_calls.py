"""The calls of a pipeline with the settings of one policy, and what they say about its network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from ..quiet import quiet
from ..source_images import Sources, picture
from .families import Family
from .format import Format
from .layouts import Layout, Origin, layout_of, row_of
from .learn import PROBED_SCALE, Facts, check_constants, learn, learn_halves
from .model_files import LIBRARIES
from .probe import Probe, Trace
from .prompt_cache import Encoding, Row
from .template import BATCH, Rows, leaves, stacked

SHORT_TEXT, LONG_TEXT = "a", "a red circle next to the blue squares"
"""Prompts of different lengths, from which the network's arguments are learnt."""
LEARNT_STEPS = 3
CURVE_STEPS = 1000
"""Training timesteps, at whole numbers of which some pipelines take their steps."""

Prompt = tuple[str | None, Sources]
"""A text with its source images; None: the negative prompt."""
Pictures = Sequence[Any]
"""Source images as the pipeline takes them."""


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
        self._facts: dict[int, Facts] = {}  # by the number of source images
        self._layouts: dict[tuple[Any, ...], Layout] = {}  # by their sizes

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

    @cached_property
    def _blank(self) -> Pictures:
        """Source images for calls that are not about a prompt, as few as the pipeline takes."""
        from PIL import Image

        size = self.format.width, self.format.height
        return [Image.new("RGB", size, "grey") for _ in range(self._family.images[0])]

    def arguments(
        self,
        prompt: str | list[str],
        num_steps: int = LEARNT_STEPS,
        scale: float | None = None,
        pictures: Pictures | None = None,
    ) -> dict[str, Any]:
        """The arguments of the pipeline's `__call__`.

        Args:
            prompt: one or several.
            num_steps: T.
            scale: of guidance; None: without guidance.
            pictures: the source images of the prompt; None: blank ones, where the pipeline needs them.
        """
        family, pictures = self._family, self._blank if pictures is None else pictures
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
        if pictures:
            arguments["image"] = pictures[0] if family.images[1] == 1 else list(pictures)
        return {**arguments, **family.call(self._pipeline, arguments)}

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

    @property
    def facts(self) -> Facts:
        """What calls of the network are like, with as few source images as the pipeline takes."""
        return self._facts_with(self._blank)

    def _facts_with(self, pictures: Pictures) -> Facts:
        """What calls are like with so many source images; learnt from the first that there are."""
        if len(pictures) not in self._facts:
            self._facts[len(pictures)] = self._learnt(pictures)
        return self._facts[len(pictures)]

    def _learnt(self, pictures: Pictures) -> Facts:
        if pictures is self._blank or not pictures:
            still = self._still
        else:
            still = self._encoding(self.arguments(SHORT_TEXT, pictures=pictures), LEARNT_STEPS)
        scaled, texts = None, [SHORT_TEXT, *[LONG_TEXT] * (BATCH - 1)]
        if self._family.batches:
            batch = self._noted(texts, pictures)
        else:
            short, long = still.calls[0][0].arguments, self._noted(LONG_TEXT, pictures)
            batch = stacked([short, *[long] * (BATCH - 1)])
        if self.embeds_guidance:
            scaled = self._probe.trace(self.arguments(SHORT_TEXT, scale=2.0, pictures=pictures), known=still)
        levels = self._probe.trace(self.arguments(SHORT_TEXT, CURVE_STEPS, pictures=pictures), 0, still)
        return learn(self._owner, still, batch, scaled, levels).to(self._network.device)

    def _noted(self, prompt: str | list[str], pictures: Pictures) -> Mapping[str, Any]:
        """The arguments of the network's first call, without guidance."""
        return self._encoding(self.arguments(prompt, pictures=pictures)).calls[0][0].arguments

    @cached_property
    def rows(self) -> list[Rows]:
        """The arguments of which every prompt brings its own."""
        return [slot for slot in leaves(self.facts.slots) if isinstance(slot, Rows)]

    def encode(self, prompts: Sequence[Prompt]) -> dict[Prompt, Encoding]:
        """The encodings of prompts, one after the other: the bits of one do not depend on the others.

        Args:
            prompts: texts with their source images, negative prompts after those with the same images.
        """
        if not prompts:
            return {}
        with self.encoders_at_hand(), quiet(*LIBRARIES):
            return {prompt: self._encoded(*prompt) for prompt in prompts}

    @property
    def _origin(self) -> Origin:
        return Origin(self._family.name, self.format, self._network.device)

    def layout(self, encoded: Layout | None) -> Layout:
        """The layout of rows that this policy, or another one of the same model, has encoded.

        Args:
            encoded: of rows with source images; None: of rows without.

        Raises:
            ValueError: if a policy of another model, format or device has encoded the source images, or they are not
                there and needed.
        """
        if encoded is not None:
            expected, got = (f"one encoded for {origin}" for origin in (self._origin, encoded.origin))
            require(encoded.origin == self._origin, "velocity", "condition", expected, got)
            return encoded
        if () not in self._layouts:  # nothing without source images has been encoded here
            needed = "one encoded with source images"
            require(not self._family.images[0], "velocity", "condition", needed, "one without")
            self.encode([(SHORT_TEXT, ())])
        return self._layouts[()]

    def _encoded(self, text: str | None, images: Sources) -> Encoding:
        pictures = [picture(path) for path in images]
        facts, scale = self._facts_with(pictures), None if text is not None else PROBED_SCALE
        asked = self.arguments(self._family.negative if text is None else text, scale=scale, pictures=pictures)
        trace, call, number = self._probe.trace(asked), 0, 0
        if text is None:
            halves = learn_halves(self._owner, trace, self._family.combine, facts.kept)
            call, number = halves.call, halves.row
        arguments = facts.place.separated(trace.calls[0][call].arguments)
        row = row_of(facts, arguments, number, self._network.device, self._network.dtype)
        sizes = tuple(image.size for image in pictures)
        if text is not None:
            self._note_layout(sizes, facts, arguments, row)
        return row, self._layouts[sizes]

    def _note_layout(self, sizes: tuple[Any, ...], facts: Facts, arguments: Mapping[str, Any], row: Row) -> None:
        """Finds the layout of source images of these sizes, or refuses a prompt that does not fit it."""
        if sizes in self._layouts or not sizes:
            check_constants(self._owner, self._layouts.get(sizes, facts).slots, arguments)
        if sizes not in self._layouts:
            new = layout_of(facts, arguments, row, self._origin, bool(sizes))
            alike = (layout for layout in self._layouts.values() if layout.is_like(new))
            self._layouts[sizes] = next(alike, new)

    def images(self, latents: Tensor) -> Tensor:
        """What the pipeline makes of finished latents.

        Args:
            latents: [R, *latent_shape].

        Returns:
            [R, 3, H, W], or [R, F, 3, H, W] for videos; in [0, 1], or NaN.

        Raises:
            ValueError: if the pipeline draws another size than it is asked for: some draw the nearest that they know.
        """
        arguments = self.arguments(SHORT_TEXT)
        images = self._together(arguments, latents)
        if images is None or len(images) != len(latents):
            images = torch.cat([self._probe.images(arguments, row, self._still) for row in latents.split(1)])
        size, drawn = (self.format.height, self.format.width), tuple(images.shape[-2:])
        require(drawn == size, self._owner, "resolution", f"one that the pipeline draws, such as {drawn}", size)
        return images

    def _together(self, arguments: Mapping[str, Any], latents: Tensor) -> Tensor | None:
        """Images of all rows in one call; None: the pipeline, which has prepared one row, takes no more than that."""
        try:
            return self._probe.images(arguments, latents, self._still)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of a shape with the number of prompts in it
            if len(latents) == 1:
                raise
            return None

    def sigmas(self, num_steps: int) -> list[float]:
        """The noise levels of the pipeline's schedule.

        Args:
            num_steps: T.

        Returns:
            T + 1 noise levels.
        """
        return self._probe.trace(self.arguments(SHORT_TEXT, num_steps), 0, self._still).sigmas

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
            "source images": "none" if not self._family.images[1] else "{} to {}".format(*self._family.images),
            "guidance": guidance if self.has_guidance or self.embeds_guidance else "none",
            "steps": f"Euler's, at the noise levels of {type(self._pipeline.scheduler).__name__}",
        }
