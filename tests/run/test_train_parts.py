"""The parts of the training loop by themselves: average, learning rate, precision, trackers, files, settings."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from support.runs import untimed
from support.tiny import TinyPolicy
from torch import nn

from tempflow_fast.evaluation.result import Evaluation, Noise
from tempflow_fast.files import remove, written_aside
from tempflow_fast.run.average import WeightAverage
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.optimizers import learning_rate, make_optimizer
from tempflow_fast.run.prepare import compute_in
from tempflow_fast.run.progress import Budget, ProgressBar
from tempflow_fast.run.trackers import Trackers
from tempflow_fast.settings.recipes import RECIPES, get_recipe
from tempflow_fast.settings.run import OptimizerConfig, TrainConfig, differences


def test_average_follows_the_updates_of_the_optimizer():
    """Against the definition, with the decay rising as (1 + n) / (10 + n) from the second step on."""
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    average = WeightAverage(policy, optimizer, decay=0.25, every=2)
    weight = policy.parameters()[0]
    expected, num_steps, seen = weight.detach().clone(), 0, []
    for update in range(1, 11):
        for parameter in policy.parameters():
            parameter.grad = torch.full_like(parameter, float(update))
        optimizer.step()
        if update % 2 == 0:
            num_steps += 1
            decay = min(0.25, num_steps / (9 + num_steps)) if num_steps > 1 else 0.0
            seen.append(decay)
            expected = decay * expected + (1 - decay) * weight.detach()
    assert seen[0] == 0.0
    assert seen[-1] == 0.25, "the rise is over"
    trained = weight.detach().clone()
    with average.applied():
        assert torch.allclose(weight, expected, atol=1e-6)
        assert not torch.allclose(weight, trained)
    assert torch.equal(weight, trained)
    assert average.counts() == {"num_updates": 10, "num_steps": 5}


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(learning_rate=1.0, warmup_iterations=3, learning_rate_decay=0.4)
    rates = [learning_rate(config, index, index / 10) for index in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert learning_rate(OptimizerConfig(learning_rate=1.0), 10**6, 0.0) == 1.0


def test_settings_reach_the_optimizer():
    config = OptimizerConfig(learning_rate=0.3, betas=(0.8, 0.9), weight_decay=0.2, adam_eps=1e-5)
    group = make_optimizer(TinyPolicy().parameters(), config).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.3, (0.8, 0.9), 0.2, 1e-5)


def test_eight_bits_without_their_library_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="make_optimizer: adamw_8bit needs the library: pip install bitsandbytes"):
        make_optimizer(TinyPolicy().parameters(), OptimizerConfig(optimizer="adamw_8bit"))


def test_autocast_keeps_the_weights_and_sees_their_updates():
    network = nn.Linear(8, 8)
    compute_in(network, torch.bfloat16)
    rows = torch.randn(2, 8)
    first = network(rows)
    assert first.dtype == torch.bfloat16
    assert network.weight.dtype == torch.float32
    first.float().sum().backward()
    assert network.weight.grad.dtype == torch.float32
    with torch.no_grad():
        network.weight.add_(1.0)
    assert not torch.equal(network(rows), first), "a cast of the old weights was kept"
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5))
    assert not torch.is_autocast_enabled("cpu"), "a call that fails leaves autocast on"


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trackers = Trackers(None, tmp_path)
    trackers.start(get_recipe("shapes").flat())
    trackers.log({"train/reward_mean": 0.5}, 1)
    trackers.log({"train/reward_mean": 0.75, "train/loss": -1.0}, 2)
    trackers.log_images("eval/images", torch.rand(2, 3, 8, 8), 2)
    trackers.finish()
    (directory,) = {path.parent for path in tmp_path.glob("*/events*")}
    events = event_accumulator.EventAccumulator(str(directory))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/reward_mean")] == [(1, 0.5), (2, 0.75)]
    assert any(tag.startswith("eval/images") for tag in events.Tags()["images"])


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match="trackers must be installed, got 'wandb', which is not: pip install wandb"):
        Trackers(("wandb",), tmp_path)


def test_the_bar_shows_how_a_run_goes(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    budget, bar = Budget(num_iterations=4, minutes=None), ProgressBar()
    metrics = {"log_ratio_rms": 4.3e-4, "clip_fraction": 0.25, "seconds_rollout": 1.4, "seconds_train": 0.6}
    for num_done, reward in ((1, 0.5), (2, 0.7)):
        with budget.running():
            clock[0] += 60.0
        budget.num_done = num_done
        bar.show(budget, {**metrics, "reward_mean": reward, "seconds_encode": 1e-3})
    bar.close()
    last = capsys.readouterr().err.rsplit("training", 1)[1]
    for words in (" 50% ", "iteration 2", "02:00<02:00", "reward 0.520", "ratio spread 4.3e-04", "clipped 0.25"):
        assert words in last
    assert last.rstrip().endswith("2 s: rollout 1.4, train 0.6")


def test_no_tracker_no_file(tmp_path):
    trackers = Trackers((), tmp_path)
    trackers.start({})
    trackers.log({"a": 1.0}, 1)
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_whole(tmp_path, monkeypatch):
    synchronized, real, target = set(), os.fsync, tmp_path / "checkpoint"

    def noting(descriptor: int) -> None:
        synchronized.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    for text in ("old", "new"):
        with written_aside(target) as aside:
            aside.mkdir()
            (aside / "weights").write_text(text)
            assert not target.exists() or (target / "weights").read_text() == "old", "untouched until the end"
    assert (target / "weights").read_text() == "new"
    assert synchronized == {"weights", ".part-checkpoint", tmp_path.name}
    with pytest.raises(FileExistsError), written_aside(target) as aside:
        (aside.mkdir(), aside.mkdir())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "weights").read_text() == "new"
    remove(target)
    assert list(tmp_path.iterdir()) == []


def test_evaluation_survives_the_disk(tmp_path):
    metadata = [{"tag": "a", "prompt": "é"}, {"tag": "b", "prompt": "y", "include": [{"count": 2}]}]
    images = torch.randint(0, 256, (2, 3, 4, 4)) / 255
    for right in ({"accuracy": torch.tensor([1.0, 0.0]).double()}, {}):
        measures = {**right, "reward": torch.tensor([0.1, 0.2]).double()}
        one = Evaluation(("a", "b"), metadata, measures, images, Noise(3, (4, 2, 2)))
        run = RunDirectory(tmp_path / str(len(right)))
        assert run.evaluation(7) is None
        run.write_evaluation(7, one)
        other = run.evaluation(7)
        assert other.table() == one.table()
        assert (other.tasks, other.metadata, other.noise) == (one.tasks, one.metadata, one.noise)
        assert torch.equal(other.images, one.images)
        assert list(other.measures) == list(one.measures), "in their order"
        assert ("accuracy" in one.table()["overall"]) == bool(right)


def test_metrics_are_cut_where_the_checkpoint_is(tmp_path):
    run = RunDirectory(tmp_path)
    for iteration in range(1, 5):
        run.append_metrics({"iteration": iteration})
    (tmp_path / "metrics.jsonl").open("a").write('{"iteration": 5, "rew')  # killed in the middle of a line
    run.keep_metrics(3)
    assert untimed(run) == [{"iteration": 1}, {"iteration": 2}, {"iteration": 3}]


@pytest.mark.parametrize("name", RECIPES)
def test_settings_survive_json_and_differ_by_name(name):
    config = get_recipe(name)
    assert TrainConfig.from_json(config.to_json()) == config
    other = config.with_settings(seed=3, clip_range=0.5, betas=(0.1, 0.2))
    assert differences(config, other).keys() == {"seed", "clip_range", "betas"}
    names = [setting for group in json.loads(config.to_json()).values() for setting in group]
    assert len(names) == len(set(names)), "a name that two groups have could not be set on the command line"
    with pytest.raises(ValueError, match=r"got 'clip_rang' \(did you mean clip_range"):
        config.with_settings(clip_rang=1)
    with pytest.raises(ValueError, match="JSON of a config"):
        TrainConfig.from_json('{"grpo": {"nope": 1}}')


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"betas": (0.9, 1.0)},
        {"ema_decay": 1.0},
        {"learning_rate_decay": 1.5},
        {"eval_images": 0},
        {"lora_rank": 0},
        {"minutes": 0},
        {"num_checkpoints": 0},
        {"seed": 2**31},
        {"memory_limit": 0},
    ],
)
def test_settings_out_of_range_are_named(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f": {name} must be "):
        get_recipe("shapes").with_settings(**settings)
