"""tempflow-fast check-model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from .code import AllowCode
from .status import BAD_ARGUMENT


@dataclass(frozen=True, kw_only=True)
class CheckModel:
    """Compares a policy on a model with the model's own pipeline: latents after every step, and pixels."""

    model: tyro.conf.Positional[str]
    """`embedded`, a directory in the layout of a diffusers pipeline, or the name of such a model on the hub."""
    policy: str | None = None
    """Policy class, as module:Class; None: the one for the model's pipeline class."""
    resolution: int | tuple[int, int] | None = None
    """Side of square images in pixels, or height and width; None: the resolution that the model was trained for."""
    num_frames: int | None = None
    """Frames of a video, of a model that makes videos; None: the default of the model's pipeline."""
    frame_rate: int | None = None
    """Frames per second, of a model that is told; None: the default of the model's pipeline."""
    max_text_length: int | None = None
    """Maximum number of tokens of a prompt; None: the model's default."""
    device: str = "cpu"
    """Device of the model."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network. In bf16, a pipeline rounds more than a policy does."""
    steps: int = 3
    """Number of denoising steps that are compared."""
    allow_code: AllowCode = False

    def __call__(self) -> int:
        from ..policies.proof import prove
        from ..run.load import load_policy
        from ..run.prepare import DTYPES

        policy = load_policy(
            self.model,
            self.device,
            DTYPES[self.precision],
            self.resolution,
            self.max_text_length,
            self.allow_code,
            self.policy,
            prove_unlisted=False,
            num_frames=self.num_frames,
            frame_rate=self.frame_rate,
        )
        print(policy)
        for name, value in policy.calls.described().items():
            print(f"    {name}: {value}")
        checks = prove(policy, self.steps)
        width = max(len(check.what) for check in checks)
        for check in checks:
            print(f"{check.what:{width}}  {check.found:.1e}  {'matches' if check.matches else 'DIFFERS'}")
        return 0 if all(check.matches for check in checks) else BAD_ARGUMENT
