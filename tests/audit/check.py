"""What is installed and what pyproject.toml allows, against the lock and the known advisories. Needs no network."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

HERE = Path(__file__).parent
LOCK, ADVISORIES, PROJECT = HERE / "lock.txt", HERE / "advisories.json", HERE.parent.parent / "pyproject.toml"
PINNED = re.compile(r"^(?:# )?([A-Za-z0-9._-]+)==([^\s\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Advisory:
    """A known fault of a package."""

    id: str
    package: str
    affected: str
    """Versions that have it, such as ">=11.2,<11.3"; several ranges are separated by " or "."""
    summary: str

    def affects(self, version: str) -> bool:
        """Whether a version has the fault.

        Args:
            version: of the package; a local part such as +cpu does not matter.
        """
        public = Version(version).public
        return any(SpecifierSet(part).contains(public, prereleases=True) for part in self.affected.split(" or "))


def read_lock(text: str) -> dict[str, str]:
    """Package -> version in a lock.

    Args:
        text: lines in the format of pip's requirements.
    """
    return {canonicalize_name(name): version for name, version in PINNED.findall(text)}


def read_advisories(text: str) -> tuple[str, list[Advisory]]:
    """The day of the list, and its advisories.

    Args:
        text: the JSON.
    """
    data = json.loads(text)
    return data["date"], [Advisory(**entry) for entry in data["advisories"]]


def lowest_allowed(text: str) -> dict[str, str]:
    """Package -> the lowest version that a pyproject.toml allows; "0" where it names none.

    Args:
        text: of the file.
    """
    project = tomllib.loads(text)["project"]
    found: dict[str, str] = {}
    for requirement in map(Requirement, [*project["dependencies"], *chain(*project["optional-dependencies"].values())]):
        least = [each.version for each in requirement.specifier if each.operator in (">=", "==", "~=")]
        if not requirement.extras:
            found[canonicalize_name(requirement.name)] = least[0] if least else "0"
    return found


def findings(versions: dict[str, str], advisories: list[Advisory], where: str) -> list[str]:
    """One line per advisory that affects a version.

    Args:
        versions: package -> version.
        advisories: the known ones.
        where: what has these versions.
    """
    return [
        f"{where}: {each.package} {versions[each.package]} has {each.id} (affected: {each.affected}): {each.summary}"
        for each in advisories
        if each.package in versions and each.affects(versions[each.package])
    ]


def main() -> int:
    """Prints the findings, and returns 1 if there are any."""
    locked, (date, advisories) = read_lock(LOCK.read_text()), read_advisories(ADVISORIES.read_text())
    allowed = lowest_allowed(PROJECT.read_text())
    found = {str(canonicalize_name(each.name)): each.version for each in distributions()}
    installed = {name: version for name, version in found.items() if name in locked or name in allowed}
    lines = [
        *findings(installed, advisories, "installed"),
        *findings(locked, advisories, "lock"),
        *findings(allowed, advisories, "lowest version that pyproject.toml allows"),
        *(f"pyproject.toml: {name} has no lower bound" for name, version in allowed.items() if version == "0"),
    ]
    others = [f"{name} {version}" for name, version in installed.items() if locked.get(name, version) != version]
    print(f"{len(installed)} packages installed, {len(locked)} in the lock, {len(advisories)} advisories of {date}")
    print(f"in other versions than the tests ran with: {', '.join(others) or 'none'}")
    print("\n".join(lines) or "no known advisory affects them; advisories after that day are not known here")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
