"""A run that is interrupted and resumed matches one that is not: bit for bit on the CPU, also after kill -9."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.runs import go, tiny_config, untimed, wait_for

from tempflow_fast.files import LOCK
from tempflow_fast.rewards import RewardError
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint
from tempflow_fast.run.prepare import prepare_policy, tuned_policy
from tempflow_fast.settings.recipes import get_recipe

pytestmark = pytest.mark.slow


def state(run: RunDirectory) -> dict[str, torch.Tensor]:
    """Every tensor that a run saves: weights, average, optimizer, random states, the tuned model."""
    files = [*latest_checkpoint(run.checkpoints).rglob("*.safetensors"), *run.model.rglob("*.safetensors")]
    files += [*run.lora.rglob("*.safetensors"), *run.evaluations.rglob("*.safetensors")]
    return {
        f"{file.relative_to(run.path)}:{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


def assert_same(one: RunDirectory, other: RunDirectory) -> None:
    assert untimed(one) == untimed(other)
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_twelve_iterations_are_five_a_kill_and_the_rest(tmp_path):
    config = tiny_config(num_iterations=12, eval_every=4)
    whole, _ = go(tmp_path / "whole", config)
    assert any("average" in name for name in state(whole))
    cut = RunDirectory(tmp_path / "cut")
    cut.path.mkdir()
    cut.write_config(config)  # the command takes these settings: a run that died before its first checkpoint
    command = [sys.executable, "-m", "tempflow_fast", "train", "--output", str(cut.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            # After the checkpoint, so that work is lost and done again.
            wait_for(lambda: (cut.checkpoints / "000005").is_dir() and len(cut.read_metrics()) > 5, process)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(cut.read_metrics()) < 12, "killed too late to show anything"
    (cut.path / ".part-model").mkdir()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert_same(whole, cut)
    starts = [json.loads(line)["iteration"] for line in (cut.path / "starts.jsonl").read_text().splitlines()]
    assert starts[0] == 0
    assert starts[1] in (5, 10)
    assert not (cut.path / ".part-model").exists(), "what the dead process was writing is removed"


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_rank": 2, "learning_rate": 1e-3},
        {"lora_rank": 2, "precision": "bf16", "gradient_checkpointing": True, "ema_decay": None},
        {"precision": "bf16", "ema_decay": None},
        {"optimizer": "adamw_8bit", "ema_decay": None},
    ],
    ids=["lora", "lora in bf16", "full in bf16", "8 bit"],
)
def test_two_starts_match_one(tmp_path, settings):
    if settings.get("optimizer") == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    settings = {"eval_every": 2, **settings}  # the first start also evaluates where it ends
    whole, _ = go(tmp_path / "whole", tiny_config(**settings))
    go(tmp_path / "cut", tiny_config(**settings, num_iterations=2))
    cut, said = go(tmp_path / "cut", tiny_config(**settings))
    assert_same(whole, cut)
    expected = f"resuming from {cut.checkpoints / '000002'}, with changed settings: num_iterations: 2 -> 4"
    assert expected in said


def test_adapter_and_average_are_what_diffusers_loads(tmp_path):
    """A checkpoint has the adapter in training, the run has its average; diffusers loads both."""
    config = tiny_config(lora_rank=2, ema_every=1, num_iterations=3, learning_rate=1e-2, warmup_iterations=0)
    run, _ = go(tmp_path / "run", config)
    assert not run.model.exists()
    checkpoint = latest_checkpoint(run.checkpoints)
    for adapter, own in ((checkpoint / "lora", "weights"), (run.lora, "average")):
        ours = prepare_policy(config.policy)
        names = dict(ours.network.named_parameters())
        with torch.no_grad():
            for name, tensor in load_file(checkpoint / f"{own}.safetensors").items():
                names[name].copy_(tensor)
        theirs = prepare_policy(get_recipe("shapes").policy)
        theirs.pipeline.load_lora_weights(str(adapter))
        plain = prepare_policy(get_recipe("shapes").policy)
        latents, condition = torch.randn(2, *ours.latent_shape), ours.encode(["a photo of a cross"] * 2)
        with torch.no_grad():
            expected, got, untrained = (policy.velocity(latents, 0.7, condition)[0] for policy in (ours, theirs, plain))
        assert torch.allclose(expected, got, atol=1e-6)
        assert not torch.allclose(expected, untrained, atol=1e-4), "the adapter does nothing"
    tuned = tuned_policy(config.policy, run)
    assert torch.allclose(tuned.velocity(latents, 0.7, condition)[0], expected, atol=1e-6)


def contents(run: RunDirectory) -> dict[str, bytes]:
    """Every file but the lock, which counts the starts."""
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(LOCK)]
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in files}


def test_changed_settings_are_named(tmp_path):
    run, _ = go(tmp_path / "run", tiny_config(num_iterations=1))
    left = contents(run)
    for fixed in ({"seed": 1}, {"lora_rank": 2}, {"ema_decay": None}, {"eval_images": 4}):
        name, value = next(iter(fixed.items()))
        with pytest.raises(ValueError, match=rf"{name}: .* -> {value}: choose another --output"):
            go(run.path, tiny_config(**fixed))
    assert left == contents(run), "nothing was touched"
    _, said = go(run.path, tiny_config(num_iterations=2, learning_rate=1e-5))
    rate = tiny_config().optimizer.learning_rate
    changed = {"num_iterations": [1, 2], "learning_rate": [rate, 1e-5]}
    start = json.loads((run.path / "starts.jsonl").read_text().splitlines()[-1])
    assert (start["iteration"], start["changed"]) == (1, changed)
    assert any(f"num_iterations: 1 -> 2, learning_rate: {rate} -> 1e-05" in sentence for sentence in said)
    assert run.read_config().optimizer.learning_rate == 1e-5


def test_changed_settings_of_the_optimizer_hold_after_a_resume(tmp_path):
    """A checkpoint has the settings that the optimizer had; the run's are those that count."""
    begun, _ = go(tmp_path / "begun", tiny_config(num_iterations=1, ema_decay=None))

    def resumed(name, **settings):
        copy = shutil.copytree(begun.path, tmp_path / name)
        run, _ = go(copy, tiny_config(num_iterations=2, ema_decay=None, **settings))
        return state(run)

    same = resumed("same")
    for name, value in {"weight_decay": 100.0, "betas": (0.0, 0.1), "adam_eps": 1.0}.items():
        other = resumed(name, **{name: value})
        assert any(not torch.equal(same[each], weights) for each, weights in other.items()), name


def test_checkpoints_rotate_and_incomplete_ones_are_ignored(tmp_path):
    run, _ = go(tmp_path / "run", tiny_config(num_iterations=5, checkpoint_every=2, num_checkpoints=2))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000004", "000005"]
    (run.checkpoints / "000009").mkdir()
    (run.checkpoints / ".part-000010").mkdir()
    assert latest_checkpoint(run.checkpoints).name == "000005"
    before = run.read_metrics()
    _, said = go(run.path, tiny_config(num_iterations=5, checkpoint_every=2, num_checkpoints=2))
    assert run.read_metrics() == before, "a finished run stays as it is"
    assert said[-1].startswith("after training: ")


DRAWING = """
import random, numpy, torch
fails_at, calls = None, []
def reward(images, prompts, metadata):
    calls.append(len(images))
    drawn = torch.rand(len(images)) + torch.tensor([random.random() + numpy.random.rand() for _ in images])
    if fails_at is not None and len(calls) >= fails_at:
        raise OSError("the judge is gone")
    return drawn
"""


def test_a_reward_that_draws_random_numbers_resumes_its_sequence(tmp_path, monkeypatch):
    (tmp_path / "drawing_judge.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"reward": "drawing_judge:reward", "num_branches": 3, "eval_images": 1, "eval_every": 1}
    whole, _ = go(tmp_path / "whole", tiny_config(**settings, num_iterations=2))
    go(tmp_path / "cut", tiny_config(**settings, num_iterations=1))
    cut, _ = go(tmp_path / "cut", tiny_config(**settings, num_iterations=2))
    unwatched, _ = go(tmp_path / "unwatched", tiny_config(**settings | {"eval_every": None}, num_iterations=2))
    rewards = [[row["reward_mean"] for row in run.read_metrics()] for run in (whole, cut, unwatched)]
    assert rewards[0] == rewards[1] == rewards[2]
    assert rewards[0][0] != rewards[0][1]


@pytest.mark.filterwarnings("ignore:reward .* failed on")
def test_an_iteration_that_failed_draws_the_same_numbers_when_it_is_repeated(tmp_path, monkeypatch):
    (tmp_path / "failing_judge.py").write_text(DRAWING)
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny_config(reward="failing_judge:reward", num_branches=3, eval_images=1, num_iterations=2)
    whole, _ = go(tmp_path / "whole", config)
    judge = importlib.import_module("failing_judge")
    judge.fails_at = len(judge.calls) + 3  # after one evaluation and one iteration
    with pytest.raises(RewardError, match="the judge is gone"):
        go(tmp_path / "cut", config)
    judge.fails_at = None
    cut, _ = go(tmp_path / "cut", config)
    assert [row["iteration"] for row in cut.read_metrics()] == [1, 2]
    assert untimed(cut) == untimed(whole)


FAILING = """
import time, torch
calls = []
def {failure}(images, prompts, metadata):
    calls.append(len(images))
    scores = images.mean((1, 2, 3))
    if len(calls) > 3:  # one evaluation, two iterations
        {line}
    return scores
"""
FAILURES = {
    "exception": ('raise OSError("the judge is gone")', "sample 0 .*OSError: the judge is gone"),
    "nan": ("scores[7] = torch.nan", "sample 7 .*must be finite .* got nan"),
    "length": ("scores = scores[1:]", r"sample 0 .*scores must be \[12\], one per image, got \[11\]"),
    "hang": ("time.sleep(20)", "sample 0 .*no result within 0.5 s"),
}
"""Failure -> the line that causes it, and what the error says; there are 12 images (3 prompts, 2 steps, 2 branches)."""


@pytest.mark.filterwarnings("ignore:reward .* failed on")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_reward_leaves_the_weights_so_far(tmp_path, monkeypatch, failure):
    line, reason = FAILURES[failure]
    (tmp_path / f"judge_{failure}.py").write_text(FAILING.format(failure=failure, line=line))
    monkeypatch.syspath_prepend(tmp_path)
    spec, run = {"mine": {"reward": f"judge_{failure}:{failure}", "timeout": 0.5}}, RunDirectory(tmp_path / "run")
    cheap = {"num_steps": 3, "sigmas": None, "beta": 0.0, "ema_decay": None}
    with pytest.raises(RewardError, match=rf'reward "mine" failed on {reason}'):
        go(run.path, tiny_config(reward=json.dumps(spec), **cheap))
    assert latest_checkpoint(run.checkpoints).name == "000002"
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2]
    assert run.model.is_dir()
