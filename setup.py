"""Builds tempflow_fast: CMake makes the one native library, setuptools the rest.

    TEMPFLOW_FAST_CUDA=AUTO|ON|OFF        CUDA kernels; AUTO: where there are an nvcc and a torch of the same CUDA
    TEMPFLOW_FAST_TORCH=/path/to/torch    the torch whose headers are used (default: that of the environment; `python -m
                                          build` hides it and would download another one, so set this there)
    CXX, CUDACXX, CMAKE_ARGS, CMAKE_BUILD_PARALLEL_LEVEL   as usual with CMake

Without a C++ compiler, or with an older torch, the package still installs, and runs on its reference bodies. What was
built, what was not and why is printed, and stored in tempflow_fast/_build.json for `tempflow-fast info`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OLDEST_TORCH = (2, 10)
"""The oldest with the stable C++ interface that the library uses. One that is built with it runs on all later ones."""


def find_torch() -> Path | None:
    """Folder of the torch package, found without importing it.

    The build isolation of pip hides the environment's packages from sys.path, but not from sysconfig. That torch is the
    one that the library will run with.
    """
    if os.environ.get("TEMPFLOW_FAST_TORCH"):
        return Path(os.environ["TEMPFLOW_FAST_TORCH"])
    places = [Path(sysconfig.get_path("platlib")) / "torch"]
    spec = importlib.util.find_spec("torch")
    if spec and spec.submodule_search_locations:
        places.append(Path(spec.submodule_search_locations[0]))
    return next((place for place in places if (place / "version.py").is_file()), None)


def torch_versions(torch: Path) -> tuple[str, str]:
    """(version, CUDA version or "") of a torch package."""
    text = (torch / "version.py").read_text()
    found = [re.search(rf"^{name}\b[^=]*= *'([^']+)'", text, re.MULTILINE) for name in ("__version__", "cuda")]
    return tuple(match.group(1) if match else "" for match in found)


def _written(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def find_compiler() -> tuple[str | None, str]:
    """The C++ compiler, or None and the reason."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(name)[0]):
            return name, ""
    missing = f"CXX={wanted} is not a program" if wanted else "no C++ compiler (c++, g++ or clang++) is on PATH"
    return None, f"{missing}: install one and reinstall to get the fast CPU kernels"


def cuda_decision(torch: Path) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why."""
    wish = os.environ.get("TEMPFLOW_FAST_CUDA", "AUTO").upper()
    if wish not in ("AUTO", "ON", "OFF"):
        raise SystemExit(f"TEMPFLOW_FAST_CUDA must be AUTO, ON or OFF, got {wish}")
    if wish != "AUTO":
        return wish == "ON", f"TEMPFLOW_FAST_CUDA={wish}"
    version, torch_cuda = torch_versions(torch)
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    if not torch_cuda:
        return False, f"torch {version} has no CUDA (TEMPFLOW_FAST_CUDA=ON builds them all the same)"
    if not nvcc:
        return False, "no nvcc on PATH (or CUDACXX)"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if not release or release.group(1) != torch_cuda.split(".")[0]:
        return (
            False,
            f"{nvcc} is for CUDA {release.group(1) if release else '?'}, torch {version} for CUDA {torch_cuda}",
        )
    return True, f"{nvcc} and torch {version}"


def say(line: str) -> None:
    print(f"tempflow_fast: {line}", flush=True)


class CMakeBuild(build_ext):
    """Builds tempflow_fast/_C.so, or says why it cannot."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"  # loaded as a library, not imported: no Python tag in its name

    def run(self) -> None:
        super().run()
        package = Path("tempflow_fast")
        for folder in [Path(self.build_lib) / package, *([ROOT / package] if self.inplace else [])]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps(self.record, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        compiler, problem = find_compiler()
        if compiler is None:
            self.leave_out(ext, problem, "no C++ compiler")
            return
        torch = find_torch()
        if torch is None:
            raise SystemExit(f"tempflow_fast: torch was not found: install torch>={_written(OLDEST_TORCH)} first")
        version = torch_versions(torch)[0]
        if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
            needed = _written(OLDEST_TORCH)
            self.leave_out(ext, f"torch {version} is older than {needed}, which they need", "torch is too old")
            return
        with_cuda, why = cuda_decision(torch)
        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        say(f"building the C++ kernels with {compiler} for torch {torch_versions(torch)[0]} in {torch}")
        say(f"CUDA kernels {'too' if with_cuda else 'skipped'}: {why}")
        try:
            self.cmake(torch, with_cuda, out)
        except subprocess.CalledProcessError:
            if not with_cuda or os.environ.get("TEMPFLOW_FAST_CUDA", "AUTO").upper() != "AUTO":
                raise
            with_cuda, why = (
                False,
                f"the build with {why} failed; TEMPFLOW_FAST_CUDA=ON shows the error and stops there",
            )
            say(f"CUDA kernels skipped: {why}")
            self.cmake(torch, with_cuda, out)
        self.record = {"cpu": f"built with {compiler}", "cuda": f"{'built' if with_cuda else 'not built'}: {why}"}
        say(f"built {out / '_C.so'}")

    def leave_out(self, ext: Extension, problem: str, short: str) -> None:
        """Goes on without the library, and remembers why."""
        ext.optional = True  # setuptools then accepts that there is no file
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)  # of an earlier build in the same tree
        self.record = {"cpu": f"not built: {problem}", "cuda": f"not built: {short}"}
        say(f"C++ kernels {self.record['cpu']}")

    def cmake(self, torch: Path, with_cuda: bool, out: Path) -> None:
        """Configure, build and install into `out`."""
        work, ninja = Path(self.build_temp).resolve(), shutil.which("ninja")
        # build/ may outlive the isolated environment it was made in, and with it the path of ninja: always say it.
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        options = [f"-DTEMPFLOW_TORCH_ROOT={torch}", f"-DTEMPFLOW_CUDA={'ON' if with_cuda else 'OFF'}"]
        options += [f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}"]
        user = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(work), *generator, *options, *user], check=True)
        subprocess.run(["cmake", "--build", str(work)], check=True)
        subprocess.run(["cmake", "--install", str(work), "--prefix", str(out)], check=True)


class Wheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: the library contains no Python symbol, so it fits every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["tempflow_fast*"]), "tempflow_fast.kernels"],
    package_dir={"tempflow_fast.kernels": "kernels"},  # a top-level `kernels` would hide the Hugging Face package
    ext_modules=[Extension("tempflow_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    # Only where there is a compiler and no torch to build against; pip reads this in an isolated build.
    setup_requires=[] if find_torch() or not find_compiler()[0] else [f"torch>={_written(OLDEST_TORCH)}"],
)
