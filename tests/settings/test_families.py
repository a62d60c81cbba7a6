"""A model that no recipe names: how it is used follows from its files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tempflow_fast.settings.families import own_settings, usage_of
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import TrainConfig, differences
from tempflow_fast.settings.usages import USAGES

SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
OWN = {"prompts_per_iteration", "micro_batch", "max_batch", "gradient_checkpointing", "offload_text_encoders", "model"}
OWN |= {"eval_prompts", "accuracy", "eval_images", "resolution", "max_text_length", "guidance_scale", "eval_steps"}


def model(directory: Path, pipeline: str, shift: float = 1.0, is_distilled: bool = False, **transformer: Any) -> str:
    index = {"_class_name": pipeline, "is_distilled": is_distilled}
    files = {"model_index": index, "transformer/config": transformer, "scheduler/scheduler_config": {"shift": shift}}
    for name, entries in files.items():
        file = directory / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries))
    return str(directory)


@pytest.mark.parametrize(
    ("pipeline", "entries", "steps", "guidance"),
    [
        (SD3, {"num_layers": 24}, 28, 7.0),
        (SD3, {"num_layers": 24, "qk_norm": "rms_norm"}, 40, 4.5),
        (SD3, {"num_layers": 38, "qk_norm": "rms_norm"}, 28, 3.5),
        (FLUX, {"guidance_embeds": True}, 50, 3.5),
        (FLUX, {"guidance_embeds": False}, 4, 1.0),
        ("QwenImagePipeline", {}, 50, 4.0),
        ("Flux2KleinPipeline", {"is_distilled": True}, 4, 1.0),
        ("Flux2KleinPipeline", {}, 50, 4.0),
        ("ZImagePipeline", {"shift": 3.0}, 9, 1.0),
        ("ZImagePipeline", {"shift": 6.0}, 50, 6.0),
        ("ChromaPipeline", {}, 35, 5.0),
        ("SomebodysPipeline", {}, 28, 1.0),
    ],
)
def test_steps_and_guidance_are_those_of_the_publishers(tmp_path, pipeline, entries, steps, guidance):
    recipe, settings = own_settings(model(tmp_path / "m", pipeline, **entries))
    base = TrainConfig() if recipe is None else get_recipe(recipe)
    assert (settings.evaluation.eval_steps, settings.grpo.guidance_scale) == (steps, guidance)
    assert settings.grpo.num_steps == min(steps, base.grpo.num_steps)
    assert (settings.policy.precision, settings.policy.lora_rank is None) == ("bf16", False)
    assert (settings.task.accuracy, settings.task.eval_prompts) == (None, None)
    if recipe is not None and steps > 10:
        assert set(differences(base, settings)) <= OWN


@pytest.mark.parametrize("row", [row for row in USAGES if not row.marks], ids=lambda row: row.pipeline)
def test_a_row_for_a_whole_class_has_the_defaults_of_its_pipeline(row):
    import diffusers

    from tempflow_fast.policies import FAMILIES

    family = FAMILIES[row.pipeline]
    arguments = inspect.signature(getattr(diffusers, row.pipeline).__call__).parameters
    assert row.num_steps == arguments["num_inference_steps"].default
    assert row.guidance_scale == arguments[family.guidance or "guidance_scale"].default + 1 - family.above


def test_every_family_has_a_usage():
    from tempflow_fast.policies import FAMILIES

    assert {row.pipeline for row in USAGES} == set(FAMILIES)


def test_a_model_without_a_transformer_directory_is_of_its_class(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": SD3}))
    assert usage_of(str(tmp_path)).guidance_scale == 7.0


def test_a_model_that_is_not_there_is_named(tmp_path):
    for name in (tmp_path, "no/such/place", "./nothing", "word"):
        with pytest.raises(ValueError, match=r"a directory with a model_index\.json, or a hub name, got"):
            usage_of(str(name))
