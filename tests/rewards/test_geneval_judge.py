"""GenEval's rules on scripted detections: every task, every edge case."""

import pytest
import torch
from support.geneval import LEFT, MANY, RED, RED_BLUE, SINGLE, THREE, TWO, seen, verdict

from tempflow_fast.rewards.geneval.judge import judged, relations


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
        ({}, "metadata must be an entry with objects to include"),
        ({"include": [{"class": "cow"}]}, "must be an entry with a class and a count"),
        ({"include": [{"class": "cow", "count": 0}]}, "must be an entry with a class and a count"),
        ({"include": [{"class": "cow", "count": 17}]}, "a count, an integer from 1 to 16"),
        ({"include": [{"class": "cow", "count": True}]}, "a count, an integer from 1 to 16"),
        ({"include": [{"class": "cow", "count": 1.0}]}, "a count, an integer from 1 to 16"),
        ({"include": ["cow"]}, "each object must be an entry with a class"),
        ({"include": "cow"}, "metadata must be an entry with objects to include"),
        ({**SINGLE, "exclude": 3}, "metadata must be an entry with objects to include"),
        ({**SINGLE, "exclude": [{"class": "cows", "count": 2}]}, r"class must be one of .* 'cows' \(did you mean cow"),
        ({"include": [{"class": "mouse", "count": 1}]}, r"class must be .* 'mouse' \(did you mean computer mouse"),
        ({"include": [{"class": "sofa", "count": 1}]}, r"class must be .* 'sofa' \(did you mean couch"),
        ({"include": [{"class": "Cup", "count": 1}]}, r"class must be .* 'Cup' \(did you mean cup"),
        ({"include": [{"class": "cow", "count": 1, "color": None}]}, "color must be one of black, .*, got None"),
        ({"include": [{"class": "cow", "count": 1, "color": "teal"}]}, "color must be one of black, .*, got 'teal'"),
        ({"include": [{"class": "cow", "count": 1, "position": ["left of", 0]}]}, "relation to an object named before"),
        (
            {"include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1, "position": ["near", 0]}]},
            "relation to an object named before",
        ),
        (
            {"include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1, "position": "left of"}]},
            "relation to an object named before",
        ),
        (
            {"include": [{"class": "cow", "count": 1}, {"class": "bus", "count": 1, "position": ["left of", "0"]}]},
            "relation to an object named before",
        ),
    ],
)
def test_metadata_of_another_form_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        judged([], metadata, lambda found, kind: [], False)


def test_masks_give_boxes():
    from tempflow_fast.rewards.geneval.detector import bounds

    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[3:5, 7] = mask[8, 2] = True
    assert bounds(mask) == (2, 3, 8, 9)
