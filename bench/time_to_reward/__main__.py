"""Runs what is left of the arms and writes the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..experiment.__main__ import ROOT
from ..experiment.analysis import first_at
from ..experiment.methods import ARM_RATES, ARMS, SAME_UPDATE
from ..experiment.plans import Plan, evaluations_of
from ..experiment.results import Result, current, is_done, read_results
from ..experiment.stages import Design, run_plans
from .page import AXIS, write_page


@dataclass(frozen=True)
class Race:
    """What is run.

    Attributes:
        arms: names of ARMS, from the slowest to the fastest.
        seeds: of the runs.
        spacing: iterations between two looks, the same for all arms: more looks would find the target earlier.
        part: iterations by which a run is continued until it reaches the target.
        most: iterations after which it is given up.
        eval_images: images of a look.
        timed: iterations of an arm that is timed, not run to the target; it has three looks.
        timed_images: images of such a look, which only divides the run.
        prompts: per iteration; None: each arm's own number.
        tuned: whether learning rate and noise level are those that the experiment has chosen.
    """

    arms: Sequence[str] = tuple(ARMS)
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    spacing: int = 6
    part: int = 18
    most: int = 360
    eval_images: int = 600
    timed: int = 9
    timed_images: int = 12
    prompts: int | None = None
    tuned: bool = True

    def plans(self, known: Sequence[Result]) -> list[Plan]:
        """The first part of every run.

        Args:
            known: results of the experiment, with all tuning runs of the arms' methods.

        Raises:
            ValueError: if a method is not tuned yet.
        """
        return [self._plan(arm, seed, known) for seed in self.seeds for arm in self.arms]

    def _plan(self, arm: str, seed: int, known: Sequence[Result]) -> Plan:
        rate, noise = 4e-4, 0.8
        if self.tuned:
            design = Design(methods=("tempflow",))
            if not all(is_done(known, plan) for plan in design.first_tuning()):
                raise ValueError("time_to_reward: tempflow must be tuned by `make experiment` first, and is not")
            rate, noise = design.chosen(known, "tempflow", design.noise_levels)
            rate = ARM_RATES.get(arm, rate)
        sizes = (self.part, self.spacing, self.eval_images)
        if arm in SAME_UPDATE:
            sizes = (self.timed, self.timed // 3, self.timed_images)
        each = self._evaluations_of(arm)
        iterations, spacing, images = sizes
        return Plan("time", arm, seed, rate, noise, each * iterations, each * spacing, images, 0, self.prompts)

    def _evaluations_of(self, arm: str) -> int:
        config = ARMS[arm].config()
        return evaluations_of(config.with_settings(prompts_per_iteration=self.prompts) if self.prompts else config)

    def longer(self, plan: Plan) -> Plan:
        """The same run, one part further."""
        return replace(plan, budget=plan.budget + self.part * self._evaluations_of(plan.method))


QUICK = Race(
    ("paper_eager", "structure"),
    seeds=(1,),
    spacing=1,
    part=3,
    most=3,
    eval_images=12,
    timed=3,
    prompts=2,
    tuned=False,
)
"""A toy: two arms, three iterations of each."""


def run(race: Race, target: float, known: Sequence[Result], directory: Path, results: Path) -> None:
    """Continues every run until it reaches the target or is given up; one at a time.

    Args:
        race: its sizes.
        target: strict accuracy.
        known: results of the experiment.
        directory: of the run directories.
        results: the file that gets a line for each run.
    """
    for plan in race.plans(known):
        while _continues(plan, read_results(results), target, race.most):
            if is_done(read_results(results), plan):
                plan = race.longer(plan)
            run_plans([plan], directory, results, 1, lambda line: print(line, flush=True))


def _continues(plan: Plan, results: Sequence[Result], target: float, most: int) -> bool:
    own = [each for each in results if each["digest"] == plan.digest]
    if plan.method in SAME_UPDATE:
        return not own
    return not own or (first_at(own[0], AXIS, target) is None and own[0]["iterations"][-1] < most)


def main(arguments: list[str] | None = None) -> int:
    """Runs and writes; the status is 1 if a run failed or a method is not tuned, 130 after Ctrl-C.

    Args:
        arguments: of the command line.
    """
    given = _parser().parse_args(arguments)
    race = QUICK if given.quick else Race()
    arms = race.arms
    if given.arms:
        race = replace(race, arms=tuple(arm for arm in arms if arm in given.arms))
    results = given.page.parent / given.page.stem / "results.jsonl"
    try:
        run(race, given.target, current(read_results(given.experiment)), given.output, results)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        if known := current(read_results(results)):
            write_page(given.page, known, arms, len(race.seeds), given.target, race.most)
            print(f"wrote {given.page}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.time_to_reward", description=__doc__)
    parser.add_argument("--target", type=float, default=0.8, help="strict accuracy")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/time-to-reward", help="directory of the runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/time-to-reward.md", help="its results are next to it")
    parser.add_argument(
        "--experiment", type=Path, default=ROOT / "docs/experiment/results.jsonl", help="results that have the tuning"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="NAME", help="run only these; the page shows all")
    parser.add_argument("--quick", action="store_true", help="a toy of the same, in half a minute")
    return parser


if __name__ == "__main__":
    sys.exit(main())
