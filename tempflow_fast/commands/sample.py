"""tempflow-fast sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ..files import check_writable
from .model import Model


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draws images of prompts with the sampler that training used, and writes them as one PNG."""

    output: Path
    """The PNG to write."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]]
    """What to draw."""
    source: Model = field(default_factory=Model)
    count: int = 6
    """Images per prompt."""
    seed: int = 0
    """Decides the noise."""

    def __call__(self) -> int:
        if not self.prompt:
            raise ValueError("--prompt must be given, got none")
        if self.count < 1:
            raise ValueError(f"--count must be >= 1, got {self.count}")
        if blank := [prompt for prompt in self.prompt if not prompt.strip()]:
            raise ValueError(f"--prompt must say something, got {blank[0]!r}")
        config = self.source.config()
        check_writable(self.output)
        from ..evaluation.sample import sample_images
        from ..evaluation.sheets import contact_sheet

        policy, prompts = self.source.load(config), [prompt for prompt in self.prompt for _ in range(self.count)]
        table, grpo = config.grpo.table(policy), config.grpo
        images = sample_images(policy, prompts, table, self.seed, grpo.guidance_scale, grpo.max_batch)
        contact_sheet(self.output, images, prompts)
        print(f"wrote {self.output}: {len(images)} images")
        return 0
