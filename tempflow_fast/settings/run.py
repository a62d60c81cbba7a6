"""The settings of a training run, in groups. The text under a field is its help on the command line.

Nothing here imports torch, so that a command line can be read and explained at once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from ..choices import EMBEDDED_MODEL, SHAPES_PROMPTS
from ..errors import fail, require, unknown
from .fields import documented, fixed, fixed_presence
from .iteration import GRPOConfig

Settings = TypeVar("Settings")


@documented
@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What is trained, and how it is held in memory."""

    model: str = fixed(EMBEDDED_MODEL, scores=True)
    """`embedded` for the packaged pipeline of shapes, a pipeline directory of diffusers, or a hub name (owner/name)."""
    device: str = "auto"
    """Where the model lives: cpu, cuda, cuda:1, ...; auto: the GPU of this process, the CPU where there is none."""
    precision: Literal["fp32", "bf16"] = fixed("fp32", scores=True)
    """What the network computes in. Frozen weights are held in it; trained ones and latents stay in fp32."""
    resolution: int | tuple[int, int] | None = fixed(None, scores=True)
    """Side of square images in pixels, or height and width; None: what the model was trained for."""
    max_text_length: int | None = fixed(None, scores=True)
    """Tokens of a prompt for the model's long text encoder; None: the model's own default."""
    lora_rank: int | None = fixed(None)
    """Rank of the adapter that is trained instead of the weights; None: full fine-tuning."""
    lora_alpha: float | None = fixed(None)
    """The adapter is scaled by alpha / rank; None: twice the rank."""
    lora_targets: tuple[str, ...] | None = fixed(None)
    """Names of the layers with an adapter; None: the attention projections of the model."""
    lora_init: Literal["gaussian", "kaiming"] = fixed("gaussian")
    """How the first matrix of an adapter starts; the second one starts at 0."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time in training."""
    compile_blocks: bool = False
    """Compile every block of the network by torch.compile, for all calls outside training: faster, after a minute or so
    in the first rollout of a machine."""
    offload_text_encoders: bool = False
    """Keep the text encoders on the CPU while no new prompt has to be encoded."""
    memory_limit: float | None = None
    """GiB per process, to which `micro_batch` and `max_batch` are cut down, see --dry-run; None: they stay as given."""

    def __post_init__(self) -> None:
        for name in ("lora_rank", "lora_alpha", "max_text_length", "memory_limit"):
            value = getattr(self, name)
            require(value is None or value > 0, "PolicyConfig", name, "positive", value)


@documented
@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """On which prompts, and what for."""

    prompts: str = fixed(SHAPES_PROMPTS, scores=True)
    """`shapes`, a text file (a prompt a line), a .jsonl file (GenEval's metadata), or hf:PATH or hf:PATH:SPLIT.
    The latter is a data set of the Hugging Face library `datasets`, with split train if none is named."""
    eval_prompts: str | None = fixed(None, scores=True)
    """Where evaluation takes its prompts; None: those of `prompts` that are held out from training, every tenth one."""
    prompt_column: str = fixed("prompt", scores=True)
    """Which field of a .jsonl file or column of a data set is the prompt; the others are the reward's metadata."""
    prompts_per_iteration: int = 16
    """P, prompts of one iteration; each gets `num_seeds` trajectories."""
    reward: str = fixed("shapes")
    """What training raises: a reward's name, or module:function for one of yours."""
    accuracy: str | None = fixed(None)
    """What evaluation counts, too: a reward that is 1 where an image is right and 0 elsewhere; None: nothing."""
    seed: int = fixed(0)
    """Decides the prompts and the noise of every iteration."""

    def __post_init__(self) -> None:
        kind = "TaskConfig"
        require(self.prompts_per_iteration >= 1, kind, "prompts_per_iteration", ">= 1", self.prompts_per_iteration)
        require(0 <= self.seed < 2**31, kind, "seed", "in 0..2^31-1", self.seed)


@documented
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights move, and their moving average."""

    optimizer: Literal["adamw", "adamw_8bit"] = fixed("adamw")
    """adamw_8bit keeps its state in a quarter of the memory and needs the library bitsandbytes."""
    learning_rate: float = 3e-4
    """Its value after the warm-up and before the decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient."""
    weight_decay: float = 0.0
    """Share of a weight that an update takes away, times the learning rate."""
    adam_eps: float = 1e-8
    """Added to the root of the averaged squared gradient."""
    warmup_iterations: int = 0
    """The learning rate rises linearly to its value over so many iterations."""
    learning_rate_decay: float = 0.0
    """Share of the run, at its end, in which the learning rate falls linearly to 0; a run without limit has no end."""
    ema_decay: float | None = fixed_presence(None)
    """Decay of the moving average of the weights, which is then evaluated and saved; None: no average."""
    ema_every: int = 8
    """Optimizer updates from one step of that average to the next."""

    def __post_init__(self) -> None:
        kind = "OptimizerConfig"
        require(0 < self.learning_rate < math.inf, kind, "learning_rate", "positive", self.learning_rate)
        require(self.weight_decay >= 0, kind, "weight_decay", "not negative", self.weight_decay)
        require(self.adam_eps > 0, kind, "adam_eps", "positive", self.adam_eps)
        require(all(0 <= beta < 1 for beta in self.betas), kind, "betas", "two numbers in [0, 1)", self.betas)
        require(self.warmup_iterations >= 0, kind, "warmup_iterations", ">= 0", self.warmup_iterations)
        require(0 <= self.learning_rate_decay <= 1, kind, "learning_rate_decay", "in [0, 1]", self.learning_rate_decay)
        require(self.ema_decay is None or 0 <= self.ema_decay < 1, kind, "ema_decay", "in [0, 1)", self.ema_decay)
        require(self.ema_every >= 1, kind, "ema_every", ">= 1", self.ema_every)


@documented
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the policy is judged: the same held-out prompts and the same noise every time."""

    eval_images: int = fixed(600, scores=True)
    """Images of one evaluation."""
    eval_seed: int = fixed(0, scores=True)
    """Decides their prompts and noise, so that runs of all seeds are judged alike."""
    eval_every: int | None = None
    """Iterations from one evaluation to the next; None: only before and after training."""
    eval_steps: int | None = fixed(None, scores=True)
    """Denoising steps of evaluation, on the model's own schedule; None: the schedule of the rollout."""

    def __post_init__(self) -> None:
        for name in ("eval_images", "eval_every", "eval_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, "EvaluationConfig", name, ">= 1", value)
        require(0 <= self.eval_seed < 2**31, "EvaluationConfig", "eval_seed", "in 0..2^31-1", self.eval_seed)


@documented
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long a run goes on, and what it leaves."""

    num_iterations: Annotated[int | None, tyro.conf.arg(aliases=("--iterations",))] = None
    """The run ends after so many iterations; None: no limit."""
    minutes: float | None = None
    """The run ends when its iterations have taken so many minutes, evaluation not counted; None: no limit.
    With neither limit a run goes on until Ctrl-C."""
    checkpoint_every: int = 10
    """Iterations from one checkpoint to the next."""
    num_checkpoints: int = 2
    """Checkpoints that are kept, the latest ones."""
    trackers: tuple[str, ...] | None = None
    """Where metrics go beside metrics.jsonl: accelerate's trackers by name, such as tensorboard or wandb.
    None: tensorboard where it is installed."""

    def __post_init__(self) -> None:
        for name in ("num_iterations", "minutes"):
            value = getattr(self, name)
            require(value is None or value > 0, "RunConfig", name, "positive", value)
        for name in ("checkpoint_every", "num_checkpoints"):
            require(getattr(self, name) >= 1, "RunConfig", name, ">= 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Recipes return one; a run directory holds one as `config.json`."""

    run: RunConfig = field(default_factory=RunConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def flat(self) -> dict[str, Any]:
        """Setting name -> value; names are unique over all groups, as on the command line."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    def with_settings(self, **settings: Any) -> TrainConfig:
        """A copy with settings replaced by name, whatever group they are in; ValueError for an unknown name."""
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
        """The names of the settings with a mark of `fields`: FIXED, FIXED_PRESENCE or SCORES."""
        groups: list[Any] = [group.default_factory for group in fields(cls)]
        return [item.name for group in groups for item in fields(group) if item.metadata.get(mark)]

    def to_json(self) -> str:
        """The settings as JSON text, by group."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The settings that `to_json` wrote; ValueError if they are none."""
        try:
            return _from_dict(cls, json.loads(text))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            fail("TrainConfig.from_json", "text", "the JSON of a config", error)


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Setting name -> (old value, new value), of those that differ."""
    before, after = old.flat(), new.flat()
    return {name: (before[name], after[name]) for name in after if before[name] != after[name]}


def _from_dict(kind: type[Settings], data: dict[str, Any]) -> Settings:
    """A (nested) dataclass from what `asdict` and JSON made of it; JSON has lists where the settings have tuples."""
    hints = get_type_hints(kind)
    values = {
        name: _from_dict(hints[name], value) if is_dataclass(hints.get(name)) else _with_tuples(value)
        for name, value in data.items()
    }
    return kind(**values)


def _with_tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
