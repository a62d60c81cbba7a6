"""The GPU's checks and reports, rehearsed on tiny networks on the CPU, with the stand-in for stream capture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.recording import RecordingDevice

from bench.gpu import checks, children, models, parity, predictions, report, stages, wheels
from bench.gpu.__main__ import NOT_RUN, STAGES
from bench.gpu.card import facts
from bench.gpu.iteration import short
from bench.gpu.plan import on_card, rehearsal
from bench.gpu.results import Check, Outcome, Result, Session, Skip
from bench.gpu.stages import STAGES as CHECKS

BLOCKED = ("diffusers", "peft", "tyro", "docstring_parser", "typeguard")
"""What a machine with a CUDA torch may lack."""


def program(*arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -m bench.gpu`; modules in `path` come first."""
    parts = [str(part) for part in (path, os.environ.get("PYTHONPATH")) if part]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(parts)}
    command = [sys.executable, "-m", "bench.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_torch_it_says_so(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('it is not there')")
    ran = program(path=tmp_path)
    assert ran.stdout == f"not run: no GPU: {sys.executable} cannot import torch (it is not there)\n"
    assert (ran.returncode, ran.stderr) == (NOT_RUN, "")


@pytest.mark.slow
def test_without_a_card_nothing_is_run_and_the_status_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    ran = program("--require")
    assert ran.stdout.startswith("not run: no GPU: ")
    assert ran.stdout.count("\n") == 1
    assert (ran.returncode, ran.stderr) == (NOT_RUN, "")


def test_a_stage_that_does_not_exist_is_refused():
    ran = program("--stages", "kernels,graph")
    assert ran.returncode == 2
    assert "must be names of kernels, graphs, learning, ops, calls, iteration, flux, got 'graph'" in ran.stderr


def rehearsed(stage: str, tmp_path: Path, *names: str) -> dict[str, Result]:
    """Runs the checks of a stage, or those whose names begin with one of `names`, and writes the report."""
    session, plan = Session(), rehearsal(torch.device("cpu"), tmp_path)
    chosen = [check for check in CHECKS[stage](plan, session) if check.name.startswith(names or "")]
    session.run(chosen)
    assert [result for result in session.results if result.status == "FAIL"] == []
    assert [result.name for result in session.results] == [check.name for check in chosen]
    lines = report.write(tmp_path, stage, facts(plan.device), session.results).read_text().splitlines()
    for result in session.results:
        assert sum(line.startswith(f"| {result.status} | {result.name} |") for line in lines) == 1
    return {result.name: result for result in session.results}


def columns(results: dict[str, Result], table: str) -> set[str]:
    rows = report.merged([row for result in results.values() if result.table == table for row in result.figures])
    return set.intersection(*({*row} for row in rows))


@pytest.mark.slow
def test_the_stage_of_graphs_is_rehearsed(tmp_path):
    iterations = [f"{name}, sd3" for name in checks.ITERATION_CHECKS]
    results = rehearsed("graphs", tmp_path, "a failed", "graphs equal eager,", "graphs equal eager while", *iterations)
    assert {name for name, result in results.items() if result.status == "skip"} <= {*iterations}
    assert len(results) == 8


@pytest.mark.slow
def test_gradients_of_attention_are_compared_by_kernel_and_by_layout(tmp_path):
    figures = rehearsed("graphs", tmp_path, "gradients of attention")["gradients of attention"].figures
    right = [row for row in figures if row["kernel"] in ("plain", "flash")]
    assert len(right) == 2
    assert all(row[layout] < 0.01 for row in right for layout in ("dense", "then a slice", "then dense"))
    ended = {row["kernel"]: row["ended"] for row in figures if "ended" in row}
    assert set(ended) == {"efficient", "cudnn"}  # which a CPU does not have
    assert all("No viable backend" in reason for reason in ended.values())


@pytest.mark.slow
def test_the_stage_of_calls_is_rehearsed(tmp_path):
    results = rehearsed("calls", tmp_path)
    assert all(result.status == "pass" for result in results.values())
    assert columns(results, "one call, ms") == {"weights", "rows", "eager"}
    rollouts = {row["rollout"] for result in results.values() for row in result.figures if "rollout" in row}
    assert rollouts == {"fp32 adapter, eager", "merged, eager", "small network, eager", "small network, captured"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["iteration", "flux"])
def test_the_stages_of_iterations_are_rehearsed(tmp_path, stage):
    results = rehearsed(stage, tmp_path)
    assert all(result.status == "pass" for result in results.values())
    rows = [row for result in results.values() for row in result.figures if "iteration" in row]
    names = {"estimate", "ours, merged", "the paper's structure"}
    more = {"ours, as trained", "ours, merged, fewer steps and tails of two"} if stage == "iteration" else set()
    assert {row["iteration"] for row in rows} == names | more


@pytest.mark.slow
def test_ops_are_timed_in_processes_of_their_own(tmp_path):
    results = rehearsed("ops", tmp_path, "native", "triton")
    assert [result.status for result in results.values()] == ["pass", "skip"]
    assert columns(results, "ops") == {"op", "dtype", "R x D", "MB", "native us"}


@pytest.mark.slow
def test_a_body_is_compared_in_a_process_of_its_own(tmp_path):
    result = rehearsed("kernels", tmp_path, "parity, reference", "CUDA", "Triton")
    assert result.pop("parity, reference").detail == "7 of 7 ops"
    assert {each.detail for each in result.values()} == {"CUDA kernels need a CUDA device"}


def test_figures_are_read_from_the_table_of_ncu():
    log = (
        "==PROF== Connected to process 7\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","branch_step_kernel","DRAM Throughput","%","61.5"\n'
        '"0","branch_step_kernel","Duration","ns","21,504"\n'
        '"0","branch_step_kernel","L2 Cache Throughput","%","40"\n'
    )
    assert stages.profiled(log) == {"DRAM Throughput, %": 61.5, "Duration, ns": 21504.0}
    assert stages.profiled("==ERROR== ERR_NVGPUCTRPERM") == {}


def test_figures_of_a_wrong_body_are_refused(tmp_path):
    session, plan = Session(), rehearsal(torch.device("cpu"), tmp_path)
    session.results.append(Result("parity, native", "FAIL", "differs"))
    session.run([check for check in CHECKS["ops"](plan, session) if check.name.startswith("native")])
    assert session.results[-1].detail == "no figures: this body differs from the reference"


def test_on_a_card_the_published_shapes_are_run(tmp_path):
    plan = on_card(torch.device("cuda", 0), tmp_path)
    for shape, billions in ((plan.medium, 2.24), (plan.flux, 11.90)):
        network = models.network_without_weights(shape, plan.dtype)
        assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 2) == billions
    decoder = models.autoencoder_without_weights(plan.medium.autoencoder, plan.medium.latent_channels).decoder
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 49_545_475  # that of SD3's published weights
    assert (plan.compiled, plan.quick) == (True, False)
    for stage, function in CHECKS.items():
        assert len({check.name for check in function(plan, Session())}) == len(function(plan, Session())), stage
    assert list(CHECKS) == list(STAGES)


@pytest.mark.slow
def test_a_stage_out_of_time_says_what_is_missing_and_a_requirement_makes_that_a_failure(tmp_path):
    ran = program("--rehearse", "--stages", "kernels", "--minutes", 0.001, "--output", tmp_path, "--require")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    page = (tmp_path / "kernels.md").read_text()
    assert page.startswith("# kernels, none: a rehearsal, whose figures mean nothing: incomplete")
    assert "| skip | parity, native | 0.0 | not run: it takes about 60 s, 0 s are left |" in page


@pytest.mark.slow
def test_what_a_machine_lacks_is_named_and_the_rest_runs(tmp_path):
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.split('.')[0] in {BLOCKED}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(blocker)
    ran = program("--rehearse", "--stages", "calls", "--output", tmp_path, path=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((tmp_path / "calls.json").read_text())["results"]
    details = {result["name"]: (result["status"], result["detail"]) for result in results}
    assert details.pop("import")[0] == "pass"
    assert details.pop("build")[0] == "skip"
    needs = "it needs diffusers, peft: install it, or put its wheel into a folder and pass --wheels"
    assert set(details.values()) == {("skip", needs)}


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


def test_failures_and_skips_carry_their_reasons_and_figures(tmp_path):
    saved = []
    session = Session(minutes=1, save=lambda results: saved.append(len(results)))

    def unequal():
        raise AssertionError("states differ by 1e-3\nand more")

    def absent():
        raise Skip("no compiler here")

    session.run([
        Check("a | b", unequal),
        Check("built", absent),
        Check("long", lambda: Outcome("done"), needs=120),
        Check("foreign", lambda: Outcome("done"), packages=("torch", "no_such_package")),
        Check("in part", lambda: Outcome("done", [{"op": "x", "native us": 1.5}], problem="y failed"), table="ops"),
        Check("short", lambda: Outcome("done", [{"op": "x", "eager us": 1.23456}]), table="ops"),
    ])  # fmt: skip
    assert [result.status for result in session.results] == ["FAIL", "skip", "skip", "skip", "FAIL", "pass"]
    assert saved == [1, 2, 3, 4, 5, 6]
    assert session.status() == 1
    page = report.write(tmp_path, "ops", {"card": "none"}, session.results).read_text()
    assert page.startswith("# ops, none: FAIL\n\n1 checks passed, 2 failed, 3 were skipped.")
    assert "| FAIL | a \\| b | 0.0 | AssertionError: states differ by 1e-3 |" in page
    assert "| skip | foreign | 0.0 | it needs no_such_package: install it" in page
    assert "| FAIL | in part | 0.0 | y failed |" in page
    assert "## ops\n\n| op | native us | eager us |\n| --- | --- | --- |\n| x | 1.5 | 1.235 |" in page


@pytest.mark.parametrize(("status", "require", "expected"), [("pass", True, 0), ("skip", False, 0), ("skip", True, 1)])
def test_a_skip_fails_only_where_everything_is_required(status, require, expected):
    session = Session()
    session.results.append(Result("it", status, ""))
    assert session.status(require) == expected


@pytest.mark.slow
def test_a_check_that_hangs_ends_with_the_time_limit_and_its_programs_end_with_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from bench.gpu import children, report; from bench.gpu.results import Check, Outcome, Session\n"
        "session = Session(0.02, lambda results: report.write(Path(sys.argv[1]), 'it', {}, results))\n"
        "session.end_in_time(grace=0.1)\n"
        "starts = 'sleep 600 & echo $! > ' + sys.argv[1] + '/pid; wait'\n"
        "hangs = lambda: children.run(['sh', '-c', starts], 600)\n"
        "session.run([Check('quick', Outcome), Check('hangs', hangs), Check('never', Outcome)])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, timeout=60, check=False)
    assert ran.returncode == 1
    page = (tmp_path / "it.md").read_text()
    assert "| pass | quick |" in page
    assert "| FAIL | hangs |" in page
    assert "| skip | never | 0.0 | not run: not done after 0.02 minutes |" in page
    assert_ends(int((tmp_path / "pid").read_text()))


def assert_ends(pid: int) -> None:
    """Fails if a process is still there after a second."""
    for _ in range(20):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still running")


def test_a_program_that_is_late_ends_with_all_that_it_has_started(tmp_path):
    """As compute-sanitizer does, whose child would keep the card; what was printed until then is kept."""
    late = "echo early; setsid sleep 600 & sleep 600 & echo $! > pid; wait".replace("pid", str(tmp_path / "pid"))
    ran = children.run(["sh", "-c", late], seconds=0.5)
    assert (ran.in_time, ran.stdout) == (False, "early\n")
    assert_ends(int((tmp_path / "pid").read_text()))


def test_a_stage_that_crashes_keeps_what_it_had_reported(tmp_path):
    report.write(tmp_path, "ops", {"card": "a card"}, [Result("first", "pass", "done")])
    assert report.add_failure(tmp_path, "ops", "ended by signal 11") == "ended by signal 11"
    lines = (tmp_path / "ops.md").read_text().splitlines()
    assert lines[0] == "# ops, a card: FAIL"
    assert lines[-2:] == ["| pass | first | 0.0 | done |", "| FAIL | the stage | 0.0 | ended by signal 11 |"]


def make_wheel(folder: Path, name: str, requirement: str) -> None:
    """A wheel with one module and one requirement."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "value = 5\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requirement}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)


@pytest.mark.slow
def test_missing_packages_come_from_a_folder_of_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    make_wheel(tmp_path, "carried_along", "no-such-package>=2")
    make_wheel(tmp_path, "torch", "numpy")  # is installed, and must stay what it is
    said = wheels.install(tmp_path, tmp_path / "site")
    assert said == "wheels: installed carried-along 1.0; still missing: no-such-package (for carried-along)"
    assert [path.name for path in (tmp_path / "site").glob("*.py")] == ["carried_along.py"]
    ran = subprocess.run([sys.executable, "-c", "import carried_along, torch; print(torch.ones(1))"], check=False)
    assert ran.returncode == 0
    with pytest.raises(SystemExit, match="--wheels must be a folder with wheels, got"):
        wheels.install(tmp_path / "none", tmp_path / "site")


def test_measured_figures_are_next_to_predicted_ones(tmp_path):
    calls = [Result("calls", "pass", "", 1.0, [{"weights": "merged", "rows": "24", "eager": 400.0}], "one call, ms")]
    seconds = {"the paper's structure": 250.0, "ours, merged, compiled": 100.0}
    rows = [{"iteration": name, "seconds": value} for name, value in seconds.items()]
    iterations = [Result("a", "pass", "", 1.0, rows, "iterations")]
    for card, verdict in (("NVIDIA H200", "another card"), ("NVIDIA H100 80GB HBM3", "differs")):
        known = {"device": "cuda:0", "card": card}
        report.write(tmp_path, "calls", known, calls)
        report.write(tmp_path, "iteration", known, iterations)
        said = {row["figure"]: (row["measured"], row[""]) for row in predictions.compared(tmp_path)}
        assert said["call of 24 rows, merged, ms"] == ("400", verdict)
        assert said["the paper's structure over ours, merged and compiled"] == ("2.5", "as predicted")
        assert said["call of 24 rows, fp32 adapter, ms"] == ("not measured", "")
    for device in ("cpu", "cuda:0"):
        report.write(tmp_path, "calls", {"device": device, "card": report.REHEARSAL}, calls)
        said = {row["figure"]: row["measured"] for row in predictions.compared(tmp_path)}
        assert said["call of 24 rows, merged, ms"] == "not measured"


def test_the_iteration_before_the_timed_one_fits_all_plans(tmp_path):
    for plan in (on_card(torch.device("cuda"), tmp_path), rehearsal(torch.device("cpu"), tmp_path)):
        for config in (plan.iteration, plan.fewer, plan.flux_iteration):
            assert short(config).num_steps == 3


@pytest.mark.parametrize(
    "check", [checks.graphs_equal_eager, checks.graphs_equal_eager_while_rewards_wait], ids=["rollouts", "iterations"]
)
def test_unequal_rollouts_fail_the_check(check):
    policy = models.random_policy(models.TINY_SD3, torch.device("cpu"), torch.float32)

    class Stale(RecordingDevice):
        """Replays the first result for ever."""

        def capture(self, function):
            result = function()
            return lambda: None, result

    with pytest.raises(AssertionError, match=" by "):
        check(policy, 4.5, Stale())


def test_a_failed_capture_that_keeps_memory_fails_the_check(monkeypatch):
    held = iter(range(100))
    monkeypatch.setattr(checks, "_reserved_after_use", lambda device: next(held))
    with pytest.raises(AssertionError, match="reserved memory grows from 1 to 7 bytes"):
        checks.failed_capture_leaves_nothing(torch.device("cpu"), RecordingDevice())


@pytest.mark.parametrize("check", [parity.log_prob, parity.policy_loss])
def test_parity_holds_at_its_largest_size(check):
    """There, gradients of means are the smallest, and float16 tells least apart."""
    for aligned in (False, True):
        check(torch.device("cpu"), torch.float16, max(parity.SIZES), True, aligned)


@pytest.mark.slow
def test_parity_sees_a_wrong_body_and_any_error():
    """An op that is off by 1e-2 is a problem in every dtype; so is a compiler that raises an error of its own."""
    code = (
        "from bench.gpu import parity; import torch\n"
        "from tempflow_fast import ops\n"
        "right = ops.euler_step\n"
        "parity.ops.euler_step = lambda *a, **k: right(*a, **k) * 1.01\n"
        "def noise(*_): raise LookupError('no such intrinsic')\n"
        "parity.ops.initial_noise = noise\n"
        "found = parity.problems(torch.device('cpu'), (63,))\n"
        "print(len(found), found[0]); print(found[12])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert first.startswith("24 branch_step torch.float32 D=63 plain, unaligned: AssertionError: ")
    assert first.endswith("euler_step and branch_step move differently")
    assert second.endswith("LookupError: no such intrinsic")
