"""The pages that promise something name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT

PAGES = ("docs/reliability.md", "docs/security.md")
NAME = re.compile(r"`((?:tests/)?[\w/]*\w+\.(?:py|json|txt)|tests/[\w/]+)[`:]")
"""A path from the root; a bare name of a test is in the folder of the path before it on its line."""


def named(page: str) -> list[str]:
    found = []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        folder = Path("tests")
        for name in NAME.findall(line):
            if name.startswith("tests/"):
                folder = Path(name).parent
                found.append(name)
            elif name.startswith("test_"):
                found.append(str(folder / name))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    paths = named(page)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_promise_has_a_test_or_a_command():
    rows = [line for line in (ROOT / PAGES[0]).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise", "| ---"))]
    assert len(promises) > 30
    bare = [row for row in promises if not re.search(r"`(tests/|make |test_)|security\.md", row.split(" | ")[1])]
    assert bare == []
