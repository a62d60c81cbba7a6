"""What is seen of a run while it goes on, and how it is asked to end."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType, TracebackType

from tqdm import tqdm

SMOOTHING = 0.9
"""Weight of the past in the reward that the bar shows."""


class Budget:
    """How much of a run is done; it ends at the first limit reached."""

    def __init__(self, num_iterations: int | None, minutes: float | None) -> None:
        self._num_iterations, self._seconds = num_iterations, None if minutes is None else 60 * minutes
        self._start, self.num_done = time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        """Wall seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def fraction(self) -> float:
        """Share of the budget that is used up, 1 at the end."""
        iterations = self.num_done / self._num_iterations if self._num_iterations else 0.0
        return min(1.0, max(iterations, self.seconds / self._seconds if self._seconds else 0.0))


class ProgressBar:
    """One line: share done, time, smoothed reward, clip fraction, pace."""

    def __init__(self) -> None:
        self._reward: float | None = None
        self._bar = tqdm(
            total=1.0,
            desc="training",
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {elapsed}<{remaining}{postfix}",
            # A log file gets a line now and then, a terminal a living one.
            mininterval=0.2 if sys.stderr.isatty() else 20,
        )

    def show(self, budget: Budget, metrics: dict[str, float]) -> None:
        """Shows the state after an iteration."""
        reward = metrics["reward_mean"]
        self._reward = reward if self._reward is None else SMOOTHING * self._reward + (1 - SMOOTHING) * reward
        clipped, pace = metrics["clip_fraction"], budget.seconds / budget.num_done
        state = f"iteration {budget.num_done}, reward {self._reward:.3f}, clipped {clipped:.2f}, {pace:.2f} s each"
        self._bar.set_postfix_str(state, refresh=False)
        self._bar.update(budget.fraction - self._bar.n)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        self._bar.close()


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
