"""`DiffusersPolicy`: a policy on a pipeline of diffusers, whose calls of its network are learnt from the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import fail, integer, require
from ..ops.checks import usable_device
from ..quiet import quiet
from ..source_images import IMAGE, Sources, stamp
from .base import Condition, guides, images_of
from .collate import PLAIN, Kind, by_kind, collate
from .format import check_video, checked_format, makes_videos
from .layouts import Layout
from .model_files import LIBRARIES, load_pipeline, read_index
from .offload import HostCopies
from .pipeline_calls import PipelineCalls, Prompt
from .pipeline_parts import check_parts
from .pipeline_weights import PipelineWeights
from .prompt_cache import Encoding, PromptCache
from .schedule import check_scheduler
from .sharding import is_sharded
from .template import Inputs, fill
from .vae import Bf16Decoder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from typing_extensions import Self


class DiffusersPolicy(PipelineWeights):
    """A `Policy` on a diffusers pipeline: its transformer is trained, its other parts are frozen.

    The rollout without branches is the pipeline's own sampler: same text encoding, timesteps, guidance, Euler steps and
    decoding. The pipeline itself does all of this but the calls of its network; what those calls need is learnt from
    the pipeline when it is first needed, and the row of its family says the rest.

    Args:
        pipeline: the loaded pipeline, on the device and in the precision to use. The VAE is moved to float32, because
            images decoded in 16 bits show bands.
        resolution: side of square images in pixels, or (height, width); None: the pipeline's default.
        max_text_length: number of tokens at which a prompt is cut; None: the family's `text_length`.
        num_frames: frames of a video, where the pipeline makes videos; None: the pipeline's default.
        frame_rate: frames per second, where the pipeline is told; None: the pipeline's default.

    Raises:
        ValueError: if the pipeline or its transformer is one of another class, the resolution is not a multiple of the
            pixels that one token covers, the number of frames is not one that latent frames hold, the text length is
            out of range, or the scheduler does not take Euler steps.
    """

    listed: ClassVar[bool] = True
    """Whether somebody has written the row; else the policy has to prove itself when a model is loaded."""
    num_images: ClassVar[tuple[int, int]] = (0, 0)
    """The fewest and the most source images that a prompt brings."""

    @quiet(*LIBRARIES)  # diffusers warns of changed precisions
    def __init__(
        self,
        pipeline: DiffusionPipeline,
        resolution: int | tuple[int, int] | None = None,
        max_text_length: int | None = None,
        num_frames: int | None = None,
        frame_rate: int | None = None,
    ) -> None:
        check_parts(self._name, pipeline, self.family)
        self.check_text_length(max_text_length)
        made = checked_format(self._name, pipeline, self.family, resolution, num_frames, frame_rate)
        self.calls = PipelineCalls(self._name, pipeline, self.family, made, max_text_length)
        super().__init__(pipeline)
        self._cache = PromptCache()
        self._decoder_in_use: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "family"):
            cls.num_images = cls.family.images

    @classmethod
    def check_text_length(cls, length: int | None) -> None:
        """Refuses a number of tokens that the pipeline does not take.

        Args:
            length: `max_text_length` of the class.

        Raises:
            ValueError: if it is out of range.
        """
        fewest, most = cls.family.shortest_text, cls.family.longest_text
        fits = length is None or fewest <= integer(cls.__name__, "max_text_length", length) <= most
        expected = f"in {fewest}..{most}" if fewest < most else str(most)
        require(fits, cls.__name__, "max_text_length", expected, length)

    @classmethod
    @quiet(*LIBRARIES)
    def makes_videos(cls) -> bool:
        """Whether the pipelines of this class make videos."""
        return makes_videos(cls.family.pipeline_class)

    @classmethod
    @quiet(*LIBRARIES)
    def check_video(cls, num_frames: int | None, frame_rate: int | None) -> None:
        """Refuses frames where the pipeline makes images, and a frame rate where it takes none.

        Args:
            num_frames: of the class.
            frame_rate: of the class.

        Raises:
            ValueError: naming the argument.
        """
        check_video(cls.__name__, cls.family.pipeline_class, num_frames, frame_rate)

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
        num_frames: int | None = None,
        frame_rate: int | None = None,
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
            num_frames: as for the class.
            frame_rate: as for the class.

        Raises:
            ValueError: as for the class; if the device cannot be used or the model is one of another class; or naming
                the file that cannot be loaded.
        """
        from . import POLICIES

        function = f"{cls.__name__}.from_pretrained"
        device = usable_device(function, device)
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        require(floating, function, "dtype", "a torch.dtype of floating-point numbers", repr(dtype))
        name = read_index(function, path)["_class_name"]
        known = [cls.family.name, *(other for other, policy in POLICIES.items() if policy is cls)]
        require(name in known, function, "model", f"a {' or '.join(dict.fromkeys(known))}", f"a {name}, {str(path)!r}")
        pipeline_class = cls.family.pipeline_class
        cls.check_video(num_frames, frame_rate)
        dtypes = {"default": dtype, "vae": torch.float32}
        pipeline = load_pipeline(function, path, pipeline_class, dtypes, cls.family.optional_parts, allow_code)
        return cls(pipeline.to(device), resolution, max_text_length, num_frames, frame_rate)

    @property
    def max_text_length(self) -> int:
        """Number of tokens at which a prompt is cut."""
        return self.calls.text_length

    @property
    def num_frames(self) -> int | None:
        """Of a video; None: the policy makes images."""
        return self.calls.format.num_frames

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the dimension of rows."""
        return self.calls.latent_shape

    @property
    def _name(self) -> str:
        return type(self).__name__

    def guides(self, guidance_scale: float) -> bool:
        """Whether a guidance scale takes a second velocity, for the negative prompt.

        Args:
            guidance_scale: g.
        """
        return self.calls.has_guidance and guides(guidance_scale)

    def encode(
        self, prompts: Sequence[str], guided: bool = False, images: Sequence[Sources] | None = None
    ) -> Condition:
        """Encodes prompts, each of them once and alone, and keeps the encodings.

        Args:
            prompts: P texts.
            guided: also encode the negative prompt, unless the network embeds guidance.
            images: P tuples of paths of source images, `num_images` each; None: without.

        Returns:
            [P] rows. With `guided` they are pairs (prompt, negative prompt), [P, 2, ...]: flattened, a slice of them is
            the input of one network call for both, without a copy.

        Raises:
            ValueError: if there is no prompt, a source image is missing or cannot be read, or the pipeline does
                something that cannot be learnt.
        """
        require(not isinstance(prompts, str), "encode", "prompts", "a list of texts", repr(prompts))
        require(len(prompts) > 0, "encode", "prompts", "at least one text", "none")
        images = [()] * len(prompts) if images is None else images
        require(len(images) == len(prompts), "encode", "images", f"those of {len(prompts)} prompts", len(images))
        images_of("encode", self, [{IMAGE: list(sources)} for sources in images])
        paired = guided and self.calls.has_guidance
        texts: tuple[Sequence[str | None], ...] = (prompts, [None] * len(prompts)) if paired else (prompts,)
        asked = [[(text, tuple(own)) for text, own in zip(part, images, strict=True)] for part in texts]
        known = self._encodings([prompt for part in asked for prompt in part])
        tensors, kinds = collate([known[part] for pair in zip(*asked, strict=True) for part in pair])
        if paired:
            tensors = {name: part.unflatten(0, (-1, 2)) for name, part in tensors.items()}
        parts = tuple(zip(*[iter(kinds)] * len(asked), strict=True))
        return Condition(tensors, None if set(kinds) == {PLAIN} else parts)

    def _encodings(self, prompts: Sequence[Prompt]) -> dict[Prompt, Encoding]:
        keys = {prompt: (*prompt, *map(stamp, prompt[1])) for prompt in dict.fromkeys(prompts)}
        found = {prompt: self._cache.get(key) for prompt, key in keys.items()}
        known = {prompt: encoding for prompt, encoding in found.items() if encoding is not None}
        for prompt, encoding in self.calls.encode([prompt for prompt in found if prompt not in known]).items():
            known[prompt] = encoding
            self._cache.put(keys[prompt], encoding)
        return known

    def offload_text_encoders(self) -> None:
        """From now on the text encoders stay in host memory, and are copied to the device only for new prompts."""
        self.calls.encoders_at_hand = HostCopies(self._encoders, self.device).on_device

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
            guidance_scale: g, see `guides`. A network that embeds guidance takes any scale.

        Returns:
            (conditional, unconditional) for classifier-free guidance, else (velocity, None); each [R, *latent_shape],
            in the dtype of `latents`.

        Raises:
            ValueError: if guidance needs a second velocity and the condition was encoded without `guided`, or its
                source images were encoded by a policy of another model, format or device; or if they differ in size
                and FSDP shards the network.
        """
        paired, tensors = self.guides(guidance_scale), dict(condition.tensors)
        facts, own = self.calls.facts, self.calls.rows[0]
        has_pairs = tensors[own.name].dim() == own.num_dims + 2
        if paired and not has_pairs:
            fail("velocity", "condition", "from encode(prompts, guided=True) for guidance", "an unguided one")
        if not isinstance(sigma, Tensor):
            sigma = torch.full((len(latents),), sigma, device=latents.device)
        hidden, sigma = latents.to(self.dtype), sigma.float()
        if paired:
            hidden, sigma = hidden.repeat_interleave(2, dim=0), sigma.repeat_interleave(2)
        if has_pairs:
            tensors = {name: part.flatten(0, 1) if paired else part[:, 0] for name, part in tensors.items()}
        inputs = Inputs(hidden, facts.time_of(sigma), guidance_scale, tensors)
        # Where patches are single pixels, unpatchifying leaves a permuted view; the ops need contiguous rows.
        velocity = by_kind(inputs, self._kinds(condition, paired), self._predict).to(latents.dtype).contiguous()
        return self._pair(velocity[0::2], velocity[1::2], guidance_scale) if paired else (velocity, None)

    def _kinds(self, condition: Condition, paired: bool) -> list[tuple[Layout, int | None]]:
        """Of the rows of a network call."""
        rows: Any = ((PLAIN,) * 2,) * len(condition) if condition.kinds is None else condition.kinds
        kinds: list[Kind] = [kind for row in rows for kind in row[: 2 if paired else 1]]
        layouts = {layout: self.calls.layout(layout) for layout, _ in kinds}
        # A process with another number of network calls than the others would wait for them, or crash.
        whole = len(layouts) == 1 or not is_sharded(self.network)
        expected = "about source images of one size and number, where FSDP shards the network"
        require(whole, "velocity", "condition", expected, f"{len(layouts)} different ones")
        return [(layouts[layout], length) for layout, length in kinds]

    def _predict(self, layout: Layout, inputs: Inputs) -> Tensor:
        made, facts = self.acting(**fill(layout.slots, inputs)), layout.facts
        output = made[0]
        output = torch.stack(list(output)) if isinstance(output, (list, tuple)) else output
        output = output if facts.kept is None else facts.kept.of(output)
        velocity = output.reshape(inputs.latents.shape)
        return -velocity if facts.sign < 0 else velocity

    def _pair(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> tuple[Tensor, Tensor | None]:
        """What guidance is made of."""
        if self.family.combine is not None:
            return self.family.combine(cond, uncond, guidance_scale), None
        return cond, uncond

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes finished latents with the VAE, as the pipeline does.

        Args:
            latents: [R, *latent_shape].

        Returns:
            Images [R, 3, H, W] or videos [R, F, 3, H, W], float32 in [0, 1].
        """
        with torch.autocast(latents.device.type, enabled=False), self._decoder_in_use():
            return self.calls.images(latents.to(self.pipeline.vae.dtype))

    def sigmas(self, num_steps: int) -> list[float]:
        """The noise levels of the pipeline's scheduler, with its static or resolution-dependent shift.

        Args:
            num_steps: T.

        Returns:
            T + 1 noise levels, from the noisiest to 0.

        Raises:
            ValueError: if the scheduler does not take Euler steps.
        """
        check_scheduler(self._name, self.pipeline.scheduler)  # again: it may have been replaced
        return self.calls.sigmas(num_steps)
