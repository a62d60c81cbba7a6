"""The GPU's checks and report, rehearsed on tiny networks on the CPU, with the stand-in for stream capture."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from support import ROOT
from support.recording import RecordingDevice

from bench.gpu import checks, models, parity, report, stages
from bench.gpu.card import facts
from bench.gpu.results import Outcome, Session, Skip


@pytest.mark.slow
def test_without_a_card_it_says_so_in_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    ran = subprocess.run([sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("There is no GPU to measure on: torch")
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


@pytest.mark.slow
def test_the_rehearsal_passes_and_is_reported(tmp_path):
    session, devices = Session(), []

    def capturer():
        devices.append(RecordingDevice())
        return devices[-1]

    plan = stages.rehearsal(capturer)
    stages.run(session, plan)
    assert [result for result in session.results if result.status == "FAIL"] == []
    assert not any(device.violations for device in devices)
    skipped = {result.name: result.detail for result in session.results if result.status == "skip"}
    assert skipped.pop("parity, triton") == "no op has a triton body on cpu here"
    assert skipped.pop("memory checker") == "it checks CUDA kernels"
    assert {name.partition(",")[0] for name in skipped} <= {"parity", "no host sync in an iteration"}
    page = report.write(tmp_path, facts(plan.device), session.results)
    told = json.loads(page.with_suffix(".json").read_text())
    assert [result["name"] for result in told["results"]] == [result.name for result in session.results]
    lines = page.read_text().splitlines()
    for result in session.results:
        assert sum(line.startswith(f"| {result.status} | {result.name} |") for line in lines) == 1
    rows = {row["iteration"] for result in told["results"] for row in result["figures"] if "iteration" in row}
    assert rows == {"ours", "ours, captured", "the paper's structure"}
    ops = {row["op"] for result in told["results"] for row in result["figures"] if "op" in row}
    assert {"euler_step", "branch_step", "log_prob, both passes", "policy_loss, both passes"} <= ops
    assert {"log_prob", "the same, unchanged policy"} <= ops


def test_on_a_card_the_published_shapes_are_run():
    plan = stages.on_card(torch.device("cuda", 0))
    shapes = {shape.kind: shape for shape, *_ in plan.measured.values()}
    for kind, billions in (("sd3", 2.24), ("flux", 11.90)):
        network = models.network_without_weights(shapes[kind], plan.dtype)
        assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 2) == billions


@pytest.mark.slow
def test_the_program_reports_and_its_status_tells_of_failures(tmp_path):
    """With a card, a build and stages that are played."""
    code = (
        "import sys; from bench.gpu import __main__ as program, stages; from bench.gpu.results import Outcome\n"
        "program.missing_card, program.facts = str, lambda device: {'card': 'a card'}\n"
        "program.torch.cuda.current_device, program.build = int, lambda folder, seconds: Outcome('played')\n"
        "stages.run = lambda session, plan: session.attempt('it holds', lambda: 1 / 0)\n"
        "sys.exit(program.main())"
    )
    command = [sys.executable, "-c", code, "--output", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    (page,) = tmp_path.glob("gpu-*.md")
    assert ran.stdout.splitlines()[-1] == f"report: {page}"
    lines = page.read_text().splitlines()
    assert lines[0] == "# a card: FAIL"
    for start in ("| pass | build |", "| FAIL | it holds |", "| branch_step | cpu: "):
        assert any(line.startswith(start) for line in lines)


@pytest.mark.slow
def test_where_nothing_compiles_the_package_is_copied(tmp_path):
    code = (
        "import sys; from pathlib import Path; from bench.gpu.build import build; from bench.gpu.results import Skip\n"
        "try: build(Path(sys.argv[1]), 0.01)\n"
        "except Skip as reason: print(reason)\n"
        "import tempflow_fast; print(tempflow_fast.__file__); print(tempflow_fast.info()['euler_step'])\n"
        "import importlib.util; print(importlib.util.find_spec('tempflow_fast.kernels').origin)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    reason, package, served, kernels = ran.stdout.splitlines()
    assert reason == "without compiled kernels, since the build failed: not done after 0 s"
    assert package == str(tmp_path / "lib/tempflow_fast/__init__.py")
    assert served.startswith("cpu: reference")
    assert kernels == str(tmp_path / "lib/tempflow_fast/kernels/__init__.py")


def test_failures_and_skips_carry_their_reasons(tmp_path):
    session = Session(minutes=1)

    def unequal():
        raise AssertionError("states differ by 1e-3\nand more")

    def absent():
        raise Skip("no compiler here")

    session.attempt("a | b", unequal)
    session.attempt("built", absent)
    session.attempt("long", lambda: Outcome("done"), needs=120)
    session.attempt("short", lambda: Outcome("done", [{"op": "x", "us": 1.23456}]))
    assert [result.status for result in session.results] == ["FAIL", "skip", "skip", "pass"]
    assert not session.passed
    page = report.write(tmp_path, {"card": "none"}, session.results).read_text()
    assert page.startswith("# none: FAIL\n\n1 checks passed, 1 failed, 2 were skipped.")
    assert "| FAIL | a \\| b | 0.0 | AssertionError: states differ by 1e-3 |" in page
    assert "it takes about 120 s, 60 s are left" in page or "59 s are left" in page
    assert "| x | 1.235 |" in page


@pytest.mark.slow
def test_a_check_that_hangs_ends_with_the_time_limit_and_is_reported(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from bench.gpu import report; from bench.gpu.results import Outcome, Session\n"
        "session = Session(minutes=0.01)\n"
        "def finish():\n"
        "    report.write(Path(sys.argv[1]), {}, session.results)\n"
        "    return 0 if session.passed else 1\n"
        "session.end_in_time(finish, grace=0.1)\n"
        "session.attempt('quick', lambda: Outcome())\n"
        "session.attempt('hangs', lambda: time.sleep(600))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60, check=False)
    assert ran.returncode == 1
    (page,) = tmp_path.glob("gpu-*.md")
    assert "| pass | quick |" in page.read_text()
    assert "| FAIL | hangs |" in page.read_text()
    assert "not done after 0.01 minutes |" in page.read_text()


def test_unequal_rollouts_fail_the_check():
    policy = models.random_policy(models.TINY_SD3, torch.device("cpu"), torch.float32)

    class Stale(RecordingDevice):
        """Replays the first result for ever."""

        def capture(self, function):
            result = function()
            return lambda: None, result

    with pytest.raises(AssertionError, match="differs by"):
        checks.graphs_equal_eager(policy, 4.5, Stale())


@pytest.mark.parametrize("check", [parity.log_prob, parity.policy_loss])
def test_parity_holds_at_its_largest_size(check):
    """There, gradients of means are the smallest, and float16 tells least apart."""
    check(torch.device("cpu"), torch.float16, max(parity.SIZES), True)


@pytest.mark.slow
def test_parity_sees_a_wrong_body():
    """An op that is off by 1e-2 is a problem in every dtype."""
    code = (
        "from bench.gpu import parity; import torch\n"
        "from tempflow_fast import ops\n"
        "right = ops.euler_step\n"
        "parity.ops.euler_step = lambda *a, **k: right(*a, **k) * 1.01\n"
        "found = parity.problems(torch.device('cpu'), (63,))\n"
        "print(len(found), found[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("6 branch_step torch.float32 D=63 plain: euler_step and branch_step move differently")
