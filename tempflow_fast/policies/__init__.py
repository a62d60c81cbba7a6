"""Policies: text-to-image flow models behind one small protocol."""

from .base import Condition, Policy
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
]
