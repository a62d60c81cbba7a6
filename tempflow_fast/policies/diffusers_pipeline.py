"""What the policies on diffusers pipelines share: everything but the calls that differ from model to model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import fail, integer, require
from ..ops.checks import usable_device
from ..quiet import quiet
from . import lora, lora_file
from .base import Condition, guides
from .model_files import LIBRARIES, load_pipeline, read_index
from .network import NetworkPolicy
from .offload import ALIGNMENT, HostCopies
from .prompt_cache import PromptCache, Row
from .schedule import check_scheduler, pipeline_sigmas
from .vae import Bf16Decoder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from typing_extensions import Self

LORA_TARGETS = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
)
"""The attention's projections, which the three model classes name alike; the choice of the public training scripts."""


class DiffusersPolicy(NetworkPolicy):
    """A `Policy` on a diffusers pipeline: its transformer is trained, its other parts are frozen.

    The rollout without branches is the pipeline's own sampler: same text encoding, timesteps, guidance, Euler steps and
    decoding.

    Args:
        pipeline: the loaded pipeline, on the device and in the precision to use. The VAE is moved to float32, because
            images decoded in 16 bits show bands.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        max_text_length: number of tokens at which a prompt is cut; None: `default_text_length`.

    Raises:
        ValueError: if the pipeline or its transformer is one of another class, the resolution is not a multiple of the
            pixels that one token covers, the text length is out of range, or the scheduler does not take Euler steps.
    """

    pipeline_name: ClassVar[str]
    """Name of the pipeline's class in diffusers."""
    text_encoders: ClassVar[tuple[str, ...]]
    """Names of the text encoders in the pipeline."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Names of parts that a model may lack, in addition to those that are optional to diffusers."""
    default_text_length: ClassVar[int]
    """Number of tokens at which the public training scripts, or else the pipeline, cut a prompt."""
    longest_text: ClassVar[int] = 512
    """The most tokens that the pipeline takes."""
    negative_prompt: ClassVar[str] = ""
    """The text that guidance leads away from."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        resolution: int | tuple[int, int] | None = None,
        max_text_length: int | None = None,
    ) -> None:
        self.pipeline: Any = pipeline  # diffusers declares no types for its parts
        self._check_parts()
        self.max_text_length = self.default_text_length if max_text_length is None else max_text_length
        self.check_text_length(max_text_length)
        self._size = self._checked_size(resolution)
        self.latent_shape = self._latent_shape()
        self.dtype: torch.dtype = pipeline.transformer.dtype
        if pipeline.vae.dtype != torch.float32:
            pipeline.vae.to(torch.float32)
        for part in (pipeline.vae, *self._encoders):
            _aligned(part.requires_grad_(False).eval())
        super().__init__(_aligned(pipeline.transformer.requires_grad_(True).eval()))
        for name in self._idle_modules:
            self.network.get_submodule(name).requires_grad_(False)
        self._cache = PromptCache()
        self._encoders_at_hand: Callable[[], AbstractContextManager[None]] = nullcontext
        self._decoder_in_use: Callable[[], AbstractContextManager[None]] = nullcontext

    @classmethod
    def check_text_length(cls, length: int | None) -> None:
        """Refuses a number of tokens that the pipeline does not take.

        Args:
            length: `max_text_length` of the class.

        Raises:
            ValueError: if it is out of range.
        """
        fits = length is None or 1 <= integer(cls.__name__, "max_text_length", length) <= cls.longest_text
        require(fits, cls.__name__, "max_text_length", f"in 1..{cls.longest_text}", length)

    @classmethod
    @quiet(*LIBRARIES)  # the first use of a class imports its module, which may warn
    def from_pretrained(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        resolution: int | tuple[int, int] | None = None,
        max_text_length: int | None = None,
        allow_code: bool = False,
    ) -> Self:
        """Loads a pipeline from safetensors; needs diffusers and transformers.

        Args:
            path: a directory in diffusers' layout, or the name of such a repository on the Hugging Face hub.
            device: where to put it.
            dtype: precision of everything but the VAE, which is float32. Weights to be trained get it, too, unlike in
                `tempflow-fast train`; an adapter is always float32.
            resolution: as for the class.
            max_text_length: as for the class.
            allow_code: whether the model's parts may be code from its directory or from other libraries.

        Raises:
            ValueError: as for the class; if the device cannot be used or the model is one of another class; or naming
                the file that cannot be loaded.
        """
        import diffusers

        from . import POLICIES

        function = f"{cls.__name__}.from_pretrained"
        device = usable_device(function, device)
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        require(floating, function, "dtype", "a torch.dtype of floating-point numbers", repr(dtype))
        name = read_index(function, path)["_class_name"]
        known = [cls.pipeline_name, *(other for other, policy in POLICIES.items() if policy is cls)]
        require(name in known, function, "model", f"a {' or '.join(dict.fromkeys(known))}", f"a {name}, {str(path)!r}")
        pipeline_class = getattr(diffusers, cls.pipeline_name)
        dtypes = {"default": dtype, "vae": torch.float32}
        pipeline = load_pipeline(function, path, pipeline_class, dtypes, cls.optional_parts, allow_code)
        return cls(pipeline.to(device), resolution, max_text_length)

    # What a subclass defines.

    def _latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent for images of `self._size` pixels."""
        raise NotImplementedError

    def _encode_one(self, prompt: str) -> Row:
        """The tensors of one prompt, each without a leading dimension; "text" is [L, C]."""
        raise NotImplementedError

    def _predict(self, latents: Tensor, sigma: Tensor, tensors: Row, guidance_scale: float) -> Tensor:
        """Calls `self.acting` on R rows; sigma is float32 [R]."""
        raise NotImplementedError

    def _decode(self, latents: Tensor) -> Tensor:
        """Pixels in [-1, 1] from the VAE, in its precision."""
        raise NotImplementedError

    def _collate(self, rows: Sequence[Row]) -> Row:
        """Stacks the rows, which have one length."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _combine(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> tuple[Tensor, Tensor | None]:
        """What `velocity` returns, given both velocities."""
        return cond, uncond

    @property
    def _idle_modules(self) -> tuple[str, ...]:
        """Parts of the transformer that its output does not depend on: they would never get the gradients that
        data-parallel training waits for."""
        return ()

    @property
    def _embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input and needs no second evaluation."""
        return False

    def _levels(self, num_steps: int) -> np.ndarray | None:
        """The noise levels that the pipeline gives its scheduler to shift; None: the scheduler's own choice."""
        return np.linspace(1.0, 1 / num_steps, num_steps)

    # What all such policies share.

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _check_parts(self) -> None:
        """Refuses another family's pipeline or transformer, and a scheduler of another rule."""
        import diffusers

        own, got = getattr(diffusers, self.pipeline_name), type(self.pipeline).__name__
        require(isinstance(self.pipeline, own), self._name, "pipeline", f"a {self.pipeline_name}", got)
        kinds, got = own._get_signature_types()["transformer"], type(self.pipeline.transformer).__name__
        expected = " or ".join(kind.__name__ for kind in kinds)
        require(isinstance(self.pipeline.transformer, kinds), self._name, "pipeline.transformer", f"a {expected}", got)
        check_scheduler(self._name, self.pipeline.scheduler)

    @property
    def _encoders(self) -> list[nn.Module]:
        parts = (getattr(self.pipeline, name) for name in self.text_encoders)
        return [part for part in parts if part is not None]

    @property
    def _token_side(self) -> int:
        """Side of an image token in pixels."""
        return self.pipeline.vae_scale_factor * 2

    @property
    def _grid(self) -> tuple[int, int]:
        """Number of image tokens in a column and in a row."""
        return self._size[0] // self._token_side, self._size[1] // self._token_side

    def _checked_size(self, resolution: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels."""
        if resolution is None:
            resolution = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        size, side = (resolution, resolution) if isinstance(resolution, int) else resolution, self._token_side
        listed = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(pixels, int) for pixels in size)
        fits = listed and all(pixels > 0 and pixels % side == 0 for pixels in size)
        expected = f"a positive multiple of {side} pixels, or (height, width) of such multiples"
        require(fits, self._name, "resolution", expected, resolution)
        return size[0], size[1]

    @property
    def device(self) -> torch.device:
        """The transformer's device."""
        return self.pipeline.transformer.device

    def encode(self, prompts: Sequence[str], guided: bool = False) -> Condition:
        """Encodes prompts, each of them once and alone, and keeps the encodings.

        Args:
            prompts: P texts.
            guided: also encode the negative prompt, unless the network embeds guidance.

        Returns:
            [P] rows. With `guided` they are pairs (prompt, negative prompt), [P, 2, ...]: flattened, a slice of them is
            the input of one network call for both, without a copy.

        Raises:
            ValueError: if there is no prompt.
        """
        require(not isinstance(prompts, str), "encode", "prompts", "a list of texts", repr(prompts))
        require(len(prompts) > 0, "encode", "prompts", "at least one text", "none")
        paired = guided and not self._embeds_guidance
        texts = [text for prompt in prompts for text in ((prompt, self.negative_prompt) if paired else (prompt,))]
        known = self._encodings(texts)
        tensors = self._collate([known[text] for text in texts])
        return Condition({name: part.unflatten(0, (-1, 2)) if paired else part for name, part in tensors.items()})

    def _encodings(self, texts: Sequence[str]) -> dict[str, Row]:
        found = {text: self._cache.get(text) for text in texts}
        known = {text: row for text, row in found.items() if row is not None}
        if missing := [text for text in found if text not in known]:
            with self._encoders_at_hand(), torch.no_grad(), quiet(*LIBRARIES):
                for text in missing:
                    # One per call, so that the bits of an encoding do not depend on the other prompts.
                    known[text] = self._encode_one(text)
                    self._cache.put(text, known[text])
        return known

    def offload_text_encoders(self) -> None:
        """From now on the text encoders stay in host memory, and are copied to the device only for new prompts."""
        self._encoders_at_hand = HostCopies(self._encoders, self.device).on_device

    def decode_in_bf16(self) -> None:
        """From now on the VAE decodes in bf16, but for its last block, with a copy of its weights.

        Raises:
            ValueError: if its decoder has no blocks.
        """
        self._decoder_in_use = Bf16Decoder(self.pipeline.vae).active

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity dx/dsigma, as `Policy.velocity` defines it.

        Args:
            latents: [R, *latent_shape].
            sigma: noise level, one number or [R].
            condition: R rows of `encode`.
            guidance_scale: g; up to 1 means no guidance. A network that embeds guidance takes any scale.

        Returns:
            (conditional, unconditional) for classifier-free guidance, else (velocity, None); each [R, *latent_shape],
            in the dtype of `latents`.

        Raises:
            ValueError: if guidance needs a second velocity and the condition was encoded without `guided`.
        """
        paired = guides(guidance_scale) and not self._embeds_guidance
        tensors, has_pairs = condition.tensors, condition.tensors["text"].dim() == 4
        if paired and not has_pairs:
            fail("velocity", "condition", "from encode(prompts, guided=True) for guidance", "an unguided one")
        if not isinstance(sigma, Tensor):
            sigma = torch.full((len(latents),), sigma, device=latents.device)
        hidden, sigma = latents.to(self.dtype), sigma.float()
        if paired:
            hidden, sigma = hidden.repeat_interleave(2, dim=0), sigma.repeat_interleave(2)
        if has_pairs:
            tensors = {name: part.flatten(0, 1) if paired else part[:, 0] for name, part in tensors.items()}
        velocity = self._predict(hidden, sigma, tensors, guidance_scale)
        # Where patches are single pixels, unpatchifying leaves a permuted view; the ops need contiguous rows.
        velocity = velocity.to(latents.dtype).contiguous()
        return self._combine(velocity[0::2], velocity[1::2], guidance_scale) if paired else (velocity, None)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes finished latents with the VAE.

        Args:
            latents: [R, *latent_shape].

        Returns:
            Images [R, 3, H, W], float32 in [0, 1].
        """
        with torch.autocast(latents.device.type, enabled=False), self._decoder_in_use():
            pixels = self._decode(latents.to(self.pipeline.vae.dtype))
        # The library clamps, and an overflow would pass for white or black.
        pixels = pixels.masked_fill(pixels.isinf(), torch.nan)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pt")

    def sigmas(self, num_steps: int) -> list[float]:
        """The noise levels of the pipeline's scheduler, with its static or resolution-dependent shift.

        Args:
            num_steps: T.

        Returns:
            T + 1 noise levels, from the noisiest to 0.

        Raises:
            ValueError: if the scheduler does not take Euler steps.
        """
        scheduler = self.pipeline.scheduler
        check_scheduler(self._name, scheduler)  # again: it may have been replaced
        return pipeline_sigmas(scheduler, num_steps, self._levels(num_steps), math.prod(self._grid))

    def enable_gradient_checkpointing(self) -> None:
        """The backward pass recomputes each block instead of keeping its activations: slower, but far less memory."""
        self.pipeline.transformer.enable_gradient_checkpointing()

    @quiet(*LIBRARIES)
    def add_lora(
        self,
        rank: int = 32,
        alpha: float = 64,
        targets: Sequence[str] | None = None,
        init: str | bool = "gaussian",
        seed: int = 0,
    ) -> None:
        """Trains a low-rank adapter in float32 instead of the network, which is frozen and becomes the reference.

        Args:
            rank: inner dimension of the adapter.
            alpha: the adapter's output is scaled by alpha / rank.
            targets: the layers whose names end in one of these are adapted; all of them must be linear. None: those of
                `LORA_TARGETS` that the network has.
            init: peft's `init_lora_weights`, one that leaves the network's own weights as they are.
            seed: decides the initial weights, which are the same in every process.

        Raises:
            ValueError: if the rank or alpha is not positive, a target names no layer or one that is not linear, or
                there is an adapter already.
        """
        network = self.pipeline.transformer
        if targets is None:
            names = [f".{name}" for name, _ in network.named_modules()]
            targets = [target for target in LORA_TARGETS if any(name.endswith(f".{target}") for name in names)]
        lora.add_lora(network, rank, alpha, targets, init, seed, excluded=self._idle_modules)

    @quiet(*LIBRARIES)
    def save_lora(self, directory: str | Path) -> None:
        """Writes `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` reads.

        Args:
            directory: where to write it.

        Raises:
            ValueError: if there is no adapter.
        """
        lora_file.save_lora(self.pipeline, directory)

    @quiet(*LIBRARIES)
    def load_lora(self, path: str | Path) -> None:
        """Adds the adapter of such a directory or file, to sample with it or to train it further.

        Args:
            path: the file, or its directory.

        Raises:
            ValueError: if there is no such file, anything in it does not fit or would not be applied, or there is an
                adapter already. The policy is then as it was.
        """
        lora_file.load_lora(self.pipeline.transformer, path)

    @quiet(*LIBRARIES)
    def save(self, directory: str | Path) -> None:
        """Writes the whole pipeline, with an adapter merged into it, for `from_pretrained` here and in diffusers.

        Args:
            directory: where to write it.
        """
        transformer = self.pipeline.transformer
        try:
            if lora.has_adapter(transformer):
                self.pipeline.transformer = lora.merged(transformer)
            self.pipeline.save_pretrained(str(directory), safe_serialization=True)
        finally:
            self.pipeline.transformer = transformer


def _aligned(module: nn.Module) -> nn.Module:
    """`module` with every weight at an aligned address.

    Weights mapped from a safetensors file have the file's offsets, and matrix kernels round differently at unaligned
    addresses: a loaded policy would not give the bits of its own copy, nor those of the policy that was saved.
    """
    for parameter in module.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return module
