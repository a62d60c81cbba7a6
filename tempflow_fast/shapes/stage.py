"""A resumable training run with averaged weights: what the stages of `pretrain` share."""

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
    """The share of the rate at a share of all steps: half a cosine down to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * done)


def steady(done: float) -> float:
    """The whole rate all the time, so that a run may go on past its last step; the average of weights settles it."""
    return 1.0


class Stage:
    """One training run that survives being stopped: it keeps everything in `directory/name.pt`.

    Args:
        parts: what is trained, and averaged.
        optimizers: each at its highest rate.
        schedule: share of all steps -> share of that rate.
        decay: of the average of weights.
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
            saved = torch.load(self.path)
            parts.load_state_dict(saved["parts"])
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.average, self.step = saved["average"], saved["step"]

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.pt"

    def run(
        self,
        loss: Callable[[], Tensor],
        steps: int,
        evaluate: Callable[[], dict] | None = None,
        every: int = 1000,
    ) -> None:
        """Train to step `steps`, leaving the averaged weights in place.

        Args:
            loss: gives the loss of one batch.
            evaluate: what to add to `directory/name.jsonl` every so many steps, with the averaged weights in place.
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
        """Put the averaged weights in place, until `load_live`."""
        self._live = {key: value.clone() for key, value in self.parts.state_dict().items()}
        self.parts.load_state_dict(self.average)

    def load_live(self) -> None:
        """Put the weights in place that were there before `load_average`."""
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
