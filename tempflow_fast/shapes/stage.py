"""A resumable training run with averaged weights: what the stages of `pretrain` share."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

BATCH = 64
SAVE_EVERY = 500
EVAL_EVERY = 1000
LOG_EVERY = 100
WARM_UP = 100


class Stage:
    """One training run to a fixed number of steps that survives being stopped: AdamW, cosine rate, averaged weights."""

    def __init__(self, name: str, parts: nn.ModuleDict, rate: float, steps: int, directory: Path) -> None:
        self.name, self.parts, self.rate, self.steps = name, parts, rate, steps
        self.path = directory / f"{name}.pt"
        self.average = {key: value.clone() for key, value in parts.state_dict().items()}
        self.optimizer = torch.optim.AdamW(parts.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
        self.step = 0
        if self.path.exists():
            saved = torch.load(self.path)
            parts.load_state_dict(saved["parts"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.average, self.step = saved["average"], saved["step"]

    def run(self, loss: Callable[[int], Tensor], decay: float, evaluate: Callable[[], str] | None = None) -> None:
        """Train to the last step; `loss(step)` gives the loss of one batch."""
        start, first, running = time.monotonic(), self.step, None
        while self.step < self.steps:
            value = loss(self.step)
            self._update(value, decay)
            running = value.item() if running is None else 0.98 * running + 0.02 * value.item()
            if self.step % LOG_EVERY == 0:
                pace = (time.monotonic() - start) / (self.step - first)
                progress = f"{self.name} {self.step}/{self.steps} loss {running:.4f}"
                print(f"{progress} {pace:.3f} s/step {pace * (self.steps - self.step) / 60:.1f} min left", flush=True)
            if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                self._save()
            if evaluate and self.step % EVAL_EVERY == 0:
                live = self.load_average()
                print(f"{self.name} {self.step} {evaluate()}", flush=True)
                self.parts.load_state_dict(live)
        self.load_average()

    def load_average(self) -> dict[str, Tensor]:
        """Put the averaged weights in place; returns the live ones."""
        live = {key: value.clone() for key, value in self.parts.state_dict().items()}
        self.parts.load_state_dict(self.average)
        return live

    def _update(self, loss: Tensor, decay: float) -> None:
        done = self.step / self.steps
        rate = self.rate * min(1.0, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(decay, (1 + self.step) / (10 + self.step))
        for key, value in self.parts.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)

    def _save(self) -> None:
        state = {"parts": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}
        aside = self.path.with_suffix(".tmp")
        torch.save({**state, "average": self.average, "step": self.step}, aside)
        os.replace(aside, self.path)


def batches(count: int, seed: int) -> Iterator[Tensor]:
    """Endless shuffled index batches."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=rng)[: count // BATCH * BATCH].split(BATCH)
