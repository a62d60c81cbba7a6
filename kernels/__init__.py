"""Triton bodies of the ops in tempflow_fast/ops/, for GPUs; imported only where Triton is installed.

launch.py   how many elements a program takes, and the launch
rows.py     shared by all kernels: their place, rows, steps and sums of partial sums
noise.py    the noise of csrc/noise.h
sample.py   guided_velocity, euler_step, branch_step, initial_noise
density.py  log_prob and its backward
loss.py     policy_loss
"""

import triton

from .density import log_prob, log_prob_backward
from .loss import policy_loss
from .sample import branch_step, euler_step, guided_velocity, initial_noise

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: kernels run on the CPU, in numpy

__all__ = [
    "INTERPRETED",
    "branch_step",
    "euler_step",
    "guided_velocity",
    "initial_noise",
    "log_prob",
    "log_prob_backward",
    "policy_loss",
]
