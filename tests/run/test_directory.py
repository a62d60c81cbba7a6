"""What a run directory keeps."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tempflow_fast.evaluation.result import Evaluation, Noise
from tempflow_fast.run.directory import RunDirectory


def test_evaluation_survives_the_disk(tmp_path):
    metadata = [{"tag": "a", "prompt": "é"}, {"tag": "b", "prompt": "y", "include": [{"count": 2}]}]
    images = torch.randint(0, 256, (2, 3, 4, 4)) / 255
    for right in ({"accuracy": torch.tensor([1.0, 0.0]).double()}, {}):
        measures = {**right, "reward": torch.tensor([0.1, 0.2]).double()}
        one = Evaluation(("a", "b"), metadata, measures, images, Noise(3, (4, 2, 2)))
        path = tmp_path / f"{len(right)}.safetensors"
        one.save(path)
        other = Evaluation.load(path)
        assert other.table() == one.table()
        assert (other.tasks, other.metadata, other.noise) == (one.tasks, one.metadata, one.noise)
        assert torch.equal(other.images, one.images)
        assert list(other.measures) == list(one.measures), "in their order"
        assert ("accuracy" in one.table()["overall"]) == bool(right)


def test_metrics_are_cut_by_iteration(tmp_path):
    """Whatever was lost or written twice before, what is left are the iterations up to the checkpoint, in order."""
    run = RunDirectory(tmp_path)
    for iteration in (1, 2, 3, 4, 2, 5, 7, 8):
        run.append_metrics({"iteration": iteration, "reward_mean": math.nan})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "rew')  # killed in the middle of a line
    assert run.keep_metrics(4) == ""
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert run.keep_metrics(6) == "metrics.jsonl lacks 2 of 6 iterations"
    run.append_metrics({"iteration": 5})
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]


def test_damaged_metrics_are_kept_elsewhere(tmp_path):
    run, path = RunDirectory(tmp_path), tmp_path / "metrics.jsonl"
    for place, text in enumerate(('{"iteration": 1}\n{"iter\n{"iteration": 3}\n', "\0\n", "[1]\n")):
        path.write_text(text)
        assert run.keep_metrics(3).startswith("metrics.jsonl had 1 damaged lines")
        assert [row["iteration"] for row in run.read_metrics()] == [[1, 3], [], []][place]
    kept = {found.name for found in tmp_path.iterdir()}
    assert kept == {"metrics.jsonl", *(f"metrics.damaged{end}.jsonl" for end in ("", "-2", "-3"))}


def test_a_line_is_appended_whole_after_one_that_was_cut(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_start({"iteration": 0})
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"iteration"')
    run.append_start({"iteration": 5})
    assert [json.loads(line)["iteration"] for line in (tmp_path / "starts.jsonl").read_text().splitlines()] == [0, 5]


def test_leftovers_of_a_killed_start_do_not_take_a_directory_and_files_of_the_user_stay(tmp_path):
    """Killed between making and renaming the first file; and what only looks like a leftover is not touched."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".part-config.json").write_text("{")
    run.check_free()
    for name in ("checkpoints", "evaluations"):
        (run.path / name / ".part-000004").mkdir(parents=True)
        (run.path / name / ".part-removed-000004").mkdir()
        (run.path / name / ".part-thesis").mkdir()
    (run.path / ".part-thesis.pdf").touch()
    run.sweep()
    left = sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*"))
    assert left == [
        ".part-thesis.pdf", *["checkpoints", "checkpoints/.part-thesis"], *["evaluations", "evaluations/.part-thesis"]
    ]  # fmt: skip


def test_a_directory_that_has_vanished_is_not_made_anew(tmp_path):
    run = RunDirectory(tmp_path / "run")
    policy = None  # is not reached
    for write in (
        lambda: run.write_tuned(policy, adapter=False),
        lambda: run.append_metrics({"iteration": 1}),
        lambda: run.note_checkpoint(1),
    ):
        with pytest.raises(FileNotFoundError, match="run"):
            write()
    assert not run.path.exists()


@pytest.mark.parametrize(("name", "is_directory"), [("eval_after.json", True), ("signs.png", True), ("model", False)])
def test_what_is_in_the_way_is_refused_before_the_run(tmp_path, name, is_directory):
    path = tmp_path / name
    path.mkdir() if is_directory else path.touch()
    kind = "a directory" if is_directory else "a file"
    with pytest.raises(ValueError, match=rf"{name} must be .* or absent, got {kind}: move it away"):
        RunDirectory(tmp_path).check_kinds()
