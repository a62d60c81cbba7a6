"""The policy class of every family."""

from __future__ import annotations

import inspect

from .diffusers_pipeline import DiffusersPolicy
from .families import FAMILIES, Family


class SD3Policy(DiffusersPolicy):
    """Stable Diffusion 3 and 3.5, and every model stored in diffusers' `StableDiffusion3Pipeline` layout.

    `max_text_length` counts T5 tokens; there are 77 CLIP tokens in addition. A pipeline without T5 (`text_encoder_3` is
    None) gets no T5 tokens, which is diffusers' `max_sequence_length=0`; its default of 256 would append 256 zero
    tokens to every text.
    """

    family = FAMILIES["StableDiffusion3Pipeline"]


class FluxPolicy(DiffusersPolicy):
    """FLUX.1, and every model stored in diffusers' `FluxPipeline` layout.

    A network with embedded guidance (FLUX.1-dev) takes the guidance scale as an input, the pipeline's `guidance_scale`;
    it takes any scale as it is, 0 and 1 as well. A network without (FLUX.1-schnell) gets classifier-free guidance
    against the empty prompt, the pipeline's `true_cfg_scale`.
    """

    family = FAMILIES["FluxPipeline"]


class QwenImagePolicy(DiffusersPolicy):
    """Qwen-Image, and every model stored in diffusers' `QwenImagePipeline` layout.

    Guidance is the pipeline's `true_cfg_scale` with the negative prompt " ", as in the model card: the combined
    velocity of every token is scaled to the length of the conditional one, so `velocity` returns it combined.
    """

    family = FAMILIES["QwenImagePipeline"]


def policy_class(family: Family, listed: bool = True) -> type[DiffusersPolicy]:
    """The class of a family's policies, such as ChromaPolicy for a ChromaPipeline.

    Args:
        family: its row.
        listed: as `DiffusersPolicy.listed`.
    """
    name = f"{family.name.removesuffix('Pipeline')}Policy"
    return type(name, (DiffusersPolicy,), {"family": family, "listed": listed, "__module__": __name__})


_NAMED = {policy.family.name: policy for policy in (SD3Policy, FluxPolicy, QwenImagePolicy)}
POLICIES: dict[str, type[DiffusersPolicy]] = {
    name: _NAMED.get(name) or policy_class(family) for name, family in FAMILIES.items()
}
"""`_class_name` in a model's model_index.json -> the class that loads it by `from_pretrained`."""


def unlisted_class(pipeline: str) -> type[DiffusersPolicy]:
    """The policy class for a pipeline class without a row, which has to prove itself.

    Args:
        pipeline: name of a class in diffusers.
    """
    import diffusers

    parameters = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
    guidance = "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"
    unlisted = Family(
        pipeline=pipeline,
        guidance=guidance if "negative_prompt" in parameters else None,
        embedded=lambda config: bool(getattr(config, "guidance_embeds", False)),
    )
    return policy_class(unlisted, listed=False)
