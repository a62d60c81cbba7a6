"""The training loop: evaluate, iterate within the budget, save checkpoints, evaluate again, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from ..errors import NotFiniteError, require
from ..evaluation.curves import hacking_signs, score_curve, training_curve
from ..evaluation.evaluate import score
from ..evaluation.intervals import OVERALL
from ..evaluation.result import Evaluation
from ..evaluation.sheets import sample_sheet
from ..grpo.gate import COSINE
from ..grpo.lengths import TailLengths
from ..grpo.levels import nearest_levels
from ..grpo.step import grpo_step
from ..interruption import GivenUpError
from ..policies import DiffusersPolicy
from ..processes import Processes
from ..rewards import RewardError
from ..settings.run import TrainConfig
from . import random_state
from .average import WeightAverage
from .checkpoint import TrainingState, load_checkpoint, require_finite_state, save_checkpoint
from .checks import check_run, check_schedules, find_task
from .directory import RunDirectory
from .evaluations import RunEvaluations, basis_of
from .lock import DirectoryLock
from .optimizers import learning_rate, make_optimizer, set_learning_rate
from .progress import Budget, ProgressBar
from .resume import begin
from .signals import StopRequest
from .tensors import weights_digest
from .trackers import Trackers

MAX_SKIPPING = 5
"""Iterations in a row with updates that were not finite and so not taken, after which a run ends."""

TAIL_SETTINGS = {
    "tail_steps",
    "tail_levels",
    "tail_solver",
    "tail_precision",
    "tail_guidance",
    "gate_bound",
    "gate_action",
}
"""Settings whose change takes back what a gate has decided."""


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    before: Evaluation
    """Scores of the starting weights."""
    after: Evaluation | None
    """Scores of the tuned weights; None if the run had to end without them."""
    num_iterations: int
    """Number of iterations of all starts of the run."""
    seconds: float
    """Wall time of these iterations, in seconds."""


def train(
    config: TrainConfig,
    policy: DiffusersPolicy,
    run: RunDirectory,
    stop: StopRequest | None = None,
    report: Callable[[str], None] = print,
    processes: Processes | None = None,
    fall_back: bool = True,
) -> Trained:
    """Trains the policy and writes the files of `RunDirectory`; the same config gives the same metrics.

    In the directory of an earlier run it resumes from the last checkpoint, as if the run had never stopped. The weights
    are saved no matter what ends the iterations.

    Args:
        config: the settings.
        policy: the model that `config` names, see `prepare_policy`; changed in place.
        run: the directory to write: new, empty, or that of an earlier run.
        stop: asks for the end of the run or for a checkpoint; None: only the budget ends the run.
        report: called with a sentence now and then.
        processes: those that share the run, which must all call this; None: this process alone.
        fall_back: whether to resume from an earlier checkpoint if the latest one is damaged, instead of refusing.

    Returns:
        The scores before and after, and the cost.

    Raises:
        ValueError: before any work, for a directory that holds something else or that another process is writing, a
            change of settings that the run cannot make, or an unknown prompt set, reward or tracker.
        RewardError: if a reward failed, after a checkpoint is saved.
        NotFiniteError: if images or weights are infinite or NaN, or updates in several iterations in a row; nothing is
            saved then, and earlier checkpoints stay.
        KeyboardInterrupt: from a signal before the first iteration, or the third one.
    """
    processes = processes or Processes()
    stop = stop or StopRequest()
    check_run(config, processes)
    check_schedules(config, policy)
    with processes.guarded(), _held(run, processes, report) as lock:
        loop = _Loop(config, policy, run, lock, processes, report, fall_back)
        try:
            before = loop.prepare()
            budget = loop.iterate(stop)
            after = loop.finish(before, stop)
        finally:
            loop.trackers.finish()
    return Trained(before, after, budget.num_done, budget.seconds)


@contextmanager
def _held(run: RunDirectory, processes: Processes, report: Callable[[str], None]) -> Iterator[DirectoryLock | None]:
    """Inside this context, the main process holds the lock of the directory; the others have None."""
    lock, error = None, None
    with ExitStack() as stack:
        if processes.is_main:
            try:
                if not run.exists():
                    run.check_free()
                lock = stack.enter_context(DirectoryLock(run.path, report))
            except (ValueError, OSError) as failure:  # raised when the others know
                error = failure
        refused = processes.max(torch.tensor(int(error is not None)))
        if error is not None:
            raise error
        require(not refused, "train", "run", "a directory that the main process can write", "its refusal")
        yield lock


class _Loop:
    """A run: its parts, and their order."""

    def __init__(
        self,
        config: TrainConfig,
        policy: DiffusersPolicy,
        run: RunDirectory,
        lock: DirectoryLock | None,
        processes: Processes,
        report: Callable[[str], None],
        fall_back: bool,
    ) -> None:
        own = config.optimizer
        self.prompts, self.reward = find_task(config.task)
        self.trackers = Trackers(config.run.trackers if processes.is_main else (), run.logs)
        self.config, self.policy, self.run, self.processes, self._report = config, policy, run, processes, report
        self._lock = lock
        self.start = begin(run, config, processes, fall_back)
        basis = basis_of(config, self.start.origin)
        first = -1 if self.start.checkpoint is None else self.start.num_iterations
        self.evaluations = RunEvaluations(run.evaluations, basis, first, self.report)
        if config.grpo.beta > 0:
            policy.freeze_reference()
        optimizer = processes.prepare(policy, make_optimizer(policy.parameters(), own))
        average = None if own.ema_decay is None else WeightAverage(policy, optimizer, own.ema_decay, own.ema_every)
        self.state = TrainingState(policy, optimizer, average)
        self._saved = self._num_skipping = 0

    def prepare(self) -> Evaluation:
        """Scores the starting weights, then loads the checkpoint, if there is one."""
        random_state.seed(self.config.task.seed)
        self.trackers.start(self.config.flat() if self.start.checkpoint is None else None)
        before = self._evaluation("before")
        if self.start.checkpoint is not None:
            load_checkpoint(self.start.checkpoint, self.state)
            self._saved = self.state.num_iterations
            if self._any(bool(TAIL_SETTINGS & self.start.changed.keys())):
                self.state.full_tails, self.state.tails = False, TailLengths()  # no gate has seen these tails yet
            if self._any("num_branches" in self.start.changed):
                self.state.budget.counts = {}  # an adaptive budget starts from these
            self._known()  # counts among the evaluations of the run from here on
        if not self.state.levels.fits(self.config.grpo):
            self._choose_levels()
        if sentence := self.start.sentence():
            self.report(sentence)
        return before

    def _choose_levels(self) -> None:
        """Chooses the levels of short tails by the policy as it is, on the prompts of the first iteration."""
        task = self.config.task
        first = self.prompts.training(0, task.prompts_per_iteration, task.seed)
        self.state.levels = nearest_levels(self.config.grpo, self.policy, first, task.seed << 32, self.processes)

    def iterate(self, stop: StopRequest) -> Budget:
        """Runs iterations until the budget is used or a stop is requested; saves the weights in any case."""
        with stop.deferred():
            return self._iterate(stop)

    def _iterate(self, stop: StopRequest) -> Budget:
        own, state = self.config.run, self.state
        budget = Budget(own.num_iterations, own.minutes, state.num_iterations, state.seconds)
        bar = ProgressBar(hidden=not self.processes.is_main)
        try:
            while (fraction := self._agreed(stop, budget)) < 1:
                self._evaluate_if_due()
                with budget.running(), random_state.undone():
                    metrics = self._iteration(state.num_iterations, fraction)
                budget.num_done = state.num_iterations = state.num_iterations + 1
                state.seconds = budget.seconds
                self._log(metrics)
                bar.show(budget, metrics)
                self._note_skipped(int(metrics["skipped_updates"]))
                self._note_gate(metrics)
                if state.num_iterations % own.checkpoint_every == 0:
                    self._save()
            self._save()
        except (RewardError, NotFiniteError, GivenUpError) as error:  # raised in all processes together
            if self._any(isinstance(error, NotFiniteError)):
                raise
            self._save()  # a reward fails before the iteration changes any weight
            self._write_tuned()
            if not self._any(stop.made):
                raise
            stop.hurried = True  # scoring would wait for the same
            return budget
        except BaseException:
            if self.processes.count == 1:  # with several, the others may be gone, and sharded weights need all of them
                self._write_tuned()
            raise
        finally:
            bar.close()
        self._write_tuned()
        return budget

    def finish(self, before: Evaluation, stop: StopRequest) -> Evaluation | None:
        """Draws the plots, and scores the tuned policy, unless the run has to end without it."""
        if self._any(stop.hurried):
            return None
        try:
            return self._finish(before)
        except KeyboardInterrupt:
            return None

    def _finish(self, before: Evaluation) -> Evaluation:
        if self.processes.is_main and (metrics := self.run.read_metrics()):
            training_curve(self.run.curve, metrics)
            hacking_signs(self.run.signs, metrics, self.reward.weights)
        after = self._evaluation("after")
        if self.processes.is_main:
            sample_sheet(self.run.sheet, {"before": before, "after": after})
            score_curve(self.run.scores, self.evaluations.up_to(self.state.num_iterations))
        return after

    def report(self, sentence: str) -> None:
        """Reports a sentence; only the main process does."""
        if self.processes.is_main:
            self._report(sentence)

    def _agreed(self, stop: StopRequest, budget: Budget) -> float:
        """Share of the budget that is used, 1 to end the run; saves a checkpoint if somebody has asked for one.

        It is the same in all processes, whose clocks differ: learning rates that follow it have to be equal.
        """
        self._check_lock()
        own = torch.tensor([1.0 if stop.made else budget.fraction, stop.asks_for_checkpoint], dtype=torch.float64)
        fraction, saves = self.processes.max(own).tolist()  # in one round for all processes
        if saves:
            stop.asks_for_checkpoint = False
            self._save()
        return fraction

    def _any(self, stops: bool) -> bool:
        """Whether the condition holds in any process: all of them must take the same branch."""
        return bool(self.processes.max(torch.tensor(int(stops))))

    def _iteration(self, index: int, fraction: float) -> dict[str, float]:
        """One `grpo_step`; its prompts and noise depend only on (seed, index)."""
        config, task = self.config, self.config.task
        rate = learning_rate(config.optimizer, index, fraction)
        set_learning_rate(self.state.optimizer, rate)
        metadata = self.prompts.training(index, task.prompts_per_iteration, task.seed)
        own = config.grpo.with_full_tails() if self.state.full_tails else self.state.tails.applied(config.grpo)
        own = self.state.levels.applied(own)
        grpo = self.state.budget.applied(own)
        metrics = grpo_step(
            self.policy,
            [entry["prompt"] for entry in metadata],
            self.reward,
            self.state.optimizer,
            grpo,
            seed=(task.seed << 32) + index,
            metadata=metadata,
            processes=self.processes,
        )
        found = {name: float(value) for name, value in metrics.items()}
        self.state.budget.note(own, found)
        return {"learning_rate": rate, **found, **self.state.tails.metrics(config.grpo)}

    def _note_skipped(self, num_skipped: int) -> None:
        """Ends a run whose updates are not finite again and again."""
        done, num_updates = self.state.num_iterations, self.config.grpo.num_updates
        self._num_skipping = self._num_skipping + 1 if num_skipped else 0
        if num_skipped:
            self.report(f"iteration {done}: {num_skipped} of {num_updates} updates were not finite, and not taken")
        if self._num_skipping >= MAX_SKIPPING:
            raise NotFiniteError(
                f"the loss or its gradient was infinite or NaN in {MAX_SKIPPING} iterations in a row, the last of them "
                f"iteration {done}; a smaller learning rate or beta, or more precision, may help"
            )

    def _note_gate(self, metrics: dict[str, float]) -> None:
        """Moves adaptive tails; reports a gate that does not pass, and goes back to full tails if asked to."""
        own, found, done = self.config.grpo, metrics.get(COSINE), self.state.num_iterations
        for step, before, after, cosine in self.state.tails.note(own, metrics):
            self.report(
                f"after {done} iterations: branch step {step} has tails of {after} calls instead of {before}: a cosine "
                f"of {cosine:.3f}, for a bound of {own.gate_bound:g}"
                if after != before
                else f"after {done} iterations: branch step {step} has a cosine of {cosine:.3f} with its full length"
            )
        if found is None or found >= own.gate_bound or own.tail_steps == "adaptive":
            return
        back = own.gate_action == "full"
        self.state.full_tails = back
        then = "full tails from here on" if back else "longer tails would keep more (--tail-steps)"
        self.report(
            f"after {done} iterations: advantages after cheap tails have a cosine of {found:.3f} "
            f"with those after full ones, below {own.gate_bound:g}: {then}"
        )

    def _log(self, metrics: dict[str, float]) -> None:
        if self.processes.is_main:
            done, seconds = self.state.num_iterations, self.state.seconds
            self.run.append_metrics({"iteration": done, "seconds": seconds, **metrics})
            self.trackers.log({f"train/{name}": value for name, value in metrics.items()}, done)

    def _save(self) -> None:
        """Writes a checkpoint, unless there is one for this iteration or no iteration was done."""
        if self.state.num_iterations == 0 or self.state.num_iterations == self._saved:
            return
        keep = self.config.run.num_checkpoints
        save_checkpoint(self.run.checkpoints, self.state, self.config, self.processes, keep, self.start.origin)
        self._saved = self.state.num_iterations
        if self.processes.is_main:
            self.run.note_checkpoint(self._saved)
            self.evaluations.passed(self._saved)

    def _evaluate_if_due(self) -> None:
        done, every = self.state.num_iterations, self.config.evaluation.eval_every
        if done and every and done % every == 0:
            evaluation = self._evaluation()
            self.report(f"after {done} iterations: {summary(evaluation)}")

    def _evaluation(self, name: str | None = None) -> Evaluation:
        """The evaluation at this point, from the run directory if it is there; with a name, it is reported."""
        evaluation, weights = self._known()
        done = self.state.num_iterations
        if evaluation is None:
            with self._averaged(), random_state.kept():  # a resumed run does not score again
                evaluation = score(self.config, self.policy, self.processes)
            if self.processes.is_main:
                self.evaluations.write(done, weights, evaluation)
                names, rows = evaluation.measures, evaluation.table().items()
                self.trackers.log({f"eval/{task}/{name}": row[name] for task, row in rows for name in names}, done)
                self.trackers.log_images("eval/images", evaluation.images, done)
        if name is not None and self.processes.is_main:
            self.run.write_scores(name, evaluation)
            self.report(f"{name} training: {summary(evaluation)}")
        return evaluation

    def _known(self) -> tuple[Evaluation | None, str]:
        """The evaluation of these weights, if the run directory has one, and their digest."""
        with self._averaged():
            weights = weights_digest(self.policy, self.processes)
        done = self.state.num_iterations
        known = self.evaluations.find(done, weights) if self.processes.is_main else None
        if self._any(known is not None) and known is None:
            known = self.run.evaluation(done)  # the main process has found it
        return known, weights

    def _averaged(self) -> AbstractContextManager[None]:
        """Inside this context, the policy has its average weights, if the run keeps an average."""
        return nullcontext() if self.state.average is None else self.state.average.applied()

    def _check_lock(self) -> None:
        """Refuses to write a directory that another process has taken over."""
        if self._lock is not None:
            self._lock.check()

    def _write_tuned(self) -> None:
        self._check_lock()
        require_finite_state(self.state, self.processes)
        with self._averaged(), self.processes.whole(self.policy):
            if self.processes.is_main:
                self.run.write_tuned(self.policy, adapter=self.config.policy.lora_rank is not None)
        self.processes.wait()


def summary(evaluation: Evaluation) -> str:
    """Returns the overall result as one phrase.

    Args:
        evaluation: the scores.
    """
    row = evaluation.table()[OVERALL]
    accuracy = f"strict accuracy {row['accuracy']:.3f}, " if "accuracy" in row else ""
    return f"{accuracy}reward {row['reward']:.3f} on {row['num_images']} held-out images"
