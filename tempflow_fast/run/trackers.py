"""Metrics and images on their way to TensorBoard, Weights & Biases and the like, by accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import unknown

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

DEFAULT = "tensorboard"
PROJECT = "tempflow-fast"


class Trackers:
    """The trackers of a run; none, and no import of accelerate, where none is asked for.

    Args:
        names: accelerate's names of them; None: TensorBoard if it is installed.
        directory: for those that write files.

    Raises:
        ValueError: for a name that accelerate does not know, or a tracker that is not installed.
    """

    def __init__(self, names: Sequence[str] | None, directory: Path) -> None:
        if names is None:
            names = (DEFAULT,) if find_spec(DEFAULT) else ()
        self._trackers = [_tracker(name, directory) for name in names]

    def start(self, settings: Mapping[str, Any] | None) -> None:
        """Opens them; `settings` go to those that keep hyperparameters, at the first start of a run."""
        for tracker in self._trackers:
            tracker.start()
            if settings is not None:
                tracker.store_init_configuration({name: _plain(value) for name, value in settings.items()})

    def log(self, values: Mapping[str, float], num_iterations: int) -> None:
        """Metrics after so many iterations."""
        for tracker in self._trackers:
            tracker.log(dict(values), step=num_iterations)

    def log_images(self, name: str, images: Tensor, num_iterations: int) -> None:
        """Images [R, 3, H, W] in [0, 1], for trackers that take images."""
        pixels = (images * 255).round().byte().numpy()
        for tracker in self._trackers:
            if tracker.name == DEFAULT:
                tracker.log_images({name: pixels}, step=num_iterations)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: list(pixels.transpose(0, 2, 3, 1))}, step=num_iterations)

    def finish(self) -> None:
        """Closes them."""
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: str, directory: Path) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        unknown("Trackers", "trackers", name, LOGGER_TYPE_TO_CLASS)
    if name not in {tracker.value for tracker in get_available_trackers()}:
        raise ValueError(f"Trackers: trackers must be installed, got {name!r}, which is not: pip install {name}")
    PartialState()  # they ask it which process they run in
    kind = LOGGER_TYPE_TO_CLASS[name]
    return kind(PROJECT, logging_dir=directory) if kind.requires_logging_directory else kind(PROJECT)


def _plain(value: Any) -> bool | str | float | int:
    return value if isinstance(value, bool | str | float | int) else str(value)
