"""A file is complete or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tempflow_fast.files import remove, written_aside


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
