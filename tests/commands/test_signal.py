"""tempflow-fast signal on the embedded pipeline, with few prompts."""

from __future__ import annotations

import json

import pytest

from tempflow_fast.cli import main
from tempflow_fast.commands.signal import FIRST, Signal, changed
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.signal.store import SampleStore

SHORT = [
    *("--prompts-per-iteration", "2"),
    *("--reference", "num_seeds=2"),
    *("--against", "branch_steps=[3] num_branches=2"),
    *("--against", "branch_steps=[2]"),
]


@pytest.mark.slow
def test_a_measurement_resumes_and_writes_its_report(tmp_path, capsys):
    command = ["signal", "--output", str(tmp_path / "signal"), *SHORT]
    assert main([*command, "--iterations", "3"]) == 0
    first = json.loads((tmp_path / "signal/report.json").read_text())
    samples = sorted((tmp_path / "signal/samples").iterdir())
    times = [path.stat().st_mtime_ns for path in samples]
    assert main([*command, "--iterations", "4"]) == 0
    assert [path.stat().st_mtime_ns for path in samples] == times, "finished iterations were drawn again"
    report = json.loads((tmp_path / "signal/report.json").read_text())
    assert (first["num_iterations"], report["num_iterations"]) == (3, 4)
    names = [setting["name"] for setting in report["settings"]]
    assert names == ["num_seeds=2", "branch_steps=[3] num_branches=2", "branch_steps=[2]"]
    # T = 6: the trunk up to the last branch step, and from there the tails, of 4, 3 and 2 steps from steps 1, 2 and 3.
    evaluations = [setting["evaluations"] for setting in report["settings"]]
    assert evaluations == [2 * (4 + 6 * (4 + 3 + 2)), 2 * (4 + 2 * 2), 2 * (3 + 6 * 3)]
    assert (tmp_path / "signal/signal.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert ("Most signal per evaluation" in said) != ("the ratios to it mean nothing yet" in said)
    more = ["--against", "noise_level=0.5 branch_steps=[3] num_branches=2"]
    assert main([*command, *more, "--iterations", "3"]) == 0
    assert [path.stat().st_mtime_ns for path in samples] != times
    assert len(json.loads((tmp_path / "signal/report.json").read_text())["settings"]) == 4
    assert main([*command, "--iterations", "3", "--seed", "1"]) == 2
    assert "measurement: seed must be 0 as in" in capsys.readouterr().err


def test_methods_whose_steps_take_turns_are_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["signal", "--output", str(tmp_path / "signal"), "--against", "method=mixgrpo"]) == 2
    assert "branch_draw must be 'weighted' or 'random'" in (said := capsys.readouterr().err)
    assert "'progressive' in 'method=mixgrpo'" in said
    assert not (tmp_path / "signal").exists()


def opened(directory, **changes):
    """The store of a measurement of the recipe with changed settings."""
    command = Signal(output=directory)
    config = command.source.config().with_settings(**changes)
    return SampleStore(directory, command._facts(config), {FIRST: config.grpo})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 4}, "lora_rank must be None as in"),
        ({"lora_alpha": 2.0}, "lora_alpha must be None as in"),
        ({"precision": "bf16"}, "precision must be 'fp32' as in"),
        ({"vae_precision": "bf16"}, "vae_precision must be 'fp32' as in"),
        ({"resolution": 24}, "resolution must be None as in"),
        ({"policy": "mine:Policy"}, "policy must be None as in"),
    ],
)
def test_gradients_of_another_policy_are_not_mixed(tmp_path, changes, message):
    opened(tmp_path)
    with pytest.raises(ValueError, match=f"measurement: {message}"):
        opened(tmp_path, **changes)


def test_gradients_of_another_version_are_not_mixed(tmp_path, monkeypatch):
    opened(tmp_path)
    monkeypatch.setattr("tempflow_fast.version.__version__", "0.0.1")
    with pytest.raises(ValueError, match=r"measurement: version must be .* got '0\.0\.1'"):
        opened(tmp_path)


def test_a_measurement_resumes_where_the_policy_is_only_kept_in_another_way(tmp_path):
    opened(tmp_path)
    opened(tmp_path, device="cpu", memory_limit=8.0, gradient_checkpointing=True, offload_text_encoders=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--against must be settings as"),
        ("num_branches", "--against must be settings as"),
        ("num_branches=2 num_branches=3", "--against must be settings with each name once"),
        ("method=awm method=mixgrpo", "--against must be settings with each name once"),
        ("branches=3", "setting must be .*num_branches"),
        ("num_branches=many", "num_branches must be"),
        ("num_branches=0", "GRPOConfig: num_branches must be"),
        ("sampler=cpss", "sampler must be"),
    ],
)
def test_settings_that_do_not_exist_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        changed(get_recipe("shapes").grpo, text)


def test_values_are_those_of_config_json():
    text = "branch_steps=[1,2] num_branches=[3,4] sampler=flow_sde noise_level=0.5"
    config = changed(get_recipe("shapes").grpo, text)
    assert (config.branch_steps, config.num_branches, config.sampler) == ((1, 2), (3, 4), "flow_sde")
    assert config.noise_level == 0.5
