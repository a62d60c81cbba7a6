"""What the benchmarks compare with does the same as the package, and what they count is right."""

from __future__ import annotations

import json

import pytest
import torch

from bench import baselines, conftest, goals, op_cases, page, paper
from bench.clocks import NetworkClock, peak_mib
from bench.figures import Figures
from bench.networks import SMALL, Work, optimizer_of
from tempflow_fast import grpo_step, ops

ROWS, K, D = 3, 4, 257


@pytest.fixture
def step() -> baselines.Step:
    return baselines.Step(*op_cases.TABLE.coefficients()[op_cases.STEP].tolist())


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_baselines_of_the_moves_equal_the_ops(step):
    x, v, u = draw(3, ROWS, D).float()
    for function in (baselines.script_branch_step, baselines.tuned_branch_step):
        moved, branches, log_prob = function(x, v, step, K)
        torch.testing.assert_close(moved, ops.euler_step(x, v, op_cases.TABLE, op_cases.STEP))
        rows = [tensor.repeat_interleave(K, 0) for tensor in (x, v)]
        steps = torch.full((ROWS * K,), op_cases.STEP)
        density = ops.log_prob(branches.flatten(0, 1), *rows, op_cases.TABLE, steps)
        torch.testing.assert_close(log_prob.flatten(), density, rtol=1e-5, atol=1e-5)
    guided = ops.euler_step(x, v, op_cases.TABLE, op_cases.STEP, u, op_cases.SCALE)
    torch.testing.assert_close(baselines.euler_step(x, v, u, op_cases.SCALE, step), guided)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_baselines_of_the_loss_equal_the_op_in_value_and_gradient(step, beta):
    x, old, reference = draw(3, ROWS, D).float()
    v = (old + 0.01 * draw(ROWS, D).float()).requires_grad_()
    _, branches, _ = ops.branch_step(x, old, op_cases.TABLE, op_cases.STEP, K, 0, range(ROWS))
    advantages, steps = draw(ROWS, K).float(), torch.full((ROWS,), op_cases.STEP)
    options = {"clip_range": op_cases.CLIP_RANGE, "velocity_ref": reference, "beta": beta}
    want = ops.policy_loss(v, x, branches, old, advantages, op_cases.TABLE, steps, **options).loss
    inputs = baselines.LossInputs(x, branches, old, advantages, step, op_cases.CLIP_RANGE)
    for function in (baselines.script_policy_loss, baselines.tuned_policy_loss):
        got = function(v, inputs) + beta * baselines.kl(v, reference, step)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(loss, v, retain_graph=True)[0] for loss in (got, want)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("with_kl", [False, True])
def test_both_structures_evaluate_what_counting_says(with_kl):
    work = Work(SMALL, num_prompts=2, with_kl=with_kl)
    config = work.changed(num_steps=4, num_branches=3)
    rollout, pairs = 2 * (3 + 3 * (3 + 2 + 1)), 2 * 3
    for run, trained in (("ours", pairs), ("paper", pairs * 3)):
        policy = work.policy()
        optimizer = optimizer_of(policy)
        clock = NetworkClock(policy, optimizer, with_kl)
        if run == "ours":
            grpo_step(policy, work.prompts, lambda images, *_: images[:, 0].mean((1, 2)), optimizer, config)
        else:
            paper.iteration(policy, work.prompts, optimizer, config, 0, 100)
        assert clock.rows == rollout + trained * (1 + with_kl)
        assert min(clock.seconds.values()) > 0


def test_peak_counts_what_is_alive_at_once():
    def call() -> None:
        kept = torch.zeros(2**18)
        for _ in range(3):
            kept.add_(torch.ones(2**18))

    assert peak_mib(call) == pytest.approx(2.0, abs=0.01)


@pytest.mark.slow
def test_no_figure_without_its_tests(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_wrong():\n    assert False, 'the op is wrong'\n")
    assert "the op is wrong" in conftest.failure((str(failing),))
    assert conftest.failure((str(failing), "-k", "none of them")), "no test is no proof"
    failing.write_text("def test_right():\n    pass\n")
    assert conftest.failure((str(failing), "--strict-markers")) == ""


def test_page_holds_goals_against_figures(tmp_path):
    def benchmark(section: str, row: str, seconds: dict[str, float], **facts: object) -> dict[str, object]:
        return {"extra_info": {"section": section, "row": row, "seconds": seconds, **facts}}

    ours = {"ours": 1.0, op_cases.SCRIPTS: 12.0, op_cases.TUNED: 6.0, op_cases.COMPILED: 3.0, op_cases.COPY: 0.5}
    written = {
        "datetime": "2026-01-01T00:00:00",
        "machine_info": {"facts": {"processor": "a processor"}},
        "benchmarks": [benchmark("branch_step", "fp32, D = 65,536", ours, num_outputs=10**9, num_bytes=8)],
    }
    (tmp_path / "figures.json").write_text(json.dumps(written))
    figures = Figures(tmp_path / "figures.json")
    lines = {line["goal"]: line for line in (goal.line(figures) for goal in goals.GOALS)}
    assert lines["branch_step fp32 65,536 / eager"]["verdict"] == "met"
    assert lines["branch_step fp32 65,536 / best compiled"]["verdict"].startswith("**missed** by 25%")
    assert lines["branch_step fp32 65,536, per output"]["verdict"] == "met"
    assert lines["two processes on two cores"]["measured"] == "not measured"
    text = page.page(figures, {})
    assert "| fp32, D = 65,536 | 12.0x | 6.0x | 3.0x | 1000.00 ms | 50% | 1.00 ns |" in text


@pytest.mark.parametrize("seconds", [None, {"ours": 1.0}], ids=["no row", "nobody to compare with"])
def test_a_goal_without_a_figure_is_neither_met_nor_missed(tmp_path, seconds):
    """The ratio to candidates that were not timed is NaN."""
    rows = [] if seconds is None else [{"extra_info": {"section": "ops", "row": "x", "seconds": seconds}}]
    data = {"machine_info": {"facts": {}}, "datetime": "2026-01-01", "benchmarks": rows}
    (tmp_path / "figures.json").write_text(json.dumps(data))
    goal = goals.Goal("faster", 2.0, lambda measured: measured.row("ops", "x").ratio("theirs"))
    line = goal.line(Figures(tmp_path / "figures.json"))
    assert (line["measured"], line["verdict"]) == ("not measured", "-")
