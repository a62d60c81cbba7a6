"""Imports run one way, from the command line down to the leaves, and CONTRIBUTING.md names every folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support import ROOT, TESTS

PACKAGE = ROOT / "tempflow_fast"

# One row per folder, or per file at the root. A folder may import what is above its own row, nothing on it or below;
# the modules of a folder may import one another.
LAYERS = (
    ("choices", "connections", "errors", "interruption", "quiet", "text", "version"),
    ("extensions", "geneval", "hub"),
    ("batching", "files", "kernels", "shapes", "source_images", "weight_files"),
    ("checksums", "convert"),
    ("ops",),
    ("policies", "rewards"),
    ("processes", "prompts", "settings", "graphs"),
    ("grpo",),
    ("evaluation", "signal"),
    ("run",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imported(path: Path) -> set[str]:
    """The top-level modules of the package that a file imports, at its head or inside a function."""
    parts = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent).with_suffix("").parts
    package = ("tempflow_fast", *parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, node.module) if node.module else above
            names = [".".join((*base, alias.name)) for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("tempflow_fast.")} - {"__version__"}
    return found


def modules(name: str) -> list[Path]:
    single = PACKAGE / f"{name}.py"
    folder = PACKAGE.parent / name if name == "kernels" else PACKAGE / name  # where the build maps it from
    return [single] if single.is_file() else sorted(folder.rglob("*.py"))


def test_every_module_has_its_layer():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | packages | {"kernels"} == set(RANK)


@pytest.mark.parametrize("name", RANK)
def test_imports_run_one_way(name):
    for path in modules(name):
        for other in imported(path) - {name}:
            assert RANK[other] < RANK[name], f"{path.name} imports {other}"


def test_the_rule_sees_relative_and_absolute_imports(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    lines = (
        "from . import ops",
        "from .grpo import x",
        "import tempflow_fast.cli",
        "if 1: from tempflow_fast import info",
    )
    (tmp_path / "leaf.py").write_text("\n".join(lines))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "sd3.py").write_text("from ..rollout import y\nfrom .base import z\n")
    assert imported(tmp_path / "leaf.py") == {"ops", "grpo", "cli", "info"}
    assert imported(tmp_path / "policies" / "sd3.py") == {"rollout", "policies"}


def test_contributing_names_every_folder_and_file_of_the_package():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("\n## ")[0]
    first_column = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    named = {path for cell in first_column for path in re.findall(r"`([^`]+)`", cell)}
    assert [path for path in named if not (ROOT / path).exists()] == []
    files = {f"tempflow_fast/{path.name}" for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    folders = {f"tempflow_fast/{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders <= named, f"CONTRIBUTING.md, Where things are: {sorted((files | folders) - named)}"


def test_no_test_imports_another():
    """What several tests share is in tests/support/."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found = [name for name in modules if re.search(r"(^|\.)(test_\w+|tests|conftest)(\.|$)", name)]
            assert not found, f"{path.relative_to(TESTS)} imports {found}"
