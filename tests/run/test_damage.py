"""Every file of a run directory, damaged in every way: a start names what is bad and continues, or refuses.

The short form decides where the run would start; the long form (`RUN_DAMAGE=long`) runs the command for each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.damage import DAMAGES, copied, files_of
from support.runs import go, tiny_config, untimed

from tempflow_fast.checksums import write_checksums
from tempflow_fast.cli import main
from tempflow_fast.processes import Processes
from tempflow_fast.run.average import WeightAverage
from tempflow_fast.run.checkpoint import TrainingState, load_checkpoint
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.evaluations import RunEvaluations, basis_of
from tempflow_fast.run.numbered import latest_checkpoint
from tempflow_fast.run.optimizers import make_optimizer
from tempflow_fast.run.prepare import prepare_policy
from tempflow_fast.run.resume import begin

SETTINGS = {
    **{"prompts_per_iteration": 2, "eval_images": 2, "num_iterations": 2, "checkpoint_every": 1, "num_checkpoints": 2},
    "eval_every": 1,
}
CONFIG = tiny_config(**SETTINGS)
LONG = os.environ.get("RUN_DAMAGE") == "long"
LAST, FIRST = "checkpoints/000002", "checkpoints/000001"
CHECKPOINT = ["average.safetensors", "checksums.sha256", "optimizer.safetensors", "random.safetensors"]
CHECKPOINT += ["state.json", "weights.safetensors"]
EVALUATION = ["basis.json", "checksums.sha256", "samples.png", "scores.json", "scores.safetensors"]
TOP = ["config.json", "digests.json", "eval_after.json", "eval_before.json", "latest.json", "metrics.jsonl"]
TOP += ["reward.png", "samples.png", "scores.png", "signs.png", "starts.jsonl"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two iterations, with a checkpoint and an evaluation after each."""
    return go(tmp_path_factory.mktemp("damage") / "run", CONFIG)[0].path


@pytest.fixture
def run(made, tmp_path) -> RunDirectory:
    return RunDirectory(copied(made, tmp_path / "run"))


def test_the_matrix_has_every_file(made):
    listed = [f"{LAST}/{name}" for name in CHECKPOINT] + [f"{FIRST}/{name}" for name in CHECKPOINT]
    listed += [f"evaluations/00000{number}/{name}" for number in range(3) for name in EVALUATION] + TOP
    assert [name for name in files_of(made) if not name.startswith(("model/", ".lock-"))] == sorted(listed)
    assert "model/checksums.sha256" in files_of(made)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_named_and_an_earlier_one_taken(run, name, kind):
    DAMAGES[kind](run.path / LAST / name)
    start = begin(run, CONFIG, Processes())
    assert start.checkpoint == run.path / FIRST
    (remark,) = start.remarks
    assert remark.startswith(f"{run.path / LAST} is damaged: {name} ")
    with pytest.raises(ValueError, match=rf"undamaged with --resume latest, got .*{LAST}: {name} "):
        begin(run, CONFIG, Processes(), fall_back=False)
    DAMAGES[kind](run.path / FIRST / name)
    kept = files_of(run.path)
    with pytest.raises(ValueError, match=rf"at least one that is undamaged, got .*{LAST}: .*{FIRST}: {name} "):
        begin(run, CONFIG, Processes())
    assert files_of(run.path) == kept


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", EVALUATION)
def test_a_damaged_evaluation_is_made_again(run, name, kind):
    said: list[str] = []
    basis = basis_of(CONFIG, begin(run, CONFIG, Processes()).origin)
    weights = json.loads((run.evaluations / "000002" / "basis.json").read_text())["weights"]
    evaluations = RunEvaluations(run.evaluations, basis, 2, said.append)
    assert evaluations.find(2, weights) is not None
    DAMAGES[kind](run.evaluations / "000002" / name)
    assert evaluations.find(2, weights) is None
    assert len(said) == 1
    assert f"in {run.evaluations / '000002'}, {name} " in said[0]
    assert list(evaluations.up_to(2)) == [0, 1]


def is_refused(name: str, kind: str) -> bool:
    """What must be readable, and what would be in the way of the run's own files."""
    if name == "config.json":
        return kind not in ("missing", "unreadable")  # a link to nothing is replaced like a file that is missing
    return kind == "directory" or (kind == "unreadable" and name.endswith(".jsonl"))


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", TOP)
def test_other_damage_is_mended_or_refused_by_name(run, name, kind):
    """Only the settings and the logs are read. A directory in place of a file would otherwise fail at the very end."""
    before = run.read_metrics()
    DAMAGES[kind](run.path / name)
    if is_refused(name, kind):
        with pytest.raises((ValueError, OSError), match=re.escape(name)):
            begin(run, run.read_config(), Processes())
        return
    start = begin(run, run.read_config(), Processes())
    assert start.checkpoint == run.path / LAST
    if name != "metrics.jsonl":
        assert run.read_metrics() == before
    else:
        assert any("metrics.jsonl" in remark for remark in start.remarks)
    last = (run.path / "starts.jsonl").read_bytes().splitlines()[-1]
    assert json.loads(last)["iteration"] == 2


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "missing"])
@pytest.mark.parametrize("name", ["model_index.json", "transformer/diffusion_pytorch_model.safetensors"])
def test_a_damaged_model_is_not_used(run, name, kind):
    DAMAGES[kind](run.model / name)
    with pytest.raises(ValueError, match=f"model must be as it was written, got {name} "):
        run.tuned()


def test_lost_checkpoints_are_not_taken_for_a_new_run(run):
    before = (run.path / "metrics.jsonl").read_bytes()
    for path in (run.path / LAST, run.path / FIRST):
        path.rename(run.path / f"moved-{path.name}")
    with pytest.raises(ValueError, match="checkpoints must be the checkpoints that the run has written, got nothing"):
        begin(run, CONFIG, Processes())
    assert (run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "value"), [("seed", 5), ("reward", "jpeg_compressibility"), ("eval_seed", 1)])
def test_an_edited_config_is_compared_with_the_checkpoint(run, name, value):
    """The file is where `train` takes its defaults from, so it cannot be what they are compared with."""
    run.write_config(CONFIG.with_settings(**{name: value}))
    with pytest.raises(ValueError, match=rf"{name}: .* -> {value}: choose another --output"):
        begin(run, run.read_config(), Processes())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", {"state": {}, "groups": [], "sizes": []}, "must be a checkpoint of this run, got "),
        ("random", None, "must be a checkpoint of this run, got "),
        ("average", None, "state must be one without a moving average"),
    ],
)
def test_a_checkpoint_that_is_undamaged_and_foreign_is_one_error(run, key, value, message):
    """Checksums say that a file is as it was written, not that it belongs to this run."""
    path = run.path / LAST
    facts = json.loads((path / "state.json").read_text())
    for name, text in (("state.json", json.dumps({**facts, key: value})), ("checksums.sha256", "")):
        (path / name).unlink()
        (path / name).write_text(text)
    (path / "checksums.sha256").unlink()
    write_checksums(path)
    assert latest_checkpoint(run.checkpoints) == path
    policy = prepare_policy(CONFIG.policy)
    optimizer = make_optimizer(policy.parameters(), CONFIG.optimizer)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path, TrainingState(policy, optimizer, WeightAverage(policy, optimizer, 0.9, 1)))


@pytest.mark.slow
def test_a_run_falls_back_and_ends_as_one_that_was_never_damaged(run, tmp_path):
    config = tiny_config(**{**SETTINGS, "num_iterations": 3})
    whole = RunDirectory(copied(run.path, tmp_path / "whole"))
    go(whole.path, config)
    (run.checkpoints / "000002-hf").mkdir()
    (run.checkpoints / "000002-hf" / "state.json").write_text("{}")
    DAMAGES["flipped"](run.path / LAST / "optimizer.safetensors")
    said = go(run.path, config)[1]
    assert any("000002 is damaged: optimizer.safetensors does not match its checksum" in sentence for sentence in said)
    assert untimed(run) == untimed(whole)
    ours, theirs = (load_file(latest_checkpoint(r.checkpoints) / "weights.safetensors") for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000002", "000002-hf", "000003"]


@pytest.mark.skipif(not LONG, reason="the long form, about half an hour: RUN_DAMAGE=long")
@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damage_ends_the_command_with_anything_but_one_sentence(made, tmp_path, capsys, kind):
    counts = {0: 0, 2: 0}
    for number, name in enumerate(files_of(made)):
        path = copied(made, tmp_path / str(number))
        DAMAGES[kind](path / name)
        status = main(["train", "--output", str(path), "--iterations", "3"])
        error = capsys.readouterr().err.splitlines()[-1]
        counts[status] += 1
        if status == 2:
            assert error.startswith("tempflow-fast train: ")
            assert Path(name).name in error
        else:
            assert [row["iteration"] for row in RunDirectory(path).read_metrics()][-1] == 3
        shutil.rmtree(path)
    with capsys.disabled():
        print(kind, counts)
