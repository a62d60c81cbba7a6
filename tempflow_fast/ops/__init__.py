"""The arithmetic of the method as PyTorch ops, each with one schema, one reference and compiled bodies.

schedule       sigmas -> StepTable: every formula of the samplers
noise          the noise function: (seed, trajectory, step, branch, element) -> a normal
sample         guided_velocity, euler_step, branch_step, initial_noise
loss           log_prob, policy_loss
reference      the same ops in plain PyTorch: what every other body is held against
registration   how an op gets its schema, fake and derivative
checks         how their arguments are checked
bodies         which body serves which op on which device; native: the compiled library; info: what to tell of it
"""

from . import bodies
from .loss import PolicyLoss, log_prob, policy_loss
from .sample import branch_step, euler_step, guided_velocity, initial_noise

bodies.settle()

__all__ = [
    "PolicyLoss",
    "branch_step",
    "euler_step",
    "guided_velocity",
    "initial_noise",
    "log_prob",
    "policy_loss",
]
