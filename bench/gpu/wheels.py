"""Installs what an environment lacks from a folder of wheels, without a network; the environment stays as it is."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from . import children


def install(folder: Path, site: Path, seconds: float = 120.0) -> str:
    """Installs the wheels of packages that are missing into a private folder, for this process's children.

    Args:
        folder: holds the wheels; those of packages that are installed are left out.
        site: the private folder, made if necessary. Nothing that the environment has gets into it.
        seconds: time limit.

    Returns:
        A sentence: what was installed, and what that still lacks.

    Raises:
        SystemExit: if there is no such folder, or pip refuses a wheel.
    """
    if not folder.is_dir():
        raise SystemExit(f"bench.gpu: --wheels must be a folder with wheels, got {str(folder)!r}")
    _use(site)
    wheels = {path: _normal(path.name.split("-")[0]) for path in sorted(folder.glob("*.whl"))}
    wanted = [path for path, name in wheels.items() if not _version(name)]
    if wanted:
        options = ("--no-index", "--no-deps", "--quiet", "--disable-pip-version-check", "--target", site)
        ran = children.run([sys.executable, "-m", "pip", "install", *options, *wanted], seconds)
        if ran.status:
            raise SystemExit(f"bench.gpu: --wheels: {ran.last_line if ran.in_time else 'pip took too long'}")
        importlib.invalidate_caches()
    names = [f"{wheels[path]} {_version(wheels[path])}" for path in wanted]
    lacking = [f"{name} (for {owner})" for owner in wheels.values() for name in _lacking(owner)]
    said = f"installed {', '.join(names)}" if names else "nothing to install"
    return f"wheels: {said}" + (f"; still missing: {', '.join(dict.fromkeys(lacking))}" if lacking else "")


def _use(site: Path) -> None:
    """Puts the folder on the path, here and in children."""
    site.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(site))
    parts = [part for part in (os.environ.get("PYTHONPATH"), str(site)) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join(parts)


def _lacking(name: str) -> Iterator[str]:
    """The requirements of an installed package that are not there."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(name) or []:
        wanted = Requirement(line)
        if (wanted.marker is None or wanted.marker.evaluate({"extra": ""})) and not _version(wanted.name):
            yield wanted.name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
