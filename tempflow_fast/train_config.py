"""The settings of a training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from .config import GRPOConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a run computes. Recipes return one; a run directory holds one as `config.json`."""

    grpo: GRPOConfig
    """Settings of one iteration."""
    model: str = "embedded"
    """`embedded`, or a directory or hub name in the StableDiffusion3Pipeline layout."""
    device: str = "cpu"
    """Where the model lives."""
    prompts: str = "shapes"
    """Prompt set: training draws from its training prompts, evaluation from its held-out ones."""
    reward: str = "shapes"
    """What training raises."""
    accuracy: str = "shapes_strict"
    """What evaluation counts: a reward that is 1 where an image is right and 0 elsewhere."""
    seed: int = 0
    """Decides the prompts and the noise of every iteration."""
    prompts_per_iteration: int = 16
    """P."""
    num_iterations: int | None = None
    """The run ends after so many iterations; None: no limit."""
    minutes: float | None = None
    """The run ends when its iterations have taken so long; None: no limit. Evaluation comes on top."""
    learning_rate: float = 3e-4
    """Of AdamW, constant after the warm-up."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    warmup_iterations: int = 0
    """The learning rate rises linearly to its value over the first iterations."""
    eval_images: int = 600
    """Images drawn before and after training."""
    eval_seed: int = 0
    """Decides their prompts and noise, so that runs of all seeds are judged alike."""

    def __post_init__(self) -> None:
        for name, low in (("prompts_per_iteration", 1), ("eval_images", 1), ("warmup_iterations", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"TrainConfig: {name} must be >= {low}, got {getattr(self, name)}")
        if self.num_iterations is None and self.minutes is None:
            raise ValueError("TrainConfig: num_iterations or minutes must limit the run, got None for both")
        for name in ("num_iterations", "minutes", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"TrainConfig: {name} must be positive, got {value}")
        if not self.weight_decay >= 0:
            raise ValueError(f"TrainConfig: weight_decay must not be negative, got {self.weight_decay}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"TrainConfig: betas must be two numbers in [0, 1), got {self.betas}")
        for name in ("seed", "eval_seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"TrainConfig: {name} must be in 0..2^31-1, got {getattr(self, name)}")

    def with_settings(self, settings: Sequence[str]) -> TrainConfig:
        """A copy with `name=value` settings replaced; `grpo.name=value` reaches into `grpo`, values are JSON.

        Raises:
            ValueError: for an unknown name, or a value of another type than the setting's.
        """
        config = self
        for setting in settings:
            name, separator, text = setting.partition("=")
            if not separator:
                raise ValueError(f"setting must be name=value, got {setting!r}")
            if name.startswith("grpo."):
                inner = name.removeprefix("grpo.")
                config = replace(config, grpo=replace(config.grpo, **{inner: _parse(GRPOConfig, inner, text)}))
            else:
                config = replace(config, **{name: _parse(TrainConfig, name, text)})
        return config

    def to_json(self) -> str:
        """The settings as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The settings that `to_json` wrote; ValueError if they are none."""
        try:
            data = _with_tuples(json.loads(text))
            return cls(**{**data, "grpo": GRPOConfig(**_with_tuples(data["grpo"]))})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"TrainConfig: text must be the JSON of a config, got {error}") from error


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def _parse(kind: type, name: str, text: str) -> Any:
    """The value of `name=text`, checked against the type of that field of `kind`."""
    settable = [field.name for field in fields(kind) if field.name != "grpo"]
    if name not in settable:
        raise ValueError(f"setting must be one of {', '.join(settable)}, got {name!r}")
    hint = get_type_hints(kind)[name]
    wanted = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if str in wanted:
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"setting {name} must be JSON, got {text!r}") from error
    value = tuple(value) if isinstance(value, list) else value
    if not any(_is(value, option) for option in wanted):
        raise ValueError(f"setting {name} must be {getattr(hint, '__name__', hint)}, got {text}")
    return value


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the type of an annotation: a scalar type, None, or `tuple[scalar, ...]`."""
    if get_args(kind):
        return isinstance(value, tuple) and all(_is(item, get_args(kind)[0]) for item in value)
    kinds = (int, float) if kind is float else kind
    return isinstance(value, kinds) and not isinstance(value, bool)
