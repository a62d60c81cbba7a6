"""tempflow-fast signal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ..errors import unknown
from ..settings.iteration import GRPOConfig
from ..settings.methods import with_method
from .model import Model
from .options import require_option

if TYPE_CHECKING:
    from ..policies.base import Policy
    from ..settings.run import TrainConfig

FIRST = "as set"
"""Name of the settings of the run or the recipe."""
SOURCE = "--against"
METHOD = "method"
"""What a text may name in addition to settings."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Measures how much each branch step and each setting teaches for its cost, without training.

    Draws independent iterations at the policy as it is and compares their gradients. The same command resumes a
    measurement that was interrupted, and extends one with more --iterations or --against.
    """

    output: Path
    """Directory for the samples, the report and the plot."""
    source: Model = field(default_factory=Model)
    reference: str | None = None
    """Changes to the settings of the run or the recipe for the first setting, like those in --against."""
    against: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Changes to the reference to compare it with, such as "branch_steps=[1,2] num_branches=8": names as in
    config.json, values in JSON, or "method=flow_grpo" for those of a method; may be given several times."""
    iterations: int = 20
    """Number of iterations; errors fall as one over its square root."""
    prompts_per_iteration: int | None = None
    """Number of prompts per iteration; None: as in the run or the recipe."""
    budget: float | None = None
    """The most forward passes that a prompt may cost, for the recommended branch steps; None: the best step."""
    seed: int = 0
    """Seed of the prompts and the noise."""

    def __call__(self) -> int:
        require_option(self.iterations >= 3, "iterations", ">= 3", self.iterations)
        require_option(self.budget is None or self.budget > 0, "budget", "positive", self.budget)
        require_option(0 <= self.seed < 2**31, "seed", "in 0..2^31-1", self.seed)
        config = self.source.config(prompts_per_iteration=self.prompts_per_iteration)
        self.source.check_rewards(config.task)
        first = config.grpo if self.reference is None else changed(config.grpo, self.reference)
        settings = {self.reference or FIRST: first, **{text: changed(first, text) for text in self.against}}
        require_option(len(settings) == 1 + len(self.against), "against", "different settings", "the same twice")

        from tqdm import tqdm

        from ..files import write_json, write_text
        from ..run.checks import find_task
        from ..signal.measure import check_draws, measure_signal
        from ..signal.report import as_advice, as_json, as_text, signal_plot
        from ..signal.store import SampleStore
        from ..text import printable

        check_draws(settings)
        prompts, reward = find_task(config.task)
        store = SampleStore(self.output, self._facts(config), settings)
        task, policy = config.task, self._policy(config)
        with tqdm(total=self.iterations, desc="measuring", unit="iteration") as bar:
            report = measure_signal(
                policy,
                lambda iteration: prompts.training(iteration, task.prompts_per_iteration, self.seed),
                reward,
                settings,
                self.iterations,
                self.seed,
                store=store,
                on_iteration=lambda done: bar.update(done - bar.n),
            )
        text = f"{as_text(report)}\n{as_advice(report, self.budget)}"
        write_text(self.output / "report.md", text)
        write_json(self.output / "report.json", as_json(report))
        signal_plot(self.output / "signal.png", report)
        print(printable(text, keep="\n"))
        print(f"wrote {self.output}: report.md, report.json, signal.png")
        return 0

    def _policy(self, config: TrainConfig) -> Policy:
        """The policy as a run would train it."""
        from ..run.prepare import prepare_policy

        if self.source.weights is None and self.source.lora is None:
            return prepare_policy(config.policy)
        return self.source.load(config)

    def _facts(self, config: TrainConfig) -> dict[str, Any]:
        """What the samples depend on, by name."""
        from ..checksums import Digests
        from ..processes import Processes
        from ..run.origin import Origin
        from ..settings.fields import FIXED
        from ..version import __version__

        digests, tuned = Digests(self.output / "digests.json"), self.source.tuned_files()
        contents = Origin.of(config, Processes(), digests).contents
        policy = {name: value for name, value in asdict(config.policy).items() if name in config.marked(FIXED)}
        facts = {
            **policy,
            **contents,  # a model by its content, wherever it is
            "weights": None if tuned is None else digests.of(tuned),
            "prompts_per_iteration": config.task.prompts_per_iteration,
            "seed": self.seed,
            "version": __version__,
        }
        digests.save()
        return facts


def changed(config: GRPOConfig, text: str) -> GRPOConfig:
    """Returns settings with those of a text.

    Args:
        config: the others.
        text: "name=value name=value", the values in JSON without spaces; a text needs no quotes. "method=NAME" comes
            first, wherever it is.

    Raises:
        ValueError: for a setting that does not exist, or a value that does not fit.
    """
    known, values, method = {item.name for item in fields(GRPOConfig)}, dict[str, Any](), None
    names = [part.partition("=")[0] for part in text.split()]
    require_option(len(set(names)) == len(names), "against", "settings with each name once", repr(text))
    for part in text.split():
        name, separator, value = part.partition("=")
        require_option(bool(separator), "against", 'settings as "name=value name=value"', repr(text))
        if name == METHOD:
            method = value
            continue
        if name not in known:
            unknown(SOURCE, "setting", name, known | {METHOD})
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = value
        values[name] = tuple(read) if isinstance(read, list) else read
    require_option(bool(text.split()), "against", 'settings as "name=value name=value"', repr(text))
    return replace(config if method is None else with_method(config, method), **values)
