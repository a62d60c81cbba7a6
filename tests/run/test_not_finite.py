"""A run that diverges ends by name, and what it had kept stays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support.runs import go, tiny_config
from support.tiny import TinyPolicy

from tempflow_fast.cli import main
from tempflow_fast.errors import NotFiniteError
from tempflow_fast.processes import Processes
from tempflow_fast.run.average import WeightAverage
from tempflow_fast.run.checkpoint import TrainingState, save_checkpoint
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.numbered import latest_checkpoint
from tempflow_fast.run.origin import Origin
from tempflow_fast.run.train import MAX_SKIPPING


def trained_state():
    policy = TinyPolicy()
    optimizer = torch.optim.AdamW(policy.parameters())
    state = TrainingState(policy, optimizer, WeightAverage(policy, optimizer, decay=0.9, every=1), num_iterations=1)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return state


PLACES = {
    "weights": lambda state: state.policy.parameters()[0].data,
    "average": lambda state: state.average.weights[-1],
    "optimizer": lambda state: next(iter(state.optimizer.state.values()))["exp_avg"],
}


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("place", PLACES)
def test_a_state_that_is_not_finite_is_not_saved_and_removes_nothing(place, value, tmp_path):
    state, config = trained_state(), tiny_config()
    save_checkpoint(tmp_path, state, config, Processes(), keep=1, origin=Origin())
    state.num_iterations = 2
    PLACES[place](state).view(-1)[1] = value
    with pytest.raises(NotFiniteError, match="after 2 iterations, weights, their average or the optimizer's state"):
        save_checkpoint(tmp_path, state, config, Processes(), keep=1, origin=Origin())
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_metrics_are_json_whatever_they_are(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics({"iteration": 1, "loss": torch.nan, "grad_norm": torch.inf, "kl": 0.5})

    def refuse(word):
        raise AssertionError(word)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"iteration": 1, "loss": None, "grad_norm": None, "kl": 0.5}
    (row,) = run.read_metrics()
    assert row["loss"] != row["loss"]
    assert row["kl"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1e30}, rf"infinite or NaN in {MAX_SKIPPING} iterations in a row, the last of them iteration"),
        ({"learning_rate": 1e30}, r"image \d+ .* is not finite: the velocity of the policy overflows"),
    ],
    ids=["beta", "learning rate"],
)
def test_a_run_that_diverges_keeps_its_last_finite_checkpoint(settings, message, tmp_path):
    """Its first iteration is in order; then a setting becomes absurd, as it may between two starts."""
    run, _ = go(tmp_path, tiny_config(num_iterations=1, beta=0.01))
    with pytest.raises(NotFiniteError, match=message):
        go(tmp_path, tiny_config(num_iterations=20, checkpoint_every=10, warmup_iterations=0, **settings))
    assert latest_checkpoint(run.checkpoints).name == "000001"
    for file in run.path.rglob("*.safetensors"):
        assert all(tensor.float().isfinite().all() for tensor in load_file(file).values()), file
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_the_command_line_says_it_in_one_line(tmp_path, capsys):
    run, _ = go(tmp_path, tiny_config(num_iterations=1))
    options = ["--num-iterations", "20", "--learning-rate", "1e30", "--warmup-iterations", "0"]
    assert main(["train", "--output", str(run.path), *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("tempflow-fast train: image ")
