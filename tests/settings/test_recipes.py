"""The recipes of the large models, end to end on tiny random models of the same classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.jsonl import write_jsonl
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline

from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.prepare import prepare_policy, tuned_policy
from tempflow_fast.run.train import train
from tempflow_fast.settings.recipes import PUBLIC, get_recipe
from tempflow_fast.shapes.prompts import heldout_prompts, train_prompts

BUILDERS = {"sd35m-geneval": sd3_pipeline, "flux-pickscore": flux_pipeline, "qwen-image-pickscore": qwen_image_pipeline}
LENGTHS = {"sd35m-geneval": 12, "flux-pickscore": 12, "qwen-image-pickscore": None}
SMALLER = {
    **{"resolution": 16, "prompts_per_iteration": 2, "num_seeds": 2, "num_branches": 2, "eval_images": 2},
    **{"branch_steps": (0, 3), "num_iterations": 1, "trackers": (), "device": "cpu"},
    **{"reward": "support.tiny:brightness", "accuracy": None},
}


def sources(directory: Path) -> dict[str, str]:
    write_jsonl(directory / "train.jsonl", train_prompts())
    write_jsonl(directory / "test.jsonl", heldout_prompts())
    return {"prompts": str(directory / "train.jsonl"), "eval_prompts": str(directory / "test.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_recipe_trains_evaluates_and_leaves_an_adapter(tmp_path, name):
    BUILDERS[name](tmp_path).save_pretrained(tmp_path / "model")
    changes = {**SMALLER, **sources(tmp_path), "model": str(tmp_path / "model"), "max_text_length": LENGTHS[name]}
    config = get_recipe(name).with_settings(**changes)
    run, said = RunDirectory(tmp_path / "run"), []
    policy = prepare_policy(config.policy)
    train(config, policy, run, report=said.append)
    (metrics,) = run.read_metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    assert metrics["log_ratio_rms"] < 1.0
    before, after = (json.loads((run.path / f"eval_{word}.json").read_text()) for word in ("before", "after"))
    assert before["overall"]["num_images"] == 2
    assert "accuracy" not in before["overall"]
    assert before.keys() == after.keys()
    assert [sentence.split(":")[0] for sentence in said] == ["before training", "after training"]
    assert (run.lora / "pytorch_lora_weights.safetensors").is_file()
    assert not run.model.exists(), "only the adapter is written"
    num_trained = sum(parameter.numel() for parameter in policy.parameters())
    assert sum(parameter.numel() for parameter in tuned_policy(config.policy, run).parameters()) == num_trained


@pytest.mark.parametrize("name", PUBLIC)
def test_the_fast_form_starts_with_a_third_of_the_evaluations(name):
    whole, fast = get_recipe(name), get_recipe(f"{name}-fast")
    changed = {setting for setting, value in fast.flat().items() if value != whole.flat()[setting]}
    assert changed == {"branch_steps", "tail_steps", "gate_every", "gate_bound"}
    assert fast.grpo.branch_steps == (1, 2, 3, 4)
    evaluations = [Geometry(config.grpo, 48).rollout_rows / 192 for config in (whole, fast)]
    assert evaluations == [279, 5 + 6 * (4 + 4 + 3 + 3)]
