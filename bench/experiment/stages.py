"""What is run: first tuning, with the same number of runs and evaluations for every method, then the reported seeds."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .methods import COMPETITORS
from .plans import DIVERGED, Plan
from .results import Result, add_result, current, is_done, read_results


@dataclass(frozen=True)
class Design:
    """The experiment's sizes.

    Attributes:
        methods: names of `COMPETITORS`.
        learning_rates: tried at the first noise level.
        noise_levels: the first, then those that are tried at the best learning rate.
        tuning_seeds: never reported.
        seeds: reported.
        tuning_budget: evaluations of a tuning run.
        budget: evaluations of a reported run.
        spacing: evaluations between two looks at the held-out prompts in a reported run.
        eval_images: images of a look.
        prompts: per iteration; None: each method's own number.
    """

    methods: Sequence[str] = tuple(COMPETITORS)
    learning_rates: Sequence[float] = (2e-4, 4e-4, 8e-4, 1.6e-3)
    noise_levels: Sequence[float] = (0.8, 0.5)
    tuning_seeds: Sequence[int] = (101,)
    seeds: Sequence[int] = (1, 2, 3, 4, 5)
    tuning_budget: int = 60_000
    budget: int = 120_000
    spacing: int = 20_000
    eval_images: int = 600
    prompts: int | None = None

    def tuning(self, method: str, learning_rate: float, noise_level: float) -> list[Plan]:
        """The tuning runs of one setting. They are scored on other noise than the reported runs."""
        sizes = (self.tuning_budget, None, self.eval_images, 7, self.prompts)
        return [Plan("tuning", method, seed, learning_rate, noise_level, *sizes) for seed in self.tuning_seeds]

    def first_tuning(self) -> list[Plan]:
        """Every learning rate at the first noise level; none if there is nothing to choose."""
        if len(self.learning_rates) == len(self.noise_levels) == 1:
            return []
        return [
            plan
            for rate in self.learning_rates
            for method in self.methods
            for plan in self.tuning(method, rate, self.noise_levels[0])
        ]

    def second_tuning(self, results: Sequence[Result]) -> list[Plan]:
        """Other noises at the best learning rate of each method; for one without noise, a rate between its two best."""
        first, *others = self.noise_levels
        plans = []
        for noise in others:
            for method in self.methods:
                rates = [rate for rate, _ in self.ranking(results, method, (first,))]
                if COMPETITORS[method].step == "awm":
                    plans += self.tuning(method, float(f"{math.sqrt(rates[0] * rates[1]):.2g}"), first)
                else:
                    plans += self.tuning(method, rates[0], noise)
        return plans

    def report(self, results: Sequence[Result]) -> list[Plan]:
        """The reported runs, seed by seed, so that a stop leaves whole seeds."""
        plans = []
        for seed in self.seeds:
            for method in self.methods:
                rate, noise = self.chosen(results, method, self.noise_levels)
                sizes = (self.budget, self.spacing, self.eval_images, 0, self.prompts)
                plans.append(Plan("report", method, seed, rate, noise, *sizes))
        return plans

    def chosen(self, results: Sequence[Result], method: str, noise_levels: Sequence[float]) -> tuple[float, float]:
        """The best learning rate and noise level by `ranking`, or the only ones."""
        if len(self.learning_rates) == len(self.noise_levels) == 1:
            return self.learning_rates[0], self.noise_levels[0]
        return self.ranking(results, method, noise_levels)[0]

    def ranking(
        self, results: Sequence[Result], method: str, noise_levels: Sequence[float]
    ) -> list[tuple[float, float]]:
        """Learning rates and noise levels, from the highest mean strict accuracy at the end of the tuning runs down.

        Args:
            results: with all tuning runs of these noise levels.
            method: a name.
            noise_levels: that may be chosen.
        """
        scores: dict[tuple[float, float], list[float]] = {}
        for result in results:
            if (result["stage"], result["method"]) == ("tuning", method) and result["noise_level"] in noise_levels:
                key = result["learning_rate"], result["noise_level"]
                scores.setdefault(key, []).append(result["accuracy"][-1])
        return sorted(scores, key=lambda key: (-sum(scores[key]) / len(scores[key]), key[0]))


def run_all(design: Design, directory: Path, results: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Runs what is left of the experiment.

    Args:
        design: its sizes.
        directory: of the run directories.
        results: the file of `results.py`.
        jobs: processes at a time, with one thread each.
        say: prints a line.

    Raises:
        RuntimeError: if a run fails; it names its log.
    """
    stages = {
        "tuning, learning rate": lambda known: design.first_tuning(),
        "tuning, noise": design.second_tuning,
        "reported seeds": design.report,
    }
    for title, plans_of in stages.items():
        plans = plans_of(current(read_results(results)))
        left = [plan for plan in plans if not is_done(read_results(results), plan)]
        say(f"{title}: {len(plans) - len(left)} of {len(plans)} runs are done")
        run_plans(left, directory, results, jobs, say)


def run_plans(plans: Sequence[Plan], directory: Path, results: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Runs `jobs` processes at a time; on an error or Ctrl-C they save a checkpoint before this ends.

    Args:
        plans: to run, in this order.
        directory: of the run directories.
        results: the file that gets a line for each.
        jobs: processes at a time.
        say: prints a line.

    Raises:
        RuntimeError: if a run fails; it names its log.
    """
    waiting, running, started, num_done = list(plans), {}, time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                plan = waiting.pop(0)
                running[plan] = plan.start(directory)
            time.sleep(0.5)
            for plan in [plan for plan, process in running.items() if process.poll() is not None]:
                process = running.pop(plan)
                if process.returncode not in (0, DIVERGED):
                    raise RuntimeError(f"run {plan.name} failed, see {directory / plan.name}.log")
                add_result(results, plan.result(directory, process.returncode == DIVERGED))
                num_done += 1
                hours = (time.monotonic() - started) / num_done * (len(waiting) + len(running)) / 3600
                accuracy = read_results(results)[-1]["accuracy"]
                say(f"{plan.name}: {accuracy[0]:.3f} -> {accuracy[-1]:.3f}; {hours:.1f} hours left in this stage")
    finally:
        _end(list(running.values()))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
