"""Weights of rewards come from safetensors files alone; a pickle is named, with the command that converts it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT

from tempflow_fast.rewards import get_reward
from tempflow_fast.rewards.aesthetic import HEAD
from tempflow_fast.rewards.hpsv2 import WEIGHTS
from tempflow_fast.rewards.imagereward import WEIGHTS as BLIP_WEIGHTS
from tempflow_fast.rewards.weights import read_weights

FILES = {"hpsv2": ("weights", WEIGHTS), "imagereward": ("weights", BLIP_WEIGHTS), "aesthetic": ("head", HEAD)}
"""Reward -> its setting, and the file that it reads without one."""
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Trap:
    """As a pickle, it makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def command(message: str) -> list[str]:
    """The command at the end of an error."""
    return shlex.split(message.partition("of weights that you trust: ")[2])


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    assert words[:3] == ["python", "-m", "tempflow_fast.convert"]
    return subprocess.run([sys.executable, *words[1:]], text=True, capture_output=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_is_named_and_its_code_does_not_run(tmp_path, name, suffix):
    file = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": Trap(tmp_path / "mark")}, file)
    with pytest.raises(ValueError, match=rf"source must be a safetensors file, got '{file}', a pickle") as caught:
        get_reward({name: {FILES[name][0]: str(file)}})
    assert command(str(caught.value))[3:] == [str(file), str(tmp_path / "weights.safetensors")]
    assert not (tmp_path / "mark").exists()


def test_the_command_in_the_message_makes_the_file(tmp_path):
    file = tmp_path / "it's.pt"
    torch.save({"epoch": 3, "state_dict": {**TENSORS, "tied": TENSORS["a"]}}, file)
    with pytest.raises(ValueError, match="a pickle") as caught:
        read_weights(str(file))
    done = run(command(str(caught.value)))
    assert (done.returncode, done.stderr) == (0, "")
    found = read_weights(str(tmp_path / "it's.safetensors"))
    assert found.keys() == {"a", "b", "tied"}
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in TENSORS.items())


@pytest.mark.parametrize("content", ["code", "a number", "a text"])
def test_the_command_runs_no_code_and_refuses_what_holds_no_tensors(tmp_path, content):
    file, output = tmp_path / "weights.pt", tmp_path / "weights.safetensors"
    if content == "a text":
        file.write_text("weights")
    else:
        torch.save({"state_dict": Trap(tmp_path / "mark") if content == "code" else 5}, file)
    done = run(["python", "-m", "tempflow_fast.convert", str(file), str(output)])
    assert done.returncode == 2
    assert re.fullmatch(rf"convert: source must be a file of .*'{file}'.*\n", done.stderr)
    assert not output.exists()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", FILES)
def test_without_the_converted_file_the_message_has_the_command(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"source must be an existing safetensors file, or owner/name:f") as caught:
        get_reward({name: {"batch_size": 3}})
    source, output = command(str(caught.value))[3:]
    assert re.fullmatch(r"[\w-]+/[\w-]+:[\w.-]+\.pth?", source)
    assert output == FILES[name][1]


def test_a_pickle_on_the_hub_is_not_downloaded(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("a pickle was downloaded"))
    with pytest.raises(ValueError, match=r"got 'owner/name:folder/weights.pt'; to make one .* weights.safetensors"):
        read_weights("owner/name:folder/weights.pt")


@pytest.mark.parametrize(
    ("content", "kind"), [(b"text", "a text"), (b"", "which is empty"), (b"version https://git-lfs", "a Git LFS")]
)
def test_a_file_that_holds_no_weights_is_named(tmp_path, content, kind):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(
        ValueError, match=f"read_weights: source must be a safetensors file, got .*a.safetensors', {kind}"
    ):
        read_weights(str(tmp_path / "a.safetensors"))


def test_a_safetensors_file_is_read_by_any_name(tmp_path):
    save_file(TENSORS, tmp_path / "weights")
    found = read_weights(str(tmp_path / "weights"))
    expected = load_file(tmp_path / "weights")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
