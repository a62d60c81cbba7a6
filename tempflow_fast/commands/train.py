"""tempflow-fast train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..run.directory import RunDirectory
from ..settings.methods import Method, method_settings, with_method
from ..settings.run import TrainConfig
from .base import Base, base_settings
from .code import NAMES_OF_CODE, AllowCode, check_code
from .dry_run import Speed, dry_run
from .options import require_option

LIMITS = ("num_iterations", "minutes")
HELP = {"-h", "--help"}
LOOKED_AT = ("recipe", "config", "method", "output", "resume", "model", "prompts", "minutes", *NAMES_OF_CODE)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model and writes a run directory, or resumes the run in it.

    The directory gets the settings, the metrics, checkpoints, scores and samples before and after, and the tuned
    weights. Ctrl-C ends a run early and saves the weights. The same command resumes the run, also after a crash. A run
    that gets SIGTERM or SIGHUP saves a checkpoint and ends within --grace-seconds; SIGUSR1 saves one and continues.
    """

    output: Path
    """Run directory: a new or empty one, or that of a run to resume."""
    recipe: str | None = None
    """Recipe with the settings: a name from tempflow-fast recipes, or module:function for your own. None: the settings
    of the run in --output, or else those of the family of --model, or else shapes."""
    config: Path | None = None
    """File with settings, YAML or JSON, by group as in the config.json of a run; options override it. What it leaves
    out comes from --recipe, or else from the family of its model."""
    method: Method | None = None
    """Method whose settings replace those of the recipe or the run, before the options after them; None: no change.
    See docs/methods.md."""
    resume: Literal["auto", "latest", "never"] = "auto"
    """auto: resume from the newest undamaged checkpoint in --output, if there is one; latest: as auto, but refuse if a
    later checkpoint is damaged; never: refuse a directory in use."""
    dry_run: bool = False
    """Print what each process does in an iteration, whether it fits and what it costs, without training."""
    card: str | None = None
    """With --dry-run: the GPU that would train, such as h100, whose memory and speed are then compared."""
    tflops: float | None = None
    """With --dry-run: the 10^12 operations per second that a device reaches, instead of a card's."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=("-v",))] = False
    """Also print what was built and which implementation each op uses, and every setting."""
    allow_code: AllowCode = False
    settings: TrainConfig = field(default_factory=TrainConfig)
    code: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """Rewards and policies whose names come from a file."""
    place: tyro.conf.Suppress[tyro.conf.Fixed[Path | None]] = None
    """That file, or the run in --output."""
    nearest: tyro.conf.Suppress[tyro.conf.Fixed[str | None]] = None
    """The recipe that the settings come from, or the nearest one; "": the defaults; None: a run's own."""

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Train:
        """Returns the options that hold where `arguments` do not set them.

        They come from the recipe, the file of settings, the run, or the family of the model that `arguments` name.

        Args:
            arguments: the command line.

        Raises:
            ValueError: for an unknown recipe, a file or model that cannot be read, or a model of one's own without
                prompts or a reward.
        """
        given = _first_look(arguments)
        base = _base(given)
        for name in ("prompts", "reward") if base.is_own and not HELP & set(arguments) else ():
            is_there = getattr(given, name) is not None or name in base.in_file
            require_option(is_there, name, "given with a model that no recipe names", "none")
        settings = _adapted(base, given)
        untyped = [name for name in NAMES_OF_CODE if name in base.in_file and getattr(given, name) is None]
        code = tuple(value for name in untyped if (value := settings.flat()[name]) is not None)
        return cls(output=tyro.MISSING, settings=settings, code=code, place=base.file, nearest=base.recipe)

    def __call__(self) -> int:
        run, config = RunDirectory(self.output), self.settings
        check_code(self.code, self.place, self.allow_code)
        speed = Speed.of(self.card, self.tflops)
        for name, value in (("card", self.card), ("tflops", self.tflops)):
            require_option(self.dry_run or value is None, name, "given with --dry-run", value)
        from ..processes import launched

        processes = launched(cpu=config.policy.device == "cpu")
        say = processes.say
        if self.dry_run:
            return dry_run(config, processes, say, self.allow_code, speed)
        from ..ops.info import info
        from ..run.checks import check_directory, check_run
        from ..run.prepare import fitted, prepare_policy
        from ..run.report import change_table, closing_lines, opening_lines
        from ..run.signals import StopRequest
        from ..run.train import train

        check_run(config, processes)
        if processes.is_main:
            check_directory(run, config, self.resume == "never", say)
        policy = prepare_policy(config.policy, processes.device, self.allow_code)
        if config.policy.memory_limit is not None:
            config, memory, _ = fitted(config, policy, processes.count)
            say(memory)
        if self.method is not None:
            names = method_settings(config.grpo, self.method)
            say(f"method {self.method}: " + ", ".join(f"{name} {getattr(config.grpo, name)}" for name in names))
        say(opening_lines(config, policy, run.path, processes, self.nearest))
        if self.verbose:
            say(f"\n{info()}\n\n{config.to_json()}")
        with StopRequest(config.run.grace_seconds, processes.count == 1, processes.is_main) as stop:
            try:
                trained = train(config, policy, run, stop, say, processes, fall_back=self.resume == "auto")
            except KeyboardInterrupt:
                if processes.is_main:
                    print("interrupted", file=sys.stderr)
                return stop.status
        if trained.after is not None:
            say(change_table(trained.before, trained.after))
        say(closing_lines(trained, self.output, config.policy.policy))
        return stop.status


def _base(given: argparse.Namespace) -> Base:
    """The settings of the run to resume, or else those that the options name."""
    run = None if given.output is None else RunDirectory(given.output)
    names_others = (given.recipe, given.config) != (None, None) or given.resume == "never"
    if run is None or names_others or not run.exists():
        return base_settings(given.recipe, given.model, None if given.config is None else Path(given.config))
    return Base(run.read_config(), None, run.path, frozenset(NAMES_OF_CODE))


def _adapted(base: Base, given: argparse.Namespace) -> TrainConfig:
    """The settings without what belongs to others that the options replace."""
    settings = base.settings
    if given.prompts is not None and base.file is None:
        settings = settings.with_settings(eval_prompts=None)  # those of a recipe belong to its own prompts
    if given.method is not None:
        settings = replace(settings, grpo=with_method(settings.grpo, given.method))
    # A limit on the command line replaces both limits of the recipe.
    limits = {name for name in LIMITS if getattr(given, name) is not None}
    return settings.with_settings(**{name: None for name in LIMITS if len(limits) == 1 and name not in limits})


def _first_look(arguments: Sequence[str]) -> argparse.Namespace:
    """The options that decide the defaults of the others, parsed first."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in LOOKED_AT:
        parser.add_argument(f"--{option}", nargs="?")
    parser.add_argument("--iterations", "--num-iterations", "--num_iterations", nargs="?", dest="num_iterations")
    return parser.parse_known_args(arguments)[0]
