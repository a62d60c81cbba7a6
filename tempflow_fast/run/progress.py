"""What is seen of a run while it goes on, and how it is asked to end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType

from tqdm import tqdm

SMOOTHING = 0.9
"""Weight of the past in the reward that the bar shows."""
BAR = "{desc} {percentage:3.0f}% |{bar:16}| "
STAGE = "seconds_"
"""Begins the names of metrics that are times of stages."""


class Budget:
    """How much of a run is done; it ends at the first limit reached, and without one it never does."""

    def __init__(
        self, num_iterations: int | None, minutes: float | None, num_done: int = 0, seconds: float = 0.0
    ) -> None:
        """`num_done` and `seconds`: what an earlier start of the run has used already."""
        self._num_iterations, self._limit = num_iterations, None if minutes is None else 60 * minutes
        self.num_done, self._used = num_done, seconds
        self._since: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time inside this context counts."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._used, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Wall seconds used so far."""
        return self._used + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def fraction(self) -> float:
        """Share of the budget that is used up, 1 at the end."""
        iterations = self.num_done / self._num_iterations if self._num_iterations else 0.0
        return min(1.0, max(iterations, self.seconds / self._limit if self._limit else 0.0))

    @property
    def remaining(self) -> float | None:
        """Seconds to come at the pace so far; None where there is no telling."""
        return self.seconds / self.fraction - self.seconds if self.fraction and self.num_done else None


class ProgressBar:
    """One line: share done, time left, smoothed reward, spread of the ratios, clip fraction, seconds by stage."""

    def __init__(self, hidden: bool = False) -> None:
        self._reward: float | None = None
        self._bar = tqdm(
            total=1.0,
            desc="training",
            bar_format=BAR,
            # A log file gets a line now and then, a terminal a living one.
            mininterval=0.2 if sys.stderr.isatty() else 20,
            disable=hidden,
        )

    def show(self, budget: Budget, metrics: Mapping[str, float]) -> None:
        """Shows the state after an iteration."""
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
        """Leaves the last state on the screen."""
        self._bar.close()


def _time(seconds: float) -> str:
    return tqdm.format_interval(round(seconds))


def _stages(metrics: Mapping[str, float]) -> str:
    """Seconds of the iteration's stages that take more than a hundredth of it, "2.1 s: rollout 1.4, train 0.6"."""
    seconds = {name.removeprefix(STAGE): value for name, value in metrics.items() if name.startswith(STAGE)}
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items() if value > total / 100)
    return f"{total:.2g} s: {parts}"


class StopRequest:
    """Inside this context the first Ctrl-C only sets `made`; the second one interrupts as usual."""

    def __init__(self) -> None:
        self.made = False

    def __enter__(self) -> StopRequest:
        self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        tqdm.write("stopping: the weights are kept and scored; Ctrl-C again leaves the scoring out", file=sys.stderr)
