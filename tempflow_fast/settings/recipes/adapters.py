"""Names of the layers that get an adapter in the public scripts."""

from __future__ import annotations

ATTENTION = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
)
"""The projections of the joint attention, which SD3, FLUX and Qwen-Image name alike."""


def feed_forward(name: str) -> tuple[str, str]:
    """The two layers of a feed-forward network.

    Args:
        name: of the network in its block.
    """
    return f"{name}.net.0.proj", f"{name}.net.2"


def linear_pair(name: str) -> tuple[str, str]:
    """The two layers of a feed-forward network of FLUX.2.

    Args:
        name: of the network in its block.
    """
    return f"{name}.linear_in", f"{name}.linear_out"
