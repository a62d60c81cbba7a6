"""Which schedulers have the noise levels of a flow, through which the rollout takes Euler steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import fail, require

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TRAIN_TIMESTEPS = 1000
"""What the pipelines take for the number of a scheduler's training timesteps, whatever its own setting says."""
OTHER_STEPS = {"stochastic_sampling": False, "invert_sigmas": False, "num_train_timesteps": TRAIN_TIMESTEPS}
"""Settings with the only values that give deterministic Euler steps from sigma 1 to 0."""
SHIFT_LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
"""Settings of the resolution-dependent shift."""
FLOWS = ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DEISMultistepScheduler")
"""Schedulers of another rule that may have the noise levels of a flow."""
OTHER_FLOWS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "num_train_timesteps": TRAIN_TIMESTEPS}
"""Settings with which they have."""


def is_euler(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler itself steps by Euler's rule.

    Args:
        scheduler: of a pipeline.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    own = FlowMatchEulerDiscreteScheduler
    return isinstance(scheduler, own) and type(scheduler).step is own.step


def check_scheduler(function: str, scheduler: SchedulerMixin) -> None:
    """Refuses a scheduler whose noise levels or steps are not those of a deterministic flow.

    Schedulers of `FLOWS` step by rules of higher order; their noise levels are kept, and Euler's rule takes the steps.

    Args:
        function: the caller, for the error.
        scheduler: of a pipeline.

    Raises:
        ValueError: naming the class or the setting.
    """
    name, config = type(scheduler).__name__, dict(scheduler.config)
    euler = is_euler(scheduler)
    expected = f"a FlowMatchEulerDiscreteScheduler, or a {' or '.join(FLOWS)} of a flow"
    require(euler or name in FLOWS, function, "pipeline.scheduler", expected, f"{name} (see docs/policies.md)")
    for setting, value in (OTHER_STEPS if euler else OTHER_FLOWS).items():
        if config.get(setting) != value:
            fail(function, "pipeline.scheduler", f"one with {setting}={value}", f"{name} with {config.get(setting)}")
    algorithm = str(config.get("algorithm_type"))
    noisy = algorithm.startswith("sde")
    require(not noisy, function, "pipeline.scheduler", "one without noise", f"{name} with {algorithm}")
    if euler and config["use_dynamic_shifting"]:
        for setting in SHIFT_LINE:
            fits = isinstance(config[setting], (int, float))
            require(fits, function, "pipeline.scheduler", f"one with a number as {setting}", repr(config[setting]))
