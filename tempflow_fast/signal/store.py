"""The samples of a measurement in a directory, so that an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import fail
from ..files import read_json, write_json, written_aside
from ..settings.iteration import GRPOConfig
from .sample import Sample

FACTS = "measurement.json"
SETTINGS = "settings"
"""Key of the facts that holds the settings by name."""
FIGURES = "figures"
"""Key of the metadata that holds everything but the gradients."""


class SampleStore:
    """One file per iteration, and what all of them depend on.

    Args:
        directory: where they are; created if necessary.
        facts: what the samples depend on; a directory with other facts is refused.
        settings: the settings by name; a directory may have others, but no other ones of the same name.

    Raises:
        ValueError: if the directory holds a measurement of something else.
    """

    def __init__(self, directory: Path, facts: Mapping[str, Any], settings: Mapping[str, GRPOConfig]) -> None:
        self.directory, path = directory, directory / FACTS
        measured = {name: _as_json(asdict(config)) for name, config in settings.items()}
        if path.exists():
            known = read_json(path)
            its_settings = {name: _as_json(asdict(GRPOConfig())) | values for name, values in known[SETTINGS].items()}
            self._check(known, {**known, **_as_json(facts)})
            self._check(its_settings, {**its_settings, **measured})
            measured = {**its_settings, **measured}
        write_json(path, {**_as_json(facts), SETTINGS: measured})

    def _check(self, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuses facts that are not those of the directory; what only one side has is no difference."""
        for name, value in known.items():
            if now[name] != value:
                expected = f"{value!r} as in {str(self.directory)!r}, or another directory"
                fail("measurement", name, expected, repr(now[name]))

    def read(self, iteration: int) -> dict[str, Sample]:
        """The samples of an iteration by setting; none if it was not measured yet.

        Args:
            iteration: its number.
        """
        path = self._path(iteration)
        if not path.exists():
            return {}
        with safe_open(str(path), "pt") as file:
            figures = json.loads(file.metadata()[FIGURES])
            return {
                name: Sample(
                    gradients={int(step): file.get_tensor(f"{name}/{step}") for step in each["spread"]},
                    spread={int(step): value for step, value in each["spread"].items()},
                    reward=each["reward"],
                    seconds=each["seconds"],
                )
                for name, each in figures.items()
            }

    def write(self, iteration: int, samples: Mapping[str, Sample]) -> None:
        """Writes the samples of an iteration.

        Args:
            iteration: its number.
            samples: by setting.
        """
        tensors = {f"{name}/{step}": g for name, each in samples.items() for step, g in each.gradients.items()}
        figures = {
            name: {"spread": each.spread, "reward": each.reward, "seconds": each.seconds}
            for name, each in samples.items()
        }
        with written_aside(self._path(iteration)) as aside:
            save_file(tensors, aside, {FIGURES: json.dumps(figures)})

    def _path(self, iteration: int) -> Path:
        return self.directory / "samples" / f"{iteration:06d}.safetensors"


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file holds of them."""
    return json.loads(json.dumps(values))
