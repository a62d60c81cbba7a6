"""The options that name a model and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import EMBEDDED_MODEL
from .base import base_settings
from .code import AllowCode, check_code
from .options import require_option

if TYPE_CHECKING:
    import torch

    from ..policies.base import Policy
    from ..settings.run import TaskConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model and its settings."""

    model: str | None = None
    """`embedded` for the packaged model, a diffusers pipeline directory, or a hub name; None: the recipe's model.
    Without a recipe, it is used as its publishers use models of its class."""
    policy: str | None = None
    """Class that runs the model, as for tempflow-fast train; None: that in the settings."""
    lora: Path | None = None
    """Adapter to load into the model: a file in the layout of diffusers' `save_lora_weights`, or its directory."""
    weights: Path | None = None
    """Run directory whose tuned model and settings to use instead."""
    recipe: str | None = None
    """Recipe with the settings, see tempflow-fast recipes; None: the settings of the run in --weights, else shapes."""
    device: str | None = None
    """Device of the model: cpu, cuda, cuda:1, ..., or auto; None: the device in the settings."""
    allow_code: AllowCode = False

    def config(self, **settings: Any) -> TrainConfig:
        """Returns the settings of the run or the recipe, with some replaced.

        Args:
            **settings: new values by setting name; None keeps the value.

        Raises:
            ValueError: for options that contradict each other, an unknown recipe, or settings out of range.
        """
        from ..run.directory import RunDirectory

        for name in ("model", "policy", "lora", "recipe"):
            given = getattr(self, name)
            require_option(self.weights is None or given is None, name, "left out with --weights", given)
        if self.weights is None:
            config = base_settings(self.recipe, self.model).settings
        else:
            config = RunDirectory(self.weights).read_config()
            check_code((config.policy.policy,), self.weights, self.allow_code)
        settings |= {"model": self.model, "policy": self.policy, "device": self.device}
        return config.with_settings(**{name: value for name, value in settings.items() if value is not None})

    @property
    def is_own(self) -> bool:
        """Whether the model is one that neither a run nor a recipe names, so that there are no prompts for it."""
        return self.weights is None and self.recipe is None and self.model not in (None, EMBEDDED_MODEL)

    def check_rewards(self, task: TaskConfig) -> None:
        """Refuses the rewards of the run in --weights if they are code that the user has not allowed.

        Args:
            task: the settings of the run.

        Raises:
            ValueError: naming the code.
        """
        if self.weights is not None:
            check_code((task.reward, task.accuracy), self.weights, self.allow_code)

    def load(self, config: TrainConfig, device: torch.device | None = None) -> Policy:
        """Loads the run's tuned model, or the model as it is.

        Args:
            config: the settings.
            device: the device of this process, if several share the work; None: the device in the settings.

        Raises:
            ValueError: if the model or the adapter cannot be loaded.
        """
        from ..run.directory import RunDirectory
        from ..run.prepare import plain_policy, tuned_policy

        if self.weights is None:
            return plain_policy(config.policy, self.lora, device, self.allow_code)
        return tuned_policy(config.policy, RunDirectory(self.weights), device, self.allow_code)

    def tuned_files(self) -> Path | None:
        """Returns the path of the tuned weights; None for a model as it is.

        Raises:
            ValueError: if the run has none, or they are damaged.
        """
        from ..run.directory import RunDirectory

        if self.weights is None:
            return self.lora
        return RunDirectory(self.weights).tuned()
