"""tempflow-fast eval."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import SHAPES_PROMPTS
from ..files import check_writable, write_json, write_text
from ..settings.fields import SCORES
from ..text import printable
from .model import Model
from .options import require_option, require_suffix

if TYPE_CHECKING:
    from ..checksums import Digests
    from ..evaluation.directory import EvaluationDirectory
    from ..evaluation.measures import Measure
    from ..evaluation.result import Evaluation
    from ..processes import Processes
    from ..settings.run import TaskConfig, TrainConfig

IMAGES_AT_ONCE = 16
"""Default for `max_batch`: scores are saved after this number of images per process."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Scores a model on fixed prompts and fixed noise, task by task.

    Also works under accelerate launch. With --directory, every score is saved at once, the same command resumes after
    Ctrl-C or a crash, and two evaluations can be compared.
    """

    source: Model = field(default_factory=Model)
    prompts: str | None = None
    """Source of prompts, as in training. All prompts of a file or data set are drawn; of `shapes`, --images of the
    held-out ones, at random. None: the held-out prompts of the run or the recipe."""
    per_prompt: int | None = None
    """Number of images per prompt of the file or data set in --prompts; GenEval draws 4. None: 1."""
    rewards: str | None = None
    """Rewards to report, such as geneval,pickscore, each under its own name; None: those of the run or the recipe."""
    images: int | None = None
    """Number of images to draw; None: as in the run or the recipe, or by --per-prompt."""
    steps: int | None = None
    """Denoising steps, on the model's own schedule; None: as in the run or the recipe."""
    guidance_scale: float | None = None
    """Guidance scale; up to 1 turns guidance off; None: as in the run or the recipe."""
    resolution: int | None = None
    """Side of the images in pixels; None: as in the run or the recipe."""
    num_frames: int | None = None
    """Frames of a video; None: as in the run or the recipe."""
    max_batch: int | None = None
    """Maximum number of images at once in each process; None: as in the run or the recipe."""
    seed: int | None = None
    """Seed of the prompts and the noise; None: as in the run or the recipe."""
    output: Path | None = None
    """JSON file to write the table to."""
    directory: Path | None = None
    """Directory for the scores, saved as they arrive, a report, a contact sheet and histograms."""
    save_images: bool = False
    """Save every image in --directory, not only the first ones."""
    compare: Path | None = None
    """Directory of another evaluation with the same prompts and noise; the report shows the difference to it."""

    def __call__(self) -> int:
        from ..processes import launched

        config = self._config()
        if self.rewards is None:
            self.source.check_rewards(config.task)
        if self.output is not None:
            require_suffix("output", self.output, ".json")
            check_writable(self.output)
        processes = launched(cpu=config.policy.device == "cpu")
        with processes.guarded():
            evaluation = self._evaluation(config, processes)
        if evaluation is None or not processes.is_main:
            return 0
        from ..run.report import score_table

        print(score_table(evaluation))
        if self.output:
            write_json(self.output, evaluation.table())
        self._report(evaluation)
        return 0

    def _config(self) -> TrainConfig:
        """The settings of the run or the recipe, changed by the options."""
        for name in ("save_images", "compare"):
            holds = self.directory is not None or not getattr(self, name)
            require_option(holds, name, "given together with --directory", "no --directory")
        for name in ("prompts", "rewards") if self.source.is_own else ():
            require_option(getattr(self, name) is not None, name, "given with a model that no recipe names", "none")
        if self.per_prompt is not None:
            holds = self.per_prompt >= 1 and self.prompts is not None and self.images is None
            require_option(holds, "per_prompt", ">= 1, with --prompts and without --images", self.per_prompt)
            expected = f"left out with --prompts {SHAPES_PROMPTS}, of which --images are drawn at random"
            require_option(self.prompts != SHAPES_PROMPTS, "per_prompt", expected, self.per_prompt)
        config = self.source.config(
            eval_images=self.images,
            eval_seed=self.seed,
            eval_steps=self.steps,
            guidance_scale=self.guidance_scale,
            resolution=self.resolution,
            num_frames=self.num_frames,
            max_batch=self.max_batch,
        )
        if config.grpo.max_batch is None:
            config = config.with_settings(max_batch=IMAGES_AT_ONCE)
        if self.prompts is None:
            return config
        changed = self._with_prompts(config, self.prompts)
        if self.source.weights is not None:
            self._warn_of_trained(config.task, changed.task)
        return changed

    def _with_prompts(self, config: TrainConfig, prompts: str) -> TrainConfig:
        from ..prompts.sources import read_prompts

        if prompts == SHAPES_PROMPTS:
            return config.with_settings(prompts=SHAPES_PROMPTS, eval_prompts=None)
        config = config.with_settings(prompts=SHAPES_PROMPTS, eval_prompts=prompts)
        if self.images is not None:
            return config
        count = len(read_prompts(prompts, config.task.prompt_column))
        return config.with_settings(eval_images=count * (self.per_prompt or 1))

    @staticmethod
    def _warn_of_trained(run: TaskConfig, own: TaskConfig) -> None:
        """Warns of prompts that the run in --weights has trained on, as far as these can still be read here."""
        from ..prompts.sets import get_prompts, warn_of_shared

        judged = get_prompts(own.prompts, own.eval_prompts, own.prompt_column).everything()[1]
        with suppress(ValueError, OSError):
            warn_of_shared(get_prompts(run.prompts, run.eval_prompts, run.prompt_column).everything()[0], judged)

    def _measure(self, config: TrainConfig) -> Measure:
        from ..evaluation.measures import reward_measure, task_measure

        return task_measure(config.task) if self.rewards is None else reward_measure(self.rewards)

    def _evaluation(self, config: TrainConfig, processes: Processes) -> Evaluation | None:
        """A new evaluation, a resumed one, or one that is complete; None in all but the main process of a directory."""
        from ..checksums import Digests
        from ..evaluation.compare import check_comparable
        from ..evaluation.directory import EvaluationDirectory
        from ..evaluation.evaluate import evaluate, heldout
        from ..evaluation.result import Noise
        from ..prompts.entries import portable

        store = self._directory()
        if store is None or not store.is_complete():
            self._check_rewards(config)
        if store is None:
            return evaluate(config, self.source.load(config, processes.device), self._measure(config), processes)
        other = None if self.compare is None else EvaluationDirectory(self.compare).evaluation()
        prompts, metadata = heldout(config)
        digests = Digests(store.path / "digests.json")
        metadata = [portable(entry, digests.of) for entry in metadata]
        if processes.is_main:
            store.begin(self._facts(config, digests, store.is_complete()), prompts.tasks, metadata)
            digests.save()
        processes.wait()
        if not store.is_complete():
            measure, policy = self._measure(config), self.source.load(config, processes.device)
            noise = Noise(config.evaluation.eval_seed, tuple(policy.latent_shape))
            if other is not None:  # before hours of sampling
                check_comparable(metadata, noise, other)
            if processes.is_main:
                store.note_noise(noise)
            evaluate(config, policy, measure, processes, store)
        return store.evaluation() if processes.is_main else None

    def _check_rewards(self, config: TrainConfig) -> None:
        """Loads the rewards and asks them about the prompts, before the model is loaded and anything is written."""
        from ..evaluation.evaluate import heldout
        from ..policies.base import images_of
        from ..rewards import get_reward
        from ..run.checks import check_entries
        from ..run.load import find_model

        _, entries = heldout(config)
        _, kind = find_model(config.policy.model, config.policy.policy)
        images_of("eval", kind, entries)
        for reward in map(get_reward, self._rewards(config)):
            check_entries(reward, entries)
            if kind.makes_videos():
                reward.check_videos()

    def _rewards(self, config: TrainConfig) -> list[str]:
        """The descriptions of the rewards that score."""
        return [self.rewards] if self.rewards else [s for s in (config.task.accuracy, config.task.reward) if s]

    def _directory(self) -> EvaluationDirectory | None:
        from ..evaluation.directory import EvaluationDirectory

        return None if self.directory is None else EvaluationDirectory(self.directory, self.save_images)

    def _facts(self, config: TrainConfig, digests: Digests, is_complete: bool) -> dict[str, Any]:
        """What the scores depend on, by name: settings, and digests of what they name."""
        from ..checksums import content_of
        from ..run.origin import model_content, rewards_content, served_content
        from ..version import __version__

        settings, tuned = config.flat(), self.source.tuned_files()
        weights = None if tuned is None else f"{tuned} ({content_of(tuned) or digests.of(tuned)})"
        specs = self._rewards(config)
        return {
            "weights": weights,
            "rewards": ", ".join(specs),
            **{name: settings[name] for name in config.marked(SCORES)},
            "model_digest": model_content(config.policy.model, digests),
            "rewards_digest": rewards_content(specs),
            **({} if is_complete else {"served": served_content(specs)}),  # a server may be gone by then
            "version": __version__,
        }

    def _report(self, evaluation: Evaluation) -> None:
        """Writes the files of --directory and prints what they are."""
        directory = self._directory()
        if directory is None:
            return
        from ..evaluation.compare import paired_differences
        from ..evaluation.curves import reward_histograms
        from ..evaluation.directory import EvaluationDirectory
        from ..evaluation.report import as_json, comparison, intervals_as_json, report
        from ..evaluation.sheets import evaluation_sheet

        facts = directory.facts()
        text, data, shown = report(evaluation, facts), as_json(evaluation, facts), {str(directory.path): evaluation}
        if self.compare is not None:
            other = EvaluationDirectory(self.compare)
            old = other.evaluation()
            differences = paired_differences(evaluation, old)
            part = comparison(evaluation, facts, differences, old, other.facts())
            print(printable(f"\n{part}", keep="\n"), end="")
            text, data["difference"] = f"{text}\n{part}", {str(self.compare): intervals_as_json(differences)}
            shown[str(self.compare)] = old
        write_text(directory.path / "report.md", text)
        write_json(directory.path / "scores.json", data)
        evaluation_sheet(directory.path / "samples.png", evaluation)
        reward_histograms(directory.path / "rewards.png", shown)
        print(f"\nwrote {directory.path}: report.md, scores.json, samples.png, rewards.png")
