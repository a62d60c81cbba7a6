"""Which model a command looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import DEFAULT_RECIPE

if TYPE_CHECKING:
    import torch

    from ..policies.base import Policy
    from ..settings.run import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model to look at, and with which settings."""

    model: str | None = None
    """`embedded` for the packaged one, a pipeline directory of diffusers, or a hub name; None: the recipe's."""
    lora: Path | None = None
    """An adapter to use with it, file or directory as diffusers' `load_lora_weights` takes them."""
    weights: Path | None = None
    """A run directory, whose tuned model and settings to take instead."""
    recipe: str | None = None
    """Settings to start from, see tempflow-fast recipes; None: those of the run in --weights, else shapes."""
    device: str | None = None
    """Where the model lives: cpu, cuda, cuda:1, ..., or auto; None: as in the settings."""

    def config(self, **settings: Any) -> TrainConfig:
        """The settings of the run or the recipe, with some replaced; None leaves one as it is.

        Raises:
            ValueError: for options that contradict each other, an unknown recipe, or settings out of range.
        """
        from ..run.directory import RunDirectory
        from ..settings.recipes import get_recipe

        for name in ("model", "lora", "recipe"):
            if self.weights is not None and getattr(self, name) is not None:
                raise ValueError(f"--{name} must not be given beside --weights, got {getattr(self, name)}")
        if self.weights is None:
            config = get_recipe(self.recipe or DEFAULT_RECIPE)
        else:
            config = RunDirectory(self.weights).read_config()
        settings |= {"model": self.model, "device": self.device}
        return config.with_settings(**{name: value for name, value in settings.items() if value is not None})

    def load(self, config: TrainConfig, device: torch.device | None = None) -> Policy:
        """The policy: the run's tuned one, or the model as it is; `device`: where it has to be, among processes."""
        from ..run.directory import RunDirectory
        from ..run.prepare import plain_policy, tuned_policy

        if self.weights is None:
            return plain_policy(config.policy, self.lora, device)
        return tuned_policy(config.policy, RunDirectory(self.weights), device)

    def tuned_files(self) -> Path | None:
        """Where the weights that training made lie; None for a model as it is."""
        from ..run.directory import RunDirectory

        if self.weights is None:
            return self.lora
        run = RunDirectory(self.weights)
        return run.lora if run.lora.is_dir() else run.model
