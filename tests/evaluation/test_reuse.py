"""An evaluation directory resumes only what it is of, and draws again what is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support.damage import DAMAGES
from support.servers import FaultyServer, running
from support.tiny import brightness

from tempflow_fast.cli import main
from tempflow_fast.evaluation import sample
from tempflow_fast.evaluation.directory import EvaluationDirectory
from tempflow_fast.evaluation.evaluate import heldout
from tempflow_fast.evaluation.result import Noise
from tempflow_fast.rewards.registry import _load
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.shapes import pipeline_path

PROMPTS = [{"prompt": f"p{row}", "tag": "all"} for row in range(50)]
OPTIONS = ["--images", "3", "--max-batch", "3", "--steps", "1", "--rewards", "jpeg_incompressibility"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return Path(shutil.copytree(pipeline_path(), tmp_path_factory.mktemp("model") / "copy"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, model) -> Path:
    (model.parent / "bright.py").write_text(
        "def score(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n"
    )
    directory = tmp_path_factory.mktemp("evaluation") / "made"
    assert main(command(model, directory)) == 0
    return directory


def command(model: Path, directory: Path) -> list[str]:
    return [
        "eval",
        "--recipe",
        "shapes",
        "--model",
        str(model),
        "--directory",
        str(directory),
        "--rewards",
        "jpeg_incompressibility",
        *OPTIONS,
    ]


@pytest.fixture
def done(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "done"))


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """The rows that are drawn."""
    rows: list[int] = []
    real = sample.sample_images
    monkeypatch.setattr("tempflow_fast.evaluation.evaluate.sample_images", lambda *a: rows.extend(a[6]) or real(*a))
    return rows


def test_scores_of_a_model_that_has_changed_are_refused(model, done, drawn, capsys):
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    assert main(command(model, done)) == 0
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert main(command(model, done)) == 2
    finally:
        weights.write_bytes(content)
    assert "EvaluationDirectory.begin: model_digest must be " in capsys.readouterr().err
    assert drawn == []
    assert main(command(model, done)) == 0


def test_rows_without_an_image_or_with_another_score_are_drawn_again(model, made, done, drawn):
    lines = (done / "scores.jsonl").read_text().splitlines()
    row = json.loads(lines[2])
    row["scores"] = {name: value + 1 for name, value in row["scores"].items()}
    (done / "scores.jsonl").write_text("\n".join([lines[0], lines[1], json.dumps(row), "[]", "{", ""]))
    (done / "images" / "000001.png").unlink()
    (done / "images" / "000002.123.part").touch()
    assert main(command(model, done)) == 0
    assert drawn == [1, 2]
    assert EvaluationDirectory(done).scores() == EvaluationDirectory(made).scores()
    assert sorted(path.name for path in (done / "images").iterdir()) == [f"00000{row}.png" for row in range(3)]


@pytest.fixture
def scored(tmp_path) -> Path:
    """The directory of an evaluation with 50 rows that kept the first images only."""
    store = EvaluationDirectory(tmp_path / "scored")
    store.begin({"rewards": "x"}, ("all",), PROMPTS)
    store.keep_images(range(50), torch.rand(50, 3, 4, 4))
    store.keep_scores({row: {"x": 0.5} for row in range(50)})
    return store.path


def test_where_all_images_are_wanted_rows_without_one_are_drawn_again(scored):
    assert EvaluationDirectory(scored).is_complete()
    store = EvaluationDirectory(scored, all_images=True)
    store.begin({"rewards": "x"}, ("all",), PROMPTS)
    assert not store.is_complete()
    assert list(store.scores()) == list(range(48))
    store.keep_images([48, 49], torch.rand(2, 3, 4, 4))
    assert store.is_complete()
    assert store.scores() == EvaluationDirectory(scored).scores()


def test_scores_without_images_are_not_replaced_by_another_evaluation(scored):
    shutil.rmtree(scored / "images")
    with pytest.raises(ValueError, match="rewards must be x as in"):
        EvaluationDirectory(scored, all_images=True).begin({"rewards": "y"}, ("all",), PROMPTS)


def test_scores_of_another_evaluation_do_not_count(made, done):
    prompts, metadata = heldout(get_recipe("shapes").with_settings(eval_images=3))
    other = EvaluationDirectory(done.parent / "other")
    other.begin({"rewards": "x"}, prompts.tasks, metadata)
    other.note_noise(Noise(0, (1, 2)))
    shutil.copytree(made / "images", other.images)
    shutil.copy(made / "scores.jsonl", other.path)
    assert other.scores() == {}
    with pytest.raises(ValueError, match="directory of a finished evaluation"):
        other.evaluation()


@pytest.mark.parametrize("row", ["../../../secret", -1, 1e9, None, {"a": 1}, True])
def test_a_line_that_names_another_place_is_none(done, row):
    with (done / "scores.jsonl").open("a") as file:
        file.write(json.dumps({"row": row, "scores": {"jpeg_incompressibility": 1.0}, "digest": "0" * 16}) + "\n")
    assert list(EvaluationDirectory(done).scores()) == [0, 1, 2]


FILES = ["digests.json", "evaluation.json", "images/000001.png", "report.md", "rewards.png", "samples.png"]
FILES += ["scores.json", "scores.jsonl"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_mended_or_one_error(model, done, name, kind, capsys):
    DAMAGES[kind](done / name)
    status = main(command(model, done))
    assert status in (0, 2)
    if status == 2:
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert name in error or kind == "missing"
    else:
        assert len(EvaluationDirectory(done).scores()) == 3


def test_a_directory_that_vanished_is_not_made_anew(done):
    store = EvaluationDirectory(done)
    os.rename(done, done.with_name("moved"))
    with pytest.raises((OSError, ValueError), match="done"):
        store.keep_scores({0: {"x": 1.0}})
    assert not done.exists()


@pytest.mark.slow
def test_a_server_that_has_come_to_serve_another_reward_is_refused(tmp_path, capsys):
    with running(FaultyServer(reward=brightness)) as server:
        remote = json.dumps({"remote": {"urls": server.url, "request_timeout": 5}})
        same = ["eval", "--directory", str(tmp_path / "a"), *OPTIONS[:-1], remote]
        assert main(same) == 0
    assert main(same) == 0, "nothing is left to score"
    scores = tmp_path / "a" / "scores.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[1:]))
    _load.cache_clear()  # as in another process
    with running(FaultyServer(reward=bright, port=server.server_address[1])):
        assert main(same) == 2
    assert "served must be remote: brightness=1 " in capsys.readouterr().err


def bright(images, prompts, metadata):
    return images.mean((1, 2, 3))
