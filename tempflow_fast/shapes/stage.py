"""A resumable training run with averaged weights, used by every stage of `pretrain`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

SAVE_EVERY = 500
LOG_EVERY = 100
WARM_UP = 100


def falling(done: float) -> float:
    """A learning rate that falls to 0 along half a cosine; `done` is the share of steps taken."""
    return 0.5 + 0.5 * math.cos(math.pi * done)


def steady(done: float) -> float:
    """A constant learning rate, so that a run can be extended; averaging the weights replaces a falling rate."""
    return 1.0


class Stage:
    """One training run that can be stopped and resumed: its state is in `directory/name.pt`.

    Args:
        name: of the stage and its files.
        parts: what is trained and averaged.
        optimizers: their learning rates are the peak rates.
        directory: where the files are; it must exist.
        schedule: maps the share of steps taken to a share of the peak rate.
        decay: decay per step of the exponential moving average of the weights.
    """

    def __init__(
        self,
        name: str,
        parts: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        directory: Path,
        schedule: Callable[[float], float] = falling,
        decay: float = 0.995,
    ) -> None:
        self.name, self.parts, self.optimizers, self.directory = name, parts, optimizers, directory
        self.schedule, self.decay, self.step = schedule, decay, 0
        self.average = {key: value.clone() for key, value in parts.state_dict().items()}
        self._rates = [group["lr"] for group in self._groups()]
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            parts.load_state_dict(saved["parts"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.average, self.step = saved["average"], saved["step"]

    @property
    def path(self) -> Path:
        """The file with the state for resuming."""
        return self.directory / f"{self.name}.pt"

    def run(
        self,
        loss: Callable[[], Tensor],
        steps: int,
        evaluate: Callable[[], dict] | None = None,
        every: int = 1000,
    ) -> None:
        """Train up to step `steps`, then load the averaged weights.

        Args:
            loss: returns the loss of one batch.
            steps: number of steps in all, including those of an earlier run.
            evaluate: returns figures for `directory/name.jsonl`; called with the averaged weights loaded.
            every: number of steps from one evaluation to the next.
        """
        start, first, running = time.monotonic(), self.step, None
        while self.step < steps:
            value = loss()
            self._update(value, self.schedule(self.step / steps))
            running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
            if self.step % LOG_EVERY == 0:
                pace = (time.monotonic() - start) / (self.step - first)
                progress = f"{self.name} {self.step}/{steps} loss {running:.4f}"
                print(f"{progress} {pace:.3f} s/step {pace * (steps - self.step) / 60:.1f} min left", flush=True)
            if self.step % SAVE_EVERY == 0 or self.step == steps:
                self._save()
            if evaluate and (self.step % every == 0 or self.step == steps):
                self.load_average()
                self._record({"step": self.step, "loss": running, **evaluate()})
                self.load_live()
        self.load_average()

    def load_average(self) -> None:
        """Load the averaged weights; `load_live` undoes it."""
        self._live = {key: value.clone() for key, value in self.parts.state_dict().items()}
        self.parts.load_state_dict(self.average)

    def load_live(self) -> None:
        """Load the weights from before `load_average`."""
        self.parts.load_state_dict(self._live)

    def _groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def _update(self, loss: Tensor, share: float) -> None:
        for group, rate in zip(self._groups(), self._rates, strict=True):
            group["lr"] = rate * share * min(1.0, (self.step + 1) / WARM_UP)
        self.parts.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for key, value in self.parts.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)

    def _record(self, row: dict) -> None:
        print(json.dumps(row), flush=True)
        with (self.directory / f"{self.name}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"parts": self.parts.state_dict(), "optimizers": states, "average": self.average, "step": self.step}
        aside = self.path.with_suffix(".tmp")
        torch.save(state, aside)
        os.replace(aside, self.path)
