"""Videos from the command line to an adapter: a tiny random Wan."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from support.families import FAMILIES, video
from support.families.parts import without_zeros

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.cli import main
from tempflow_fast.evaluation.result import stills
from tempflow_fast.policies import POLICIES
from tempflow_fast.run.directory import RunDirectory
from tempflow_fast.run.load import load_policy

FORMAT = {"resolution": (16, 32), "max_text_length": 9, "num_frames": 5}
SHAPE = (5, 3, 16, 32)
CODE = """
def motion(videos, prompts, metadata):
    assert videos.shape[1:4] == (5, 3, 16), videos.shape
    return (videos[:, 1:] - videos[:, :-1]).abs().mean((1, 2, 3, 4))
"""


def motion(videos, prompts, metadata):
    assert videos.shape[1:] == SHAPE
    return (videos[:, 1:] - videos[:, :-1]).abs().mean((1, 2, 3, 4))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    pipeline = FAMILIES["wan"].build(directory / "tokenizer")
    without_zeros(pipeline.transformer)
    pipeline.save_pretrained(directory / "model")
    return str(directory / "model")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_motion.py").write_text(CODE)
    (tmp_path / "prompts.txt").write_text("".join(f"{number} cats run\n" for number in range(12)))
    return tmp_path


def options(model: str, reward: str = "own_motion:motion") -> list[str]:
    size = ["--resolution", "16", "32", "--num-frames", "5", "--max-text-length", "9", "--precision", "fp32"]
    work = ["--num-steps", "3", "--branch-steps", "0", "1", "--num-seeds", "1", "--num-branches", "2"]
    little = [
        "--eval-steps",
        "2",
        "--prompts-per-iteration",
        "2",
        "--eval-images",
        "3",
        "--device",
        "cpu",
        "--trackers",
    ]
    return ["--model", model, "--prompts", "prompts.txt", "--reward", reward, *size, *work, *little]


def test_an_iteration_has_ratio_one_and_changes_the_adapter(model):
    policy = load_policy(model, **FORMAT)
    policy.add_lora(rank=2, alpha=4)
    before = [parameter.clone() for parameter in policy.parameters()]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    config = GRPOConfig(
        num_steps=3, num_seeds=2, num_branches=2, branch_steps=(0, 1), guidance_scale=3.0, num_updates=1, decode_batch=1
    )
    metrics = grpo_step(policy, ["a dog", "two big dogs"], motion, optimizer, config)
    assert float(metrics["log_ratio_rms"]) == 0.0  # the ratio is exactly 1
    assert float(metrics["group_std"]) > 0
    assert 0 < float(metrics["image_diversity"]) < 1
    changed = [not torch.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True)]
    assert sum(changed) >= len(changed) / 2  # the other matrix of each pair has no gradient yet


def test_rewards_of_images_are_refused_before_the_model_is_loaded(model, place, capsys):
    assert main(["train", *options(model, "jpeg_compressibility"), "--output", "out"]) == 2
    assert "frames of jpeg_compressibility must be given for videos" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 6}, "num_frames must be 1 \\+ a multiple of 4, got 6"),
        ({"frame_rate": 24}, "frame_rate must be None: a WanPipeline takes none, got 24"),
        ({"resolution": 24}, "resolution must be a positive multiple of 16"),
    ],
)
def test_formats_that_the_pipeline_has_not_are_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        load_policy(model, **{**FORMAT, **wrong})


def test_frames_of_a_model_of_images_are_refused():
    with pytest.raises(ValueError, match="num_frames must be None: a StableDiffusion3Pipeline takes none, got 5"):
        load_policy("embedded", num_frames=5)


@pytest.mark.parametrize("build", [video.wan, video.wan_image_to_video])
def test_the_kinds_of_wan_2_2_are_refused_by_name(tmp_path, build):
    pipeline = build(tmp_path)
    kind = POLICIES[type(pipeline).__name__]
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(ValueError, match=r"pipeline\.config\.expand_timesteps must be False, got True"):
        kind(pipeline)
    pipeline.register_modules(transformer_2=pipeline.transformer)
    with pytest.raises(ValueError, match=r"pipeline\.transformer_2 must be None: one network is trained, transformer"):
        kind(pipeline)


def test_a_text_of_another_length_is_refused_where_the_network_counts_on_it(tmp_path):
    pipeline = video.wan_image_to_video(tmp_path)
    with pytest.raises(ValueError, match="WanImageToVideoPolicy: max_text_length must be 512, got 226"):
        POLICIES["WanImageToVideoPipeline"](pipeline, 32, 226)


def test_three_frames_of_a_video_are_shown_along_its_shorter_side():
    videos = torch.rand(2, 5, 3, 4, 8)
    assert torch.equal(stills(videos), torch.cat([videos[:, frame] for frame in (0, 2, 4)], dim=2))
    assert torch.equal(stills(videos.mT), torch.cat([videos.mT[:, frame] for frame in (0, 2, 4)], dim=3))
    assert torch.equal(stills(videos[:, 0]), videos[:, 0])


@pytest.mark.slow
def test_a_run_resumes_and_its_adapter_loads(model, place, capsys):
    assert main(["train", *options(model), "--output", "out", "--iterations", "1"]) == 0
    line = "8 videos of 5 frames of 2 prompts x 1 seeds, by 3 steps of Euler instead of UniPCMultistepScheduler"
    assert line in capsys.readouterr().out
    assert main(["train", *options(model), "--output", "out", "--iterations", "2"]) == 0
    run = RunDirectory(place / "out")
    assert [row["iteration"] for row in run.read_metrics()] == [1, 2]
    with Image.open(run.sheet) as sheet:
        assert min(sheet.size) > 50
    plain, ours, theirs = (load_policy(model, **FORMAT) for _ in range(3))
    ours.load_lora(run.lora)
    theirs.pipeline.load_lora_weights(str(run.lora))
    latents, text = torch.randn(1, *plain.latent_shape), plain.encode(["a"])
    with torch.no_grad():
        before, after, loaded = (policy.velocity(latents, 0.5, text)[0] for policy in (plain, ours, theirs))
    torch.testing.assert_close(loaded, after)
    assert not torch.equal(after, before)


@pytest.mark.slow
def test_a_model_is_checked_measured_sampled_and_evaluated(model, place, capsys):
    size = ["--resolution", "16", "32", "--num-frames", "5", "--max-text-length", "9"]
    assert main(["check-model", model, *size]) == 0
    out = capsys.readouterr().out
    assert "steps: Euler's, at the noise levels of UniPCMultistepScheduler" in out
    assert (out.count("matches"), "DIFFERS" in out) == (6, False)
    assert main(["train", *options(model), "--output", "out", "--dry-run"]) == 0
    assert not (place / "out").exists()
    evaluated = ["--model", model, "--prompts", "prompts.txt", "--rewards", "own_motion:motion"]
    numbers = [
        "--images",
        "2",
        "--steps",
        "2",
        "--resolution",
        "16",
        "--num-frames",
        "5",
        "--device",
        "cpu",
        "--directory",
        "scores",
    ]
    assert main(["eval", *evaluated, *numbers]) == 0
    assert json.loads((place / "scores" / "scores.json").read_text())
    with Image.open(place / "scores" / "images" / "000000.png") as shown:
        assert shown.size == (48, 16)
