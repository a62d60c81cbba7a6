"""What is behind a name may not change unnoticed: model, prompts, rewards; nor the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import tiny_config
from support.servers import FaultyServer, running
from support.tiny import brightness

from tempflow_fast.checksums import Digests, write_checksums
from tempflow_fast.processes import Processes
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.rewards.registry import _load
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.evaluations import basis_of
from tempflow_fast.run.origin import Origin, rewards_content
from tempflow_fast.run.resume import begin
from tempflow_fast.shapes import pipeline_path

ALONE = Processes()


def started(path: Path, **settings: Any) -> tuple[RunDirectory, Any]:
    """A run with a checkpoint of two iterations, as far as a start looks at it."""
    run, config = RunDirectory(path), tiny_config(**settings)
    begin(run, config, ALONE)
    checkpoint = run.checkpoints / "000002"
    checkpoint.mkdir(parents=True)
    origin = Origin.of(config, ALONE, Digests()).as_json()
    facts = {"num_iterations": 2, "config": json.loads(config.to_json()), "origin": origin}
    (checkpoint / "state.json").write_text(json.dumps(facts))
    write_checksums(checkpoint)
    for iteration in (1, 2, 3):
        run.append_metrics({"iteration": iteration})
    return run, config


def lines(path: Path, *words: str) -> str:
    path.write_text("".join(f"a photo of {word}\n" for word in words))
    return str(path)


def test_the_same_again_is_nothing_to_mention(tmp_path):
    run, config = started(tmp_path / "run")
    start = begin(run, config, ALONE)
    assert (start.num_iterations, start.changed, start.remarks) == (2, {}, ())
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2]


def test_edited_prompts_are_refused(tmp_path):
    prompts, judged = lines(tmp_path / "p.txt", *"abcdefgh"), lines(tmp_path / "q.txt", "x", "y")
    run, config = started(tmp_path / "run", prompts=prompts, eval_prompts=judged)
    for path, words in ((prompts, "abcdefgi"), (judged, "xz")):
        before = Path(path).read_text()
        lines(Path(path), *words)
        with pytest.raises(ValueError, match=r"prompts must be what the run in .* started with, got .*: restore them"):
            begin(run, config, ALONE)
        assert len(run.read_metrics()) == 3, "nothing was touched"
        Path(path).write_text(before)
    assert begin(run, config, ALONE).remarks == ()


def test_a_prompt_file_is_read_again_when_it_has_changed(tmp_path):
    path = lines(tmp_path / "p.txt", "a", "b")
    first = get_prompts(path)
    assert get_prompts(path) is first
    lines(tmp_path / "p.txt", "c", "d")
    again = get_prompts(path)
    assert {entry["prompt"] for entry in again.heldout(1, 0) + again.training(0, 1, 0)} == {
        "a photo of c",
        "a photo of d",
    }
    assert again.digest != first.digest


def test_a_changed_model_is_refused(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pipeline_path(), model)
    run, config = started(tmp_path / "run", model=str(model))
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model must be what the run in .* got files with another content"):
        begin(run, config, ALONE)


def test_mended_code_of_a_reward_is_mentioned(tmp_path, monkeypatch):
    module = tmp_path / "changing_judge.py"
    module.write_text("def score(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    run, config = started(tmp_path / "run", reward="changing_judge:score")
    assert begin(run, config, ALONE).remarks == ()
    module.write_text(module.read_text().replace("mean", "sum"))
    assert begin(run, config, ALONE).remarks == ("the source of reward has changed",)
    assert rewards_content(["jpeg"]) == rewards_content(["jpeg"]) != rewards_content(["jpeg=2"])


def test_a_server_with_another_reward_is_mentioned_and_scores_again(tmp_path):
    with running(FaultyServer()) as server:
        remote = json.dumps({"remote": {"urls": server.url, "request_timeout": 5}})
        run, config = started(tmp_path / "run", reward=remote, accuracy=None)
        start = begin(run, config, ALONE)
        assert start.remarks == ()
    _load.cache_clear()  # as in another process
    with running(FaultyServer(reward=brightness, port=server.server_address[1])):
        again = begin(run, config, ALONE)
        assert again.remarks == ("the source of remote reward has changed",)
        assert basis_of(config, again.origin) != basis_of(config, start.origin)


def test_another_machine_is_mentioned(tmp_path):
    run, config = started(tmp_path / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        start = begin(run, config, ALONE)
    finally:
        torch.set_num_threads(threads)
    assert start.sentence() == (
        f"resuming from {run.checkpoints / '000002'}; numbers may differ in their last digits from here on: "
        f"threads: {threads} -> {threads + 1}"
    )
    noted = json.loads((run.path / "starts.jsonl").read_text().splitlines()[-1])["surroundings"]
    assert noted["threads"] == str(threads + 1)
    assert {"torch", "device", "bodies", "processes"} <= noted.keys()


@pytest.mark.parametrize("data", [None, [], {"contents": 3}, {"contents": {"model": 3}, "surroundings": None}])
def test_an_origin_of_another_form_is_no_error(data):
    assert set(Origin.from_json(data).contents) <= {"model"}
