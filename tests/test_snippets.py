"""Every program of README and docs that trains is run, and nearly all weights that it trains move in ten steps."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support import ROOT
from support.pipelines import sd3_pipeline

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    page.name: block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if "grpo_step(" in block
}
LOOP = re.compile(r"^for \w+ in range\(\d+\):", re.MULTILINE)
SMALLER = {
    '"stabilityai/stable-diffusion-3.5-medium"': '"tiny"',
    'device="cuda"': 'device="cpu"',
    "resolution=512": "resolution=16",
    "num_branches=6, num_seeds=4": "num_branches=2, num_seeds=2",
    "num_steps=10": "num_steps=4",
}
"""The large model and its iterations, and what stands in for them; nothing else about the program is changed."""
BEFORE = {
    "processes.md": "reward, prompts = redness, ['a photo of a fox', 'a city at night']",
    "budget.md": """
import tempflow_fast
from tempflow_fast.grpo.budget import BranchBudget
reward, prompts = redness, ['a photo of a fox', 'a city at night']
config = tff.GRPOConfig(num_steps=4, num_branches=2, branches_per_trajectory=2, branch_budget="adaptive")
""",
}
"""What the pages leave to the reader, in addition to the README's policy, reward, optimizer and config."""


def program(page: str) -> tuple[str, str]:
    """(what comes before its loop, ten rounds of the loop and what comes after)."""
    code = PROGRAMS[page]
    (loop,) = LOOP.finditer(code)
    return code[: loop.start()], code[loop.start() :].replace(loop[0], re.sub(r"\d+", "10", loop[0]), 1)


def smaller(code: str) -> str:
    for old, new in SMALLER.items():
        assert old in code
        code = code.replace(old, new)
    return code


def test_the_programs_that_train_are_these():
    assert set(PROGRAMS) == {"README.md", "budget.md", "policies.md", "processes.md"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PROGRAMS)
def test_trained_weights_move(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    if page != "policies.md":  # which has a model of its own
        sd3_pipeline(tmp_path / "tokenizer").save_pretrained("tiny")
        exec(smaller(program("README.md")[0]), names)
    head, loop = program(page)
    exec(BEFORE.get(page, ""), names)
    exec(head if page != "README.md" else "", names)
    before = [parameter.detach().clone() for parameter in names["policy"].parameters()]
    exec(loop, names)
    after = names["policy"].parameters()
    assert {parameter.dtype for parameter in after} == {torch.float32}
    moved = torch.cat([(old != new).flatten() for old, new in zip(before, after, strict=True)])
    assert moved.float().mean() > 0.9
    if page == "README.md":
        assert (tmp_path / "tuned" / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
