"""What a run directory keeps."""

from __future__ import annotations

import torch
from support.runs import untimed

from tempflow_fast.evaluation.result import Evaluation, Noise
from tempflow_fast.run.directory import RunDirectory


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
