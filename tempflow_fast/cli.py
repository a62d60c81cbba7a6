"""The command line: tempflow-fast train | sample | eval | info."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .info import info
from .load import EMBEDDED, load_policy
from .policies import SD3Policy
from .recipes import RECIPES, get_recipe
from .run_directory import RunDirectory
from .train_config import TrainConfig

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its status: 0, 2 for a bad argument or file (one line on stderr), 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"tempflow-fast {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tempflow-fast", description="TempFlow-GRPO: reinforcement learning for text-to-image flow models."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="raise the reward of a model and write a run directory"))
    _add_sample(commands.add_parser("sample", help="draw images of prompts and write one PNG"))
    _add_eval(commands.add_parser("eval", help="score a model on held-out prompts, task by task"))
    commands.add_parser("info", help="say what was built and which body serves each op").set_defaults(run=_info)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a model and writes a run directory: settings, metrics, reward curve, scores and samples before and "
        "after, and the tuned weights. Ctrl-C ends it early and keeps what was learnt."
    )
    parser.add_argument("--recipe", default="shapes", help=f"settings to start from: {', '.join(RECIPES)}")
    parser.add_argument("--seed", type=int, help="decides prompts and noise (default: the recipe's, 0)")
    parser.add_argument("--output", type=Path, required=True, help="run directory to write: new or empty")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="train for so long, evaluation on top (default: the recipe's)")
    budget.add_argument("--iterations", type=int, help="train for so many iterations (default: the recipe's)")
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change one setting of the recipe, such as learning_rate=1e-4 or grpo.num_branches=4; may be repeated",
    )
    parser.set_defaults(run=_train)


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The options that choose what `sample` and `eval` look at."""
    parser.add_argument("--model", default=EMBEDDED, help="embedded (default), or a StableDiffusion3Pipeline directory")
    parser.add_argument("--weights", type=Path, metavar="RUN", help="a run directory, whose model and settings to take")


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draws one image per prompt with the sampler that training used, and writes them as one PNG."
    _add_model(parser)
    parser.add_argument("--prompt", action="append", required=True, help="what to draw; may be repeated")
    parser.add_argument("--count", type=int, default=6, help="images per prompt (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="decides the noise (default: 0)")
    parser.add_argument("--output", type=Path, required=True, help="the PNG to write")
    parser.set_defaults(run=_sample)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draws images of held-out prompts, the tasks in turn, and prints accuracy and reward per task."
    _add_model(parser)
    parser.add_argument("--images", type=int, help="how many images to draw (default: the run's or recipe's, 600)")
    parser.add_argument("--seed", type=int, help="decides prompts and noise (default: the run's or recipe's, 0)")
    parser.add_argument("--output", type=Path, help="write the table as JSON, too")
    parser.set_defaults(run=_eval)


def _train(options: argparse.Namespace) -> int:
    from .progress import StopRequest
    from .report import change_table, closing_lines
    from .train import train

    config = get_recipe(options.recipe).with_settings(options.set)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    if options.minutes is not None or options.iterations is not None:
        config = replace(config, minutes=options.minutes, num_iterations=options.iterations)
    run = RunDirectory(options.output)
    run.claim()  # before the model is loaded: a directory in use is refused at once
    policy = _load_quietly(config)
    print(f"recipe {options.recipe}, seed {config.seed}, model {config.model}, run directory {run.path}\n{info()}")
    with StopRequest() as stop:
        trained = train(config, policy, run, stop)
    if trained.after is not None:
        print(change_table(trained.before, trained.after))
    print(closing_lines(trained, options.output))
    return INTERRUPTED if stop.made else 0


def _sample(options: argparse.Namespace) -> int:
    from .plots import contact_sheet
    from .sample import sample_images

    if options.count < 1:
        raise ValueError(f"--count must be >= 1, got {options.count}")
    if blank := [prompt for prompt in options.prompt if not prompt.strip()]:
        raise ValueError(f"--prompt must say something, got {blank[0]!r}")
    config = _config_of_model(options)
    policy = _load_quietly(config)
    prompts = [prompt for prompt in options.prompt for _ in range(options.count)]
    table = config.grpo.table(policy)
    images = sample_images(policy, prompts, table, options.seed, config.grpo.guidance_scale, config.grpo.max_batch)
    contact_sheet(options.output, images, prompts)
    print(f"wrote {options.output}: {len(images)} images")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from .files import write_json
    from .report import score_table
    from .train import score

    config = _config_of_model(options)
    if options.images is not None:
        config = replace(config, eval_images=options.images)
    if options.seed is not None:
        config = replace(config, eval_seed=options.seed)
    evaluation = score(config, _load_quietly(config))
    print(score_table(evaluation))
    if options.output:
        write_json(options.output, evaluation.table())
    return 0


def _load_quietly(config: TrainConfig) -> SD3Policy:
    """The policy, without the libraries' own bars and notes about each of its parts: they would bury the run's."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    return load_policy(config.model, config.device)


def _info(options: argparse.Namespace) -> int:
    print(info())
    return 0


def _config_of_model(options: argparse.Namespace) -> TrainConfig:
    """The settings to sample with: those of the run for `--weights`, else the shapes recipe with `--model`."""
    if options.weights is None:
        return replace(get_recipe("shapes"), model=options.model)
    run = RunDirectory(options.weights)
    return replace(run.read_config(), model=str(run.model))
