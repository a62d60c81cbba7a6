"""`GRPOConfig`, the settings of one iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

from ..choices import AdvantageScale, Group, Sampler
from ..errors import fail, require
from .check import check_types
from .fields import documented, fixed

# Nothing here imports torch on loading, so that the command line answers at once.
if TYPE_CHECKING:
    from ..ops.schedule import StepTable
    from ..policies.base import Policy

Trunk = Literal["ode", "sde"]
Aggregate = Literal["rewards", "advantages", "gdpo"]
BranchDraw = Literal["weighted", "rotating", "staggered", "random", "progressive"]
BranchBudget = Literal["adaptive"]
GateAction = Literal["warn", "full"]
TailSteps = Literal["adaptive"]
TailLevels = Literal["uniform", "nearest"]
TailSolver = Literal["euler", "ab2", "dpmpp_2m"]
RolloutPrecision = Literal["bf16", "int8", "fp8"]
RolloutWeights = Literal["as trained", "merged"]


@documented
@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Settings of one iteration. Where the public SD3.5-M scripts have a value, it is the default.

    Raises:
        ValueError: if a value is out of its range, or does not fit another.
    """

    num_steps: int = fixed(10, scores=True)
    """T, the number of denoising steps in a rollout."""
    sigmas: tuple[float, ...] | None = fixed(None, scores=True)
    """T + 1 noise levels, from noise to image; None: the schedule of the policy's pipeline for `num_steps`."""
    sampler: Sampler = "flow_sde"
    """Formula of the noisy step: flow_sde (Flow-GRPO), dance_sde (DanceGRPO) or cps."""
    noise_level: float = 0.7
    """Noise strength; its meaning depends on the sampler, see `step_table`."""
    branch_steps: tuple[int, ...] | None = None
    """Steps at which branches leave the trunk, counted from 0; None: all but the last step."""
    trunk: Trunk = "ode"
    """Whether a trajectory is noiseless and branches leave it ("ode"), or takes the noisy steps itself, as in Flow-GRPO
    ("sde"). Its one reward then belongs to all of its branch steps; `num_branches` is 1 and `group` is "prompt"."""
    noise_weighting: bool = True
    """Whether the loss of a branch step is scaled by the noise that is injected there, with mean 1; if not, branch
    steps count alike."""
    num_seeds: int = 4
    """S, the number of trajectories per prompt."""
    num_branches: int | tuple[int, ...] = 6
    """K, the number of branches per trajectory and branch step: one number, or one per branch step, where 0 means
    none. Branch steps count equally in the loss, whatever their K."""
    branches_per_trajectory: int | None = None
    """m, the number of branch steps at which each trajectory branches; None: all of them. `branch_draw` says which."""
    branch_draw: BranchDraw = "weighted"
    """With `branches_per_trajectory`: every trajectory draws its own m branch steps, and the loss is weighted by 1 / p
    so that the expected update is that of all of them ("weighted"); all trajectories take the next m in turn
    ("rotating"); the prompts take the next m one after the other ("staggered"); m consecutive branch steps from a
    random one on ("random"); or from one that moves on by a step every `window_iterations` ("progressive"). All but
    "weighted" are without weights; "random" draws once per prompt with prompt groups, else once per trajectory."""
    window_iterations: int = 25
    """Iterations after which a progressive window moves on by one step; from the last place it returns to the first."""
    branch_probabilities: tuple[float, ...] | None = None
    """With weighted draws, how often each branch step is drawn, in proportion to these numbers, one per branch step;
    None: all alike."""
    branch_budget: BranchBudget | None = None
    """Whether a run measures the gradient of each branch step and spends its evaluations where the update has the least
    variance for its cost ("adaptive"). With weighted draws it moves the probabilities, which start as
    `branch_probabilities`; without `branches_per_trajectory`, the number of branches of each step, between half and
    twice `num_branches`. The metrics have signal_step_<i> and noise_step_<i>. None: all stay as they are."""
    budget_memory: float = 20.0
    """With an adaptive budget, the number of iterations after which a measurement counts 1 / e."""
    tail_steps: int | tuple[int, ...] | TailSteps | None = None
    """Network calls after a branch step: at most this many, or one number per branch step; None: the rest of the
    schedule. 1 is the prediction of the image from the branch. "adaptive": half of the rest at first, then as short as
    `gate_bound` allows at each branch step; it needs `gate_every`."""
    tail_levels: TailLevels | tuple[float, ...] = "uniform"
    """Noise levels of short tails: uniform in the schedule; or those of its levels that bring a few branches nearest to
    the ends of their full tails, chosen once at the beginning of a run ("nearest"); or the positions of the levels in
    the schedule, in ascending order for each branch step, one less than `tail_steps`."""
    tail_solver: TailSolver = "euler"
    """How a tail moves: by Euler steps, by the multistep solver Adams-Bashforth of second order ("ab2"), or by
    DPM-Solver++ with two steps as in diffusers ("dpmpp_2m"). The first step of a tail is always an Euler step."""
    tail_precision: RolloutPrecision | None = None
    """Precision of the network calls of tails alone, as in `rollout_precision`, which must then be None. Trunks and
    tails no longer share network calls. None: that of the rollout."""
    tail_guidance: tuple[float, float] | None = None
    """Lowest and highest sigma at which tails use guidance; None: at all of them. Rows with and without guidance do not
    share network calls."""
    gate_every: int | None = None
    """Number of iterations between gates, which finish some branches by the full tail as well and compare advantages
    and rewards; None: no gate. The metrics begin with gate_."""
    gate_share: float = 0.25
    """Share of the trajectories (with prompt groups, of the prompts) whose branches a gate compares."""
    gate_bound: float = 0.5
    """Lowest cosine of the advantages after cheap and full tails that passes a gate."""
    gate_action: GateAction = "warn"
    """What a run does below that bound: say so ("warn"), or say so and use full tails from then on ("full"). Adaptive
    tails get longer instead."""
    group: Group = "seed"
    """Which rewards are compared: those of the branches of one trajectory ("seed") or of one prompt ("prompt")."""
    adv_scale: AdvantageScale = "group"
    """What the distance of a reward from the mean of its group is divided by: the standard deviation of the "group"; of
    all rewards of the iteration at that branch step ("global"), where groups that barely differ count less; or nothing
    ("none"), so that advantages are in units of the reward."""
    aggregate: Aggregate = "rewards"
    """With several rewards: sum the "rewards" and then normalise; normalise each and sum the "advantages"; or divide
    that sum by its standard deviation over the iteration as well ("gdpo")."""
    guidance_scale: float = fixed(1.0, scores=True)
    """Classifier-free guidance in the rollout, and in training if `guided_training` is set; up to 1 turns it off."""
    guided_training: bool = True
    """Whether training also uses guidance. If not, old and new policy are both evaluated without it, which halves the
    cost where guidance needs a second network row."""
    clip_range: float = 1e-4
    """c in clip(r, 1 - c, 1 + c). It is small because log-densities are means over the latent's elements."""
    ratio_norm: bool = False
    """Whether ratios are normalised as in GRPO-Guard: without the bias that makes most of them smaller than 1, and in
    the same units at every step; the weights of the steps are then divided by the length of the step. `clip_range` then
    bounds s times the log-ratio, with the standard deviation s of the step's noise."""
    beta: float = 0.0
    """Weight of the KL to the reference policy, computed on the trained rows; 0 turns it off."""
    adv_eps: float = 1e-4
    """Added to the standard deviation of rewards before the division."""
    adv_clip: float = 5.0
    """Largest absolute advantage; larger ones are clipped."""
    num_updates: int = 2
    """Optimizer steps per rollout; the trajectories are divided among them."""
    micro_batch: int | None = None
    """Maximum number of (trajectory, branch step) pairs in one training call of one process; None: all its pairs of an
    update."""
    max_batch: int | None = None
    """Maximum number of rows in one rollout call of one process; None: no limit."""
    decode_batch: int | None = None
    """Maximum number of images in one decoding call, and in one call of the reward, of one process; None: those of a
    rollout call."""
    cuda_graphs: bool = False
    """On a CUDA device, capture the rollout's network calls once per shape as CUDA graphs and replay them. The bits are
    the same, without the Python overhead between kernels. A network that cannot be captured runs as usual, with a
    warning."""
    rollout_precision: RolloutPrecision | None = None
    """Precision of the rollout's network calls: "bf16", by autocast; "int8" or "fp8", which are bf16 with the linear
    layers of the blocks in 8 bits, by torchao; None: the precision of training. Ratios do not depend on it: training
    evaluates the old policy again in its own precision."""
    rollout_weights: RolloutWeights | None = None
    """Weights of the rollout's network calls: "as trained", with the adapter next to them; or "merged", where each
    iteration adds the adapter to a copy of the weights that it adapts, so that a call costs what that of the bare
    network does. None: merged where the network has fewer bits than its adapter and FSDP does not shard it. Ratios do
    not depend on it: training evaluates the old policy again."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient; a larger one is scaled down. Infinity turns this off."""

    def __post_init__(self) -> None:
        check_types(self)
        batches = ("micro_batch", "max_batch", "decode_batch")
        for name in ("num_steps", "num_seeds", "num_updates", "window_iterations", *batches):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, ">= 1")
        if isinstance(self.num_branches, int):
            self._require(self.num_branches >= 1, "num_branches", ">= 1")
        for name in ("beta", "adv_eps"):
            self._require(0 <= getattr(self, name) < math.inf, name, "finite and not negative")
        for name in ("adv_clip", "max_grad_norm"):
            self._require(getattr(self, name) > 0, name, "positive")
        self._require(0 < self.clip_range < 1, "clip_range", "in (0, 1)")
        self._require(math.isfinite(self.guidance_scale), "guidance_scale", "finite")
        self._require(0 <= self.noise_level < math.inf, "noise_level", "finite and not negative")
        self._check_together()

    def _check_together(self) -> None:
        """Checks the settings that depend on one another."""
        if self.cuda_graphs and self.rollout_precision in ("int8", "fp8"):
            # A graph would keep using the 8-bit weights of its capture.
            fail("GRPOConfig", "rollout_precision", "None or 'bf16' with cuda_graphs", repr(self.rollout_precision))
        if self.branch_steps is not None:
            distinct = len(set(self.branch_steps)) == len(self.branch_steps) > 0
            within = distinct and all(0 <= step < self.num_steps for step in self.branch_steps)
            self._require(within, "branch_steps", f"None, or one or more different steps in 0..{self.num_steps - 1}")
        if self.trunk == "sde":
            self._check_chain()
        gdpo = self.aggregate == "gdpo"
        self._require(not gdpo or self.adv_scale == "group", "adv_scale", "'group' with aggregate \"gdpo\"")
        least = self.num_branches if isinstance(self.num_branches, int) else self._least_count()
        group_size = least * (self.num_seeds if self.group == "prompt" else 1)
        self._require(group_size >= 2, "num_branches", "enough for a group of two or more rewards")
        self._check_draw()
        self._check_tails()
        self._check_gate()
        if self.sigmas is not None and len(self.sigmas) != self.num_steps + 1:
            fail("GRPOConfig", "sigmas", f"num_steps + 1 = {self.num_steps + 1} levels", len(self.sigmas))
        if self.sigmas is not None:
            falling = all(high > low for high, low in pairwise(self.sigmas))
            within = falling and self.sigmas[0] <= 1 and self.sigmas[-1] >= 0
            self._require(within, "sigmas", "strictly falling within [0, 1]")

    def _check_chain(self) -> None:
        """Checks the settings that noisy trajectories without branches cannot have."""
        for name, value in {"num_branches": 1, "group": "prompt", "cuda_graphs": False}.items():
            self._require(getattr(self, name) == value, name, f'{value!r} with trunk "sde"')
        self._require(
            not self.has_cheap_tails, "tail_steps", 'None, like the other settings of tails, with trunk "sde"'
        )

    def _check_draw(self) -> None:
        """Checks the settings of `branches_per_trajectory`."""
        m, sizes, counts = self.branches_per_trajectory, self.branch_probabilities, self.branch_counts
        if m is not None:
            fits = 1 <= m <= len(counts)
            expected = f"in 1..{len(counts)}, the number of branch steps with branches"
            self._require(fits, "branches_per_trajectory", expected)
        weighted = m is not None and self.branch_draw == "weighted"
        only = "None without weighted draws of branches_per_trajectory"
        has_counts = m is None and self.trunk == "ode"
        expected = 'None with rotating steps, and with trunk "sde" where all steps are taken'
        self._require(self.branch_budget is None or weighted or has_counts, "branch_budget", expected)
        self._require(0 < self.budget_memory < math.inf, "budget_memory", "positive and finite")
        if sizes is None:
            return
        positive = all(0 < size < math.inf for _, size in self.per_step("branch_probabilities"))
        self._require(positive, "branch_probabilities", "positive at each branch step with branches")
        self._require(weighted, "branch_probabilities", only)

    def _check_tails(self) -> None:
        """Checks the settings of tails."""
        if self.tail_steps == "adaptive":
            expected = "a number, a table or None without gate_every; adaptive tails follow the gate"
            self._require(self.gate_every is not None, "tail_steps", expected)
            self._require(self.gate_action == "warn", "gate_action", "'warn' with adaptive tails, which get longer")
        elif self.tail_steps is not None:
            rest = [(self.num_steps - 1 - step, length) for step, length in self.per_step("tail_steps")]
            if isinstance(self.tail_steps, int):
                self._require(self.tail_steps >= 1, "tail_steps", ">= 1")
            fits = isinstance(self.tail_steps, int) or all(min(left, 1) <= length <= left for left, length in rest)
            most = ", ".join(str(left) for left, _ in rest)
            self._require(fits, "tail_steps", f"at least 1 and at most the steps that remain ({most})")
        self._check_levels()
        if self.tail_precision is not None:
            self._require(self.rollout_precision is None, "tail_precision", "None where rollout_precision is set")
            graphs = self.cuda_graphs and self.tail_precision != "bf16"
            self._require(not graphs, "tail_precision", "None or 'bf16' with cuda_graphs")
        if self.tail_guidance is not None:
            low, high = self.tail_guidance
            self._require(0 <= low <= high <= 1, "tail_guidance", "the lowest and the highest sigma, in [0, 1]")

    def _check_levels(self) -> None:
        """Checks the noise levels of tails."""
        if self.tail_levels == "uniform":
            return
        self._require(self.tail_steps is not None, "tail_levels", "'uniform' where tails are the full ones")
        if self.tail_levels == "nearest":
            return
        self._require(self.tail_steps != "adaptive", "tail_levels", "'uniform' or 'nearest' with adaptive tails")
        number = sum(max(length - 1, 0) for _, length in self.tail_lengths)
        expected = f"one position for each of the {number} levels between branches and images"
        self._require(len(self.tail_levels) == number, "tail_levels", expected)
        for step, inner in self.tail_positions.items():
            ascending = all(a < b for a, b in pairwise((step + 1, *inner, self.num_steps)))
            expected = f"ascending positions between {step + 1} and {self.num_steps} for branch step {step}"
            self._require(ascending, "tail_levels", expected)

    def _check_gate(self) -> None:
        """Checks the settings of the gate."""
        if self.gate_every is not None:
            self._require(self.gate_every >= 1, "gate_every", ">= 1 or None")
            may_be_cheap = self.has_cheap_tails or isinstance(self.tail_steps, tuple) or self.tail_steps == "adaptive"
            self._require(may_be_cheap, "gate_every", "None where tails are the full ones")
        self._require(0 < self.gate_share <= 1, "gate_share", "in (0, 1]")
        self._require(-1 <= self.gate_bound <= 1, "gate_bound", "a cosine, in [-1, 1]")

    def _least_count(self) -> int:
        """The smallest K of a table of branches, leaving out the steps without any."""
        counts = [count for _, count in self.branch_counts]
        self._require(
            bool(counts) and min(counts) > 0, "num_branches", "not negative, and positive at some branch step"
        )
        return min(counts)

    def _require(self, holds: bool, name: str, expected: str) -> None:
        value = getattr(self, name)
        require(holds, "GRPOConfig", name, expected, repr(value) if isinstance(value, str) else value)

    @property
    def draws_in_turn(self) -> bool:
        """Whether the branch steps of an iteration depend on its number, so that iterations are not alike."""
        m = self.branches_per_trajectory
        in_turn = self.branch_draw in ("rotating", "staggered", "progressive")
        return in_turn and m is not None and m < len(self.branch_counts)

    @property
    def branch_counts(self) -> tuple[tuple[int, int], ...]:
        """(step, K) of every step where branches leave, in ascending order."""
        return self.per_step("num_branches")

    @property
    def tail_lengths(self) -> tuple[tuple[int, int], ...]:
        """(step, network calls of a tail) of every step where branches leave, in ascending order; the first ones of
        adaptive tails."""
        rest = [(step, self.num_steps - 1 - step) for step, _ in self.branch_counts]
        if self.tail_steps is None:
            return tuple(rest)
        if self.tail_steps == "adaptive":  # at the start, see `TailLengths`
            return tuple((step, -(-left // 2)) for step, left in rest)
        lengths = self.per_step("tail_steps")
        return tuple((step, min(length, left)) for (step, left), (_, length) in zip(rest, lengths, strict=True))

    @property
    def tail_positions(self) -> dict[int, tuple[float, ...]]:
        """Branch step -> the positions in the schedule of the levels inside its tails; empty where `tail_levels` names
        none."""
        if isinstance(self.tail_levels, str):
            return {}
        ends = list(accumulate(max(length - 1, 0) for _, length in self.tail_lengths))
        places = pairwise((0, *ends))
        return {step: self.tail_levels[a:b] for (step, _), (a, b) in zip(self.tail_lengths, places, strict=True)}

    @property
    def has_cheap_tails(self) -> bool:
        """Whether tails differ in anything from the rest of the rollout's schedule."""
        shorter = any(length < self.num_steps - 1 - step for step, length in self.tail_lengths)
        elsewhere = any(list(at) != list(range(step + 2, self.num_steps)) for step, at in self.tail_positions.items())
        others = (self.tail_precision, self.tail_guidance)
        return shorter or elsewhere or self.tail_solver != "euler" or others != (None, None)

    def with_full_tails(self) -> GRPOConfig:
        """The same settings with the full tails, which need no gate."""
        full: dict[str, Any] = {"tail_steps": None, "tail_levels": "uniform", "tail_solver": "euler"}
        return replace(self, **full, tail_precision=None, tail_guidance=None, gate_every=None)

    def as_table(self, values: Mapping[int, Any], other: Any) -> tuple[Any, ...]:
        """A table with one entry per branch step, as settings take it.

        Args:
            values: step -> value, of some steps.
            other: the value of the others.
        """
        return tuple(values.get(step, other) for step in self._table_steps)

    @property
    def _table_steps(self) -> tuple[int, ...]:
        """The branch steps in the order of tables."""
        return tuple(range(self.num_steps - 1)) if self.branch_steps is None else self.branch_steps

    def per_step(self, name: str) -> tuple[tuple[int, Any], ...]:
        """A setting that is one number or a table with one per branch step.

        Args:
            name: of the setting.

        Returns:
            (step, value) of every step where branches leave, in ascending order.

        Raises:
            ValueError: if the table has another number of entries than there are branch steps.
        """
        steps, tables = self._table_steps, []
        for each in ("num_branches", name):
            table = getattr(self, each)
            table = table if isinstance(table, tuple) else (table,) * len(steps)
            fits = len(table) == len(steps)
            self._require(fits, each, f"one number for each of the {len(steps)} branch steps")
            tables.append(table)
        return tuple((step, value) for step, count, value in sorted(zip(steps, *tables, strict=True)) if count)

    @property
    def training_guidance(self) -> float:
        """The guidance scale in training; up to 1 means no guidance."""
        return self.guidance_scale if self.guided_training else 1.0

    def table(self, policy: Policy) -> StepTable:
        """The step table of these settings.

        Args:
            policy: gives the noise levels where `sigmas` is None.

        Returns:
            The per-step scalars of `num_steps` steps.
        """
        from ..ops.schedule import step_table

        sigmas = policy.sigmas(self.num_steps) if self.sigmas is None else self.sigmas
        table = step_table(sigmas, self.sampler, self.noise_level, [step for step, _ in self.branch_counts])
        table = table if self.noise_weighting else table.with_equal_weights()
        return table.with_ratio_norm() if self.ratio_norm else table
