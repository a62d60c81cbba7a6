"""tempflow-fast sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from ..files import check_writable
from .model import Model
from .options import require_option, require_suffix


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draws images for prompts with the settings of training, and writes them as one PNG."""

    output: Path
    """PNG file to write."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]]
    """Prompt to draw; may be given several times."""
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Source image of every prompt, for a model that edits images; may be given several times."""
    source: Model = field(default_factory=Model)
    count: int = 6
    """Number of images per prompt."""
    seed: int = 0
    """Seed of the noise."""

    def __call__(self) -> int:
        require_option(bool(self.prompt), "prompt", "given", "none")
        require_option(self.count >= 1, "count", ">= 1", self.count)
        for prompt in self.prompt:
            require_option(bool(prompt.strip()), "prompt", "a text that is not blank", repr(prompt))
        require_suffix("output", self.output, ".png")
        require_option(0 <= self.seed < 2**63, "seed", "in 0..2^63-1", self.seed)
        config = self.source.config()
        check_writable(self.output)
        import torch

        from ..batching import equal_pieces
        from ..evaluation.result import stills
        from ..evaluation.sample import sample_images
        from ..evaluation.sheets import contact_sheet
        from ..policies.base import images_of
        from ..run.load import find_model
        from ..source_images import IMAGE, check_file

        for path in self.image:
            check_file("sample", "image", path)
        prompts = [prompt for prompt in self.prompt for _ in range(self.count)]
        entries = [{IMAGE: list(self.image)} for _ in prompts]
        images_of("sample", find_model(config.policy.model, config.policy.policy)[1], entries)
        policy = self.source.load(config)
        table, grpo = config.grpo.table(policy), config.grpo
        sheet = []
        for piece in equal_pieces(len(prompts), grpo.max_batch):  # one after the other: videos are large
            given, rows, size = entries[piece], range(len(prompts))[piece], grpo.decode_batch
            made = sample_images(policy, prompts[piece], table, self.seed, grpo.guidance_scale, None, rows, given, size)
            sheet.append(stills(made))
        contact_sheet(self.output, torch.cat(sheet), prompts)
        print(f"wrote {self.output}: {len(prompts)} images")
        return 0
