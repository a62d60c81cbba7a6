"""One, two and three real processes: the same rollouts, the same advantages, the same weights; and what ends a run.

`processes_worker.py` is launched once for two and once for three, by `accelerate launch` with gloo on the CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support import TESTS
from support.launch import LAUNCH
from support.processes_worker import ADAPTER, CASES, WHOLE, train
from support.tiny import TinyPolicy

from tempflow_fast.processes import Processes, launched

pytestmark = pytest.mark.slow

PATIENCE = 900
"""Seconds for a launch on a busy machine; a hang would last half an hour."""
PARTS = {2: "two", 3: "die"}


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """Both launches, at the same time: (directory, return codes, what they wrote to stderr)."""
    directory, worker = tmp_path_factory.mktemp("processes"), TESTS / "support" / "processes_worker.py"
    errors = {count: directory / f"errors-{count}" for count in PARTS}
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    running = {}
    try:
        for count, part in PARTS.items():
            with errors[count].open("w") as stderr:
                running[count] = subprocess.Popen(
                    [*LAUNCH, str(count), str(worker), str(directory), part],
                    # The second setting is what `accelerate launch --use_fsdp` adds on its own.
                    env={
                        **os.environ,
                        **{"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
                    },
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                )
        codes = {count: process.wait(timeout=PATIENCE) for count, process in running.items()}
    finally:
        for process in running.values():
            process.terminate()  # the launcher then ends its processes
    return directory, codes, {count: path.read_text() for count, path in errors.items()}


@pytest.fixture(scope="module")
def results(launches):
    """results[count][index]: what each process saved."""
    directory, _, errors = launches
    for count in PARTS:
        assert (directory / f"{count}-0.pt").is_file(), errors[count]
    return {
        count: [torch.load(directory / f"{count}-{index}.pt", weights_only=False) for index in range(count)]
        for count in PARTS
    }


@pytest.fixture(scope="module")
def alone():
    """The result of this process alone, which is not one of accelerate's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", None)  # an import would fail
        processes = launched()
    assert type(processes) is Processes
    return {name: train(processes, *case) for name, case in (CASES | ADAPTER | WHOLE).items()}


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


RUNS = [(count, name, name) for count in PARTS for name in CASES] + [(2, name, name) for name in ADAPTER | WHOLE]
RUNS += [(2, f"sharded {name}", name) for name in CASES | ADAPTER]


@pytest.mark.parametrize(("count", "run", "case"), RUNS)
def test_many_processes_train_as_one_does(results, alone, count, run, case):
    parts, one = [part[run] for part in results[count]], alone[case]
    assert all(part["wrapper"].startswith("FSDP" if "sharded" in run else "DistributedData") for part in parts)
    # Every trajectory once, with its own noise; then network calls of another shape, whose rows may round otherwise.
    ids = torch.cat([part["ids"] for part in parts])
    assert ids.sort().values.tolist() == one["ids"].tolist()
    assert torch.equal(torch.cat([part["noise"] for part in parts])[ids.argsort()], one["noise"])
    assert relative(torch.cat([part["latents"] for part in parts])[ids.argsort()], one["latents"]) < 1e-6
    # Rewards of these groups are 0.01 to 0.1 apart, by which a rounding of 1e-7 is divided.
    torch.testing.assert_close(parts[0]["advantages"], one["advantages"], rtol=0, atol=1e-5)
    weights, want = parts[0]["weights"], one["weights"]
    assert list(weights) == list(want)
    assert relative(flat(weights), flat(want)) < 1e-5
    assert relative(flat(one["start"]), flat(want)) > 1e-3, "training moves the weights"
    compare_metrics(parts[0]["metrics"], one["metrics"])


def test_a_sharded_network_refuses_to_merge(results):
    for part in results[2]:
        assert part["refused"].startswith("merged_weights: network must be whole in every process")


def compare_metrics(many: list[dict[str, float]], alone: list[dict[str, float]]) -> None:
    own = {"num_calls", "num_row_evaluations"}  # what the rollout costs may differ by its padding
    for got, want in zip(many, alone, strict=True):
        assert got.keys() == want.keys()
        for name in {name for name in want if "seconds" not in name} - own:
            assert got[name] == pytest.approx(want[name], rel=2e-4, abs=1e-7), name


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes_agree_to_the_bit_and_keep_step(results, count, case):
    first, *others = [part[case] for part in results[count]]
    for other in others:
        assert torch.equal(first["advantages"], other["advantages"])
        assert first["metrics"] == other["metrics"]
        assert [grad for _, grad in first["calls"]] == [grad for _, grad in other["calls"]]
        assert all(map(torch.equal, first["replica"], other["replica"]))
        assert not other["weights"], "only the main process gathers them"
    assert len(first["replica"]) == len(first["weights"])


def test_a_process_without_trajectories_or_signal_only_keeps_step(results, alone):
    assert [len(part["few"]["ids"]) for part in results[3]] == [1, 1, 0]
    assert alone["silent"]["advantages"].flatten(1).any(dim=1).sum() == 1
    # The one trajectory with signal has three pairs; in calls of two, others add a row to each of its two calls.
    training = [[rows for rows, with_graph in part["silent"]["calls"] if with_graph] for part in results[3]]
    assert sorted(training) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 1, 2]]


def test_equal_rewards_give_equal_bits(results, alone):
    for count in PARTS:
        got = results[count][0]["prompt groups"]["advantages"]
        assert torch.equal(got, alone["prompt groups"]["advantages"])


def test_sharded_weights_are_gathered_and_saved(launches, alone):
    directory, codes, errors = launches
    assert codes[2] == 0, errors[2]
    saved, want = load_file(directory / "sharded.safetensors"), alone["seed groups"]["weights"]
    assert relative(flat({name: saved[name] for name in want}), flat(want)) < 1e-5
    TinyPolicy().network.load_state_dict(saved)


def test_sharded_network_sees_weights_that_change_between_calls(results):
    first, other = (part["changed"] for part in results[2])
    assert first == {"seen": True, "whole": True, "sharded again": True}
    assert other == {"seen": True, "whole": False, "sharded again": True}


def test_a_killed_process_ends_the_run_with_a_message(launches):
    directory, codes, errors = launches
    assert codes[3] not in (0, None)
    assert "exitcode  : -9" in errors[3], errors[3]
    for survivor in (0, 1):
        sentence = f"process {survivor} of 3 lost the others: one of them ended"
        assert (directory / f"lost-{survivor}").read_text().startswith(sentence)
        assert f"ProcessLostError: {sentence}" in errors[3]


@pytest.mark.parametrize("count", [2, 3])
def test_wrong_input_stops_all_processes(results, count):
    for part in results[count]:
        assert "must be the same in all processes" in part["errors"]["other work"]
        assert 'reward "<lambda>" failed on sample 0' in part["errors"]["nan"]


@pytest.mark.parametrize("count", [2, 3])
def test_a_gradient_that_is_not_finite_in_one_process_is_skipped_in_all(results, count):
    """By DDP and, with two processes, by FSDP2; with AdamW and the fused one, which decides on the device."""
    for part in results[count]:
        assert part["spoiled"] == [{"skipped": 2, "same": True}] * (4 if count == 2 else 2)


def test_every_process_loads_its_own_text_encoders(results):
    assert {part["loading"] for count in PARTS for part in results[count]} == {"false"}


def test_the_first_version_of_fsdp_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"launched: FSDP must be of version 2 \(--fsdp_version 2\), got 1"):
        launched()
