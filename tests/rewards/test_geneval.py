"""GenEval's rules on scripted detections: every task, every edge; and the prompts to train on."""

import json
from collections import Counter
from itertools import product

import pytest
import torch
from support import ROOT

from tempflow_fast.prompts.sources import read_prompts
from tempflow_fast.rewards.geneval import prompts
from tempflow_fast.rewards.geneval.judge import Detection, judged, relations
from tempflow_fast.rewards.geneval.names import COLORS, OBJECTS, TASKS
from tempflow_fast.rewards.geneval.prompts import digest, evaluation_digests, training_prompts
from tempflow_fast.rewards.geneval.table import markdown, score_table

OFFICIAL = ROOT.parent / "shared" / "data"
"""Where GenEval's own files may lie, beside the checkout: the package ships none of them."""
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="GenEval's own files are not beside the checkout")
OFFSETS = {"left of": (-40, 0), "right of": (40, 0), "above": (0, -40), "below": (0, 40)}

SINGLE = {"tag": "single_object", "include": [{"class": "cow", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1}]}
THREE = {
    "tag": "counting",
    "include": [{"class": "cow", "count": 3}],
    "exclude": [{"class": "cow", "count": 4}],
}
RED = {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "bus", "count": 1}, {"class": "cow", "count": 1, "position": ["left of", 0]}],
}
RED_BLUE = {
    "tag": "color_attr",
    "include": [{"class": "cow", "count": 1, "color": "red"}, {"class": "bus", "count": 1, "color": "blue"}],
}
MANY = {"tag": "two_object", "include": [{"class": "cow", "count": 2}, {"class": "bus", "count": 1}]}


def seen(*objects: str) -> tuple[list[Detection], list[str]]:
    """Detections "kind score left,top color", each a box of 10 by 10 pixels, and their colours."""
    detections, colors = [], []
    for text in objects:
        kind, score, corner, color = (text.split() + ["0.95", "0,0", "brown"][len(text.split()) - 1 :])[:4]
        left, top = (float(value) for value in corner.split(","))
        detections.append(Detection(kind, float(score), (left, top, left + 10, top + 10)))
        colors.append(color)
    return detections, colors


def verdict(metadata: dict, *objects: str, exact: bool = False):
    detections, colors = seen(*objects)
    names = {id(found): color for found, color in zip(detections, colors, strict=True)}
    return judged(detections, metadata, lambda found, kind: [names[id(one)] for one in found], exact)


@pytest.mark.parametrize(
    ("metadata", "objects", "official", "strict", "credit"),
    [
        # one object: there, not there, of another class, unsure, one too many
        (SINGLE, ["cow"], True, True, 1),
        (SINGLE, [], False, False, 0),
        (SINGLE, ["bus"], False, False, 0),
        (SINGLE, ["cow 0.3"], False, False, 0),
        (SINGLE, ["cow 0.31"], True, True, 1),
        (SINGLE, ["cow", "cow"], True, False, 0),
        (SINGLE, ["cow", "cow 0.2"], True, True, 1),
        (SINGLE, ["cow", "bus"], True, True, 1),  # other classes are no fault
        # two objects
        (TWO, ["cow", "bus"], True, True, 1),
        (TWO, ["cow"], False, False, 0.5),
        (TWO, ["cow", "cow", "bus"], True, False, 0.5),
        (MANY, ["cow", "cow", "bus"], True, True, 1),
        (MANY, ["cow", "bus"], False, False, 0.75),
        # counting: off by one to either side, and surer than elsewhere
        (THREE, ["cow"] * 3, True, True, 1),
        (THREE, ["cow"] * 2, False, False, 2 / 3),
        (THREE, ["cow"] * 4, False, False, 2 / 3),
        (THREE, ["cow"] * 9, False, False, 0),
        (THREE, ["cow"] * 3 + ["cow 0.9"], True, True, 1),
        (THREE, ["cow"] * 2 + ["cow 0.9"], False, False, 2 / 3),
        ({**THREE, "exclude": [{"class": "bus", "count": 1}]}, ["cow"] * 3 + ["bus"], False, True, 1),
        # colours: right, wrong, no object, the surest one decides
        (RED, ["cow 0.9 0,0 red"], True, True, 1),
        (RED, ["cow 0.9 0,0 blue"], False, False, 0.5),
        (RED, [], False, False, 0),
        (RED, ["cow 0.9 0,0 red", "cow 0.8 0,0 blue"], True, False, 0),
        (RED, ["cow 0.8 0,0 red", "cow 0.9 0,0 blue"], False, False, 0),
        # places: right, wrong way round, level only by the slack, no anchor, several anchors
        (LEFT, ["bus 0.9 50,0", "cow 0.9 0,0"], True, True, 1),
        (LEFT, ["bus 0.9 0,0", "cow 0.9 50,0"], False, False, 2 / 3),
        (LEFT, ["bus 0.9 2,0", "cow 0.9 0,0"], False, False, 2 / 3),
        (LEFT, ["cow 0.9 0,0"], False, False, 1 / 3),
        (LEFT, ["bus 0.9 50,0"], False, False, 1 / 3),
        (LEFT, ["bus 0.9 50,0", "bus 0.8 -50,0", "cow 0.9 0,0"], True, False, 1 / 3),
        (LEFT, ["bus 0.8 50,0", "bus 0.9 -50,0", "cow 0.9 0,0"], False, False, 1 / 3),
        # colours of two objects: right, swapped, half right
        (RED_BLUE, ["cow 0.9 0,0 red", "bus 0.9 0,0 blue"], True, True, 1),
        (RED_BLUE, ["cow 0.9 0,0 blue", "bus 0.9 0,0 red"], False, False, 0.5),
        (RED_BLUE, ["cow 0.9 0,0 red", "bus 0.9 0,0 red"], False, False, 0.75),
        (RED_BLUE, ["cow 0.9 0,0 red"], False, False, 0.5),
    ],
)
def test_every_task_and_edge(metadata, objects, official, strict, credit):
    assert verdict(metadata, *objects).correct is official, verdict(metadata, *objects).reasons
    exact = verdict(metadata, *objects, exact=True)
    assert exact.correct is strict, exact.reasons
    assert exact.credit == pytest.approx(credit)
    assert bool(exact.reasons) is not strict


def exactly(entry: dict) -> list[str]:
    """Objects that are what an entry asks for, neither more nor less."""
    objects = []
    for item in entry["include"]:
        x, y = OFFSETS[item["position"][0]] if "position" in item else (0, 0)
        objects += [f"{item['class'].replace(' ', '_')} 0.95 {x},{y} {item.get('color', 'brown')}"] * item["count"]
    return objects


def assert_one_object_decides(entry: dict) -> None:
    """An image of exactly what is asked for is right in both forms; with an object less, or in grey, it is not."""
    asked = json.loads(json.dumps(entry))
    for item in [*asked["include"], *asked.get("exclude", [])]:
        item["class"] = item["class"].replace(" ", "_")  # as `seen` writes it
    objects, (*_, last) = exactly(entry), entry["include"]
    spoiled = [objects[:-1]]
    if "color" in last:
        spoiled.append([text.rsplit(" ", 1)[0] + " grey" for text in objects])
    if "position" in last:
        spoiled.append([f"{text.split()[0]} 0.95 0,0" for text in objects])
    if entry["tag"] == "counting":
        spoiled.append([*objects, objects[0]])
    for exact in (False, True):
        assert verdict(asked, *objects, exact=exact).correct
        assert not any(verdict(asked, *wrong, exact=exact).correct for wrong in spoiled)


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


def test_the_order_of_detections_plays_no_part_and_only_sixteen_count():
    objects = ["cow 0.9 0,0 red", "cow 0.8 0,0 blue", "bus 0.95"]
    assert verdict(RED, *objects).correct
    assert verdict(RED, *reversed(objects)).correct
    sixteen = {"tag": "counting", "include": [{"class": "cow", "count": 16}]}
    assert verdict(sixteen, *["cow"] * 30, exact=True).correct


def test_objects_on_the_same_spot_count_each():
    """The official evaluation suppresses no overlap (max_overlap is 1)."""
    assert verdict(THREE, *["cow 0.95 7,7"] * 3, exact=True).correct
    assert not verdict(THREE, *["cow 0.95 7,7"] * 4).correct
    assert not verdict(LEFT, "bus 0.9 7,7", "cow 0.9 7,7").correct, "neither is left of the other"


def test_each_anchor_must_fit_where_several_are_wanted():
    metadata = {
        "tag": "position",
        "include": [{"class": "bus", "count": 2}, {"class": "cow", "count": 1, "position": ["left of", 0]}],
    }
    assert verdict(metadata, "bus 0.9 50,0", "bus 0.9 80,0", "cow").correct
    assert not verdict(metadata, "bus 0.9 50,0", "bus 0.9 -50,0", "cow").correct


def test_colours_are_asked_only_where_the_number_is_right():
    asked = []

    def name_colors(found, kind):
        asked.append((kind, len(found)))
        return ["red"] * len(found)

    for exact in (False, True):
        judged(seen("bus 0.9", "cow 0.9", "cow 0.9")[0], RED_BLUE, name_colors, exact)
    assert asked == [("cow", 1), ("bus", 1), ("bus", 1)]


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (30, 0, {"right of"}),
        (-30, 0, {"left of"}),
        (0, 30, {"below"}),
        (0, -30, {"above"}),
        (30, 30, {"right of", "below"}),  # (30 - 4) / 42.4 = 0.61 to both sides
        (-30, -30, {"left of", "above"}),
        (30, 12, {"right of"}),
        (2, 0, set()),  # within the slack of 0.1 (10 + 10) + ...
        (3.99, 0, set()),
        (4.01, 0, set()),  # the slack is taken off the offset, but not off its length: 0.01 / 4.01
        (7.9, 0, set()),  # 3.9 / 7.9 < 0.5
        (8.1, 0, {"right of"}),
        (0, 0, set()),
    ],
)
def test_relations_of_boxes_of_twenty_pixels(dx, dy, expected):
    assert relations((100 + dx, 100 + dy, 120 + dx, 120 + dy), (100, 100, 120, 120)) == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "must hold objects to include"),
        ({"include": [{"class": "cow"}]}, "must have a class and a count"),
        ({"include": [{"class": "cow", "count": 0}]}, "must have a class and a count"),
        ({"include": [{"class": "cow", "count": 1, "color": "teal"}]}, "color must be one of red, .*, got 'teal'"),
        ({"include": [{"class": "cow", "count": 1, "position": ["left of", 0]}]}, "relation to an object named before"),
        (
            {"include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1, "position": ["near", 0]}]},
            "relation to an object named before",
        ),
    ],
)
def test_metadata_of_another_form_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        judged([], metadata, lambda found, kind: [], False)


def test_the_table_is_the_mean_of_the_tasks():
    metadata = [SINGLE, SINGLE, TWO, TWO, TWO, THREE]
    table = score_table(metadata, [1, 0, 0, 0, 0, 1])
    assert {task: row["accuracy"] for task, row in table.items()} == {
        "single_object": 0.5,
        "two_object": 0.0,
        "counting": 1.0,
        "overall": 0.5,
    }
    assert table["single_object"] == {"accuracy": 0.5, "num_images": 2, "num_prompts": 1, "prompt_accuracy": 1.0}
    assert table["overall"]["image_accuracy"] == pytest.approx(1 / 3)
    assert table["overall"]["prompt_accuracy"] == pytest.approx(2 / 3)
    assert "| two_object | 3 | 0.00% | 1 | 0.00% |" in markdown(table)
    with pytest.raises(ValueError, match="one entry per image"):
        score_table(metadata, [1])


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
        ({"count": 0}, "count and a weight must be positive"),
        ({"count": 1, "ratio": {"colors": 0}}, "count and a weight must be positive"),
        ({"count": 1, "ratio": {"colour": 1}}, "ratio must be about .* got colour"),
        ({"count": 1, "ratio": {"single_object": 1}}, "single_object must have weight 0"),
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


def test_masks_give_boxes():
    from tempflow_fast.rewards.geneval.detector import bounds

    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[3:5, 7] = mask[8, 2] = True
    assert bounds(mask) == (2, 3, 8, 9)
