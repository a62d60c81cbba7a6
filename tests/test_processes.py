"""One, two and three real processes: the same rollouts, the same advantages, the same weights; and what ends a run.

`processes_worker.py` is launched once per number of processes, by `accelerate launch` with gloo on the CPU. FSDP2 is
accelerate's own, but for its refusal to shard on a CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes_worker import CASES
from safetensors.torch import load_file
from tiny import TinyPolicy

from tempflow_fast.batching import deal, equal_pieces, padded

PATIENCE = 300
"""Seconds for a launch on a busy machine; a hang would last half an hour."""
LAUNCH = (Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--main_process_port", "0")
PLAIN = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
LAUNCHES = {1: (sys.executable,)} | {count: (*LAUNCH, *PLAIN, "--num_processes", count) for count in (2, 3)}
PARTS = {1: (), 2: ("fsdp",), 3: ("die",)}


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """All launches, at once: (directory, return codes, what they wrote to stderr)."""
    directory, worker = tmp_path_factory.mktemp("processes"), Path(__file__).with_name("processes_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {
        count: subprocess.Popen(
            [*map(str, command), str(worker), str(directory), *PARTS[count]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(directory / f"errors-{count}").open("w"),
        )
        for count, command in LAUNCHES.items()
    }
    try:
        codes = {count: process.wait(timeout=PATIENCE) for count, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    return directory, codes, {count: (directory / f"errors-{count}").read_text() for count in running}


@pytest.fixture(scope="module")
def results(launches):
    """results[count][index]: what each process of each launch saved."""
    directory, _, errors = launches
    return {
        count: [load(directory / f"{count}-{index}.pt", errors[count]) for index in range(count)] for count in LAUNCHES
    }


def load(path: Path, errors: str) -> dict:
    assert path.is_file(), errors
    return torch.load(path, weights_only=False)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


RUNS = [(2, name, name) for name in CASES] + [(3, name, name) for name in CASES]
RUNS += [(2, f"fsdp {name}", name) for name in CASES]


@pytest.mark.parametrize(("count", "run", "case"), RUNS)
def test_many_processes_train_as_one_does(results, count, run, case):
    (alone,), parts = (results[1], results[count])
    alone, parts = alone[case], [part[run] for part in parts]
    assert {part["wrapper"] for part in parts} == {"FSDPSequential" if "fsdp" in run else "DistributedDataParallel"}
    # Every trajectory once, with its own noise; then network calls of another shape, whose rows may round otherwise.
    ids = torch.cat([part["ids"] for part in parts])
    assert ids.sort().values.tolist() == alone["ids"].tolist()
    assert torch.equal(torch.cat([part["noise"] for part in parts])[ids.argsort()], alone["noise"])
    assert relative(torch.cat([part["latents"] for part in parts])[ids.argsort()], alone["latents"]) < 1e-6
    # Rewards of these groups lie 0.01 to 0.1 apart, by which a rounding of 1e-7 is divided.
    torch.testing.assert_close(parts[0]["advantages"], alone["advantages"], rtol=0, atol=1e-5)
    assert list(parts[0]["weights"]) == list(alone["weights"])
    assert relative(flat(parts[0]["weights"]), flat(alone["weights"])) < 1e-5
    assert relative(flat(alone["weights"]), flat(dict(TinyPolicy().network.named_parameters()))) > 1e-3
    compare_metrics(parts[0]["metrics"], alone["metrics"])


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
        assert not other["weights"], "only the main process gathers them"


def test_a_process_without_trajectories_or_signal_only_keeps_step(results):
    assert [len(part["few"]["ids"]) for part in results[3]] == [1, 1, 0]
    alone = results[1][0]["silent"]
    assert alone["advantages"].flatten(1).any(dim=1).sum() == 1
    # The one trajectory with signal has three pairs; in calls of two, others add a row to each of its two calls.
    training = [[rows for rows, grad in part["silent"]["calls"] if grad] for part in results[3]]
    assert sorted(training) == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 2, 1, 2]]


def test_equal_rewards_give_equal_bits(results):
    alone = results[1][0]["prompt groups"]["advantages"]
    for count in (2, 3):
        assert torch.equal(results[count][0]["prompt groups"]["advantages"], alone)


def test_sharded_weights_are_gathered_and_saved(launches, results):
    directory, codes, errors = launches
    assert codes[2] == 0, errors[2]
    saved, alone = load_file(directory / "sharded.safetensors"), results[1][0]["seed groups"]["weights"]
    assert saved.keys() == alone.keys()
    assert relative(flat({name: saved[name] for name in alone}), flat(alone)) < 1e-5
    TinyPolicy().network.load_state_dict(saved)


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
        assert "must be the same in all processes, got different ones" in part["errors"]["other work"]
        assert "rewards must be finite, got nan at [0, 0, 0]" in part["errors"]["nan"]


def test_one_process_needs_no_accelerate(results):
    assert not results[1][0]["has accelerate"]
    assert results[2][0]["has accelerate"]


@pytest.mark.parametrize("num_trajectories", [1, 2, 7, 24])
@pytest.mark.parametrize("num_updates", [1, 2, 3])
@pytest.mark.parametrize("num_processes", [1, 2, 5, 8])
def test_deal_gives_even_shares_of_every_update(num_trajectories, num_updates, num_processes):
    shares = deal(num_trajectories, num_updates, num_processes)
    assert sorted(n for share in shares for n in share) == list(range(num_trajectories))
    assert all(share == sorted(share) for share in shares)
    for update in (None, *range(num_updates)):
        lengths = [sum(update in (None, n % num_updates) for n in share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
    most = -(-num_trajectories // num_processes)
    for process, share in enumerate(shares):
        assert padded(shares, process)[: len(share)] == share
        assert len(padded(shares, process)) == most


def test_pieces_may_outnumber_the_rows():
    assert [piece.stop - piece.start for piece in equal_pieces(2, 1, at_least=4)] == [0, 1, 0, 1]
    assert equal_pieces(5, 2, at_least=2) == equal_pieces(5, 2)
    assert [piece.stop - piece.start for piece in equal_pieces(0, None, at_least=2)] == [0, 0]
