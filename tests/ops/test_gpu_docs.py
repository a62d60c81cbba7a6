"""The tables of docs/gpu.md are those that `python -m bench.gpu.page` writes."""

from __future__ import annotations

import pytest

from bench.gpu import page


def test_the_tables_are_those_of_the_command():
    committed = page.PAGE.read_text()
    assert page.filled(committed) == committed, "docs/gpu.md is out of date: run python -m bench.gpu.page"


def test_a_page_without_markers_is_refused():
    with pytest.raises(SystemExit, match=r"the page must have one part between '<!-- registers"):
        page.filled("# GPUs")
