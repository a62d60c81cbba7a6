"""Tables of docs/models.md: how closely policies match their pipelines, and what fits. `python -m bench.families`.

The parity figures are those of the tiny pipelines of the tests; memory is measured without data, as `--dry-run` does.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from tempflow_fast.commands.cards import GB
from tempflow_fast.commands.cards import SIZES as CARDS
from tempflow_fast.grpo.measure import measure
from tempflow_fast.grpo.memory import GIB
from tempflow_fast.hub import INDEX
from tempflow_fast.policies.families import FAMILIES, Family
from tempflow_fast.policies.format import default_size
from tempflow_fast.policies.proof import prove
from tempflow_fast.policies.weightless import PUBLISHED as PUBLISHED_MODELS
from tempflow_fast.run.prepare import load_of, weightless_policy
from tempflow_fast.settings.families import ONE_GPU
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.usages import TRANSFORMER, USAGES

from .marked import filled

PAGE = Path("docs/models.md")
TALL = (64, 32)
PARITY, EDITING, PUBLISHED, FITS = "parity", "editing", "published", "fits"
SIZES = {"BriaPipeline": 1024, "CogView4Pipeline": 1024, "ZImagePipeline": 1024}
"""Of pipelines that ask their parts."""
RECIPES = (
    *("sd35m-pickscore", "sd35l-pickscore", "flux-pickscore", "qwen-image-pickscore"),
    *("flux2-klein-pickscore", "z-image-pickscore", "flux2-pickscore"),
)
LOADERS = {"pipeline": "`load_lora_weights`", "transformer": "`transformer.load_lora_adapter`", None: "ours alone"}


def parity() -> Iterator[tuple[str, ...]]:
    """A line for every family that is tested."""
    sys.path.insert(0, "tests")
    families: Any = import_module("support.families")
    yield "pipeline", "network's time", "guidance", "off", "3.5", "adapters load by", "graphs"
    for name, tiny in families.FROM_TEXT.items():
        with TemporaryDirectory() as directory:
            policy = families.tiny_policy(name, Path(directory), TALL)
        found = {check.what: check.found for check in prove(policy)}
        off, on = (found.get(f"latents {kind}") for kind in ("without guidance", "at guidance 3.5"))
        yield (
            f"`{policy.family.name}`",
            policy.calls.facts.time,
            _guidance(policy),
            *("" if figure is None else f"{figure:.1e}" for figure in (off, on)),
            LOADERS[tiny.loader],
            "yes" if tiny.is_captured else "no: the host waits",
        )


def editing() -> Iterator[tuple[str, ...]]:
    """A line for every family whose prompts may have source images."""
    sys.path.insert(0, "tests")
    families: Any = import_module("support.families")
    yield "pipeline", "source images of a prompt", "guidance", "off", "3.5"
    for name in families.ALL:
        with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            families.editing.shrink_sources(patch)
            policy = families.tiny_policy(name, Path(directory), TALL)
            fewest, most = policy.num_images
            if not most:
                continue
            found = {check.what: check.found for check in prove(policy)}
        figures = [found[f"latents with source images {kind}"] for kind in ("without guidance", "at guidance 3.5")]
        numbers = f"{fewest} to {most}" if fewest < most else str(most)
        yield f"`{policy.family.name}`", numbers, _guidance(policy), *(f"{figure:.1e}" for figure in figures)


def _guidance(policy: Any) -> str:
    away = "input of the network" if policy.calls.embeds_guidance else f"against {policy.family.negative!r}"
    return away + ("" if policy.family.combine is None else ", scaled")


def fits() -> Iterator[tuple[str, ...]]:
    """A line for every published model with a recipe."""
    sizes = [f"{size} GB" for size in CARDS]
    yield "recipe", "network", "encoders", "autoencoder", "pixels", "least", *sizes
    for name in RECIPES:
        config = get_recipe(name).with_settings(**ONE_GPU)
        policy = weightless_policy(config.policy)
        assert policy is not None
        parts = {part: sum(weight.numel() for weight in module.parameters()) for part, module in _parts(policy)}
        policy.take_for_cpu()
        memory, load = measure(policy, config.grpo, config.optimizer, config.policy), load_of(config, 1)
        network, autoencoder = parts.pop("transformer"), parts.pop("vae")
        counts = [f"{count / 1e9:.3g}" for count in (network, sum(parts.values()), autoencoder)]
        least = memory.total(load.with_rows(1, 1, 1))
        answers = [_answer(memory, load, size) for size in CARDS]
        yield f"`{name}`", *counts, str(config.policy.resolution), f"{least / GIB:.3g} GiB", *answers


def published() -> Iterator[tuple[str, ...]]:
    """A line for every family: how its models are used unless told otherwise, and the recipes that are measured."""
    yield "pipeline", "pixels", "frames", "steps", "guidance", "what fits"
    shipped: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for model, files in json.loads(PUBLISHED_MODELS.read_text()).items():
        shipped[files[INDEX]["_class_name"]].append(model)
    for family in FAMILIES.values():
        usages = [row for row in USAGES if row.pipeline == family.name]
        embeds = (row for row in usages if row.marks.get(TRANSFORMER) == {"guidance_embeds": True})
        usage = next(embeds, None) or next(row for row in usages if not row.marks)
        recipes = [f"`{name}`" for name in RECIPES if get_recipe(name).policy.model in shipped[family.name]]
        frames = inspect.signature(family.pipeline_class.__call__).parameters.get("num_frames")
        yield (
            f"`{family.name}`",
            _pixels(family),
            "" if frames is None else str(frames.default),
            str(usage.num_steps),
            f"{usage.guidance_scale:g}",
            ", ".join(recipes) or "not shipped",
        )


def _pixels(family: Family) -> str:
    """Height and width that the class itself decides, without any part."""
    kind, size = family.pipeline_class, SIZES.get(family.name)
    if size is None:
        needed = list(inspect.signature(kind.__init__).parameters.values())[1:]
        empty = kind(**{part.name: None for part in needed if part.default is inspect.Parameter.empty})
        size = default_size(empty, family)
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def _parts(policy: Any) -> list[tuple[str, torch.nn.Module]]:
    return list(policy.pipeline.components.items())


def _answer(memory: Any, load: Any, size: int) -> str:
    try:
        rows = memory.fitting(size * GB, load)
    except ValueError:
        return "no"
    return " / ".join(map(str, rows))


def table(lines: Iterator[tuple[str, ...]]) -> str:
    """The lines as markdown; the first is the header."""
    head, *rest = lines
    rows = [head, ("---",) * len(head), *rest]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(parts: list[str]) -> None:
    """Writes the tables that are named, or all."""
    for mark, lines in ((PARITY, parity), (EDITING, editing), (PUBLISHED, published), (FITS, fits)):
        if not parts or mark in parts:
            text = table(lines())
            PAGE.write_text(filled(PAGE.read_text(), mark, "python -m bench.families", text))


if __name__ == "__main__":
    main(sys.argv[1:])
