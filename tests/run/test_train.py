"""Short runs of the default recipe: the run directory, reproducibility, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.runs import OPTIONS, PATIENCE, little_run, untimed, wait_for

from tempflow_fast.evaluation.evaluate import score
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.load import load_policy
from tempflow_fast.run.numbered import latest_checkpoint

pytestmark = pytest.mark.slow

SCORED = {"eval_after.json", "samples.png", "scores.png"}
WHOLE = {"config.json", "starts.jsonl", "metrics.jsonl", "eval_before.json", "evaluations", "reward.png", "signs.png"}
WHOLE |= {"checkpoints", "model", "latest.json", "digests.json", ".lock-1"} | SCORED


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    return little_run(tmp_path_factory.mktemp("train") / "run")


def test_run_directory_is_whole(run):
    assert {path.name for path in run.path.iterdir()} == WHOLE
    metrics = run.read_metrics()
    assert [row["iteration"] for row in metrics] == [1, 2]
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    # 6 trajectories; branches of step 0 live for 5 steps, those of step 1 for 4; the trunk for 2
    assert metrics[0]["num_row_evaluations"] == 6 * (2 + 4 * 5 + 4 * 4)
    for picture in (run.curve, run.signs, run.sheet):
        with Image.open(picture) as image:
            assert min(image.size) > 300


def test_training_changes_the_weights_alone(run):
    before, after = (load_policy(model).pipeline for model in ("embedded", str(run.model)))
    for part in ("vae", "text_encoder", "transformer"):
        old, new = (torch.cat([p.flatten() for p in getattr(pipe, part).parameters()]) for pipe in (before, after))
        assert torch.equal(old, new) == (part != "transformer"), part


def test_saved_weights_score_as_the_run_did(run):
    config = run.read_config()
    table = score(config, load_policy(str(run.model))).table()
    assert table == json.loads((run.path / "eval_after.json").read_text())
    assert table["overall"]["num_images"] == 12


def test_evaluation_takes_the_average_weights_and_its_own_steps(tmp_path):
    settings = {"ema_decay": 0.9, "ema_every": 1, "learning_rate": 1e-2, "eval_steps": 3, "eval_every": 1}
    run = little_run(tmp_path / "run", **settings)
    for number in (0, 1, 2):
        assert (run.evaluations / f"{number:06d}" / "samples.png").is_file()
    config, last, trained = run.read_config(), run.evaluation(2), load_policy("embedded")
    average = load_policy(str(run.model))
    weights = load_file(latest_checkpoint(run.checkpoints) / "weights.safetensors")
    assert not trained.network.load_state_dict(weights, strict=False).unexpected_keys

    def images(policy, **other):
        return score(config.with_settings(**other), policy).images

    assert (images(average) - last.images).abs().max() < 0.51 / 255, "kept in 8 bits"
    assert (images(trained) - last.images).abs().max() > 0.05
    assert (images(average, eval_steps=4) - last.images).abs().max() > 0.05
    calls = []
    average.network.register_forward_pre_hook(lambda *_: calls.append(1))
    images(average, max_batch=None)
    assert len(calls) == 3


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_seed_decides_the_metrics(run, tmp_path, seed, same):
    again = little_run(tmp_path / "again", seed=seed)
    assert (untimed(again) == untimed(run)) == same
    # Evaluation does not depend on the seed of training.
    assert (again.path / "eval_before.json").read_text() == (run.path / "eval_before.json").read_text()


def test_training_raises_what_it_is_rewarded_for(tmp_path):
    """Eight iterations towards red images: easier than the task, and unmistakable."""
    settings = {"num_iterations": 8, "reward": "support.tiny:brightness", "learning_rate": 1e-3, "num_branches": 6}
    settings |= {"learning_rate_decay": 0.0, "adam_eps": 1e-8}
    rewards = [row["reward_mean"] for row in little_run(tmp_path / "red", **settings).read_metrics()]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05


@pytest.mark.parametrize("num_signals", [1, 2])
def test_ctrl_c_leaves_a_usable_directory(tmp_path, num_signals):
    run, errors = RunDirectory(tmp_path / "run"), tmp_path / "errors"
    command = [sys.executable, "-m", "tempflow_fast", "train", "--minutes", "60", "--output", str(run.path), *OPTIONS]
    with errors.open("w") as stderr, subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(run.read_metrics, process)
            process.send_signal(signal.SIGINT)
            if num_signals == 2:
                wait_for(lambda: "stopping" in errors.read_text(), process)
                process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 130, errors.read_text()
        finally:
            process.kill()
    assert "Traceback" not in errors.read_text()
    left = {path.name for path in run.path.iterdir()}
    # The second signal may come after the last checkpoint is written and the curve is drawn, or before.
    perhaps = {"reward.png", "signs.png", "checkpoints", "latest.json"} | SCORED if num_signals == 2 else set()
    assert left - perhaps == WHOLE - perhaps
    assert num_signals == 1 or "eval_after.json" not in left
    assert load_policy(str(run.model)).latent_shape == (12, 6, 6)
