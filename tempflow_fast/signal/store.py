"""The samples of a measurement in a directory, so that an interrupted one resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import fail
from ..files import read_json, write_json, written_aside
from .sample import Sample

FACTS = "measurement.json"
FIGURES = "figures"
"""Key of the metadata that holds everything but the gradients."""


class SampleStore:
    """One file per iteration, and what all of them depend on.

    Args:
        directory: where they are; created if necessary.
        facts: what the samples depend on; a directory with other facts is refused.

    Raises:
        ValueError: if the directory holds a measurement of something else.
    """

    def __init__(self, directory: Path, facts: Mapping[str, Any]) -> None:
        self.directory, path = directory, directory / FACTS
        if path.exists():
            known = read_json(path)
            differing = [name for name in {**known, **facts} if known.get(name) != facts.get(name)]
            if differing:
                name = differing[0]
                expected = f"{known.get(name)!r} as in {str(directory)!r}, or another directory"
                fail("measurement", name, expected, repr(facts.get(name)))
        else:
            write_json(path, facts)

    def read(self, iteration: int) -> dict[str, Sample] | None:
        """The samples of an iteration by setting; None if it was not measured yet.

        Args:
            iteration: its number.
        """
        path = self._path(iteration)
        if not path.exists():
            return None
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
