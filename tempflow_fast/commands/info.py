"""tempflow-fast info."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Info:
    """Shows what was built, and which implementation each op uses."""

    def __call__(self) -> int:
        from ..ops.info import info

        print(info())
        return 0
