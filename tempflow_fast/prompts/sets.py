"""Prompt sets: which prompts an iteration trains on, and which ones evaluation uses.

Everything is a function of the seed and the iteration, so that an interrupted and resumed run sees the same prompts.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from ..checksums import digest_of
from ..choices import SHAPES_PROMPTS
from ..errors import require, unknown
from .data_sets import HUGGING_FACE
from .entries import TASK, Entry, num_bytes, portable, same_entry
from .sources import read_prompts

HELD_OUT_EVERY = 10
"""One prompt in so many is held out."""


class PromptSet(Protocol):
    """Prompts as `{"prompt": text, ...}`; the other fields are metadata for the reward."""

    tasks: tuple[str, ...]
    """The tasks of the held-out prompts, in the order of reports."""
    digest: str
    """Of all prompts with their metadata: two sets with equal digests draw the same prompts."""

    def everything(self) -> tuple[list[Entry], list[Entry]]:
        """Every prompt to train on, and every held-out one."""
        ...

    def training(self, iteration: int, count: int, seed: int) -> list[Entry]:
        """The prompts of one iteration.

        Args:
            iteration: its number, from 0.
            count: how many prompts.
            seed: of the run.
        """
        ...

    def heldout(self, count: int, seed: int) -> list[Entry]:
        """Prompts for evaluation: the tasks in turn.

        Args:
            count: how many prompts.
            seed: decides which, and their order.
        """
        ...


class ListedPrompts:
    """Prompts from a list: every epoch goes through all of them once, in a new order.

    Args:
        train: prompts to train on.
        heldout: prompts to evaluate with.
    """

    def __init__(self, train: Sequence[Entry], heldout: Sequence[Entry]) -> None:
        self._train = list(train)
        self._heldout = [{TASK: "all", **entry} for entry in heldout]
        self.tasks = tuple(dict.fromkeys(entry[TASK] for entry in self._heldout))
        parts = (self._train, self._heldout)
        self.digest = digest_of([[portable(entry, num_bytes) for entry in entries] for entries in parts])
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def everything(self) -> tuple[list[Entry], list[Entry]]:
        """Every prompt to train on, and every held-out one."""
        return self._train, self._heldout

    def training(self, iteration: int, count: int, seed: int) -> list[Entry]:
        """The next `count` prompts; an iteration may end one epoch and begin another.

        Args:
            iteration: its number, from 0.
            count: how many prompts.
            seed: decides the order of every epoch.
        """
        num = len(self._train)
        places = (divmod(place, num) for place in range(iteration * count, (iteration + 1) * count))
        return [self._train[self._order(seed, epoch)[place]] for epoch, place in places]

    def _shuffled(self, seed: int, epoch: int) -> list[int]:
        order = list(range(len(self._train)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        return order

    def heldout(self, count: int, seed: int) -> list[Entry]:
        """The tasks in turn, as long as they have prompts; after the last prompt, the first one follows.

        Args:
            count: how many prompts.
            seed: decides their order.
        """
        entries = list(self._heldout)
        random.Random(seed).shuffle(entries)
        seen = dict.fromkeys(self.tasks, 0)
        turns = []
        for entry in entries:
            turns.append((seen[entry[TASK]], self.tasks.index(entry[TASK])))
            seen[entry[TASK]] += 1
        in_turn = [entry for _, entry in sorted(zip(turns, entries, strict=True), key=lambda pair: pair[0])]
        return [in_turn[place % len(in_turn)] for place in range(count)]


class ShapesPrompts:
    """The prompts about coloured shapes, drawn at random, the tasks in turn."""

    def __init__(self) -> None:
        from ..shapes import prompts

        self._source = prompts
        self.tasks: tuple[str, ...] = prompts.TASKS
        self.digest = digest_of([prompts.train_prompts(), prompts.heldout_prompts()])

    def everything(self) -> tuple[list[Entry], list[Entry]]:
        """Every prompt to train on, and every held-out one."""
        return list(self._source.train_prompts()), list(self._source.heldout_prompts())

    def training(self, iteration: int, count: int, seed: int) -> list[Entry]:
        """A separate draw for every iteration.

        Args:
            iteration: its number, from 0.
            count: how many prompts.
            seed: of the run.
        """
        return self._source.draw(self._source.train_prompts(), count, random.Random(f"{seed}/{iteration}"))

    def heldout(self, count: int, seed: int) -> list[Entry]:
        """A draw that depends only on the seed.

        Args:
            count: how many prompts.
            seed: decides which.
        """
        return self._source.draw(self._source.heldout_prompts(), count, random.Random(seed))


class PairedPrompts:
    """The prompts of one set to train on, and those of another to evaluate with, each drawn in its own way.

    Args:
        trained: to train on.
        judged: to evaluate with.
    """

    def __init__(self, trained: PromptSet, judged: PromptSet) -> None:
        self._trained, self._judged = trained, judged
        self.tasks: tuple[str, ...] = judged.tasks
        self.digest = digest_of([trained.digest, judged.digest])
        self.training = trained.training
        self.heldout = judged.heldout

    def everything(self) -> tuple[list[Entry], list[Entry]]:
        """Every prompt to train on, and every held-out one."""
        return self._trained.everything()[0], self._judged.everything()[1]


def get_prompts(prompts: str, eval_prompts: str | None = None, column: str = "prompt") -> PromptSet:
    """The prompt set of a name or a source.

    Prompts that differ only in case, white space or the form of their characters are one prompt, which is either
    trained on or held out, with all its entries; so is a prompt with the same source images.

    Args:
        prompts: `shapes`, or a source of `read_prompts`.
        eval_prompts: another name or source, for evaluation; None: every tenth prompt, in a fixed shuffled order, is
            held out. Nothing keeps these from being in `prompts` too: see `warn_of_shared`.
        column: the field that is the prompt.

    Raises:
        ValueError: if a source cannot be read, or has too few prompts to hold one out.
    """
    return _prompt_set(prompts, eval_prompts, column, (_stamp(prompts), _stamp(eval_prompts)))


def _stamp(source: str | None) -> tuple[int, ...]:
    """What changes with the content of a file."""
    if source is None or not Path(source).is_file():
        return ()
    facts = Path(source).stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


@lru_cache(maxsize=4)
def _prompt_set(prompts: str, eval_prompts: str | None, column: str, stamps: tuple[tuple[int, ...], ...]) -> PromptSet:
    """A set is read once, until a file changes: `stamps` are only part of the key."""
    if prompts == SHAPES_PROMPTS and eval_prompts in (None, SHAPES_PROMPTS):
        return ShapesPrompts()
    entries = _entries("prompts", prompts, column, held_out=False)
    if eval_prompts is not None:
        heldout = _entries("eval_prompts", eval_prompts, column, held_out=True)
        listed = ListedPrompts(entries, heldout)
        if prompts == SHAPES_PROMPTS:
            return PairedPrompts(ShapesPrompts(), listed)
        return PairedPrompts(listed, ShapesPrompts()) if eval_prompts == SHAPES_PROMPTS else listed
    random.Random(0).shuffle(entries)
    names = dict.fromkeys(map(same_entry, entries))
    expected = "two or more different ones, so that one can be held out, or given with eval_prompts"
    require(len(names) >= 2, "get_prompts", "prompts", expected, f"{len(names)} in {prompts!r}")
    kept = set(list(names)[::HELD_OUT_EVERY])
    train, heldout = ([e for e in entries if (same_entry(e) in kept) is is_out] for is_out in (False, True))
    return ListedPrompts(train, heldout)


def _entries(name: str, source: str, column: str, held_out: bool) -> list[Entry]:
    """All prompts of a source; of the shapes, only one side of their split. `name` is the argument in errors."""
    if source == SHAPES_PROMPTS:
        return ShapesPrompts().everything()[held_out]
    if not source.startswith(HUGGING_FACE) and not Path(source).exists():
        unknown("get_prompts", name, source, [SHAPES_PROMPTS], ", an existing file, or hf:NAME")
    return read_prompts(source, column)


def warn_of_shared(train: Sequence[Entry], heldout: Sequence[Entry]) -> None:
    """Warns of prompts for evaluation that are also trained on, with their number.

    Args:
        train: prompts that are trained on.
        heldout: prompts for evaluation.
    """
    trained, judged = (set(map(same_entry, entries)) for entries in (train, heldout))
    if shared := len(trained & judged):
        warnings.warn(f"{shared} of {len(judged)} prompts for evaluation are also trained on", stacklevel=3)
