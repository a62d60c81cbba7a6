"""What the trackers receive."""

from __future__ import annotations

import pytest
import torch

from tempflow_fast.run.trackers import Trackers
from tempflow_fast.settings.recipes import get_recipe


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
    with pytest.raises(ValueError, match="names must be trackers that are installed, got 'wandb': pip install wandb"):
        Trackers(("wandb",), tmp_path)


def test_no_tracker_no_file(tmp_path):
    trackers = Trackers((), tmp_path)
    trackers.start({})
    trackers.log({"a": 1.0}, 1)
    trackers.finish()
    assert list(tmp_path.iterdir()) == []
