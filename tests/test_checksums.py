"""A directory knows when it is damaged; large files are read once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tempflow_fast.checksums import CHECKSUMS, SEAL, Digests, damage, digest_of, write_checksums


@pytest.fixture
def whole(tmp_path) -> Path:
    directory = tmp_path / "whole"
    (directory / "lora").mkdir(parents=True)
    (directory / "weights").write_bytes(bytes(range(256)))
    (directory / "lora" / "a b").write_text("x")
    write_checksums(directory)
    return directory


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "does not match its checksum"),
    "empty": (lambda path: os.truncate(path, 0), "does not match its checksum"),
    "flipped": (lambda path: flip(path, 0), "does not match its checksum"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    "loop": (lambda path: (path.unlink(), path.symlink_to(path)), "cannot be read (Too many levels of symbolic links)"),
}


def test_a_whole_directory_is_undamaged_also_for_sha256sum(whole):
    assert damage(whole) is None
    (whole / "note of the user").touch()
    assert damage(whole) is None
    if shutil.which("sha256sum"):
        assert subprocess.run(["sha256sum", "--check", CHECKSUMS], cwd=whole, capture_output=True).returncode == 0


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["weights", "lora/a b"])
def test_damage_is_named(whole, kind, name):
    change, reason = DAMAGES[kind]
    change(whole / name)
    assert damage(whole) == f"{name} {reason}"


def test_every_flipped_bit_and_every_cut_of_the_list_is_noticed(whole):
    path = whole / CHECKSUMS
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (1, 32, 128):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert damage(whole) is not None, f"bit {bit} of byte {place}"
        path.write_bytes(content[:place])
        assert damage(whole) is not None, f"cut to {place} bytes"
    path.unlink()
    assert damage(whole) == f"{CHECKSUMS} is missing (damaged, or of an older version)"


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "lora/../../secret"])
def test_a_list_cannot_point_out_of_its_directory(whole, name):
    import hashlib

    lines = f"{'0' * 64}  {name}\n"
    (whole / CHECKSUMS).write_text(f"{lines}{SEAL}{hashlib.sha256(lines.encode()).hexdigest()}\n")
    assert damage(whole) == f"{CHECKSUMS} lists a file outside the directory"


def test_files_are_read_once_until_they_change(tmp_path, monkeypatch):
    model, memory, read = tmp_path / "model", tmp_path / "digests.json", []
    model.mkdir()
    (model / "a.safetensors").write_text("weights")
    (model / "picture.png").write_text("no part of a model")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kinds: read.append(self.name) or real(self, *args, **kinds))
    digests = Digests(memory)
    first = digests.of(model)
    digests.save()
    assert read.count("a.safetensors") == 1
    assert Digests(memory).of(model) == first
    assert read.count("a.safetensors") == 1
    times = (model / "a.safetensors").stat()
    (model / "a.safetensors").write_text("WEIGHTS")  # as long, and as old
    os.utime(model / "a.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Digests(memory).of(model) != first
    memory.write_text("[broken")
    assert Digests(memory).of(model) != first
    with pytest.raises(ValueError, match="must be readable files"):
        digests.of(tmp_path / "missing")


def test_data_has_a_digest_whatever_the_order_of_its_keys():
    assert digest_of({"a": (1, 2), "b": None}) == digest_of({"b": None, "a": [1, 2]})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5})
