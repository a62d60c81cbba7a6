"""What several tests share; `support` is importable where `tests/` is on the path, as pytest puts it."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
