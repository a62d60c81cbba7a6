"""Compares the bodies in use on a device with the float64 reference: `python -m bench.gpu.parity --device cuda`.

The cases, oracles and tolerances are those of tests/ops/test_ops.py. A body is chosen by TEMPFLOW_FAST_BODY before the
package is imported, so every body has a process of its own; the last line that it prints is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.op_cases import IDS, ROWS, SCALE, SEED, STEPS, TABLE, Case, K, make_case, oracle
from support.tolerances import assert_near

from tempflow_fast import ops
from tempflow_fast.ops import bodies, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 3, 63, 64, 1001, 4096, 4097, 65_536)
"""The even ones can be read 16 bytes at a time."""
NUM_QUICK = 5


def moved_to(case: Case, device: torch.device, aligned: bool) -> Case:
    """The case on `device`; its rows lie side by side, or are still parts of a wider buffer and unaligned."""

    def there(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.is_contiguous():
            return None if tensor is None else tensor.to(device)
        if aligned:
            return tensor.contiguous().to(device)
        wide = tensor.new_empty(tensor.shape[0], tensor.shape[1] + 2, device=device)
        wide[:, 1:-1] = tensor.to(device)
        return wide[:, 1:-1]

    return Case(*(there(tensor) for tensor in case))


def branch_and_euler_step(device: torch.device, dtype: torch.dtype, numel: int, guided: bool, aligned: bool) -> None:
    """Steps, branches and densities; the two ops give the same step, and a repeated call gives the same bits."""
    case = make_case(dtype, numel, guided)
    own = moved_to(case, device, aligned)
    guidance = {"velocity_uncond": own.uncond, "guidance_scale": own.scale}
    state = (own.latents, own.velocity, TABLE, 3)
    moved, branches, log_prob = ops.branch_step(*state, K, SEED, IDS.to(device), **guidance)
    again = ops.branch_step(*state, K, SEED, IDS.to(device), **guidance)
    assert all(torch.equal(a, b) for a, b in zip((moved, branches, log_prob), again, strict=True)), "repeats differ"
    wide = [None if tensor is None else tensor.double() for tensor in case[:3]]
    want_moved, want_branches, _ = reference.branch_step(*wide, case.scale, ROWS, 3, K, torch.tensor(SEED), IDS)
    assert_near("latents", dtype, moved.cpu(), want_moved)
    assert_near("latents", dtype, branches.cpu(), want_branches)
    assert torch.equal(ops.euler_step(*state, **guidance), moved), "euler_step and branch_step move differently"
    velocity = wide[1] if wide[2] is None else wide[2] + SCALE * (wide[1] - wide[2])
    for k in range(K):
        want = reference.log_prob(branches[:, k].cpu().double(), wide[0], velocity, ROWS, torch.full_like(STEPS, 3))
        assert_near("log_prob", dtype, log_prob[:, k].cpu(), want)


def initial_noise(device: torch.device, dtype: torch.dtype, numel: int, guided: bool, aligned: bool) -> None:
    """The noise, for ids beyond 32 bits."""
    want = reference.initial_noise(IDS, torch.tensor(SEED), numel)
    assert_near("latents", torch.float32, ops.initial_noise((numel,), SEED, IDS, device).cpu(), want)


def log_prob(device: torch.device, dtype: torch.dtype, numel: int, guided: bool, aligned: bool) -> None:
    """Value and gradient."""
    case = make_case(dtype, numel, guided=False)
    # Times D, because the gradient of a mean over D elements is too small for float16.
    own, cotangent = moved_to(case, device, aligned), numel * torch.linspace(-1, 1, len(STEPS))
    velocity = own.velocity.clone().requires_grad_()
    got = ops.log_prob(own.branches[:, 1], own.latents, velocity, TABLE, STEPS.to(device))
    got.backward(cotangent.to(device))
    wide = (case.branches[:, 1].double(), case.latents.double(), case.velocity.double(), ROWS, STEPS)
    assert_near("log_prob", dtype, got.detach().cpu(), reference.log_prob(*wide))
    assert_near("gradient", dtype, velocity.grad.cpu(), reference.log_prob_backward(cotangent.double(), *wide))


def policy_loss(device: torch.device, dtype: torch.dtype, numel: int, guided: bool, aligned: bool) -> None:
    """Loss, statistics and both gradients, with clipping and KL; the policy has changed fully, in part, or not at all.

    The oracle gets the guided velocity as this body rounds it, which is compared separately.
    """
    case = make_case(dtype, numel, guided)
    own = moved_to(case, device, aligned)
    velocity = case.velocity.to(device)
    if guided:
        velocity = ops.guided_velocity(own.velocity, own.uncond, SCALE)
        wide = case.uncond.double() + SCALE * (case.velocity.double() - case.uncond.double())
        assert_near("latents", dtype, velocity.cpu(), wide)
    plain, in_part = case._replace(velocity=velocity.cpu(), uncond=None), own.velocity_old.clone()
    in_part[0], in_part[1:, : numel // 2] = velocity[0], velocity[1:, : numel // 2]
    for old in (own.velocity_old, in_part, velocity):
        results = loss_and_gradients(own._replace(velocity_old=old))
        loss, log_ratio, clip_fraction, kl, gradient = oracle(plain._replace(velocity_old=old.cpu()), 1e-3, 0.04)
        gradients = [numel * case.scale * gradient, numel * (1 - SCALE) * gradient]
        kinds = ("statistic", "log_ratio", "statistic", "statistic", "gradient", "gradient")
        for kind, got, want in zip(kinds, results, (loss, log_ratio, clip_fraction, kl, *gradients), strict=False):
            assert_near(kind, dtype, got.cpu(), want)
    assert not results[1].any(), "the log-ratio of an unchanged policy is not 0"


def loss_and_gradients(case: Case) -> list[Tensor]:
    """The results of policy_loss, and the gradients of D times the loss with respect to the given velocities."""
    velocity = case.velocity.clone().requires_grad_()
    uncond = None if case.uncond is None else case.uncond.clone().requires_grad_()
    got = ops.policy_loss(
        velocity, case.latents, case.branches, case.velocity_old, case.advantages, TABLE, STEPS.to(velocity.device),
        clip_range=1e-3, velocity_ref=case.velocity_ref, beta=0.04, velocity_uncond=uncond, guidance_scale=case.scale,
    )  # fmt: skip
    (got.loss * case.latents.shape[1]).backward()
    return [got.loss.detach(), *got[1:], velocity.grad, *([] if uncond is None else [uncond.grad])]


CHECKS: dict[str, Callable[[torch.device, torch.dtype, int, bool, bool], None]] = {
    "branch_step": branch_and_euler_step,
    "initial_noise": initial_noise,
    "log_prob": log_prob,
    "policy_loss": policy_loss,
}


def problems(device: torch.device, sizes: tuple[int, ...]) -> list[str]:
    """The differences, one sentence per case."""
    found = []
    layouts = {"unaligned": False, "aligned": True}  # kernels read whole aligned rows 16 bytes at a time
    kinds = {"plain": False, "guided": True}
    for (name, check), dtype, numel in itertools.product(CHECKS.items(), DTYPES, sizes):
        for (kind, guided), (layout, aligned) in itertools.product(kinds.items(), layouts.items()):
            try:
                check(device, dtype, numel, guided, aligned)
            except Exception as error:  # a compiler's errors are of no common class
                lines = " ".join(f"{type(error).__name__}: {error}".split())
                found.append(f"{name} {dtype} D={numel} {kind}, {layout}: {lines[:200]}")
    return found


def main() -> None:
    """Print the live bodies and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes only, for a memory checker")
    options = parser.parse_args()
    device = torch.device(options.device)
    live = {op: bodies.body(op, device.type) for op in bodies.OPS}
    print(json.dumps({"bodies": live, "problems": problems(device, SIZES[:NUM_QUICK] if options.quick else SIZES)}))


if __name__ == "__main__":
    main()
