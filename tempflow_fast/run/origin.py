"""Where the numbers of a run come from: what its settings name, by content, and the machine that computes.

A setting names a model, prompts and rewards by path or name. What is behind the name can change while the setting stays
the same, so a checkpoint and an evaluation keep digests of it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checksums import Digests, digest_of
from ..choices import EMBEDDED_MODEL
from ..ops.bodies import OPS
from ..ops.info import info
from ..processes import Processes
from ..prompts.sets import get_prompts
from ..rewards import code_in, get_reward
from ..settings.run import TaskConfig, TrainConfig
from ..shapes import pipeline_path
from ..version import __version__

LIBRARIES = ("diffusers", "transformers", "peft")
"""Libraries whose versions may change numbers, in addition to torch."""
REMOTE = "remote reward"
"""Name among the contents of what reward servers compute."""
UNKNOWN = "unknown"
"""Digest of what cannot be read here."""


@dataclass(frozen=True)
class Origin:
    """What the numbers of a run depend on, in addition to the values of its settings."""

    contents: dict[str, str] = field(default_factory=dict)
    """Setting -> digest of what it names: `model`, `prompts` and `reward`; with reward servers, `REMOTE` -> what they
    compute."""
    surroundings: dict[str, str] = field(default_factory=dict)
    """Versions, device, bodies of the ops, threads and processes, by name."""

    @classmethod
    def of(cls, config: TrainConfig, processes: Processes, digests: Digests) -> Origin:
        """Finds out what a run with these settings depends on here and now.

        Args:
            config: the settings.
            processes: those that share the run.
            digests: of the model's files.
        """
        task = config.task
        contents = {
            "model": model_content(config.policy.model, digests),
            "prompts": get_prompts(task.prompts, task.eval_prompts, task.prompt_column).digest,
            "reward": reward_content(task),
        }
        if served := served_content(_specs(task)):
            contents[REMOTE] = served
        return cls(contents, surroundings(config.policy.device, processes))

    def as_json(self) -> dict[str, Any]:
        """Returns what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Origin:
        """Returns the origin that `as_json` wrote; what is no text is left out.

        Args:
            data: the object.
        """
        parts = (data.get(name) if isinstance(data, Mapping) else None for name in ("contents", "surroundings"))
        return cls(*({str(k): str(v) for k, v in part.items()} if isinstance(part, Mapping) else {} for part in parts))


def model_content(model: str, digests: Digests) -> str:
    """Returns a digest of a model's files, or the commit of a model of the Hugging Face hub.

    Args:
        model: as in `load_policy`.
        digests: of files.
    """
    path = pipeline_path() if model == EMBEDDED_MODEL else Path(model)
    if path.is_dir():
        return digests.of(path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "model_index.json") if model.count("/") == 1 else None
    return Path(found).parent.name if isinstance(found, str) else UNKNOWN


def reward_content(task: TaskConfig) -> str:
    """Returns a digest of the rewards: their description, and the source of the user's modules among them.

    Args:
        task: the settings.
    """
    return rewards_content(_specs(task))


def _specs(task: TaskConfig) -> list[str]:
    return [spec for spec in (task.reward, task.accuracy) if spec is not None]


def served_content(specs: list[str]) -> str | None:
    """Returns what the reward servers compute that descriptions of rewards name; None: they name none that says it.

    Args:
        specs: as in `get_reward`, which loads them.
    """
    return "; ".join(filter(None, (get_reward(spec).served for spec in specs))) or None


def rewards_content(specs: list[str]) -> str:
    """Returns a digest of descriptions of rewards and of the source of the user's modules that they name.

    What a module imports, and what a file of weights holds, is not part of it; for servers, see `served_content`.

    Args:
        specs: as in `get_reward`.
    """
    modules = sorted({code.partition(":")[0] for spec in specs for code in code_in(spec)})
    return digest_of([*specs, *map(_source, modules)])


def _source(module: str) -> str:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    try:
        found = loaded or getattr(importlib.util.find_spec(module), "origin", None)
        return Path(found).read_bytes().hex() if found else UNKNOWN
    except (ImportError, OSError, ValueError):
        return UNKNOWN


def surroundings(device: str, processes: Processes) -> dict[str, str]:
    """Returns what may change the last bits of a run's numbers, by name.

    Args:
        device: the setting.
        processes: those that share the run.
    """
    facts = info()
    on_host = device == "cpu" or not torch.cuda.is_available()
    return {
        "tempflow-fast": __version__,
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in LIBRARIES},
        "device": "cpu" if on_host else torch.cuda.get_device_name(),
        "bodies": " | ".join(sorted({facts[op] for op in OPS})),
        "threads": str(torch.get_num_threads()),
        "processes": processes.kind,
    }
