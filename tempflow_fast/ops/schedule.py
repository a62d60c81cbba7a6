"""From noise levels to one table of per-step scalars.

Every sampler of the field is one line, `x_next = a x + b v + s eps`, whose scalars depend on the step alone. They are
computed here once, on the host, in float64; kernels and rollouts never see a sigma formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import fail, finite, integers

SAMPLERS = ("flow_sde", "dance_sde", "cps", "ode")
MAX_STEPS = 0xFFFF  # the noise counter has 16 bits for the step; the last value belongs to the initial noise


@dataclass(frozen=True, eq=False)
class StepTable:
    """Per-step scalars of a sampler: float64 tensors [T] on the CPU.

    The trunk and the branch tails move by `latents + dt * velocity`; a branch leaves its trunk at
    `a * latents + b * velocity + s * eps`. `noise_weight` is `s / mean(s over branch_steps)`, 0 at other steps
    (the normalisation of TempFlow-GRPO, arXiv 2508.04324: the weights of the branch steps average 1). `silent_steps`
    are those with s = 0, where no branch can leave.
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
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        """T, the number of network calls of a rollout."""
        return self.sigma.shape[0]

    def coefficients(self, device: torch.device | str = "cpu") -> Tensor:
        """The rows (dt, a, b, s, noise_weight), float64 [T, 5] on `device`, copied there once.

        Ops gather their rows from it, so no step waits for a scalar.
        """
        device = torch.device(device)
        if device not in self._on_device:
            columns = torch.stack([self.dt, self.a, self.b, self.s, self.noise_weight], dim=1)
            self._on_device[device] = columns.to(device, non_blocking=True)
        return self._on_device[device]

    def reading(self, coefficients: Tensor) -> StepTable:
        """The same table, whose `coefficients` on the device of that tensor are that tensor.

        A captured graph then reads them where they lie, whatever they become. With one row alone, step 0 is that row.
        """
        if self._on_device.get(coefficients.device) is coefficients:
            return self
        return replace(self, _on_device={coefficients.device: coefficients})


def linear_sigmas(num_steps: int, shift: float = 1.0) -> list[float]:
    """T + 1 noise levels from 1 to 0: `linspace(1, 1/T, T)`, shifted once by `shift x / (1 + (shift - 1) x)`, then 0.

    Raises ValueError unless num_steps >= 1 and shift > 0.
    """
    if num_steps < 1 or not shift > 0:
        raise ValueError(f"linear_sigmas: num_steps must be >= 1 and shift > 0, got {num_steps} and {shift}")
    levels = [1 - i / num_steps for i in range(num_steps)]
    return [shift * level / (1 + (shift - 1) * level) for level in levels] + [0.0]


def step_table(
    sigmas: Sequence[float] | Tensor,
    sampler: str = "flow_sde",
    noise_level: float = 0.7,
    branch_steps: Iterable[int] | None = None,
) -> StepTable:
    """Build the table of a schedule.

    Args:
        sigmas: T + 1 noise levels in [0, 1], strictly falling (1 is pure noise).
        sampler: `flow_sde` (Flow-GRPO, arXiv 2505.05470), `dance_sde` (DanceGRPO, arXiv 2505.07818), `cps`
            (coefficient-preserving sampling, arXiv 2509.05952) or `ode` (no noise, no branches).
        noise_level: the user's knob; its meaning is the sampler's own. Not negative.
        branch_steps: the steps where branches leave; None means all but the last (none for `ode`).

    Raises:
        ValueError: a schedule that is not finite or does not fall, an unknown sampler, a step outside the table, or
            a branch step where the sampler adds no noise.
    """
    levels = _checked_sigmas(sigmas)
    if sampler not in SAMPLERS:
        raise ValueError(f"step_table: sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if finite("step_table", "noise_level", noise_level) < 0:
        fail("step_table", "noise_level", "finite and not negative", noise_level)
    sigma, sigma_next = levels[:-1].clone(), levels[1:].clone()
    dt = sigma_next - sigma
    a, b, s = _sde_row(sampler, noise_level, sigma, sigma_next)
    silent_steps = tuple(step for step in range(s.shape[0]) if not s[step] > 0)
    steps = _checked_branch_steps(branch_steps, sampler, s.shape[0], silent_steps)
    noise_weight = torch.zeros_like(s)
    if steps:
        noise_weight[list(steps)] = s[list(steps)] / s[list(steps)].mean()
    return StepTable(sigma, sigma_next, a, b, s, noise_weight, dt, sampler, float(noise_level), steps, silent_steps)


def _sde_row(sampler: str, noise_level: float, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, s) of every step."""
    dt = sigma_next - sigma
    if sampler == "ode":
        return torch.ones_like(dt), dt, torch.zeros_like(dt)
    if sampler == "cps":
        s = sigma_next * math.sin(noise_level * math.pi / 2)
        # Predictions x0 = x - sigma v and x1 = x + (1 - sigma) v, mixed so that signal and noise keep their shares.
        data, noise = 1 - sigma_next, sigma_next * abs(math.cos(noise_level * math.pi / 2))
        return data + noise, noise * (1 - sigma) - data * sigma, s
    # Both SDEs subtract the same multiple of the score; they differ in the diffusion g(sigma) alone.
    if sampler == "flow_sde":
        # sigma = 1 has no finite diffusion; the next level stands in for it, as in Flow-GRPO.
        denominator = torch.where(sigma == 1, 1 - sigma_next[0], 1 - sigma)
        g = noise_level * (sigma / denominator).sqrt()
    else:
        g = torch.full_like(sigma, noise_level)
    drift = g**2 * dt / (2 * sigma)
    return 1 + drift, dt + drift * (1 - sigma), g * (-dt).sqrt()


def _checked_sigmas(sigmas: Sequence[float] | Tensor) -> Tensor:
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError):
        fail("step_table", "sigmas", "a list of levels", repr(sigmas))
    if levels.dim() != 1 or not 2 <= levels.numel() <= MAX_STEPS + 1:
        raise ValueError(f"step_table: sigmas must be a list of 2 to {MAX_STEPS + 1} levels, got {list(levels.shape)}")
    if not bool(torch.isfinite(levels).all()):
        raise ValueError(f"step_table: sigmas must be finite, got {levels.tolist()}")
    if not (levels[0] <= 1 and levels[-1] >= 0 and bool((levels.diff() < 0).all())):
        raise ValueError(f"step_table: sigmas must fall strictly inside [0, 1], got {levels.tolist()}")
    return levels


def _checked_branch_steps(
    branch_steps: Iterable[int] | None, sampler: str, num_steps: int, silent_steps: tuple[int, ...]
) -> tuple[int, ...]:
    if branch_steps is None:
        branch_steps = () if sampler == "ode" else range(num_steps - 1)
    steps = tuple(sorted(integers("step_table", "branch_steps", branch_steps)))
    if len(set(steps)) != len(steps) or any(not 0 <= step < num_steps for step in steps):
        raise ValueError(f"step_table: branch_steps must be distinct and in 0..{num_steps - 1}, got {list(steps)}")
    silent = [step for step in steps if step in silent_steps]
    if silent:
        raise ValueError(f"step_table: branch_steps {silent} get no noise from sampler {sampler!r}: s is 0 there")
    return steps
