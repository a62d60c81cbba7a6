"""The commands of `tempflow-fast`, one file each: a dataclass whose fields are the options and whose call is the run.

What a command needs beyond its options is imported when it runs, so that help and errors appear at once.
"""

from __future__ import annotations

from .check_model import CheckModel
from .evaluate import Evaluate
from .info import Info
from .recipes import Recipes
from .sample import Sample
from .serve_rewards import ServeRewards
from .signal import Signal
from .train import Train

COMMANDS = {
    "train": Train,
    "sample": Sample,
    "eval": Evaluate,
    "signal": Signal,
    "check-model": CheckModel,
    "serve-rewards": ServeRewards,
    "recipes": Recipes,
    "info": Info,
}

__all__ = ["COMMANDS", "CheckModel", "Evaluate", "Info", "Recipes", "Sample", "ServeRewards", "Signal", "Train"]
