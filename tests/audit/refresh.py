"""Writes lock.txt from what is installed and advisories.json from osv.dev. Needs a network: `make audit-refresh`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .check import ADVISORIES, LOCK

EXTRAS = ("tensorboard", "datasets", "ocr", "geneval", "quantized")
"""Extras whose libraries are audited, in addition to what every installation has."""
OSV = "https://api.osv.dev/v1"
HEAD = """\
# The versions that the tests run with, of every package that tempflow-fast and its extras load, with the SHA-256 of
# the wheel for Linux on x86_64. A version that the package index does not have is in a comment: torch comes from
# the index of its hardware. Written by `make audit-refresh`.
"""


def installed_closure(requirement: str) -> dict[str, str]:
    """Package -> installed version, for a requirement and everything that it requires here.

    Args:
        requirement: such as "tempflow-fast[ocr]"; it is not in the result itself.
    """
    found: dict[str, str] = {}
    waiting, seen = [Requirement(requirement)], set()
    while waiting:
        current = waiting.pop()
        key = (canonicalize_name(current.name), *sorted(current.extras))
        try:
            package = distribution(current.name)
        except PackageNotFoundError:  # of another platform
            continue
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = package.version
        extras = [{"extra": extra} for extra in ("", *current.extras)]
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(map(needed.marker.evaluate, extras)):
                waiting.append(needed)
    del found[canonicalize_name(Requirement(requirement).name)]
    return dict(sorted(found.items()))


def wheel_digests(versions: dict[str, str]) -> dict[str, str]:
    """Package -> SHA-256 of the wheel that pip would install; without those that are only built locally.

    Args:
        versions: package -> version.
    """
    public = [f"{name}=={version}" for name, version in versions.items() if "+" not in version]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        subprocess.run([*command, "--only-binary", ":all:", "--report", str(report), *public], check=True)
        installs = json.loads(report.read_text())["install"]
    return {
        canonicalize_name(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in installs
    }


def lock_text(versions: dict[str, str], digests: dict[str, str]) -> str:
    """The lock, in the format of pip's requirements.

    Args:
        versions: package -> version.
        digests: package -> SHA-256 of its wheel.
    """
    lines = [
        f"{name}=={version} \\\n    --hash=sha256:{digests[name]}" if name in digests else f"# {name}=={version}"
        for name, version in versions.items()
    ]
    return HEAD + "\n".join(lines) + "\n"


def _ask(path: str, body: object | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{OSV}/{path}", data=data), timeout=60) as answer:
        return json.load(answer)


def _ranges(entry: dict[str, Any], name: str) -> Iterable[str]:
    """The affected versions of a package, as specifiers."""
    for affected in entry.get("affected", ()):
        if canonicalize_name(affected.get("package", {}).get("name", "")) != name:
            continue
        for each in affected.get("ranges", ()):
            events = {key: value for event in each["events"] for key, value in event.items()}
            end = f",<{events['fixed']}" if "fixed" in events else ""
            if each["type"] == "ECOSYSTEM":
                yield f">={events.get('introduced', '0')}{end}"


def advisories(names: Iterable[str]) -> list[dict[str, str]]:
    """Every advisory of these packages, of any version.

    Args:
        names: of the packages.
    """
    found = []
    for name in names:
        answer = _ask("query", {"package": {"name": name, "ecosystem": "PyPI"}})
        for entry in answer.get("vulns", ()):
            ranges = " or ".join(_ranges(entry, name))
            summary = entry.get("summary") or entry.get("details", "").partition("\n")[0]
            if ranges:
                found.append({"id": entry["id"], "package": name, "affected": ranges, "summary": summary[:200]})
    return found


def main() -> None:
    """Writes both files."""
    versions = installed_closure(f"tempflow-fast[{','.join(EXTRAS)}]")
    LOCK.write_text(lock_text(versions, wheel_digests(versions)))
    data = {"date": date.today().isoformat(), "source": "osv.dev", "advisories": advisories(versions)}
    ADVISORIES.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
