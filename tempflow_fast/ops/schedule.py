"""Turns noise levels into one table of per-step scalars.

Every sampler is one line, `x_next = a x + b v + s eps`, whose scalars depend only on the step. They are computed here
once, on the host, in float64. No other module has a formula in sigma, but for the solvers of tails in `grpo/tails.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from torch import Tensor

from ..choices import NOISELESS, Sampler
from ..errors import fail, finite, integer, integers, require
from .noise import INITIAL_NOISE_STEP

SAMPLERS = (*get_args(Sampler), NOISELESS)
MAX_STEPS = INITIAL_NOISE_STEP  # the last of the 16-bit numbers that the noise counter has for steps
LEVEL_ERROR = 1e-6  # of a level that was computed in float32
# Ops compute in float32 with s, 1 / s and their squares.
LEAST_NOISE, MOST_NOISE = 2.0**-60, 2.0**60
NEAR_ONE = 0.1  # of a step: a level this close to 1 counts as 1 in `flow_sde`


@dataclass(frozen=True, eq=False)
class StepTable:
    """Per-step scalars of a sampler: float64 tensors [T] on the CPU.

    The trunk and the branch tails move by `latents + dt * velocity`; a branch leaves its trunk at
    `a * latents + b * velocity + s * eps`. `noise_weight` is `s / mean(s over branch_steps)`, 0 at other steps
    (the normalisation of TempFlow-GRPO, arXiv 2508.04324: the weights of the branch steps average 1). `silent_steps`
    are those without noise (s below 2^-60, the least that float32 can compute with), where no branch can leave.
    `ratio_norm` says which ratio `policy_loss` forms, see `with_ratio_norm`.
    """

    sigma: Tensor
    sigma_next: Tensor
    a: Tensor
    b: Tensor
    s: Tensor
    noise_weight: Tensor
    dt: Tensor
    sampler: str
    noise_level: float
    branch_steps: tuple[int, ...]
    silent_steps: tuple[int, ...]
    ratio_norm: bool = False
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        """T, the number of network calls of a rollout."""
        return self.sigma.shape[0]

    def __str__(self) -> str:
        """One line per step; a star marks the branch steps."""
        head = f"{self.sampler}, noise level {self.noise_level:g}\n step   sigma -> next       s  weight"
        columns = (self.sigma, self.sigma_next, self.s, self.noise_weight)
        lines = [head]
        for step, (sigma, after, s, weight) in enumerate(zip(*(each.tolist() for each in columns), strict=True)):
            star = "*" if step in self.branch_steps else " "
            lines.append(f"{step:4}{star}  {sigma:.4f} -> {after:.4f}  {s:.4f}  {weight:.4f}")
        return "\n".join(lines)

    def coefficients(self, device: torch.device | str = "cpu") -> Tensor:
        """The rows (dt, a, b, s, noise_weight), float64 [T, 5], copied to a device once.

        Ops read their rows from it, so no step waits for a scalar. With `ratio_norm` the weights are negative, by which
        `policy_loss` knows it.

        Args:
            device: where the ops run.
        """
        device = torch.device(device)
        if device not in self._on_device:
            weights = -self.noise_weight if self.ratio_norm else self.noise_weight
            columns = torch.stack([self.dt, self.a, self.b, self.s, weights], dim=1)
            self._on_device[device] = columns.to(device, non_blocking=True)
        return self._on_device[device]

    def with_equal_weights(self) -> StepTable:
        """The same table, whose `noise_weight` is 1 at every branch step."""
        weights = torch.zeros_like(self.noise_weight)
        weights[list(self.branch_steps)] = 1.0
        return replace(self, noise_weight=weights, _on_device={})

    def with_ratio_norm(self) -> StepTable:
        """The same table for the loss of GRPO-Guard (arXiv 2510.22319).

        Under the policy that drew a branch, log r has the mean -|m - m_old|^2 / (2 s^2) and a standard deviation in
        proportion to 1 / s: most ratios are below 1, and a clip range means something else at every step. RatioNorm
        takes s (log r + |m - m_old|^2 / (2 s^2)) instead, means over D, which is the mean of (m - m_old) eps. The
        weights are divided by -dt, to which the gradients of the new ratio are in proportion, and average 1 again.
        """
        weights = torch.where(self.noise_weight > 0, self.noise_weight / -self.dt, 0.0)
        weights = weights * (len(self.branch_steps) / weights.sum()) if self.branch_steps else weights
        return replace(self, noise_weight=weights, ratio_norm=True, _on_device={})

    def followed_by(self, schedules: Iterable[Sequence[float]]) -> StepTable:
        """The same table with noiseless steps of other schedules after its own, as further rows.

        Args:
            schedules: lists of two or more falling noise levels; each list of n + 1 levels adds n rows.
        """
        parts = [self, *(step_table(levels, NOISELESS) for levels in schedules)]
        columns = ("sigma", "sigma_next", "a", "b", "s", "noise_weight", "dt")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
        added = range(self.num_steps, len(joined["sigma"]))
        return replace(self, **joined, silent_steps=(*self.silent_steps, *added), _on_device={})


def linear_sigmas(num_steps: int, shift: float = 1.0) -> list[float]:
    """T + 1 noise levels from 1 to 0: `linspace(1, 1/T, T)`, shifted once by `shift x / (1 + (shift - 1) x)`, then 0.

    Args:
        num_steps: T, at least 1.
        shift: positive; larger values put more steps at high noise (Stable Diffusion 3, arXiv 2403.03206).

    Raises:
        ValueError: an argument out of range.
    """
    num_steps = integer("linear_sigmas", "num_steps", num_steps)
    require(num_steps >= 1, "linear_sigmas", "num_steps", "at least 1", num_steps)
    require(num_steps <= MAX_STEPS, "linear_sigmas", "num_steps", f"at most {MAX_STEPS}", num_steps)
    require(finite("linear_sigmas", "shift", shift) > 0, "linear_sigmas", "shift", "positive", shift)
    levels = [1 - i / num_steps for i in range(num_steps)]
    return [shift * level / (1 + (shift - 1) * level) for level in levels] + [0.0]


def step_table(
    sigmas: Sequence[float] | Tensor,
    sampler: str = "flow_sde",
    noise_level: float = 0.7,
    branch_steps: Iterable[int] | None = None,
) -> StepTable:
    """Builds the table of a schedule.

    Args:
        sigmas: T + 1 strictly falling noise levels in [0, 1] (1 is pure noise). A first level above 1 and a last one
            below 0 by no more than float32 errs are 1 and 0.
        sampler: `flow_sde` (Flow-GRPO, arXiv 2505.05470), `dance_sde` (DanceGRPO, arXiv 2505.07818), `cps`
            (coefficient-preserving sampling, arXiv 2509.05952) or `ode` (no noise, no branches).
        noise_level: strength of the noise, not negative. `flow_sde`: the diffusion is noise_level sqrt(sigma /
            (1 - sigma)), with sigma_next below the root where sigma is 1, or closer to 1 than a tenth of its step;
            `dance_sde`: it is noise_level; `cps`: s is sigma_next sin(noise_level pi / 2), and noise_level at most 1.
        branch_steps: the steps at which branches leave; None means all except the last (none for `ode`).

    Raises:
        ValueError: the schedule is not finite or does not fall, the sampler is unknown, the noise is more than float32
            can compute with, a step is outside the table, or the sampler adds no noise at a branch step.
    """
    levels = _checked_sigmas(sigmas)
    require(sampler in SAMPLERS, "step_table", "sampler", f"one of {', '.join(SAMPLERS)}", repr(sampler))
    noise_level = _checked_noise_level(noise_level, sampler)
    sigma, sigma_next = levels[:-1].clone(), levels[1:].clone()
    dt = sigma_next - sigma
    a, b, s = _sde_row(sampler, noise_level, sigma, sigma_next)
    usable = bool((a.abs() < MOST_NOISE).all() and (b.abs() < MOST_NOISE).all() and (s < MOST_NOISE).all())
    require(usable, "step_table", "noise_level", "small enough for float32", noise_level)
    silent_steps = tuple(step for step in range(s.shape[0]) if not s[step] >= LEAST_NOISE)
    steps = _checked_branch_steps(branch_steps, sampler, s.shape[0], silent_steps)
    noise_weight = torch.zeros_like(s)
    if steps:
        noise_weight[list(steps)] = s[list(steps)] / s[list(steps)].mean()
    return StepTable(sigma, sigma_next, a, b, s, noise_weight, dt, sampler, noise_level, steps, silent_steps)


def _sde_row(sampler: str, noise_level: float, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, s) of every step."""
    dt = sigma_next - sigma
    if sampler == NOISELESS:
        return torch.ones_like(dt), dt, torch.zeros_like(dt)
    if sampler == "cps":
        s = sigma_next * math.sin(noise_level * math.pi / 2)
        # The predictions x0 = x - sigma v and x1 = x + (1 - sigma) v are mixed so that signal and noise keep their
        # proportions.
        data, noise = 1 - sigma_next, sigma_next * abs(math.cos(noise_level * math.pi / 2))
        return data + noise, noise * (1 - sigma) - data * sigma, s
    # Both SDEs subtract the same multiple of the score; they differ only in the diffusion g(sigma).
    if sampler == "flow_sde":
        # The diffusion is infinite at sigma = 1; the next level replaces it, as in Flow-GRPO. Just below 1 it would be
        # so large that the step does not approximate the SDE (drift < -1 from noise level 0.6 on); a level that float32
        # has rounded below 1 is of this kind.
        near_one = 1 - sigma < NEAR_ONE * -dt
        denominator = torch.where(near_one, 1 - sigma_next, 1 - sigma)
        g = noise_level * (sigma / denominator).sqrt()
    elif sampler == "dance_sde":
        g = torch.full_like(sigma, noise_level)
    else:
        fail("step_table", "sampler", "one with a formula in _sde_row", repr(sampler))
    drift = g**2 * dt / (2 * sigma)
    return 1 + drift, dt + drift * (1 - sigma), g * (-dt).sqrt()


def _checked_noise_level(noise_level: float, sampler: str) -> float:
    not_negative = finite("step_table", "noise_level", noise_level) >= 0
    require(not_negative, "step_table", "noise_level", "finite and not negative", noise_level)
    if sampler == "cps":  # sin(noise_level pi / 2) falls again beyond 1
        require(noise_level <= 1, "step_table", "noise_level", "at most 1 for sampler 'cps'", noise_level)
    return float(noise_level)


def _checked_sigmas(sigmas: Sequence[float] | Tensor) -> Tensor:
    try:
        real = not isinstance(sigmas, Tensor) or sigmas.is_floating_point()
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").detach().clone() if real else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # torch's own answers, by kind of value
        levels = None
    if levels is None or levels.layout != torch.strided or levels.is_nested:
        fail("step_table", "sigmas", "a list of levels", repr(sigmas))
    listed = levels.dim() == 1 and 2 <= levels.numel() <= MAX_STEPS + 1
    require(listed, "step_table", "sigmas", f"a list of 2 to {MAX_STEPS + 1} levels", list(levels.shape))
    require(bool(torch.isfinite(levels).all()), "step_table", "sigmas", "finite", levels.tolist())
    if 1 < levels[0] <= 1 + LEVEL_ERROR:
        levels[0] = 1
    if -LEVEL_ERROR <= levels[-1] < 0:
        levels[-1] = 0
    falling = bool(levels[0] <= 1 and levels[-1] >= 0 and (levels.diff() < 0).all())
    require(falling, "step_table", "sigmas", "strictly falling within [0, 1]", levels.tolist())
    return levels


def _checked_branch_steps(
    branch_steps: Iterable[int] | None, sampler: str, num_steps: int, silent_steps: tuple[int, ...]
) -> tuple[int, ...]:
    if branch_steps is None:
        branch_steps = () if sampler == "ode" else range(num_steps - 1)
    steps = tuple(sorted(integers("step_table", "branch_steps", branch_steps)))
    distinct = len(set(steps)) == len(steps) and all(0 <= step < num_steps for step in steps)
    require(distinct, "step_table", "branch_steps", f"distinct and in 0..{num_steps - 1}", list(steps))
    silent = [step for step in steps if step in silent_steps]
    require(not silent, "step_table", "branch_steps", f"steps where sampler {sampler!r} adds noise", silent)
    return steps
