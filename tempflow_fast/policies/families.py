"""What of a pipeline class cannot be learnt from its calls: a row per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..errors import require
from .learn import Combine

PIXELS_PER_LATENT = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
"""Names under which pipelines have the number of pixels on a side of one latent."""


def pixels_per_latent(pipeline: Any) -> int:
    """The number of pixels on a side of one latent.

    Args:
        pipeline: of diffusers.
    """
    known = (int(getattr(pipeline, name)) for name in PIXELS_PER_LATENT if hasattr(pipeline, name))
    return next(known, None) or pixels_of(pipeline.vae.config)


def pixels_of(vae: Mapping[str, Any]) -> int:
    """The number of pixels on a side of one latent of an autoencoder that halves images between its blocks.

    Args:
        vae: its configuration.
    """
    halvings = vae.get("temperal_downsample") or vae.get("block_out_channels", (0,))[1:]
    return int(2 ** len(halvings))


def _default_pixels(pipeline: Any) -> int:
    return 2 * pixels_per_latent(pipeline)


def _no_arguments(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def _no_modules(network: nn.Module) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models of one pipeline class.

    Args:
        pipeline: name of the class in diffusers, or a class of your own with the base `DiffusionPipeline`.
        guidance: the argument of `__call__` for the scale of classifier-free guidance; None: it has none.
        embedded: whether the network takes the scale of `guidance_scale` as an input, which replaces guidance by two
            velocities; decided by the network's configuration.
        above: the pipeline's scale above which it guides: 1 where guidance is u + g (c - u), as in this package; 0
            where it is c + g (c - u), whose g is 1 less.
        combine: (conditional, unconditional, scale) -> velocity; None: unconditional + scale (conditional -
            unconditional).
        negative: the text that guidance leads away from.
        text_length: number of tokens at which the public training scripts cut a prompt; None: the pipeline's default.
        shortest_text: the fewest tokens at which a prompt can be cut.
        longest_text: the most tokens that the pipeline takes.
        call: (pipeline, arguments) -> more arguments of `__call__`, given those that it gets in any case. It gets the
            text length as `max_sequence_length` where it has such an argument.
        images: the fewest and the most source images of a prompt, the argument `image` of `__call__`.
        batches: whether the pipeline takes several prompts at once.
        network: name of the part that is trained.
        settings: those of the pipeline's configuration with which alone a policy can follow it.
        optional_parts: names of parts that a model may lack, in addition to those that are optional to diffusers.
        pixels: how many pixels the sides of images must be multiples of.
        side: the side of square images that the pipeline makes unless it is told another, where it does not count it in
            latents; None: as most pipelines do.
        largest: the largest side in pixels; None: any.
        idle: modules that the output does not depend on: they never get the gradients that data-parallel training
            waits for.
    """

    pipeline: str | type[Any]
    guidance: str | None = "guidance_scale"
    embedded: Callable[[Any], bool] = lambda config: False
    above: float = 1.0
    combine: Combine | None = None
    negative: str = ""
    text_length: int | None = None
    shortest_text: int = 1
    longest_text: int = 512
    call: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] = _no_arguments
    images: tuple[int, int] = (0, 0)
    batches: bool = True
    network: str = "transformer"
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    optional_parts: tuple[str, ...] = ()
    pixels: Callable[[Any], int] = _default_pixels
    side: Callable[[Any], int] | None = None
    largest: Callable[[Any], int | None] = lambda pipeline: None
    idle: Callable[[Any], tuple[str, ...]] = _no_modules

    @property
    def name(self) -> str:
        """Of the pipeline's class, as in the model_index.json of its models."""
        return self.pipeline if isinstance(self.pipeline, str) else self.pipeline.__name__

    @property
    def pipeline_class(self) -> Any:
        """The pipeline's class.

        Raises:
            ValueError: if diffusers has none of this name, or it is no pipeline.
        """
        import diffusers

        found = getattr(diffusers, self.pipeline, None) if isinstance(self.pipeline, str) else self.pipeline
        expected = "the name of a pipeline class in diffusers, or a class with the base DiffusionPipeline"
        fits = isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)
        require(fits, "Family", "pipeline", expected, repr(self.pipeline))
        return found


def token_norm(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guidance whose result has, in every token, the length of the conditional velocity.

    Args:
        cond: [R, L, C].
        uncond: [R, L, C].
        scale: g.
    """
    combined = uncond + scale * (cond - uncond)
    return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))


def _sd3_pixels(pipeline: Any) -> int:
    return int(pipeline.vae_scale_factor * pipeline.transformer.config.patch_size)


def _sd3_call(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    # Without T5, diffusers would append `max_sequence_length` zero tokens to every text.
    return {"max_sequence_length": 0} if pipeline.text_encoder_3 is None else {}


def _whole_area(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    # FLUX Kontext scales the height and width that it is given to an area of 1024 x 1024 pixels.
    return {"max_area": arguments["height"] * arguments["width"]}


def _qwen_idle(network: Any) -> tuple[str, ...]:
    # Only the image tokens of the last block are used.
    last = f"transformer_blocks.{len(network.transformer_blocks) - 1}"
    return f"{last}.attn.to_add_out", f"{last}.txt_mlp"


def _nucleus_idle(network: Any) -> tuple[str, ...]:
    # The keys of the text are normalised; it has no queries.
    return tuple(name for name, _ in network.named_modules() if name.endswith(".norm_added_q"))


def _shrinking_norm(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    combined = uncond + scale * (cond - uncond)
    lengths = cond.norm(dim=-1, keepdim=True) / (combined.norm(dim=-1, keepdim=True) + 1e-8)
    return combined * lengths.clamp(max=1.0)


def _unenhanced(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"use_pe": False}  # a language model would rewrite the prompts


def _as_asked(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"use_resolution_binning": False}  # it would draw images of another size and resize them


def _unrewritten(pipeline: Any, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"enable_prompt_rewrite": False}  # by a language model


_FLUX = Family(
    pipeline="FluxPipeline",
    guidance="true_cfg_scale",
    embedded=lambda config: bool(config.guidance_embeds),
    text_length=512,
)
_QWEN = Family(
    pipeline="QwenImagePipeline",
    guidance="true_cfg_scale",
    combine=token_norm,
    negative=" ",
    text_length=1024,
    longest_text=1024,
    idle=_qwen_idle,
)
# With the setting, every token has a time of its own.
_WAN = Family(pipeline="WanPipeline", settings={"expand_timesteps": False})
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            pipeline="StableDiffusion3Pipeline",
            text_length=128,
            call=_sd3_call,
            optional_parts=("text_encoder_3", "tokenizer_3"),
            pixels=_sd3_pixels,
            largest=lambda pipeline: pipeline.transformer.config.pos_embed_max_size * _sd3_pixels(pipeline),
        ),
        _FLUX,
        replace(_FLUX, pipeline="FluxKontextPipeline", call=_whole_area, images=(1, 1)),
        _QWEN,
        replace(_QWEN, pipeline="QwenImageEditPipeline", images=(1, 1), batches=False),
        replace(_QWEN, pipeline="QwenImageEditPlusPipeline", images=(1, 3), batches=False),
        Family(pipeline="AuraFlowPipeline"),
        Family(pipeline="ChromaPipeline"),
        Family(pipeline="OvisImagePipeline"),
        Family(pipeline="CogView4Pipeline"),
        Family(pipeline="Lumina2Pipeline", combine=token_norm),
        Family(pipeline="ZImagePipeline", above=0.0),
        Family(pipeline="Krea2Pipeline", above=0.0),
        Family(pipeline="Flux2Pipeline", guidance=None, embedded=lambda config: True, images=(0, 10)),
        Family(pipeline="Flux2KleinPipeline", images=(0, 10)),
        Family(pipeline="NucleusMoEImagePipeline", combine=token_norm, idle=_nucleus_idle),
        Family(pipeline="ErnieImagePipeline", call=_unenhanced),
        Family(pipeline="BriaPipeline"),
        Family(pipeline="BriaFiboPipeline"),
        Family(pipeline="LongCatImagePipeline", combine=_shrinking_norm, call=_unrewritten),
        Family(pipeline="PRXPipeline", call=_as_asked, side=lambda pipeline: pipeline.default_sample_size),
        Family(pipeline="SanaPipeline", call=_as_asked),
        Family(pipeline="Kandinsky5T2IPipeline"),
        _WAN,
        # Its network tells the tokens of the image from those of the text by their number.
        replace(_WAN, pipeline="WanImageToVideoPipeline", shortest_text=512, images=(1, 1)),
        Family(pipeline="LTXPipeline", pixels=lambda pipeline: 32),
    )
}
"""Name of a pipeline class -> its row."""

UNSUPPORTED = {
    "GlmImagePipeline": "a language model draws the first sketch of every image by chance, apart from the noise",
    "HiDreamImagePipeline": "its experts are computed without gradients, unless it is in training mode",
    "HunyuanImagePipeline": "its guidance remembers earlier steps",
    "OmniGenPipeline": "it calls its network for a negative prompt at every scale, without guidance as well",
    "QwenImage21Pipeline": "its images have four channels",
}
"""Name of a pipeline class -> why no policy can follow it."""
