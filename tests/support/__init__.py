"""What several tests share. pytest puts tests/ on the path, so `support` can be imported."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
