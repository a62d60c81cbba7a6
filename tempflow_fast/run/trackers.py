"""Metrics and images for TensorBoard, Weights & Biases and the like, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import fail, unknown

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

DEFAULT = "tensorboard"
"""The tracker where none is named."""
PROJECT = "tempflow-fast"
"""Name of the project in the trackers."""


class Trackers:
    """The trackers of a run. Without a tracker, accelerate is not imported.

    Args:
        names: accelerate's names of the trackers; None: TensorBoard if it is installed.
        directory: for trackers that write files.

    Raises:
        ValueError: for a name that accelerate does not know, or a tracker that is not installed.
    """

    def __init__(self, names: Sequence[str] | None, directory: Path) -> None:
        if names is None:
            names = (DEFAULT,) if find_spec(DEFAULT) else ()
        self._trackers = [_tracker(name, directory) for name in names]

    def start(self, settings: Mapping[str, Any] | None) -> None:
        """Opens the trackers.

        Args:
            settings: hyperparameters by name, at the first start of a run; None: they have been stored before.
        """
        for tracker in self._trackers:
            tracker.start()
            if settings is not None:
                tracker.store_init_configuration({name: _plain(value) for name, value in settings.items()})

    def log(self, values: Mapping[str, float], num_iterations: int) -> None:
        """Logs metrics.

        Args:
            values: metric -> value.
            num_iterations: number of iterations that are done.
        """
        for tracker in self._trackers:
            tracker.log(dict(values), step=num_iterations)

    def log_images(self, name: str, images: Tensor, num_iterations: int) -> None:
        """Logs images in the trackers that accept images.

        Args:
            name: of the images.
            images: [R, 3, H, W] in [0, 1].
            num_iterations: number of iterations that are done.
        """
        pixels = (images * 255).round().byte().numpy()
        for tracker in self._trackers:
            if tracker.name == DEFAULT:
                tracker.log_images({name: pixels}, step=num_iterations)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: list(pixels.transpose(0, 2, 3, 1))}, step=num_iterations)

    def finish(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: str, directory: Path) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        unknown("Trackers", "names", name, LOGGER_TYPE_TO_CLASS)
    if name not in {tracker.value for tracker in get_available_trackers()}:
        fail("Trackers", "names", "trackers that are installed", f"{name!r}: pip install {name}")
    PartialState()  # trackers ask it which process they run in
    kind = LOGGER_TYPE_TO_CLASS[name]
    return kind(PROJECT, logging_dir=directory) if kind.requires_logging_directory else kind(PROJECT)


def _plain(value: Any) -> bool | str | float | int:
    return value if isinstance(value, bool | str | float | int) else str(value)
