"""What a run would trip over late is refused first: before the model is loaded and before anything is written.

A first evaluation takes hours on a large model; an error after it is one that could have come before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

from ..choices import NOISELESS
from ..errors import fail, require
from ..grpo.geometry import Geometry
from ..ops.checks import usable_device
from ..ops.noise import MAX_BRANCHES
from ..ops.schedule import linear_sigmas, step_table
from ..policies import DiffusersPolicy
from ..policies.base import images_of
from ..policies.quantized import check_quantizable
from ..processes import Processes
from ..prompts.entries import PROMPT, Entry
from ..prompts.sets import PromptSet, get_prompts, warn_of_shared
from ..rewards import WeightedReward, get_reward
from ..rewards.base import Reward
from ..settings.run import TaskConfig, TrainConfig
from .directory import RunDirectory
from .load import find_model
from .lock import wait_until_free
from .optimizers import check_optimizer
from .prepare import device_of
from .resume import check_settings
from .trackers import Trackers

EIGHT_BITS = ("int8", "fp8")


def check_run(config: TrainConfig, processes: Processes) -> None:
    """Checks everything that needs neither the model nor the run directory, the cheap things first.

    Args:
        config: the settings.
        processes: those that share the run.

    Raises:
        ValueError: naming the first setting with which the run would fail.
    """
    device = usable_device("check_run", device_of(config.policy.device, processes.device))
    _check_iteration(config, processes)
    prompts = get_prompts(config.task.prompts, config.task.eval_prompts, config.task.prompt_column)
    warn_of_shared(*prompts.everything())
    _, kind = find_model(config.policy.model, config.policy.policy)
    kind.check_text_length(config.policy.max_text_length)
    kind.check_video(config.policy.num_frames, config.policy.frame_rate)
    for entries in prompts.everything():
        images_of("check_run", kind, entries)
    check_optimizer(config.optimizer)
    Trackers(config.run.trackers, Path())
    for name in ("rollout_precision", "tail_precision"):
        bits = getattr(config.grpo, name)
        if bits in EIGHT_BITS:
            require(not processes.shards, "check_run", name, "None or 'bf16' where FSDP shards the network", repr(bits))
            check_quantizable(bits, device)
    merged = config.grpo.rollout_weights == "merged" and processes.shards
    expected = "None or 'as trained' where FSDP shards the network"
    require(not merged, "check_run", "rollout_weights", expected, "'merged'")
    find_task(config.task, kind.makes_videos())
    if config.policy.compile_blocks:
        _check_compiler(device)


def check_directory(run: RunDirectory, config: TrainConfig, is_new: bool, report: Callable[[str], None]) -> None:
    """Checks that the run can start in its directory; nothing is written.

    Args:
        run: the directory.
        config: the settings.
        is_new: whether it must not be that of an earlier run.
        report: called with a sentence if it is not known yet whether another process writes the directory.

    Raises:
        ValueError: if it cannot.
    """
    if is_new or not run.exists():
        run.check_free()
    place = run.path.absolute()
    while not place.exists():
        place = place.parent
    try:
        TemporaryFile(dir=place).close()
    except OSError as error:
        got = f"{str(place)!r}: {error.strerror}"
        fail("check_directory", "output", "in a directory that can be written", got)
    wait_until_free(run.path, report)
    check_settings(run, config)


def check_schedules(config: TrainConfig, policy: DiffusersPolicy) -> None:
    """Checks the schedules of rollout and evaluation with the noise levels of the model.

    Args:
        config: the settings.
        policy: the model.

    Raises:
        ValueError: if a level, a branch step or their noise is out of range.
    """
    config.grpo.table(policy)
    if config.evaluation.eval_steps is not None:
        step_table(policy.sigmas(config.evaluation.eval_steps), NOISELESS)


def find_task(task: TaskConfig, videos: bool = False) -> tuple[PromptSet, WeightedReward]:
    """Loads the prompts and the reward of the settings, before any expensive work.

    Args:
        task: the settings.
        videos: whether the rewards have to score videos.

    Returns:
        The prompt set and the training reward.

    Raises:
        ValueError: for prompts or rewards, including those of evaluation, that do not exist, cannot be loaded or cannot
            be called as rewards are, and for a prompt that a reward cannot score.
    """
    prompts = get_prompts(task.prompts, task.eval_prompts, task.prompt_column)
    rewards = [get_reward(reward) for reward in (task.accuracy, task.reward) if reward is not None]
    for reward in rewards:
        _check_signatures(reward.rewards)
        if videos:
            reward.check_videos()
    train, heldout = prompts.everything()
    check_entries(rewards[-1], train)
    for reward in rewards:
        check_entries(reward, heldout)
    return prompts, rewards[-1]


def check_entries(reward: WeightedReward, entries: Sequence[Entry]) -> None:
    """Refuses prompts that a reward can never score.

    Args:
        reward: the reward.
        entries: prompts with their metadata.

    Raises:
        ValueError: from the reward, for the first such prompt.
    """
    reward.check_prompts([entry[PROMPT] for entry in entries], entries)


class _EvenLevels:
    """Stands for a model whose noise levels are not known yet."""

    def sigmas(self, num_steps: int) -> list[float]:
        """Returns evenly spaced levels.

        Args:
            num_steps: their number, less one.
        """
        return linear_sigmas(num_steps)


def _check_iteration(config: TrainConfig, processes: Processes) -> None:
    """Checks the sizes of an iteration and its schedule, with evenly spaced levels where the model has its own."""
    grpo = config.grpo
    most = max((count for _, count in grpo.branch_counts), default=0)
    require(most <= MAX_BRANCHES, "check_run", "num_branches", f"at most {MAX_BRANCHES}", most)
    Geometry(grpo, config.task.prompts_per_iteration, processes.count)
    levels: Any = _EvenLevels()  # has all that is asked for
    check_schedules(config, levels)


def _check_signatures(rewards: Mapping[str, Reward]) -> None:
    """Refuses a reward that does not take images, prompts and metadata."""
    for name, reward in rewards.items():
        try:
            signature = inspect.signature(reward)
        except (TypeError, ValueError):  # written in C: it cannot be asked
            continue
        try:
            signature.bind("images", "prompts", "metadata")
        except TypeError as error:
            fail("find_task", "reward", "a function of (images, prompts, metadata)", f"{name}{signature}: {error}")


@functools.cache
def _check_compiler(device: torch.device) -> None:
    """Compiles a small function: compilers fail for reasons of their own, such as a space in a path."""

    def probe(rows: Any) -> Any:
        return (rows * 2 + 1).sin()

    try:
        torch.compile(probe)(torch.ones(8, device=device))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        advice = "; no path of torch and of its cache, TORCHINDUCTOR_CACHE_DIR, may contain a space"
        fail("check_run", "compile_blocks", "False where torch.compile does not work", f"True ({reason}{advice})")
