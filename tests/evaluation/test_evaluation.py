"""Evaluations: scores saved as they arrive, resumed, shared by processes, compared on the same noise."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT, TESTS
from support.evaluations import made_up
from support.launch import LAUNCH

from tempflow_fast.cli import _parse, main
from tempflow_fast.evaluation import sample
from tempflow_fast.evaluation.compare import paired_differences
from tempflow_fast.evaluation.directory import EvaluationDirectory
from tempflow_fast.evaluation.evaluate import evaluate
from tempflow_fast.evaluation.intervals import standard_error, task_intervals
from tempflow_fast.evaluation.measures import reward_measure, task_measure
from tempflow_fast.evaluation.report import geneval_tables
from tempflow_fast.evaluation.result import Noise
from tempflow_fast.processes import Processes
from tempflow_fast.rewards import RewardError
from tempflow_fast.run.load import load_policy
from tempflow_fast.settings.recipes import get_recipe

REWARDS = "jpeg_incompressibility,support.tiny:brightness"
OPTIONS = ["--images", "12", "--max-batch", "3", "--rewards", REWARDS]
CONFIG = get_recipe("shapes").with_settings(eval_images=12, max_batch=3)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("evaluation") / "a"
    assert main(["eval", "--directory", str(directory), *OPTIONS]) == 0
    return directory


def lines(directory: Path) -> dict[int, dict[str, float]]:
    return EvaluationDirectory(directory).scores()


def test_a_directory_holds_scores_tables_and_pictures(done):
    data = json.loads((done / "scores.json").read_text())
    assert [row["row"] for row in data["images"]] == list(range(12))
    config = CONFIG.with_settings(max_batch=None)
    whole = evaluate(config, load_policy("embedded"), reward_measure(REWARDS))
    for name, values in whole.measures.items():
        assert [row[name] for row in data["images"]] == pytest.approx(values.tolist(), abs=0.01)
        overall = data["table"]["overall"][name]
        assert overall["mean"] == pytest.approx(whole.table()["overall"][name], abs=0.01)
        assert overall["low"] < overall["mean"] < overall["high"]
    text = (done / "report.md").read_text()
    assert "| task | images | jpeg_incompressibility | brightness |" in text.replace("support.tiny:", "")
    assert "- eval_seed: 0" in text
    for name in ("samples.png", "rewards.png"):
        with Image.open(done / name) as image:
            assert min(image.size) > 200
    assert len(list((done / "images").iterdir())) == 12


def test_a_killed_evaluation_resumes_and_draws_only_what_is_missing(done, tmp_path, monkeypatch, capsys):
    drawn, real = [], sample.sample_images

    def counting(policy, texts, table, seed, scale, limit, rows, *others):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.extend(rows)
        return real(policy, texts, table, seed, scale, limit, rows, *others)

    monkeypatch.setattr("tempflow_fast.evaluation.evaluate.sample_images", counting)
    command = ["eval", "--directory", str(tmp_path / "b"), *OPTIONS]
    assert main(command) == 130
    assert drawn == [0, 1, 2]
    with (tmp_path / "b" / "scores.jsonl").open("a") as file:
        file.write('{"row": 3, "sco')  # killed in the middle of a line
    monkeypatch.undo()
    assert lines(tmp_path / "b").keys() == {0, 1, 2}
    drawn.clear()
    monkeypatch.setattr("tempflow_fast.evaluation.evaluate.sample_images", lambda *a: drawn.extend(a[6]) or real(*a))
    assert main(command) == 0
    assert drawn == list(range(3, 12))
    for row, scores in lines(done).items():
        assert lines(tmp_path / "b")[row] == pytest.approx(scores, abs=0.01)
    monkeypatch.setattr("tempflow_fast.commands.model.Model.load", None)  # all is there: no model is loaded
    assert main(command) == 0


@pytest.mark.slow
def test_two_processes_score_as_one_does(done, tmp_path):
    command = [*LAUNCH, "2", "-m", "tempflow_fast", "eval", "--directory", str(tmp_path / "two"), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("overall") == 1, "only one process speaks"
    assert lines(tmp_path / "two").keys() == lines(done).keys()
    for row, scores in lines(done).items():
        assert lines(tmp_path / "two")[row] == pytest.approx(scores, abs=0.01)


def test_a_failure_names_the_row_and_stops_all(tmp_path):
    calls = []

    def failing(images, prompts, metadata):
        calls.append(len(images))
        if len(calls) == 2:
            raise RewardError("mine", 1, prompts[1], "no")
        return {"reward": torch.zeros(len(images)).double()}

    with pytest.raises(RewardError, match=r'"mine" failed on sample 4 .*: no'):  # the second of the second three
        evaluate(CONFIG, load_policy("embedded"), failing)

    class SecondOfTwo(Processes):
        index, count = 1, 2

        def max(self, tensor):
            return torch.tensor(4) if tensor.dim() == 0 else tensor

    def fine(images, prompts, metadata):
        return {"reward": torch.zeros(len(images)).double()}

    with pytest.raises(RewardError, match=r"of another process.* failed on sample 4"):
        evaluate(CONFIG, load_policy("embedded"), fine, SecondOfTwo())


def test_a_sum_of_rewards_is_reported_with_its_parts_including_those_of_weight_0():
    task = CONFIG.with_settings(reward="support.tiny:brightness=2,jpeg_incompressibility=0").task
    images = torch.rand(2, 3, 24, 24)
    metadata = [{"include": [{"class": "circle", "count": 1}], "tag": "single_object"}] * 2
    found = task_measure(task)(images, ["a", "b"], metadata)
    assert list(found) == ["accuracy", "reward", "reward_support.tiny:brightness", "reward_jpeg_incompressibility"]
    assert torch.equal(found["reward"], 2 * found["reward_support.tiny:brightness"])


def test_intervals_draw_prompts_not_images_and_within_tasks():
    """Twenty equal images of each of 40 prompts give the interval of 40 images."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    keys = [str(number) for number in range(40)]
    one = task_intervals(values, ["t"] * 40, ("t",), keys)["overall"]
    many = task_intervals(values.repeat_interleave(20), ["t"] * 800, ("t",), [k for k in keys for _ in range(20)])
    error = values.std().item() / 40**0.5
    for interval in (one, many["overall"]):
        assert interval.mean == pytest.approx(values.mean().item())
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    # The tasks differ, but all values within a task are equal: no draw changes the mean.
    split = task_intervals(torch.tensor([0.0, 0, 1, 1, 1, 1]), list("aabbbb"), ("a", "b"), list("uvwxyz"))
    assert (split["overall"].low, split["overall"].mean, split["overall"].high) == (0.5, 0.5, 0.5)
    single = task_intervals(torch.tensor([0.0, 1.0, 1.0]), list("aaa"), ("a",), list("ppp"))["a"]
    assert single.low < single.mean < single.high, "of a single prompt, the images are drawn"
    assert task_intervals(torch.tensor([1.0]), ["a"], ("a",), ["p"])["a"].low is None


def test_the_standard_error_is_that_of_the_mean_of_unequal_tasks():
    """It agrees with the bootstrap over images; the error of the mean of all images would be 20 times smaller."""
    generator, tags = torch.Generator().manual_seed(1), ["a"] * 592 + ["b"] * 80
    values = torch.cat([torch.full((592,), 0.5), torch.randn(80, generator=generator)]).double()
    interval = task_intervals(values, tags, ("a", "b"), range(672))["overall"]
    assert standard_error(values, tags) == pytest.approx((interval.high - interval.low) / 2 / 1.96, rel=0.1)
    assert standard_error(values[:592], tags[:592]) == 0


def test_entries_that_differ_only_in_other_fields_are_one_prompt():
    values = [0.0, 0.1, 0.6, 0.9, 0.3, 0.2]
    metadata = [{"tag": "a", "prompt": prompt, "id": row} for row, prompt in enumerate(["P", "p ", "q", "q", "r", "r"])]
    numbered = made_up(values, metadata=metadata)
    assert numbered.intervals() == made_up(values, prompts="ppqqrr").intervals()
    assert numbered.intervals() != made_up(values).intervals()


@pytest.mark.parametrize("image", ["a.png", ["a.png", "b.png"], [["a.png", "digest"]]])
def test_prompts_with_other_source_images_are_other_prompts(image):
    entries = [{"tag": "a", "prompt": "p", "image": found} for found in (image, image, "c.png", [["a.png", "other"]])]
    keys = made_up([0.0] * 4, metadata=entries).prompt_keys
    assert [keys.index(key) for key in keys] == [0, 0, 2, 3]


def test_differences_are_paired():
    hard = torch.linspace(0, 1, 8).tolist()  # how hard the prompts are cancels
    new, old = made_up([value + 0.1 for value in hard]), made_up(hard)
    interval = paired_differences(new, old)["overall"]["reward"]
    assert (interval.low, interval.mean, interval.high) == pytest.approx((0.1, 0.1, 0.1))
    own = new.intervals()["overall"]["reward"]
    assert own.high - own.low > 0.3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            made_up([0.0, 1.0, 2.0], noise=Noise(1, (1, 2))),
            "noise must be the noise of the other evaluation, Noise(seed=1, ",
        ),
        (made_up([0.0, 1.0, 2.0], noise=Noise(0, (2, 2))), "latent_shape=(2, 2)), got Noise(seed=0, "),
        (
            made_up([0.0, 1.0, 2.0], prompts="pqx"),
            "same metadata as in the other evaluation, got 'r' where it has 'x'",
        ),
        (made_up([0.0, 1.0, 2.0], prompts="prq"), "got 'q' where it has 'r', at image 1"),
        (made_up([0.0, 1.0]), "metadata must be 2 entries, as in the other evaluation, got 3"),
        (
            made_up([0.0] * 3, measures={"other": torch.zeros(3)}),
            "shares a measure with old, which has other, got reward",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(other, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        paired_differences(made_up([0.0, 1.0, 2.0]), other)


def test_the_command_compares_and_refuses_other_noise_before_it_draws(done, tmp_path, monkeypatch, capsys):
    same, other = (["eval", *OPTIONS, "--directory", str(tmp_path / name), "--compare", str(done)] for name in "cd")
    assert main([*same, "--steps", "2"]) == 0
    text = (tmp_path / "c" / "report.md").read_text()
    assert "## Difference from another evaluation" in text
    assert "- eval_steps: 10 -> 2" in text
    data = json.loads((tmp_path / "c" / "scores.json").read_text())
    (difference,) = data["difference"].values()
    means = [json.loads((path / "scores.json").read_text())["table"]["overall"] for path in (tmp_path / "c", done)]
    gain = means[0]["support.tiny:brightness"]["mean"] - means[1]["support.tiny:brightness"]["mean"]
    assert difference["overall"]["support.tiny:brightness"]["mean"] == pytest.approx(gain)
    monkeypatch.setattr("tempflow_fast.evaluation.evaluate.sample_images", None)
    assert main([*other, "--seed", "5"]) == 2
    assert "got Noise(seed=5" in capsys.readouterr().err
    assert main([*same, "--steps", "2", "--seed", "5"]) == 2
    assert "eval_seed must be 0 as in" in capsys.readouterr().err


def test_a_mistyped_reward_does_not_keep_its_directory(tmp_path, capsys):
    command = ["eval", "--images", "2", "--directory", str(tmp_path / "f"), "--rewards"]
    assert main([*command, "support.tiny:brihgtness"]) == 2
    assert "must be one that loads" in capsys.readouterr().err
    assert main([*command, "support.tiny:brightness"]) == 0
    assert main([*command, "shapes"]) == 2
    assert "rewards must be support.tiny:brightness as in" in capsys.readouterr().err


def test_all_prompts_of_a_file_are_drawn_as_often_as_asked(tmp_path, capsys):
    entries = [{"prompt": f"a photo of a {kind}", "tag": "t", "text": kind} for kind in ("circle", "square")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    command = ["eval", "--prompts", str(tmp_path / "p.jsonl"), "--rewards", "support.tiny:brightness"]
    directory = tmp_path / "e"
    assert main([*command, "--per-prompt", "2", "--save-images", "--directory", str(directory)]) == 0
    found = EvaluationDirectory(directory).evaluation()
    assert sorted(entry["text"] for entry in found.metadata) == ["circle", "circle", "square", "square"]
    assert len(set(found.measures["support.tiny:brightness"].tolist())) == 4, "each image has its own noise"
    assert main([*command, "--per-prompt", "2", "--images", "3"]) == 2
    assert "--per-prompt must be" in capsys.readouterr().err
    assert main([*command, "--save-images"]) == 2
    assert "--save-images must be given together with --directory" in capsys.readouterr().err


def test_genevals_table_contains_verdicts_on_its_tasks():
    metadata = [{"tag": tag, "prompt": str(place)} for place, tag in enumerate(("counting", "counting", "position"))]
    measures = {"geneval": torch.tensor([1.0, 0.0, 1.0]), "credit": torch.tensor([1.0, 0.5, 1.0])}
    found = geneval_tables(made_up([0.0] * 3, metadata=metadata, tasks=("counting", "position"), measures=measures))
    assert list(found) == ["geneval"]
    assert found["geneval"]["overall"]["accuracy"] == 0.75
    assert geneval_tables(made_up([0.0, 1.0])) == {}


def test_the_commands_of_the_docs_exist():
    text = (ROOT / "docs" / "evaluation.md").read_text()
    commands = re.findall(r"^tempflow-fast (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        _parse(shlex.split(command))


def test_an_accuracy_that_is_neither_1_nor_0_is_refused():
    """Its mean would be called strict accuracy, and every image above 0 exactly right."""
    measure = task_measure(CONFIG.with_settings(reward="jpeg_compressibility", accuracy="support.tiny:brightness").task)
    images = torch.zeros(3, 3, 8, 8)
    images[:, 0] = torch.tensor([1, 0, 0.5])[:, None, None]
    assert measure(images[:2], ["a", "b"], [{}] * 2)["accuracy"].tolist() == [1, 0]
    with pytest.raises(RewardError, match=r"sample 2 \(prompt 'c'\): an accuracy must be 1 .* 0 .*, got 0.5"):
        measure(images, ["a", "b", "c"], [{}] * 3)
