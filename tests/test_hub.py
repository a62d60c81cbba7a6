"""Where the Hugging Face hub cannot be reached, one says so at once, and what is in its cache still loads."""

from __future__ import annotations

import json
import time

import pytest
from huggingface_hub import constants

from tempflow_fast.cli import main
from tempflow_fast.hub import without_retries
from tempflow_fast.policies.model_files import read_index
from tempflow_fast.prompts.sources import read_prompts
from tempflow_fast.rewards import get_reward

MODEL = "somebody/some-model"
SECONDS = 15.0
"""Imports of a reward take 5 on a busy machine, the libraries' own retries of one file 23."""


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """A hub at a port where nothing listens, and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)


def cached(tmp_path, file: str, content: object) -> None:
    place = tmp_path / "cache" / "models--somebody--some-model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    (place / "snapshots" / "abc" / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("load", "words"),
    [
        (lambda: read_index("f", MODEL), ["f: model must be", "no directory here and not in the hub's cache"]),
        (lambda: get_reward({"clip": {"model": MODEL}}), ["clip"]),
        (lambda: read_prompts(f"hf:{MODEL}"), ["read_prompts: source"]),
    ],
    ids=["model", "reward", "data set"],
)
def test_an_unreachable_hub_is_named_at_once(load, words):
    pytest.importorskip("datasets")
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"the Hugging Face hub(, which)? cannot be reached") as error:
        load()
    assert time.monotonic() - began < SECONDS
    assert [word for word in words if word not in str(error.value)] == []
    assert constants.HF_HUB_OFFLINE is False


def test_the_command_line_names_the_hub_and_not_a_missing_file(capsys):
    assert main(["sample", "--model", MODEL, "--prompt", "x", "--output", "x.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "which cannot be reached" in line
    assert repr(MODEL) in line


def test_a_cached_file_needs_no_hub(tmp_path):
    cached(tmp_path, "model_index.json", {"_class_name": "FluxPipeline"})
    assert read_index("f", MODEL) == {"_class_name": "FluxPipeline"}


def test_a_local_path_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("asked"))
    with without_retries(str(tmp_path), None, "") as reason:
        assert reason is None
