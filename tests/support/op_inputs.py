"""Arguments of every op, in the order of its schema."""

from __future__ import annotations

import torch

from tempflow_fast import linear_sigmas, step_table

TABLE = step_table(linear_sigmas(6, 3.0))
ROWS = TABLE.coefficients()
STEPS, IDS, SEED = torch.tensor([1, 0, 3]), torch.tensor([2, 9, 4]), torch.tensor(5)
NAMESPACES = ("tempflow_fast", "tempflow_fast_reference")


def op_inputs(dtype: torch.dtype, numel: int = 37) -> dict[str, tuple]:
    """Arguments of every op, with and without the optional ones."""
    generator = torch.Generator().manual_seed(0)

    def rows(*shape: int, grad: bool = False) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_(grad)

    x, v, u, old = (rows(3, numel) for _ in range(4))
    branches, advantages = rows(3, 2, numel), torch.randn(3, 2, generator=generator)
    leaf, leaf_uncond = rows(3, numel, grad=True), rows(3, numel, grad=True)
    advantages = advantages.to(torch.float64 if dtype == torch.float64 else torch.float32)
    grad = advantages[:, 0].contiguous()
    return {
        "guided_velocity": (v, u, 3.0),
        "euler_step": (x, v, None, 1.0, ROWS, 2),
        "branch_step": (x, v, u, 3.0, ROWS, 2, 4, SEED, IDS),
        "initial_noise": (IDS, SEED, numel),
        "log_prob": (branches[:, 0], x, leaf, ROWS, STEPS),
        "log_prob_backward": (grad, branches[:, 0], x, v, ROWS, STEPS),
        "policy_loss": (leaf, leaf_uncond, x, branches, old, v, advantages, ROWS, STEPS, 3.0, 1e-3, 0.1, True),
    }
