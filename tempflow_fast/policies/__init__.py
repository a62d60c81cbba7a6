"""Policies: text-to-image flow models behind one small protocol.

Models, in the order to read them:

    base                  `Condition`, the `Policy` protocol, and which scales guide
    network               what every policy around one network shares: parameters and reference
    families              a row for every pipeline class of diffusers: what cannot be learnt from its calls
    pipeline_weights      the weights of such a pipeline: trained, adapted, saved
    diffusers_pipeline    the policy on it
    pipeline_calls        the pipeline's calls with the settings of one policy
    probe                 the pipeline's own `__call__`, whose network takes notes
    places                where the latents are in a call of the network
    template              such a call, taken apart
    learn                 what the notes say about the network
    layouts               what calls have in common for source images of the same sizes
    collate               prompts of several lengths, with source images of several sizes
    classes               the policy class of every family
    proof                 whether a policy samples as its pipeline does

Plumbing:

    pipeline_parts  whether a pipeline's parts fit
    format          the size of its images, or of its videos and their frames
    schedule        whether its scheduler's steps do
    prompt_cache    encoded prompts, limited in bytes
    offload         text encoders in host memory
    vae             an autoencoder that decodes in bf16
    weightless      models from configuration files alone, to be measured
    weightless_calls    how their networks are called
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
from .classes import POLICIES, FluxPolicy, QwenImagePolicy, SD3Policy
from .diffusers_pipeline import DiffusersPolicy
from .families import FAMILIES, Family
from .network import NetworkPolicy

__all__ = [
    "FAMILIES",
    "POLICIES",
    "Condition",
    "DiffusersPolicy",
    "Family",
    "FluxPolicy",
    "NetworkPolicy",
    "Policy",
    "QwenImagePolicy",
    "SD3Policy",
    "check_policy",
    "guides",
]
