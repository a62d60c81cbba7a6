"""Makes the packaged pipeline: trains its VAE, then its text encoders, then its transformer by flow matching.

    python -m tempflow_fast.shapes.pretrain --output DIR [--flow-steps 3000] [--taught-steps 4500] [--compile]

The same command resumes a run that was stopped; with more steps it extends one that is done. The result is
`DIR/pipeline`, in half precision. `DIR/flow.jsonl` holds its accuracy during training (see `probe`).
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tempflow_fast.shapes.architecture import build_pipeline
from tempflow_fast.shapes.flow import FlowTask, optimizers
from tempflow_fast.shapes.lessons import Lessons, describe_prompt, describe_words
from tempflow_fast.shapes.losses import encode_scenes, encode_text, tokenize, vae_loss
from tempflow_fast.shapes.probe import judge
from tempflow_fast.shapes.prompts import all_prompts, draw, pretraining_prompts
from tempflow_fast.shapes.stage import Stage, falling, steady
from tempflow_fast.shapes.world import Scene, render, sample_scene

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

BATCH = 64
FLOW_DECAY = 0.999
JUDGE_EVERY, JUDGED_IMAGES = 500, 300


def train_vae(pipe: StableDiffusion3Pipeline, steps: int, directory: Path) -> None:
    """Train the autoencoder, then set its scaling factor so that latents have unit variance.

    Args:
        pipe: its `vae` is trained.
        steps: number of updates in all, including those of an earlier run.
        directory: keeps the state for resuming.
    """
    stage = Stage("vae", pipe.vae, [torch.optim.AdamW(pipe.vae.parameters(), lr=2e-3, betas=(0.9, 0.98))], directory)
    rng, scene_rng = torch.Generator().manual_seed(stage.step), random.Random(stage.step)
    stage.run(lambda: vae_loss(pipe.vae, render(_scenes(BATCH, scene_rng)), rng), steps)
    latents = encode_scenes(pipe.vae, _scenes(4000, random.Random(0)))
    pipe.vae.register_to_config(scaling_factor=1 / latents.std().item())


def _scenes(count: int, rng: random.Random) -> list[Scene]:
    """Random scenes, taking the tasks in turn."""
    return [sample_scene(entry, rng) for entry in draw(all_prompts(), count, rng)]


def train_text(pipe: StableDiffusion3Pipeline, steps: int, directory: Path) -> None:
    """Train the text encoders to predict what each word and the whole prompt mean; they are frozen afterwards.

    Args:
        pipe: its two text encoders are trained.
        steps: number of updates in all, including those of an earlier run.
        directory: keeps the state for resuming.
    """
    encoders, lessons = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2]), Lessons()
    parts = nn.ModuleDict({"encoders": encoders, "lessons": lessons})
    stage = Stage("text", parts, [torch.optim.AdamW(parts.parameters(), lr=2e-3)], directory, decay=0.98)
    prompts, rng = pretraining_prompts(), random.Random(stage.step)
    known = {
        entry["prompt"]: (tokenize(pipe, [entry["prompt"]])[0], describe_words(entry), describe_prompt(entry))
        for entry in prompts
    }

    def loss() -> Tensor:
        drawn = [known[entry["prompt"]] for entry in draw(prompts, BATCH, rng)]
        ids, words, wholes = map(torch.stack, zip(*drawn, strict=True))
        return lessons(*encode_text(pipe, ids), words, wholes)

    stage.run(loss, steps)


def train_flow(pipe: StableDiffusion3Pipeline, task: FlowTask, steps: int, taught_steps: int, directory: Path) -> None:
    """Train the transformer on noised scenes and write the pipeline; on request, train on to see what it can reach.

    The base is an early average of a run at a constant learning rate. Training on from there with a falling rate, and
    also on the transformer's own samples, shows what is left for reinforcement learning to find: `taught`.

    Args:
        pipe: its transformer is trained.
        task: gives the losses.
        steps: number of updates of the base in all, including those of an earlier run.
        taught_steps: number of further updates; 0 for none.
        directory: keeps the state for resuming and gets the pipelines, `pipeline` and `taught`.
    """
    base = Stage("flow", pipe.transformer, optimizers(pipe.transformer), directory, steady, FLOW_DECAY)
    rng = torch.Generator().manual_seed(base.step)
    base.run(lambda: task.loss(rng), steps, lambda: judge(pipe, JUDGED_IMAGES), JUDGE_EVERY)
    save(pipe, directory / "pipeline")
    if taught_steps:
        base.load_live()
        taught = Stage("taught", pipe.transformer, optimizers(pipe.transformer), directory, falling, FLOW_DECAY)
        rng.manual_seed(taught.step)
        taught.run(lambda: task.loss_with_samples(rng), taught_steps, lambda: judge(pipe, JUDGED_IMAGES), JUDGE_EVERY)
        save(pipe, directory / "taught")


def save(pipe: StableDiffusion3Pipeline, directory: Path) -> None:
    """Write the pipeline to `directory` in half precision; `pipe` itself does not change."""
    copy.deepcopy(pipe).to(dtype=torch.float16).save_pretrained(directory, safe_serialization=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="where the run and its pipelines are kept")
    parser.add_argument("--vae-steps", type=int, default=1500, help="default %(default)s")
    parser.add_argument("--text-steps", type=int, default=600, help="default %(default)s")
    parser.add_argument("--flow-steps", type=int, default=3000, help="default %(default)s")
    parser.add_argument("--taught-steps", type=int, default=0, help="then train on, into DIR/taught; default 0")
    parser.add_argument("--compile", action="store_true", help="a fifth faster; needs a C++ compiler")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    pipe = build_pipeline()
    train_vae(pipe, options.vae_steps, options.output)
    train_text(pipe, options.text_steps, options.output)
    task = FlowTask(pipe, pretraining_prompts(), options.compile)
    train_flow(pipe, task, options.flow_steps, options.taught_steps, options.output)


if __name__ == "__main__":
    main()
