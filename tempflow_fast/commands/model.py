"""Which model a command looks at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..policies.base import Policy
    from ..train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model to look at."""

    model: str = "embedded"
    """`embedded` for the packaged one, a pipeline directory of diffusers, or a hub name."""
    weights: Path | None = None
    """A run directory, whose tuned model and settings to take instead."""

    def config(self, **settings: Any) -> TrainConfig:
        """The settings of the run, or of the shapes recipe, with some replaced; None leaves one as it is."""
        from ..recipes import get_recipe
        from ..run_directory import RunDirectory

        if self.weights is None:
            config = get_recipe("shapes").with_settings(model=self.model)
        else:
            config = RunDirectory(self.weights).read_config()
        return config.with_settings(**{name: value for name, value in settings.items() if value is not None})

    def load(self, config: TrainConfig) -> Policy:
        """The policy: the run's tuned one, or the model as it is."""
        from ..prepare import prepare_policy, tuned_policy
        from ..run_directory import RunDirectory
        from .libraries import quieten_libraries

        quieten_libraries()
        if self.weights is None:
            return prepare_policy(config.policy)
        return tuned_policy(config.policy, RunDirectory(self.weights))
