"""GenEval prompts for training: their form, which images satisfy them, and that none is in the evaluation."""

import json
from collections import Counter
from itertools import product

import pytest
from support.geneval import OFFICIAL, OFFSETS, RED, RED_BLUE, TWO, needs_official, verdict

from tempflow_fast.geneval import TASKS
from tempflow_fast.prompts.sources import read_prompts
from tempflow_fast.rewards.geneval import prompts
from tempflow_fast.rewards.geneval.judge import judged
from tempflow_fast.rewards.geneval.names import COLORS, OBJECTS
from tempflow_fast.rewards.geneval.prompts import digest, evaluation_digests, training_prompts
from tempflow_fast.rewards.geneval.table import score_table


def exactly(entry: dict) -> list[str]:
    """Objects that are what an entry asks for, neither more nor less."""
    objects = []
    for item in entry["include"]:
        x, y = OFFSETS[item["position"][0]] if "position" in item else (0, 0)
        objects += [f"{item['class'].replace(' ', '_')} 0.95 {x},{y} {item.get('color', 'brown')}"] * item["count"]
    return objects


def assert_one_object_decides(entry: dict) -> None:
    """An image of exactly what is asked for is right in both forms; with an object less, or in grey, it is not."""
    objects, (*_, last) = exactly(entry), entry["include"]
    spoiled = [objects[:-1]]
    if "color" in last:
        spoiled.append([text.rsplit(" ", 1)[0] + " grey" for text in objects])
    if "position" in last:
        spoiled.append([f"{text.split()[0]} 0.95 0,0" for text in objects])
    if entry["tag"] == "counting":
        spoiled.append([*objects, objects[0]])
    for exact in (False, True):
        assert verdict(entry, *objects, exact=exact).correct
        assert not any(verdict(entry, *wrong, exact=exact).correct for wrong in spoiled)


def test_training_prompts_are_met_by_what_they_ask_for_and_nothing_less():
    for entry in training_prompts(200, seed=1):
        assert_one_object_decides(entry)


@needs_official
def test_the_official_prompts_are_met_by_what_they_ask_for_and_nothing_less():
    entries = read_prompts(str(OFFICIAL / "geneval_evaluation_metadata.jsonl"))
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(entry["tag"] for entry in entries) == sizes
    for entry in entries:
        assert_one_object_decides(entry)
    table = score_table([entry for entry in entries for _ in range(4)], [1, 0, 1, 1] * 553)
    assert list(table) == [*TASKS, "overall"]
    assert [row["num_images"] for row in table.values()] == [4 * sizes[task] for task in TASKS] + [4 * 553]
    assert all(row["accuracy"] == pytest.approx(0.75) and row["prompt_accuracy"] == 1 for row in table.values())


@needs_official
def test_no_official_prompt_is_trained_on_in_any_words():
    entries = read_prompts(str(OFFICIAL / "geneval_evaluation_metadata.jsonl"))
    assert {digest(entry) for entry in entries} == evaluation_digests()
    texts = {entry["prompt"] for entry in entries}
    assert not texts & {entry["prompt"] for entry in training_prompts(5000, seed=2)}
    names = (OFFICIAL / "geneval_object_names.txt").read_text().splitlines()
    assert tuple(name.strip() for name in names if name.strip()) == OBJECTS


def test_training_prompts_have_the_form_and_the_ratio_and_ask_for_nothing_that_is_evaluated():
    entries = training_prompts(2000, seed=3)
    assert entries == training_prompts(2000, seed=3) != training_prompts(2000, seed=4)
    shares = {task: sum(entry["tag"] == task for entry in entries) / 2000 for task in TASKS}
    assert shares["single_object"] == 0
    for task, weight in (("position", 7), ("counting", 5), ("color_attr", 3), ("colors", 1), ("two_object", 1)):
        assert shares[task] == pytest.approx(weight / 17, abs=0.04)
    for entry in entries:
        judged([], entry, lambda found, kind: [], False)  # checks the form
        assert all(item["class"] in OBJECTS and item.get("color", "red") in COLORS for item in entry["include"])
        assert entry["prompt"].startswith("a photo of ")
    assert not {digest(entry) for entry in entries} & evaluation_digests()
    assert len(evaluation_digests()) == 552  # of 553: two of them differ in the order of their objects alone


def test_all_that_is_left_out_of_a_small_task_is_what_is_evaluated():
    drawn = {digest(entry) for entry in training_prompts(4000, ratio={"counting": 1})}
    every = {
        digest(prompts._entry("counting", [{"class": kind, "count": n}], "", exclude=[{"class": kind, "count": n + 1}]))
        for kind, n in product(OBJECTS, (2, 3, 4))
    }
    assert drawn == every - evaluation_digests()
    assert len(drawn) == 240 - 80


def test_digests_know_what_asks_for_the_same():
    def position(kind: str, relation: str, anchor: str) -> str:
        include = [{"class": anchor, "count": 1}, {"class": kind, "count": 1, "position": [relation, 0]}]
        return digest({"tag": "position", "include": include})

    assert position("cow", "left of", "bus") == position("bus", "right of", "cow")
    assert position("cow", "above", "bus") == position("bus", "below", "cow")
    assert position("cow", "left of", "bus") != position("cow", "right of", "bus")
    assert digest(TWO) == digest({**TWO, "include": TWO["include"][::-1]})
    assert digest(RED_BLUE) != digest({**RED_BLUE, "include": RED["include"] + TWO["include"][1:]})
    left_out = training_prompts(50, exclude=[entry for entry in training_prompts(50)])
    assert not {digest(entry) for entry in left_out} & {digest(entry) for entry in training_prompts(50)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be positive, got 0"),
        ({"count": 1, "ratio": {"colors": 0}}, "ratio must be positive for at least one task"),
        ({"count": 1, "ratio": {"colour": 1}}, "task of ratio must be one of .*, got 'colour' .did you mean colors"),
        ({"count": 1, "ratio": {"single_object": 1}}, "single_object of ratio must be 0, since"),
    ],
)
def test_wrong_arguments_for_training_prompts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_prompts(**arguments)


def test_the_command_writes_a_file_of_prompts(tmp_path, capsys):
    prompts.main(["--count", "30", "--output", str(tmp_path / "train.jsonl")])
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == training_prompts(30)
    assert "30 prompts" in capsys.readouterr().out
