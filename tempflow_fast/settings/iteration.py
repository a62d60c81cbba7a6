"""The settings of one iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

# Nothing here imports torch while it loads, so that a command line can be read and explained at once.
if TYPE_CHECKING:
    from ..ops.schedule import StepTable
    from ..policies.base import Policy

Group = Literal["seed", "prompt"]
Aggregate = Literal["rewards", "advantages"]
Sampler = Literal["flow_sde", "dance_sde", "cps"]
RolloutPrecision = Literal["bf16", "int8", "fp8"]


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Settings of one iteration. The defaults are those of the public SD3.5-M scripts where they have one."""

    num_steps: int = 10
    """T, denoising steps of a rollout."""
    sigmas: tuple[float, ...] | None = None
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
    guidance_scale: float = 1.0
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
            if value is not None and value < 1:
                raise ValueError(f"GRPOConfig: {name} must be >= 1, got {value}")
        for name in ("beta", "adv_eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"GRPOConfig: {name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("adv_clip", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"GRPOConfig: {name} must be positive, got {getattr(self, name)}")
        if not 0 < self.clip_range < 1:
            raise ValueError(f"GRPOConfig: clip_range must be in (0, 1), got {self.clip_range}")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"GRPOConfig: guidance_scale must be finite, got {self.guidance_scale}")
        kinds = {"group": Group, "aggregate": Aggregate, "sampler": Sampler}
        if self.rollout_precision is not None:
            kinds["rollout_precision"] = RolloutPrecision
        for name, kind in kinds.items():
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                raise ValueError(f"GRPOConfig: {name} must be one of {choices}, got {getattr(self, name)!r}")
        if self.cuda_graphs and self.rollout_precision in ("int8", "fp8"):
            raise ValueError(
                "GRPOConfig: rollout_precision must be None or 'bf16' with cuda_graphs, since a graph would go on with "
                f"the 8-bit weights of its capture, got {self.rollout_precision!r}"
            )
        group_size = self.num_branches * (self.num_seeds if self.group == "prompt" else 1)
        if group_size < 2:
            raise ValueError("GRPOConfig: num_branches must give a group two rewards to compare, got 1")
        if self.sigmas is not None and len(self.sigmas) != self.num_steps + 1:
            want = f"num_steps + 1 = {self.num_steps + 1}"
            raise ValueError(f"GRPOConfig: sigmas must have {want} levels, got {len(self.sigmas)}")

    @property
    def training_guidance(self) -> float:
        """The guidance scale of training; 1: none."""
        return self.guidance_scale if self.guided_training else 1.0

    def table(self, policy: Policy) -> StepTable:
        """The step table of this schedule for `policy`."""
        from ..ops.schedule import step_table

        sigmas = policy.sigmas(self.num_steps) if self.sigmas is None else self.sigmas
        return step_table(sigmas, self.sampler, self.noise_level, self.branch_steps)
