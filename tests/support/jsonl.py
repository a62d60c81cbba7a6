"""Prompt files for the tests."""

import json
from collections.abc import Iterable
from pathlib import Path


def write_jsonl(path: Path, prompts: Iterable[dict]) -> None:
    """One JSON object a line, like GenEval's `evaluation_metadata.jsonl`."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in prompts))
