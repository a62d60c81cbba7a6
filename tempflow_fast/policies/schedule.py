"""Which schedulers step by Euler's rule, as the rollout does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import fail, require

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TRAIN_TIMESTEPS = 1000
"""What the pipelines take for the number of a scheduler's training timesteps, whatever its own setting says."""
OTHER_STEPS = {"stochastic_sampling": False, "invert_sigmas": False, "num_train_timesteps": TRAIN_TIMESTEPS}
"""Settings with the only values that give deterministic Euler steps from sigma 1 to 0."""
SHIFT_LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
"""Settings of the resolution-dependent shift."""


def check_scheduler(function: str, scheduler: SchedulerMixin) -> None:
    """Refuses a scheduler whose steps are not Euler steps of a flow: its images would not be those of the pipeline.

    Args:
        function: the caller, for the error.
        scheduler: of a pipeline.

    Raises:
        ValueError: naming the class or the setting.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    name, expected = type(scheduler).__name__, "a FlowMatchEulerDiscreteScheduler: a rollout takes its Euler steps"
    is_euler = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    is_euler = is_euler and type(scheduler).step is FlowMatchEulerDiscreteScheduler.step
    require(is_euler, function, "pipeline.scheduler", expected, f"{name} (docs/policies.md says how to replace it)")
    config: Any = scheduler.config
    for setting, value in OTHER_STEPS.items():
        if config[setting] != value:
            fail(function, "pipeline.scheduler", f"one with {setting}={value}", f"{name} with {config[setting]}")
    if config.use_dynamic_shifting:
        for setting in SHIFT_LINE:
            fits = isinstance(config[setting], (int, float))
            require(fits, function, "pipeline.scheduler", f"one with a number as {setting}", repr(config[setting]))
