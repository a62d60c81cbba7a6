"""An evaluation of a run counts only for what it is of."""

from __future__ import annotations

import pytest
from support.evaluations import made_up
from support.runs import tiny_config

from tempflow_fast.run.evaluations import RunEvaluations, basis_of
from tempflow_fast.run.origin import Origin

BASIS = {"prompts": "p", "model": "m", "sigmas": (1.0, 0.0)}


def evaluations(path, start: int = -1, **basis: object) -> tuple[RunEvaluations, list[str]]:
    said: list[str] = []
    return RunEvaluations(path, {**BASIS, **basis}, start, said.append), said


def test_an_evaluation_is_found_again_for_the_same_weights(tmp_path):
    evaluations(tmp_path)[0].write(4, "w", made_up([0.0, 1.0]))
    again, said = evaluations(tmp_path)
    assert again.find(4, "w").measures["reward"].tolist() == [0.0, 1.0]
    assert again.find(5, "w") is None
    assert said == []


@pytest.mark.parametrize(("name", "value"), [("prompts", "q"), ("model", "n"), ("sigmas", (1.0, 0.5)), ("new", 1)])
def test_nothing_else_may_be_another(tmp_path, name, value):
    evaluations(tmp_path)[0].write(4, "w", made_up([0.0]))
    other, said = evaluations(tmp_path, **{name: value})
    assert other.find(4, "w") is None
    assert said == [f"scoring again after 4 iterations: in {tmp_path / '000004'}, the scores are of other {name}"]
    same, said = evaluations(tmp_path)
    assert same.find(4, "v") is None
    assert "of other weights" in said[0]


def test_what_a_run_has_gone_back_from_counts_when_it_comes_there_with_the_same_weights(tmp_path):
    """Started at 2 again: 2 and 4 have the weights of before, 3 is passed, 6 is not reached, 8 is written anew."""
    first, _ = evaluations(tmp_path)
    for number in (0, 1, 2, 3, 4, 6, 8):
        first.write(number, f"w{number}", made_up([float(number)]))
    again, _ = evaluations(tmp_path, 2)
    assert list(again.up_to(9)) == [0, 1]
    for number in (2, 4):
        assert again.find(number, f"w{number}") is not None
    again.passed(5)
    assert not (tmp_path / "000003").exists()
    assert again.find(8, "other") is None
    again.write(8, "other", made_up([9.0]))
    found = again.up_to(9)
    assert list(found) == [0, 1, 2, 4, 8]
    assert found[8].measures["reward"].tolist() == [9.0]
    assert (tmp_path / "000006").is_dir()
    assert list(again.up_to(3)) == [0, 1, 2]


def test_the_curve_has_no_evaluation_of_other_prompts(tmp_path):
    evaluations(tmp_path)[0].write(0, "w", made_up([0.0]))
    other, _ = evaluations(tmp_path, prompts="q")
    other.write(4, "v", made_up([1.0]))
    assert list(other.up_to(4)) == [4]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"learning_rate": 1.0}, True),
        ({"eval_images": 4}, False),
        ({"eval_seed": 1}, False),
        ({"eval_steps": 3}, False),
        ({"guidance_scale": 2.0}, False),
    ],
)
def test_settings_of_scores_are_part_of_what_they_are_of(changed, same):
    bases = [basis_of(tiny_config(**settings), Origin()) for settings in ({}, changed)]
    assert (bases[0] == bases[1]) is same
