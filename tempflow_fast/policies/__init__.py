"""Policies: text-to-image flow models behind one small protocol."""

from .base import Condition, Policy
from .sd3 import SD3Policy

__all__ = ["Condition", "Policy", "SD3Policy"]
