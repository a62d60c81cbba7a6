"""`make audit`: what it finds, and that it finds nothing in this repository."""

from __future__ import annotations

import re

import pytest
from audit.check import ADVISORIES, LOCK, PROJECT, findings, lowest_allowed, main, read_advisories, read_lock
from support import ROOT

DATE, KNOWN = read_advisories(ADVISORIES.read_text())


def test_nothing_is_found_here(capsys):
    assert main() == 0
    said = capsys.readouterr().out
    assert f"{len(KNOWN)} advisories of {DATE}" in said
    assert "advisories after that day are not known here" in said


@pytest.mark.parametrize(
    ("package", "version", "number"),
    [
        ("torch", "2.5.1+cpu", "CVE-2025-32434"),
        ("torch", "2.13.0+cpu", None),
        ("pillow", "10.1.0", "CVE-2023-50447"),
        ("pillow", "11.2.1", "CVE-2025-48379"),
        ("pillow", "11.1.0", None),
        ("protobuf", "5.29.4", "CVE-2025-4565"),
        ("protobuf", "5.29.5", None),
        ("h11", "0.16.0", None),
        ("h11", "0.16.0rc1", None),
        ("nobody", "1.0", None),
    ],
)
def test_a_version_with_a_known_fault_is_found(package, version, number):
    found = findings({package: version}, KNOWN, "installed")
    assert [line for line in found if number and number in line] == found[: 1 if number else 0]
    assert bool(found) == bool(number)


def test_a_bound_that_allows_a_known_fault_is_found():
    text = PROJECT.read_text()
    assert findings(lowest_allowed(text), KNOWN, "allowed") == []
    lower = text.replace("pillow>=11.3", "pillow>=10.1")
    assert lower != text
    assert len(findings(lowest_allowed(lower), KNOWN, "allowed")) == 2


def test_every_dependency_has_a_lower_bound_that_the_lock_satisfies():
    from packaging.version import Version

    allowed, locked = lowest_allowed(PROJECT.read_text()), read_lock(LOCK.read_text())
    assert len(allowed) > 20
    assert [name for name, version in allowed.items() if version == "0"] == []
    older = [name for name, version in allowed.items() if name in locked and Version(locked[name]) < Version(version)]
    assert older == []
    runtime = (
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "safetensors",
        "pillow",
        "datasets",
        "rapidocr",
    )
    assert set(runtime) <= locked.keys()


def test_the_lock_has_digests():
    text = LOCK.read_text()
    assert [line for line in text.splitlines() if "==" in line and not line.endswith("\\")] == ["# torch==2.13.0+cpu"]
    assert text.count("--hash=sha256:") == len(read_lock(text)) - 1 > 80


def test_the_commands_are_in_the_makefile_and_in_ci():
    assert "\naudit: " in (ROOT / "Makefile").read_text()
    assert "make audit\n" in (ROOT / ".ci" / "run").read_text()


def test_the_page_on_security_names_tests_that_exist():
    named = set(re.findall(r"tests/[a-z_/]+\.py", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []
