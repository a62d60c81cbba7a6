"""The package as it is built and installed: from an sdist, in a path with a space, with and without a compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support import ROOT

from tempflow_fast.shapes import pipeline_path

pytestmark = pytest.mark.slow

SOURCES = (
    "csrc",
    "kernels",
    "tempflow_fast",
    "CMakeLists.txt",
    "MANIFEST.in",
    "pyproject.toml",
    "setup.py",
    "README.md",
)
SOURCES += ("CHANGELOG.md", "CITATION.cff", "LICENSE")
USE = """
import torch, tempflow_fast as tff
from tempflow_fast.ops import native
table = tff.step_table(tff.linear_sigmas(4))
latents, branches, log_prob = tff.ops.branch_step(torch.zeros(2, 3), torch.zeros(2, 3), table, 0, 2, 0, [0, 1])
print(tff.__file__); print(native.loaded()); print(tff.info()['native_cuda'])
import tempflow_fast.kernels, tempflow_fast.policies, tempflow_fast.rewards, tempflow_fast.shapes
import tempflow_fast.settings.recipes
"""


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # The build tools may be next to the interpreter of an environment that is not activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": "2", **environment}
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)


def build(kind: str, source: Path, out: Path, **environment: str) -> tuple[Path, str]:
    """Run the build backend in `source` as pip does; returns the file and what the build said."""
    out.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(out)!r})"
    done = run(code, source, **environment)
    (built,) = out.iterdir()
    return built, done.stdout + done.stderr


def installed(wheel: Path, folder: Path) -> Path:
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The sources of an sdist, unpacked into a path with a space."""
    copy = tmp_path_factory.mktemp("a checkout")
    for name in SOURCES:
        ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy / name)
    sdist, _ = build("sdist", copy, copy / "out")
    unpacked = tmp_path_factory.mktemp("an sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    return folder


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_wheel_with_a_compiler(source, tmp_path):
    wheel, said = build("wheel", source, tmp_path / "out")
    assert "tempflow_fast: building the C++ kernels with c++" in said
    assert "tempflow_fast: CUDA kernels" in said
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"tempflow_fast/_C.so", "tempflow_fast/_build.json", "tempflow_fast/kernels/__init__.py"} <= names
    assert "tempflow_fast/py.typed" in names
    *_, python, abi, platform = wheel.stem.split("-")
    assert (python, abi) == ("py3", "none"), "the library has no Python symbol"
    assert platform != "any", "the library is for one platform"
    assert "Package would be ignored" not in said
    shipped = {path.relative_to(ROOT).as_posix() for path in pipeline_path().rglob("*") if path.is_file()}
    assert {*shipped, "tempflow_fast/rewards/geneval/evaluation_digests.txt"} <= names
    assert not any(name.startswith(("kernels/", "tests/", "csrc/", "bench/")) for name in names)
    folder = installed(wheel, tmp_path / "site packages")
    done = run(USE, tmp_path, PYTHONPATH=str(folder))
    place, loaded, cuda = done.stdout.splitlines()
    assert place.startswith(str(folder))
    assert loaded == "True"
    assert cuda.removeprefix("not built: ") in said or cuda.startswith("nvcc")
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("missing", ["CXX", "PATH"])
def test_wheel_without_a_compiler(source, tmp_path, missing):
    tools = tmp_path / "bin"
    tools.mkdir()
    environment = {"CXX": "/nonexistent"} if missing == "CXX" else {"PATH": str(tools)}
    wheel, said = build("wheel", source, tmp_path / "out", **environment)
    (sentence,) = [line for line in said.splitlines() if line.startswith("tempflow_fast:")]
    reason = (
        "CXX=/nonexistent is not a program" if missing == "CXX" else "no C++ compiler (c++, g++ or clang++) is on PATH"
    )
    assert sentence == (
        f"tempflow_fast: C++ kernels not built: {reason}: install one and reinstall to get the fast CPU kernels"
    )
    done = run(USE, tmp_path, PYTHONPATH=str(installed(wheel, tmp_path / "site")))
    assert done.stdout.splitlines()[1:] == ["False", "not built: no C++ compiler"]
    assert done.stderr.count(f"the compiled kernels are missing (not built: {reason}") == 1


def test_installing_over_libraries_that_fit_leaves_them_as_they_are(source, tmp_path):
    """pip would add or replace nothing but the package, and builds it without a torch of its own."""
    requires = run("import setuptools.build_meta as b; print(*b.get_requires_for_build_wheel(), sep='\\n')", source)
    always = re.search(r"^requires = (\[.*\])$", (source / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert "torch" not in requires.stdout + always
    report = tmp_path / "report.json"
    options = ["--dry-run", "--no-index", "--no-build-isolation", "--quiet", "--report", str(report)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    planned = [each["metadata"]["name"] for each in json.loads(report.read_text())["install"]]
    assert planned == ["tempflow-fast"]
