"""Policies: text-to-image flow models behind one small protocol.

Models, in the order to read them:

    base                  `Condition`, the `Policy` protocol, and which scales guide
    network               what every policy around one network shares: parameters and reference
    diffusers_pipeline    what the policies on diffusers pipelines share
    sd3                   Stable Diffusion 3 and 3.5
    packing               latents as packed tokens
    flux, qwen_image      models with such latents

Plumbing:

    schedule        noise levels of a pipeline's scheduler
    prompt_cache    encoded prompts, limited in bytes
    lora            adapters
    merged          adapters merged into the weights for the rollout
    lora_file       their files
    model_files     the parts of a pipeline's directory
    compiled        torch.compile, block by block
    quantized       linear layers in 8 bits
    sharding        weights that FSDP divides among processes
    finite          whether weights, latents and images are finite, and if not, why
"""

from .base import Condition, Policy, check_policy, guides
from .diffusers_pipeline import DiffusersPolicy
from .flux import FluxPolicy
from .network import NetworkPolicy
from .qwen_image import QwenImagePolicy
from .sd3 import SD3Policy

POLICIES = {policy.pipeline_name: policy for policy in (SD3Policy, FluxPolicy, QwenImagePolicy)}
"""`_class_name` in a model's model_index.json -> the class that loads it by `from_pretrained`."""

__all__ = [
    "POLICIES",
    "Condition",
    "DiffusersPolicy",
    "FluxPolicy",
    "NetworkPolicy",
    "Policy",
    "QwenImagePolicy",
    "SD3Policy",
    "check_policy",
    "guides",
]
