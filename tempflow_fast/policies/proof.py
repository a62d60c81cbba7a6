"""The proof that a policy samples as its pipeline does: its trunk is the pipeline's latents, its images the pixels."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import fail
from ..quiet import quiet
from ..source_images import Sources, picture
from .diffusers_pipeline import DiffusersPolicy
from .model_files import LIBRARIES
from .pipeline_calls import LONG_TEXT, SHORT_TEXT
from .probe import Stepped, encoded_image
from .schedule import is_euler

NEAR = {torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Precision of the network -> the largest difference, relative to the largest value. In 16 bits, a pipeline rounds its
timesteps and latents at every step, and a policy does not."""
NUM_STEPS = 3
SMALLEST = 64
"""Side of a source image that every pipeline takes."""
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

    Where prompts may have source images, these differ in size, and in number where they may.

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
    with TemporaryDirectory() as directory:
        cases = [(images, scale) for images in _source_images(policy, Path(directory)) for scale in scales]
        return [check for images, scale in cases for check in _compared(policy, images, scale, num_steps)]


def _source_images(policy: DiffusersPolicy, directory: Path) -> list[tuple[Sources, Sources]]:
    """Source images of two prompts: none where none are needed, and random ones where some may be."""
    fewest, most = policy.num_images
    height, side = (max(size, SMALLEST) for size in (policy.calls.format.height, policy.calls.format.width))
    rng, paths = random.Random(0), []
    for number, width in enumerate((side, 2 * side, side)):
        paths.append(directory / f"{number}.png")
        Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(paths[-1])
    without: list[tuple[Sources, Sources]] = [] if fewest else [((), ())]
    return [*without, ((paths[0],), tuple(paths[1 : 1 + most]))] if most else without


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
def _compared(
    policy: DiffusersPolicy, images: tuple[Sources, Sources], scale: float | None, num_steps: int
) -> list[Check]:
    prompts, limit = list(zip((SHORT_TEXT, LONG_TEXT), images, strict=True)), NEAR[policy.dtype]
    theirs = [sampled(policy, prompt, scale, num_steps, seed) for seed, prompt in enumerate(prompts)]
    levels = policy.sigmas(num_steps)
    noise = torch.cat([run.noise for run in theirs]).float()
    together = trunk(policy, prompts, noise, scale, levels)
    alone = [trunk(policy, [prompt], noise[row : row + 1], scale, levels) for row, prompt in enumerate(prompts)]
    wanted = torch.cat([torch.stack(run.states, dim=1) for run in theirs]).float()
    pixels = torch.cat([policy.decode(wanted[row : row + 1, -1]) for row in range(len(prompts))])
    kind = "without guidance" if scale is None else f"at guidance {scale:g}"
    kind = f"with source images {kind}" if any(images) else kind
    return [
        Check(f"latents {kind}", distance(together, wanted), limit),
        Check(f"latents of single rows {kind}", distance(torch.cat(alone), wanted), limit),
        Check(f"pixels {kind}", distance(pixels, torch.cat([run.images for run in theirs])), limit),
    ]


def sampled(
    policy: DiffusersPolicy, prompt: tuple[str, Sources], scale: float | None, num_steps: int, seed: int
) -> Sampled:
    """The pipeline's own sampler, network and all; Euler's rule takes the place of another.

    Args:
        policy: its pipeline is called.
        prompt: a text and its source images.
        scale: of guidance; None: without.
        num_steps: T.
        seed: of the initial noise.
    """
    pipeline, found = policy.pipeline, Sampled(torch.empty(0), [], torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    text, pictures = prompt[0], [picture(path) for path in prompt[1]]
    arguments = policy.calls.arguments(text, num_steps, scale, pictures)
    with _watched(pipeline, found):
        made = pipeline(**arguments, generator=generator, output_type="pt")
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

    bar = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.step = watched_step
    pipeline.vae.encode = functools.partial(encoded_image, pipeline.vae)
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**bar)
        del pipeline.scheduler.step, pipeline.vae.encode


def trunk(
    policy: DiffusersPolicy,
    prompts: Sequence[tuple[str, Sources]],
    noise: Tensor,
    scale: float | None,
    levels: Sequence[float],
) -> Tensor:
    """The latents of the policy after every step of Euler's rule.

    Args:
        policy: the policy.
        prompts: R texts with their source images.
        noise: [R, *latent_shape].
        scale: of guidance; None: without.
        levels: T + 1 noise levels.

    Returns:
        [R, T, *latent_shape].
    """
    guidance = 1.0 if scale is None else scale
    texts, images = zip(*prompts, strict=True)
    condition, latents, states = policy.encode(texts, policy.guides(guidance), images), noise, []
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
