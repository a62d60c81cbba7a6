"""tempflow-fast train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from ..choices import DEFAULT_RECIPE
from ..run.directory import RunDirectory
from ..settings.methods import Method, method_settings, with_method
from ..settings.recipes import get_recipe
from ..settings.run import TrainConfig
from .code import AllowCode, check_code

if TYPE_CHECKING:
    from ..processes import Processes

LIMITS = ("num_iterations", "minutes")
REWARDS = ("reward", "accuracy")


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
    """Recipe with the settings, see tempflow-fast recipes; None: the settings of the run in --output, else shapes."""
    method: Method | None = None
    """Method whose settings replace those of the recipe or the run, before the options after them; None: no change.
    See docs/methods.md."""
    resume: Literal["auto", "latest", "never"] = "auto"
    """auto: resume from the newest undamaged checkpoint in --output, if there is one; latest: as auto, but refuse if a
    later checkpoint is damaged; never: refuse a directory in use."""
    dry_run: bool = False
    """Print what each process does in an iteration and what it costs, without training."""
    allow_code: AllowCode = False
    settings: TrainConfig = field(default_factory=TrainConfig)
    stored_rewards: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The rewards that come from the run in --output."""

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Train:
        """Returns the options that hold where `arguments` do not set them.

        They come from the recipe or the run, which `arguments` name.

        Args:
            arguments: the command line.

        Raises:
            ValueError: for an unknown recipe.
        """
        given, stored = _first_look(arguments), ()
        run = RunDirectory(given.output) if given.output else None
        if given.recipe is None and given.resume != "never" and run is not None and run.exists():
            settings = run.read_config()
            rewards = (getattr(settings.task, name) for name in REWARDS if getattr(given, name) is None)
            stored = tuple(reward for reward in rewards if reward is not None)
        else:
            settings = get_recipe(DEFAULT_RECIPE if given.recipe is None else given.recipe)
        if given.method is not None:
            settings = replace(settings, grpo=with_method(settings.grpo, given.method))
        # A limit on the command line replaces both limits of the recipe.
        limits = {name for name in LIMITS if getattr(given, name) is not None}
        if len(limits) == 1:
            settings = settings.with_settings(**{name: None for name in LIMITS if name not in limits})
        return cls(output=tyro.MISSING, settings=settings, stored_rewards=stored)

    def __call__(self) -> int:
        run, config = RunDirectory(self.output), self.settings
        check_code(self.stored_rewards, self.output, self.allow_code)
        from ..processes import launched

        processes = launched(cpu=config.policy.device == "cpu")
        say = processes.say
        if self.dry_run:
            return _dry_run(config, processes, say, self.allow_code)
        from ..ops.info import info
        from ..run.checks import check_directory, check_run
        from ..run.prepare import fitted, prepare_policy
        from ..run.report import change_table, closing_lines
        from ..run.signals import StopRequest
        from ..run.train import train

        check_run(config, processes)
        if processes.is_main:
            check_directory(run, config, self.resume == "never", say)
        policy = prepare_policy(config.policy, processes.device, self.allow_code)
        if config.policy.memory_limit is not None:
            config, memory = fitted(config, policy, processes.count)
            say(memory)
        if self.method is not None:
            names = method_settings(config.grpo, self.method)
            say(f"method {self.method}: " + ", ".join(f"{name} {getattr(config.grpo, name)}" for name in names))
        say(f"seed {config.task.seed}, model {config.policy.model}, run directory {run.path}, {processes.kind}")
        say(info())
        with StopRequest(config.run.grace_seconds, processes.count == 1, processes.is_main) as stop:
            try:
                trained = train(config, policy, run, stop, say, processes, fall_back=self.resume == "auto")
            except KeyboardInterrupt:
                if processes.is_main:
                    print("interrupted", file=sys.stderr)
                return stop.status
        if trained.after is not None:
            say(change_table(trained.before, trained.after))
        say(closing_lines(trained, self.output))
        return stop.status


def _dry_run(config: TrainConfig, processes: Processes, say: Callable[[object], None], allow_code: bool) -> int:
    """Prints the geometry of an iteration and, if the model can be loaded, the memory it needs."""
    from ..grpo.geometry import Geometry
    from ..run.prepare import fitted, prepare_policy

    say(Geometry(config.grpo, config.task.prompts_per_iteration, processes.count, seed=config.task.seed << 32))
    if not processes.is_main:
        return 0
    try:
        policy = prepare_policy(replace(config.policy, device="cpu"), allow_code=allow_code)
    except ValueError as error:
        say(f"\nmemory: not known, because the model cannot be loaded: {error}")
        return 0
    config, memory = fitted(config, policy, processes.count)
    say(f"\n{memory}")
    return 0


def _first_look(arguments: Sequence[str]) -> argparse.Namespace:
    """The options that decide the defaults of the others, parsed first."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--recipe", "--method", "--output", "--resume", "--minutes", *(f"--{name}" for name in REWARDS)):
        parser.add_argument(option, nargs="?")
    parser.add_argument("--iterations", "--num-iterations", "--num_iterations", nargs="?", dest="num_iterations")
    return parser.parse_known_args(arguments)[0]
