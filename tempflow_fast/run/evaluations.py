"""The evaluations of a run, each with what it depends on: weights, model, prompts, rewards, settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checksums import Digests, damage, digest_of, write_checksums
from ..evaluation.evaluate import heldout
from ..evaluation.result import Evaluation
from ..evaluation.sheets import evaluation_sheet
from ..files import read_json, remove, write_json, written_aside
from ..prompts.entries import portable
from ..settings.fields import SCORES
from ..settings.run import TrainConfig
from ..version import __version__
from .numbered import all_numbered, numbered
from .origin import REMOTE, Origin

NAMED = ("model", "prompts", "eval_prompts")
"""Settings that name files: what is in these counts, not where they are."""
WEIGHTS = "weights"
"""The part of a basis that differs between the evaluations of a run."""

Basis = dict[str, Any]
"""What an evaluation depends on, by name."""


def basis_of(config: TrainConfig, origin: Origin) -> Basis:
    """Returns what the scores of a run depend on in addition to the weights.

    Args:
        config: the settings.
        origin: of the run.
    """
    prompts, metadata = heldout(config)
    settings, digests = config.flat(), Digests()
    return {
        "prompts": digest_of([prompts.tasks, [portable(entry, digests.of) for entry in metadata]]),
        "model": origin.contents.get("model"),
        **{name: origin.contents.get(name) for name in ("reward", REMOTE)},
        "version": __version__,
        **{name: settings[name] for name in config.marked(SCORES) if name not in NAMED},
    }


class RunEvaluations:
    """Writes evaluations and finds them again.

    An evaluation is reused only if it is of the same weights, prompts, rewards and settings. One that lies ahead of
    where the run starts may be of weights that the run has gone back from; it counts when the run reaches it with the
    same weights, and is removed when the run has passed it.

    Args:
        directory: holds them.
        basis: from `basis_of`.
        start: number of iterations at which the run starts.
        report: called with a sentence when an evaluation is there and cannot be reused.
    """

    def __init__(self, directory: Path, basis: Basis, start: int, report: Callable[[str], None]) -> None:
        self._directory, self._report = directory, report
        self._basis: Basis = digestible(basis)
        self._ahead = {number for number in all_numbered(directory) if number >= start}

    def find(self, num_iterations: int, weights: str) -> Evaluation | None:
        """Reads an evaluation, if it is of these weights.

        Args:
            num_iterations: number of iterations before it.
            weights: their digest.

        Returns:
            The evaluation; None if there is none, or it is of something else or damaged.
        """
        path = numbered(self._directory, num_iterations)
        if not path.is_dir():
            return None
        reason = self._reason_against(path, {**self._basis, WEIGHTS: weights})
        if reason is not None:
            self._report(f"scoring again after {num_iterations} iterations: in {path}, {reason}")
            return None
        self._ahead.discard(num_iterations)
        return Evaluation.load(path / "scores.safetensors")

    def write(self, num_iterations: int, weights: str, evaluation: Evaluation) -> None:
        """Writes a directory with the scores and images of an evaluation.

        Args:
            num_iterations: number of iterations before it.
            weights: their digest.
            evaluation: what to write.
        """
        with written_aside(numbered(self._directory, num_iterations)) as aside:
            aside.mkdir()
            evaluation.save(aside / "scores.safetensors")
            write_json(aside / "scores.json", evaluation.table())
            write_json(aside / "basis.json", {**self._basis, WEIGHTS: weights})
            evaluation_sheet(aside / "samples.png", evaluation)
            write_checksums(aside)
        self._ahead.discard(num_iterations)

    def passed(self, num_iterations: int) -> None:
        """Removes evaluations that the run has passed with other weights.

        Args:
            num_iterations: number of iterations that are done and saved.
        """
        for number in [number for number in self._ahead if number < num_iterations]:
            remove(numbered(self._directory, number))
            self._ahead.discard(number)

    def up_to(self, num_iterations: int) -> dict[int, Evaluation]:
        """Reads the evaluations of the run that can be compared with one another.

        Args:
            num_iterations: number of iterations before the last one.

        Returns:
            Number of iterations before it -> evaluation, in ascending order.
        """
        found = {}
        for number, path in all_numbered(self._directory).items():
            counts = number <= num_iterations and number not in self._ahead
            if counts and self._reason_against(path, self._basis) is None:
                found[number] = Evaluation.load(path / "scores.safetensors")
        return found

    def _reason_against(self, path: Path, basis: Basis) -> str | None:
        """Why an evaluation is not one of `basis`."""
        if (reason := damage(path)) is not None:
            return reason
        known = read_json(path / "basis.json")
        other = [name for name in basis if known.get(name) != basis[name]]
        return f"the scores are of other {', '.join(other)}" if other else None


def digestible(basis: Basis) -> Basis:
    """The same after JSON, which has lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in basis.items()}
