"""Parts of pages that commands write, between two marks."""

from __future__ import annotations

import re


def filled(page: str, name: str, command: str, content: str) -> str:
    """A page with a part replaced.

    Args:
        page: the text.
        name: of the part.
        command: writes it, as the first mark says.
        content: what stands between the marks then.

    Raises:
        SystemExit: unless the page has the marks once.
    """
    head, tail = f"<!-- {name}: written by {command} -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(head) + ".*?" + re.escape(tail), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise SystemExit(f"the page must have one part between {head!r} and {tail!r}")
    return pattern.sub(lambda _: f"{head}\n\n{content}\n\n{tail}", page)
