"""The settings of a training run, in groups. The text under a field is its help on the command line.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import tyro

from ..choices import EMBEDDED_MODEL, SHAPES_PROMPTS
from ..errors import fail, require, unknown
from ..files import parsed_json
from .check import check_types
from .fields import documented, fixed, fixed_presence
from .iteration import GRPOConfig
from .read import read_settings


@documented
@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The model to train, and how it is kept in memory."""

    model: str = fixed(EMBEDDED_MODEL, scores=True)
    """`embedded` for the packaged pipeline of shapes, a diffusers pipeline directory, or a hub name (owner/name)."""
    policy: str | None = fixed(None, scores=True)
    """Class that runs the model: module:Class for your own `DiffusersPolicy`, or a name of an installed package; None:
    by the pipeline class in the model's model_index.json."""
    device: str = "auto"
    """Device of the model: cpu, cuda, cuda:1, ...; auto: the GPU of this process, or the CPU if there is no GPU."""
    precision: Literal["fp32", "bf16"] = fixed("fp32", scores=True)
    """Precision of the network. Frozen weights are stored in it; trained weights and latents stay in fp32."""
    vae_precision: Literal["fp32", "bf16"] = fixed("fp32", scores=True)
    """Precision in which the VAE decodes. With bf16 its last block stays in fp32, and images differ by about 0.001."""
    resolution: int | tuple[int, int] | None = fixed(None, scores=True)
    """Side of square images in pixels, or height and width; None: the resolution that the model was trained for."""
    num_frames: int | None = fixed(None, scores=True)
    """Frames of a video, of a model that makes videos; None: the default of the model's pipeline."""
    frame_rate: int | None = fixed(None, scores=True)
    """Frames per second, of a model that is told (LTX); None: the default of the model's pipeline."""
    max_text_length: int | None = fixed(None, scores=True)
    """Maximum number of prompt tokens for the model's long text encoder; None: the model's default."""
    lora_rank: int | None = fixed(None)
    """Rank of the LoRA adapter to train; None: full fine-tuning without an adapter."""
    lora_alpha: float | None = fixed(None)
    """LoRA alpha; the adapter is scaled by alpha / rank. None: twice the rank."""
    lora_targets: tuple[str, ...] | None = fixed(None)
    """Names of the layers that get an adapter; None: the attention projections of the model."""
    lora_init: Literal["gaussian", "kaiming"] = fixed("gaussian")
    """Initial values of an adapter's first matrix; the second matrix starts at 0."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time in
    training."""
    compile_blocks: bool = False
    """Compile every block of the network with torch.compile, for all calls outside training. The first rollout on a
    machine takes about a minute longer; later ones are faster."""
    offload_text_encoders: bool = False
    """Keep the text encoders in host memory (pinned, on a GPU) except while new prompts are encoded."""
    memory_limit: float | None = None
    """Memory limit of a process in GiB: `micro_batch`, `max_batch` and `decode_batch` are reduced to fit, see
    --dry-run. None: no limit."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_frames", "frame_rate", "lora_rank", "lora_alpha", "max_text_length", "memory_limit"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, "PolicyConfig", name, "positive and finite", value)


@documented
@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The prompts and the rewards."""

    prompts: str = fixed(SHAPES_PROMPTS, scores=True)
    """`shapes`, a .txt file (one prompt per line), a .jsonl, .ndjson, .json, .csv or .tsv file whose other fields reach
    the reward, or hf:PATH or hf:PATH:SPLIT for a data set of the Hugging Face library `datasets`; the default split is
    train."""
    eval_prompts: str | None = fixed(None, scores=True)
    """The prompts for evaluation, given like `prompts`; None: every tenth of `prompts`, held out from training."""
    prompt_column: str = fixed("prompt", scores=True)
    """Field of a .jsonl file or column of a data set that holds the prompt; the reward gets the others as metadata."""
    prompts_per_iteration: int = 16
    """P, the number of prompts per iteration; each gets `num_seeds` trajectories."""
    reward: str = fixed("shapes")
    """Reward to train on: a name, module:function for your own, several as a=1.0,b=0.5, or JSON with settings."""
    accuracy: str | None = fixed(None)
    """Reward that evaluation reports as accuracy: 1 for an image that is right, 0 for any other; None: no accuracy."""
    seed: int = fixed(0)
    """Seed of the prompts and the noise of every iteration."""

    def __post_init__(self) -> None:
        check_types(self)
        kind = "TaskConfig"
        require(self.prompts_per_iteration >= 1, kind, "prompts_per_iteration", ">= 1", self.prompts_per_iteration)
        require(0 <= self.seed < 2**31, kind, "seed", "in 0..2^31-1", self.seed)


@documented
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its learning rate, and the moving average of the weights."""

    optimizer: Literal["adamw", "adamw_8bit"] = fixed("adamw")
    """adamw or adamw_8bit. `adamw_8bit` needs the library bitsandbytes; its state takes a quarter of the memory."""
    learning_rate: float = 3e-4
    """Learning rate after the warm-up and before the decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of the squared gradient."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay: each update multiplies weights by 1 - learning_rate * weight_decay."""
    adam_eps: float = 1e-8
    """Added to the square root of the averaged squared gradient."""
    warmup_iterations: int = 0
    """Number of iterations over which the learning rate rises linearly to its value."""
    learning_rate_decay: float = 0.0
    """Share of the run, at its end, in which the learning rate falls linearly to 0. It has no effect
    without --iterations or --minutes."""
    ema_decay: float | None = fixed_presence(None)
    """Decay of the moving average of the weights, which update u may raise to u / (u + 9) at most. The average is then
    what is evaluated and saved; None: no average."""
    ema_every: int = 8
    """Optimizer updates between updates of that average."""

    def __post_init__(self) -> None:
        check_types(self)
        kind = "OptimizerConfig"
        for name in ("learning_rate", "adam_eps"):
            require(0 < getattr(self, name) < math.inf, kind, name, "positive and finite", getattr(self, name))
        in_range = 0 <= self.weight_decay < math.inf
        require(in_range, kind, "weight_decay", "finite and not negative", self.weight_decay)
        require(all(0 <= beta < 1 for beta in self.betas), kind, "betas", "two numbers in [0, 1)", self.betas)
        require(self.warmup_iterations >= 0, kind, "warmup_iterations", ">= 0", self.warmup_iterations)
        require(0 <= self.learning_rate_decay <= 1, kind, "learning_rate_decay", "in [0, 1]", self.learning_rate_decay)
        require(self.ema_decay is None or 0 <= self.ema_decay < 1, kind, "ema_decay", "in [0, 1)", self.ema_decay)
        require(self.ema_every >= 1, kind, "ema_every", ">= 1", self.ema_every)


@documented
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the policy is evaluated: on the same held-out prompts and the same noise every time."""

    eval_images: int | None = fixed(600, scores=True)
    """Number of images per evaluation; None: as many as there are held-out prompts, but at least 16 and at most 512."""
    eval_seed: int = fixed(0, scores=True)
    """Seed of the prompts and the noise of evaluation. It is separate from `seed`, so that runs with different seeds
    are scored alike."""
    eval_every: int | None = None
    """Number of iterations between evaluations; None: only before and after training."""
    eval_steps: int | None = fixed(None, scores=True)
    """Denoising steps in evaluation, on the model's own schedule; None: the schedule of the rollout."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("eval_images", "eval_every", "eval_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, "EvaluationConfig", name, ">= 1", value)
        require(0 <= self.eval_seed < 2**31, "EvaluationConfig", "eval_seed", "in 0..2^31-1", self.eval_seed)


@documented
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The length of a run, and what it saves."""

    num_iterations: Annotated[int | None, tyro.conf.arg(aliases=("--iterations",))] = None
    """Number of iterations after which the run ends; None: no limit."""
    minutes: float | None = None
    """Minutes after which the run ends, evaluation not counted; None: no limit. With neither limit, a run continues
    until Ctrl-C."""
    checkpoint_every: int = 10
    """Number of iterations between checkpoints."""
    num_checkpoints: int = 2
    """Number of checkpoints to keep, the latest ones."""
    grace_seconds: float = 10.0
    """Seconds between SIGTERM and the end of the process on this machine, as docker stop has by default; half of them
    are for the iteration to end, half for saving a checkpoint."""
    trackers: tuple[str, ...] | None = None
    """Trackers of accelerate that get the metrics in addition to metrics.jsonl, such as tensorboard or wandb; None:
    tensorboard if it is installed."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_iterations", "minutes"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, "RunConfig", name, "positive and finite", value)
        require(0 <= self.grace_seconds < math.inf, "RunConfig", "grace_seconds", "finite and >= 0", self.grace_seconds)
        for name in ("checkpoint_every", "num_checkpoints"):
            require(getattr(self, name) >= 1, "RunConfig", name, ">= 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run. A recipe returns one; a run directory stores one as `config.json`.

    Attributes:
        run: The length of the run, and what it saves.
        policy: The model, and how it is kept in memory.
        task: The prompts and the rewards.
        grpo: One iteration of the algorithm.
        optimizer: The optimizer, its learning rate, and the moving average of the weights.
        evaluation: How the policy is evaluated.
    """

    run: RunConfig = field(default_factory=RunConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_types(self)

    def flat(self) -> dict[str, Any]:
        """Returns setting name -> value. Names are unique across all groups, as on the command line."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    def with_settings(self, **settings: Any) -> TrainConfig:
        """Returns a copy with other values.

        Args:
            **settings: new values by setting name, whatever their group.

        Raises:
            ValueError: for an unknown name, or a value that is out of range.
        """
        known = self.flat()
        for name in settings.keys() - known.keys():
            unknown("with_settings", "setting", name, known)
        groups = {item.name: getattr(self, item.name) for item in fields(self)}
        own = {name: {item.name for item in fields(group)} & settings.keys() for name, group in groups.items()}
        return TrainConfig(
            **{name: replace(group, **{key: settings[key] for key in own[name]}) for name, group in groups.items()}
        )

    @classmethod
    def marked(cls, mark: str) -> list[str]:
        """Returns the names of the settings that have a mark.

        Args:
            mark: FIXED, FIXED_PRESENCE or SCORES of `settings.fields`.
        """
        groups: list[Any] = [group.default_factory for group in fields(cls)]
        return [item.name for group in groups for item in fields(group) if item.metadata.get(mark)]

    def to_json(self) -> str:
        """Returns the settings as JSON text, by group."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Returns the settings in a text that `to_json` wrote.

        Args:
            text: the JSON.

        Raises:
            ValueError: if it is not JSON, or naming the setting that is unknown, of another type or out of range.
        """
        try:
            data = parsed_json(text)
        except (ValueError, RecursionError) as error:
            fail("TrainConfig.from_json", "text", "the JSON of a config", error)
        return read_settings(cls, data, "TrainConfig.from_json")


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Compares two configs.

    Args:
        old: one config.
        new: the other.

    Returns:
        Setting name -> (old value, new value), for the settings that differ.
    """
    before, after = old.flat(), new.flat()
    return {name: (before[name], after[name]) for name in after if before[name] != after[name]}
