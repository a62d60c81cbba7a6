"""A file is complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.limits import file_size_limit

from tempflow_fast.files import append_line, read_json, read_lines, remove, written_aside


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


def test_an_error_of_a_library_for_a_full_disk_names_the_file(tmp_path):
    """safetensors has one error of its own, which is no OSError and names no file."""
    target = tmp_path / "weights.safetensors"
    refused = pytest.raises(OSError, match=r"File too large: '.*/weights\.safetensors'")
    with file_size_limit(1000), refused, written_aside(target) as aside:
        save_file({"w": torch.zeros(1000)}, aside)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"", b'{"a": 1}\n', b'{"a": 1}\n{"b', b"x" * 200_000, b'{"a": 1}\n' + b"x" * 200_000])
def test_a_line_follows_the_last_complete_one(tmp_path, left):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(left)
    append_line(path, {"c": 2})
    assert read_lines(path) == [*([{"a": 1}] if b"\n" in left else []), {"c": 2}]


def test_lines_and_files_that_are_no_json(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b'{"a": 1}\nnot json\n\xff\n' + b"[" * 100_000 + b"\n3\ncut")
    assert read_lines(path) == [{"a": 1}, None, None, None, 3]
    for content in (b"{", b"\xff", b"[" * 100_000, b"9" * 5000, b'{"a": {"b": 1, "b": 2}}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"read_json: .*data must be a readable JSON file, got other content"):
            read_json(path)
    with pytest.raises(ValueError, match="got No such file or directory"):
        read_json(tmp_path / "missing")
    assert read_lines(tmp_path / "missing") == []


def test_of_a_link_only_the_link_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "link").symlink_to("mine")
    with written_aside(tmp_path / "link") as aside:
        aside.mkdir()
    assert (tmp_path / "mine" / "file").exists()
    assert not (tmp_path / "link").is_symlink()
