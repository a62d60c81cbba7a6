"""Prompt sets: every source, a fixed order, epochs, and prompts that training never sees."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import Image
from support.jsonl import write_jsonl

from tempflow_fast.prompts.entries import same_prompt
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.shapes import prompts as shapes

NAMES = [f"prompt {number}" for number in range(30)]


def text_file(directory: Path, lines: list[str]) -> str:
    path = directory / "prompts.txt"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def jsonl_file(directory: Path, entries: list[dict], name: str = "prompts.jsonl") -> str:
    write_jsonl(directory / name, entries)
    return str(directory / name)


def texts(entries: list[dict]) -> list[str]:
    return [entry["prompt"] for entry in entries]


def test_an_epoch_sees_every_prompt_once_in_its_own_order(tmp_path):
    prompts = get_prompts(text_file(tmp_path, ["  é " + name for name in NAMES]))
    heldout = texts(prompts.heldout(3, seed=0))
    assert len(set(heldout)) == 3, "every tenth is held out"
    seen = [text for iteration in range(27) for text in texts(prompts.training(iteration, 5, seed=4))]
    epochs = [seen[start : start + 27] for start in range(0, 135, 27)]
    assert all(set(epoch) == {"é " + name for name in NAMES} - set(heldout) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    # From the middle, as after a resume, in a set that was read again.
    again = get_prompts(str(tmp_path / "prompts.txt"))
    assert texts(again.training(17, 5, seed=4)) == seen[85:90]
    assert texts(again.training(17, 5, seed=5)) != seen[85:90]


def test_geneval_metadata_reaches_the_reward_and_tasks_take_turns(tmp_path):
    source = jsonl_file(tmp_path, shapes.heldout_prompts())
    prompts = get_prompts("shapes", source)
    assert prompts.training(0, 4, 0)[0].keys() >= {"tag", "include", "prompt"}
    drawn = prompts.heldout(12, seed=3)
    assert set(prompts.tasks) == set(shapes.TASKS)
    assert [entry["tag"] for entry in drawn[:6]] == list(prompts.tasks)
    every = shapes.heldout_prompts()
    assert sorted(map(json.dumps, prompts.heldout(len(every), seed=3))) == sorted(map(json.dumps, every))
    assert prompts.heldout(len(every) + 2, seed=3)[-2:] == drawn[:2], "more than there are begin again"


def test_another_column_is_the_prompt(tmp_path):
    source = jsonl_file(tmp_path, [{"caption": name, "text": name.upper()} for name in NAMES])
    entry = get_prompts(source, None, "caption").training(0, 1, 0)[0]
    assert entry["prompt"] == entry["caption"]
    assert entry["text"] == entry["prompt"].upper()
    with pytest.raises(ValueError, match=r"an entry with the field 'captions'"):
        get_prompts(source, None, "captions")


def test_data_sets_of_the_library(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    jsonl_file(tmp_path / "set", [{"prompt": name, "tag": "t", "size": 3} for name in NAMES], "train.jsonl")
    jsonl_file(tmp_path / "set", [{"prompt": "held out", "tag": "u", "size": 4}], "test.jsonl")
    prompts = get_prompts(f"hf:{tmp_path / 'set'}", f"hf:{tmp_path / 'set'}:test")
    assert sorted(texts(prompts.training(0, 30, 0))) == sorted(NAMES)
    assert prompts.heldout(1, 0) == [{"prompt": "held out", "tag": "u", "size": 4}]
    with pytest.raises(ValueError, match="read_prompts: source must be a data set that loads, got"):
        get_prompts(f"hf:{tmp_path / 'set'}:nope")


def test_data_sets_that_the_library_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"prompt": NAMES, "size": list(range(30))})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([4])}).save_to_disk(tmp_path / "split")
    prompts = get_prompts(f"hf:{tmp_path / 'one'}", f"hf:{tmp_path / 'split'}:test")
    assert sorted(texts(prompts.training(0, 30, 0))) == sorted(NAMES)
    assert prompts.heldout(1, 0) == [{"prompt": NAMES[4], "tag": "all", "size": 4}]
    assert len(get_prompts(f"hf:{tmp_path / 'split'}", f"hf:{tmp_path / 'one'}").heldout(30, 0)) == 30
    with pytest.raises(ValueError, match=r"source must be without a split, .* got hf:.*:test"):
        get_prompts(f"hf:{tmp_path / 'one'}:test")


def test_shapes_stay_the_draws_that_they_were():
    got = get_prompts("shapes").training(7, 5, seed=2)
    assert got == shapes.draw(shapes.train_prompts(), 5, random.Random("2/7"))
    assert get_prompts("shapes").heldout(5, 1) == shapes.draw(shapes.heldout_prompts(), 5, random.Random(1))


def test_the_shapes_held_out_judge_training_on_a_file(tmp_path, recwarn):
    prompts = get_prompts(jsonl_file(tmp_path, shapes.train_prompts()), "shapes")
    assert sorted(texts(prompts.training(0, 345, 0))) == sorted(texts(shapes.train_prompts()))  # an epoch of the file
    assert prompts.heldout(600, 8) == get_prompts("shapes").heldout(600, 8)
    assert prompts.everything() == get_prompts("shapes").everything()
    assert not recwarn.list


def test_other_prompts_for_evaluation_leave_training_on_shapes_as_it_is(tmp_path):
    own = [{"prompt": "a photo of a red star", "tag": "stars"}]
    prompts = get_prompts("shapes", jsonl_file(tmp_path, own))
    assert prompts.training(3, 40, 5) == get_prompts("shapes").training(3, 40, 5)
    assert (prompts.tasks, prompts.heldout(2, 0)) == (("stars",), own * 2)
    assert prompts.digest != get_prompts("shapes").digest


def test_missing_prompts_for_evaluation_are_named():
    with pytest.raises(ValueError, match=r"eval_prompts must be .*shapes.* got 'nope.txt'"):
        get_prompts("shapes", "nope.txt")


SPELLINGS = ("a {}", "A {}", " a   {} ", "a\u00a0{}", "a\u2028{}")


@pytest.mark.parametrize("spellings", [("a {}",) * 50, SPELLINGS])
def test_spellings_of_a_held_out_prompt_are_held_out_too(tmp_path, spellings):
    lines = [spelling.format(f"caf\u00e9 {number}") for number in range(40) for spelling in spellings]
    lines += [f"a cafe\u0301 {number}" for number in range(40)]
    prompts = get_prompts(text_file(tmp_path, lines))
    seen = texts(prompts.training(0, len(lines), 0))
    judged = texts(prompts.heldout(len(lines), 0))
    assert {same_prompt(text) for text in seen}.isdisjoint(same_prompt(text) for text in judged)
    assert len({same_prompt(text) for text in judged}) == 4, "every tenth of 40"


def test_one_prompt_in_many_spellings_cannot_be_held_out(tmp_path):
    with pytest.raises(ValueError, match=r"prompts must be two or more different ones, .* got 1 in"):
        get_prompts(text_file(tmp_path, ["a cat", "A cat", "a  cat"]))


def test_one_text_about_many_images_is_many_prompts(tmp_path):
    for number in range(3):
        Image.new("RGB", (2, 2 + number)).save(tmp_path / f"{number}.png")
    prompts = get_prompts(jsonl_file(tmp_path, [{"prompt": "bluer", "image": f"{number}.png"} for number in range(3)]))
    seen, judged = prompts.training(0, 2, 0), prompts.heldout(1, 0)
    assert len({entry["image"] for entry in [*seen, *judged]}) == 3


def test_the_digest_is_of_images_and_not_of_their_places(tmp_path):
    digests = []
    for place, height in (("one", 2), ("two", 2), ("three", 200)):
        (tmp_path / place).mkdir()
        Image.new("RGB", (2, height)).save(tmp_path / place / "a.png")
        entries = [{"prompt": text, "image": "a.png"} for text in ("bluer", "redder")]
        digests.append(get_prompts(jsonl_file(tmp_path / place, entries)).digest)
    assert digests[0] == digests[1] != digests[2]
