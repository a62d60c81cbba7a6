"""The settings of one iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ..choices import Group, Sampler
from ..errors import fail, require
from .fields import documented, fixed

# Nothing here imports torch while it loads, so that a command line can be read and explained at once.
if TYPE_CHECKING:
    from ..ops.schedule import StepTable
    from ..policies.base import Policy

Aggregate = Literal["rewards", "advantages"]
RolloutPrecision = Literal["bf16", "int8", "fp8"]


@documented
@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Settings of one iteration. The defaults are those of the public SD3.5-M scripts where they have one."""

    num_steps: int = fixed(10, scores=True)
    """T, denoising steps of a rollout."""
    sigmas: tuple[float, ...] | None = fixed(None, scores=True)
    """T + 1 noise levels; None: what the policy's own pipeline takes for `num_steps`."""
    sampler: Sampler = "flow_sde"
    """How branches are drawn."""
    noise_level: float = 0.7
    """Strength of the branch noise, in the sampler's own unit."""
    branch_steps: tuple[int, ...] | None = None
    """Steps where branches leave the trunk; None: all but the last."""
    num_seeds: int = 4
    """S, trajectories per prompt."""
    num_branches: int = 6
    """K, branches per trajectory and branch step."""
    group: Group = "seed"
    """Whose rewards are compared: the branches of one trajectory ("seed") or of one prompt ("prompt")."""
    aggregate: Aggregate = "rewards"
    """Where several rewards are summed: "rewards", or each one's "advantages", which have one spread."""
    guidance_scale: float = fixed(1.0, scores=True)
    """Guidance of the rollout, and of training where `guided_training` says so; 1 turns it off."""
    guided_training: bool = True
    """Whether training compares guided velocities. Without, both policies of a ratio are taken unguided, at half the
    cost where guidance takes a second row."""
    clip_range: float = 1e-4
    """c in clip(r, 1 - c, 1 + c); fits log-densities averaged over the latent's elements."""
    beta: float = 0.0
    """Weight of the KL to the reference policy, taken over the rows that are run."""
    adv_eps: float = 1e-4
    """Added to the standard deviation of a group's rewards."""
    adv_clip: float = 5.0
    """Bound of the absolute advantage."""
    num_updates: int = 2
    """Optimizer steps per rollout; the trajectories are dealt to them in turn."""
    micro_batch: int | None = None
    """Most (trajectory, branch step) pairs in one training call of one process; None: all its pairs of an update."""
    max_batch: int | None = None
    """Most rows in one rollout or decoding call of one process; None: no limit."""
    cuda_graphs: bool = False
    """On a CUDA device, record the rollout's network calls once per shape and replay them: the same bits, without the
    work of Python between the kernels. A network that cannot be recorded is called as ever, with a warning."""
    rollout_precision: RolloutPrecision | None = None
    """What the rollout's network calls compute in, by autocast; "int8" and "fp8" are bf16 with the linear layers of the
    blocks in 8 bits, by torchao. None: what training computes in. Ratios are those of training, which evaluates the
    policy that acted in its own precision."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; infinity leaves them alone."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_seeds", "num_branches", "num_updates", "micro_batch", "max_batch"):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, ">= 1")
        for name in ("beta", "adv_eps"):
            self._require(0 <= getattr(self, name) < math.inf, name, "finite and not negative")
        for name in ("adv_clip", "max_grad_norm"):
            self._require(getattr(self, name) > 0, name, "positive")
        self._require(0 < self.clip_range < 1, "clip_range", "in (0, 1)")
        self._require(math.isfinite(self.guidance_scale), "guidance_scale", "finite")
        kinds = {"group": Group, "aggregate": Aggregate, "sampler": Sampler}
        if self.rollout_precision is not None:
            kinds["rollout_precision"] = RolloutPrecision
        for name, kind in kinds.items():
            self._require(getattr(self, name) in get_args(kind), name, f"one of {get_args(kind)}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuses settings that do not go together."""
        if self.cuda_graphs and self.rollout_precision in ("int8", "fp8"):
            # A graph would keep using the 8-bit weights of its capture.
            self._require(False, "rollout_precision", "None or 'bf16' with cuda_graphs")
        group_size = self.num_branches * (self.num_seeds if self.group == "prompt" else 1)
        self._require(group_size >= 2, "num_branches", "enough for a group of two or more rewards")
        if self.sigmas is not None and len(self.sigmas) != self.num_steps + 1:
            fail("GRPOConfig", "sigmas", f"num_steps + 1 = {self.num_steps + 1} levels", len(self.sigmas))

    def _require(self, holds: bool, name: str, expected: str) -> None:
        value = getattr(self, name)
        require(holds, "GRPOConfig", name, expected, repr(value) if isinstance(value, str) else value)

    @property
    def training_guidance(self) -> float:
        """The guidance scale of training; 1: none."""
        return self.guidance_scale if self.guided_training else 1.0

    def table(self, policy: Policy) -> StepTable:
        """The step table of this schedule for `policy`."""
        from ..ops.schedule import step_table

        sigmas = policy.sigmas(self.num_steps) if self.sigmas is None else self.sigmas
        return step_table(sigmas, self.sampler, self.noise_level, self.branch_steps)
