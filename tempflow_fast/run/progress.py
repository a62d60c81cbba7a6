"""The budget of a run, and its progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

SMOOTHING = 0.9
"""Weight of the past in the reward that the bar shows."""
BAR = "{desc} {percentage:3.0f}% |{bar:16}| "
STAGE = "seconds_"
"""Prefix of the metrics that are times of stages."""


class Budget:
    """How much of a run is done. It ends at the first limit that it reaches; without a limit it never ends.

    Args:
        num_iterations: the limit in iterations; None: no such limit.
        minutes: the limit in minutes of wall time; None: no such limit.
        num_done: iterations of earlier starts of the run.
        seconds: wall time of these iterations.
    """

    def __init__(
        self, num_iterations: int | None, minutes: float | None, num_done: int = 0, seconds: float = 0.0
    ) -> None:
        self._num_iterations, self._limit = num_iterations, None if minutes is None else 60 * minutes
        self.num_done, self._used = num_done, seconds
        self._since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time inside this context."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._used, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Wall time used so far, in seconds."""
        return self._used + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, 1 at the end."""
        iterations = self.num_done / self._num_iterations if self._num_iterations else 0.0
        return min(1.0, max(iterations, self.seconds / self._limit if self._limit else 0.0))

    @property
    def remaining(self) -> float | None:
        """Remaining seconds at the pace so far; None if they cannot be estimated."""
        return self.seconds / self.fraction - self.seconds if self.fraction and self.num_done else None


class ProgressBar:
    """One line: share done, time left, smoothed reward, spread of the ratios, clip fraction, seconds per stage.

    Args:
        hidden: whether to show nothing, as in all processes but the main one.
    """

    def __init__(self, hidden: bool = False) -> None:
        self._reward: float | None = None
        self._bar = tqdm(
            total=1.0,
            desc="training",
            bar_format=BAR,
            # A terminal is updated all the time; a log file gets a line now and then.
            mininterval=0.2 if sys.stderr.isatty() else 20,
            disable=hidden,
        )

    def show(self, budget: Budget, metrics: Mapping[str, float]) -> None:
        """Shows the state after an iteration.

        Args:
            budget: of the run.
            metrics: of the iteration.
        """
        reward, left = metrics["reward_mean"], budget.remaining
        self._reward = reward if self._reward is None else SMOOTHING * self._reward + (1 - SMOOTHING) * reward
        state = [
            f"iteration {budget.num_done}",
            f"{_time(budget.seconds)}<{'?' if left is None else _time(left)}",
            f"reward {self._reward:.3f}",
            f"ratio spread {metrics['log_ratio_rms']:.1e}",
            f"clipped {metrics['clip_fraction']:.2f}",
            _stages(metrics),
        ]
        self._bar.bar_format = BAR + ", ".join(state)
        self._bar.update(budget.fraction - self._bar.n)

    def close(self) -> None:
        """Keeps the last state on the screen."""
        self._bar.close()


def _time(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))


def _stages(metrics: Mapping[str, float]) -> str:
    """Seconds of the stages that take more than 1 % of the iteration, "2.1 s: rollout 1.4, train 0.6"."""
    seconds = {name.removeprefix(STAGE): value for name, value in metrics.items() if name.startswith(STAGE)}
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items() if value > total / 100)
    return f"{total:.2g} s: {parts}"
