"""A model that no recipe names: how it is used follows from its files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tempflow_fast.settings.families import USAGES, own_settings, usage_of
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import TrainConfig, differences

SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"
OWN = {"prompts_per_iteration", "micro_batch", "max_batch", "gradient_checkpointing", "offload_text_encoders", "model"}
OWN |= {"eval_prompts", "accuracy", "eval_images", "resolution", "max_text_length", "guidance_scale", "eval_steps"}


def model(directory: Path, pipeline: str, **transformer: Any) -> str:
    (directory / "transformer").mkdir(parents=True)
    (directory / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (directory / "transformer" / "config.json").write_text(json.dumps(transformer))
    return str(directory)


@pytest.mark.parametrize(
    ("pipeline", "transformer", "steps", "guidance"),
    [
        (SD3, {"num_layers": 24}, 28, 7.0),
        (SD3, {"num_layers": 24, "qk_norm": "rms_norm"}, 40, 4.5),
        (SD3, {"num_layers": 38, "qk_norm": "rms_norm"}, 28, 3.5),
        (FLUX, {"guidance_embeds": True}, 50, 3.5),
        (FLUX, {"guidance_embeds": False}, 4, 1.0),
        ("QwenImagePipeline", {}, 50, 4.0),
        ("SomebodysPipeline", {}, 28, 1.0),
    ],
)
def test_steps_and_guidance_are_those_of_the_publishers(tmp_path, pipeline, transformer, steps, guidance):
    recipe, settings = own_settings(model(tmp_path / "m", pipeline, **transformer))
    base = TrainConfig() if recipe is None else get_recipe(recipe)
    assert (settings.evaluation.eval_steps, settings.grpo.guidance_scale) == (steps, guidance)
    assert settings.grpo.num_steps == min(steps, base.grpo.num_steps)
    assert (settings.policy.precision, settings.policy.lora_rank is None) == ("bf16", False)
    assert (settings.task.accuracy, settings.task.eval_prompts) == (None, None)
    if recipe is not None and steps > 10:
        assert set(differences(base, settings)) <= OWN


def test_a_row_without_a_source_of_its_own_is_the_default_of_the_pipeline():
    import diffusers

    arguments = inspect.signature(getattr(diffusers, SD3).__call__).parameters
    (row,) = [row for row in USAGES if row.pipeline == SD3 and not row.marks]
    assert row.num_steps == arguments["num_inference_steps"].default
    assert row.guidance_scale == arguments["guidance_scale"].default


def test_a_model_without_a_transformer_directory_is_of_its_class(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": SD3}))
    assert usage_of(str(tmp_path)).guidance_scale == 7.0


def test_a_model_that_is_not_there_is_named(tmp_path):
    for name in (tmp_path, "no/such/place", "./nothing", "word"):
        with pytest.raises(ValueError, match=r"a directory with a model_index\.json, or a hub name, got"):
            usage_of(str(name))
