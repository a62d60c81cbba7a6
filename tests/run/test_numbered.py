"""Checkpoints by their numbers: which are there, and which is the newest whole one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tempflow_fast.checksums import write_checksums
from tempflow_fast.run.numbered import all_numbered, checkpoint_config, find_checkpoint, latest_checkpoint
from tempflow_fast.settings.run import TrainConfig


def checkpoint(directory: Path, name: str, num_iterations: int | None = None) -> Path:
    path = directory / name
    path.mkdir(parents=True)
    number = int(name) if num_iterations is None else num_iterations
    facts = {"num_iterations": number, "config": json.loads(TrainConfig().to_json())}
    (path / "state.json").write_text(json.dumps(facts))
    (path / "weights.safetensors").write_bytes(b"w" * 99)
    write_checksums(path)
    return path


def test_numbers_are_numbers(tmp_path):
    """1000000 is more than 999999, though not as a text."""
    for name in ("000007", "999999", "1000000"):
        checkpoint(tmp_path, name)
    assert list(all_numbered(tmp_path)) == [7, 999999, 1000000]
    assert latest_checkpoint(tmp_path).name == "1000000"


def test_neighbours_are_none_of_the_runs(tmp_path):
    mine = checkpoint(tmp_path, "000002")
    for name in ("000002-hf", "2", "0000003", "000004.bak", "notes", "٣٣٣٣٣٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "000005").touch()
    assert all_numbered(tmp_path) == {2: mine}
    assert find_checkpoint(tmp_path).damaged == {}
    assert all_numbered(tmp_path / "missing") == {}


def test_the_newest_whole_one_is_found_and_the_others_are_named(tmp_path):
    first, second, third, fourth = (checkpoint(tmp_path, f"00000{number}") for number in range(1, 5))
    (fourth / "weights.safetensors").unlink()
    (third / "weights.safetensors").write_bytes(b"w" * 98 + b"v")
    found = find_checkpoint(tmp_path)
    assert found.newest == second
    assert list(found.damaged.items()) == [
        (fourth, "weights.safetensors is missing"),
        (third, "weights.safetensors does not match its checksum"),
    ]
    assert checkpoint_config(second) == TrainConfig()
    assert first.is_dir()


@pytest.mark.parametrize(
    ("number", "reason"), [(3, "state.json is of iteration 3"), ("4", "must be the facts of a checkpoint")]
)
def test_a_checkpoint_under_another_name_does_not_count(tmp_path, number, reason):
    path = checkpoint(tmp_path, "000004", number)
    found = find_checkpoint(tmp_path)
    assert found.newest is None
    assert reason in found.damaged[path]
