"""The proof that a policy samples as its pipeline does: its trunk is the pipeline's latents, its images the pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import fail
from ..quiet import quiet
from .diffusers_pipeline import DiffusersPolicy
from .model_files import LIBRARIES
from .pipeline_calls import LONG_TEXT, SHORT_TEXT
from .probe import Stepped
from .schedule import is_euler

NEAR = {torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Precision of the network -> the largest difference, relative to the largest value. In 16 bits, a pipeline rounds its
timesteps and latents at every step, and a policy does not."""
NUM_STEPS = 3
GUIDED = 3.5


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        what: was compared.
        found: the largest difference, relative to the largest value.
        limit: up to which they match.
    """

    what: str
    found: float
    limit: float

    @property
    def matches(self) -> bool:
        """Whether they do; NaN does not."""
        return self.found <= self.limit


@dataclass
class Sampled:
    """What a pipeline did in a call."""

    noise: Tensor
    states: list[Tensor]
    """Latents after every step."""
    images: Tensor


def prove(policy: DiffusersPolicy, num_steps: int = NUM_STEPS) -> list[Check]:
    """Compares a policy with its pipeline: two prompts of different lengths, without guidance and with it.

    Args:
        policy: as loaded; nothing of it changes.
        num_steps: T, the steps that are compared.

    Returns:
        The comparisons.

    Raises:
        ValueError: if the pipeline does something that cannot be learnt.
    """
    guided = policy.calls.has_guidance or policy.calls.embeds_guidance
    scales = (None, GUIDED) if guided else (None,)
    return [check for scale in scales for check in _compared(policy, scale, num_steps)]


def admit(policy: DiffusersPolicy) -> None:
    """Refuses a policy that does not sample as its pipeline does.

    Args:
        policy: as loaded.

    Raises:
        ValueError: naming what differs.
    """
    for check in prove(policy):
        if not check.matches:
            name, expected = type(policy).__name__, f"one that the policy reproduces to {check.limit:.0e}"
            fail(name, "pipeline", expected, f"{check.what} that differ by {check.found:.1e}")


@quiet(*LIBRARIES)
@torch.no_grad()
def _compared(policy: DiffusersPolicy, scale: float | None, num_steps: int) -> list[Check]:
    texts, limit = (SHORT_TEXT, LONG_TEXT), NEAR[policy.dtype]
    theirs = [sampled(policy, text, scale, num_steps, seed) for seed, text in enumerate(texts)]
    levels = policy.sigmas(num_steps)
    noise = torch.cat([run.noise for run in theirs]).float()
    together = trunk(policy, texts, noise, scale, levels)
    alone = [trunk(policy, [text], noise[row : row + 1], scale, levels) for row, text in enumerate(texts)]
    wanted = torch.cat([torch.stack(run.states, dim=1) for run in theirs]).float()
    images = torch.cat([policy.decode(wanted[row : row + 1, -1]) for row in range(len(texts))])
    kind = "without guidance" if scale is None else f"at guidance {scale:g}"
    return [
        Check(f"latents {kind}", distance(together, wanted), limit),
        Check(f"latents of single rows {kind}", distance(torch.cat(alone), wanted), limit),
        Check(f"pixels {kind}", distance(images, torch.cat([run.images for run in theirs])), limit),
    ]


def sampled(policy: DiffusersPolicy, text: str, scale: float | None, num_steps: int, seed: int) -> Sampled:
    """The pipeline's own sampler, network and all; Euler's rule takes the place of another.

    Args:
        policy: its pipeline is called.
        text: a prompt.
        scale: of guidance; None: without.
        num_steps: T.
        seed: of the initial noise.
    """
    pipeline, found = policy.pipeline, Sampled(torch.empty(0), [], torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    with _watched(pipeline, found):
        made = pipeline(**policy.calls.arguments(text, num_steps, scale), generator=generator, output_type="pt")
    found.images = made[0]
    return found


@contextmanager
def _watched(pipeline: Any, found: Sampled) -> Iterator[None]:
    step = pipeline.scheduler.step

    def watched_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not found.states:
            found.noise = sample.clone()
        made = step(model_output, timestep, sample, *args, **kwargs)
        if not is_euler(pipeline.scheduler):
            level, below = pipeline.scheduler.sigmas[len(found.states) :][:2].tolist()
            made = Stepped((sample + (below - level) * model_output,))
        found.states.append(made[0])
        return made

    pipeline.scheduler.step = watched_step
    try:
        yield
    finally:
        del pipeline.scheduler.step


def trunk(
    policy: DiffusersPolicy, texts: Sequence[str], noise: Tensor, scale: float | None, levels: Sequence[float]
) -> Tensor:
    """The latents of the policy after every step of Euler's rule.

    Args:
        policy: the policy.
        texts: R prompts.
        noise: [R, *latent_shape].
        scale: of guidance; None: without.
        levels: T + 1 noise levels.

    Returns:
        [R, T, *latent_shape].
    """
    guidance = 1.0 if scale is None else scale
    condition, latents, states = policy.encode(texts, guided=policy.guides(guidance)), noise, []
    for sigma, sigma_next in pairwise(levels):
        velocity, uncond = policy.velocity(latents, sigma, condition, guidance)
        if uncond is not None:
            velocity = uncond + guidance * (velocity - uncond)
        latents = latents + (sigma_next - sigma) * velocity
        states.append(latents)
    return torch.stack(states, dim=1)


def distance(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value; NaN if there is one.

    Args:
        got: of any shape.
        wanted: of the same shape.
    """
    return float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())
