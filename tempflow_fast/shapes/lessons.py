"""What the text encoders learn to predict: an object's attributes at its words, and the whole prompt at its end.

From scratch, flow matching takes thousands of steps to learn to use the text, and longer to learn which words belong
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tempflow_fast.geneval import NUMBERS, OPPOSITE, RELATIONS, plural
from tempflow_fast.shapes.architecture import TEXT_LENGTH, TEXT_WIDTH
from tempflow_fast.shapes.world import COLORS, SHAPES

KINDS = {word: kind for kind in SHAPES for word in (kind, plural(kind))}
NUM_COUNTS, NUM_COLORS, NUM_RELATIONS = 1 + max(NUMBERS), 1 + len(COLORS), 1 + len(RELATIONS)
WORD_CLASSES = (len(SHAPES), NUM_COLORS, NUM_COUNTS, NUM_RELATIONS)
PROMPT_CLASSES = (NUM_COUNTS,) * len(SHAPES) + (NUM_COLORS,) * len(SHAPES) + (NUM_RELATIONS, 1 + len(SHAPES))
UNKNOWN = -100
"""The label that `cross_entropy` ignores."""


class Lessons(nn.Module):
    """Linear classifiers of the token vectors and the pooled vector; the encoders learn from their loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.word_readers = nn.ModuleList(nn.Linear(2 * TEXT_WIDTH, size) for size in WORD_CLASSES)
        self.prompt_readers = nn.ModuleList(nn.Linear(2 * TEXT_WIDTH, size) for size in PROMPT_CLASSES)

    def forward(self, tokens: Tensor, pooled: Tensor, words: Tensor, prompts: Tensor) -> Tensor:
        """Sum of the cross-entropies of all classifiers.

        Args:
            tokens: token vectors [R, TEXT_LENGTH, 2 TEXT_WIDTH].
            pooled: pooled vectors [R, 2 TEXT_WIDTH].
            words: labels [R, TEXT_LENGTH, len(WORD_CLASSES)] from `describe_words`.
            prompts: labels [R, len(PROMPT_CLASSES)] from `describe_prompt`.
        """
        read = [reader(tokens).flatten(0, 1) for reader in self.word_readers]
        losses = [*map(cross_entropy, read, words.flatten(0, 1).T)]
        losses += map(cross_entropy, [reader(pooled) for reader in self.prompt_readers], prompts.T)
        return torch.stack(losses).sum()


def describe_words(entry: Mapping) -> Tensor:
    """Class labels of every token: its object's kind, colour, count and relation to the other object.

    Nouns and the words of a relation have labels, since there a causal encoder can know them. "left" describes the
    object before it; the noun after it is "right of" that object. All other tokens are `UNKNOWN`.

    Args:
        entry: a prompt's metadata.

    Returns:
        Integers [TEXT_LENGTH, len(WORD_CLASSES)].
    """
    labels = torch.full((TEXT_LENGTH, len(WORD_CLASSES)), UNKNOWN)
    named = {wanted["class"]: wanted for wanted in entry["include"]}
    subject, relation = _relation(entry["include"])
    spoken: list[str] = []
    for place, word in enumerate(entry["prompt"].split(), start=1):
        if kind := KINDS.get(word):
            labels[place] = _labels(named[kind], OPPOSITE[relation] if relation and spoken else None)
            spoken.append(kind)
        elif subject and relation and spoken and word in relation.split():
            labels[place] = _labels(subject, relation)
    return labels


def describe_prompt(entry: Mapping) -> Tensor:
    """Class labels [len(PROMPT_CLASSES)] of a prompt: each shape's count and colour, the relation and its subject."""
    named = {wanted["class"]: wanted for wanted in entry["include"]}
    subject, relation = _relation(entry["include"])
    counts = [named[kind]["count"] if kind in named else 0 for kind in SHAPES]
    colors = [_index(COLORS, named.get(kind, {}).get("color")) for kind in SHAPES]
    return torch.tensor(
        [*counts, *colors, _index(RELATIONS, relation), _index(SHAPES, subject["class"] if subject else None)]
    )


def _relation(include: Sequence[Mapping]) -> tuple[Mapping | None, str | None]:
    """The object that has a relation to another, and the relation; None without one."""
    subject = next((wanted for wanted in include if "position" in wanted), None)
    return subject, subject["position"][0] if subject else None


def _labels(wanted: Mapping, relation: str | None) -> Tensor:
    """Class labels [len(WORD_CLASSES)] of one object."""
    color, placed = _index(COLORS, wanted.get("color")), _index(RELATIONS, relation)
    return torch.tensor([SHAPES.index(wanted["class"]), color, wanted["count"], placed])


def _index(names: Sequence[str] | Mapping, name: str | None) -> int:
    """1 for the first name, 0 for None."""
    return 0 if name is None else 1 + list(names).index(name)
