"""tempflow-fast eval."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .model import Model


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on held-out prompts, task by task."""

    source: Model = field(default_factory=Model)
    images: int | None = None
    """How many images to draw; None: as many as the run or the recipe does."""
    seed: int | None = None
    """Decides prompts and noise; None: as in the run or the recipe."""
    output: Path | None = None
    """A JSON file to write the table to, too."""

    def __call__(self) -> int:
        config = self.source.config(eval_images=self.images, eval_seed=self.seed)
        from ..evaluate import score
        from ..files import write_json
        from ..report import score_table

        evaluation = score(config, self.source.load(config))
        print(score_table(evaluation))
        if self.output:
            write_json(self.output, evaluation.table())
        return 0
