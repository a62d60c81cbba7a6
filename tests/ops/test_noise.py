"""Noise is a function of (seed, trajectory, step, branch, element), and of nothing else."""

from __future__ import annotations

import pytest
import torch
from support.philox import KNOWN_ANSWERS

from tempflow_fast import linear_sigmas, ops, step_table
from tempflow_fast.ops import noise

TABLE = step_table(linear_sigmas(6, 3.0))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, expected):
    as_tensors = [torch.tensor(word) for word in (*counter, *key)]
    words = noise.philox(tuple(as_tensors[:4]), tuple(as_tensors[4:]))
    assert tuple(word.item() for word in words) == expected


def test_words_follow_the_counter_convention():
    seed, trajectory, step, branch, quad = (9 << 32) + 8, (7 << 32) + 6, 5, 2, 3
    words = noise.words(torch.tensor([trajectory]), torch.tensor(seed), step, 4, 18)
    counter = [torch.tensor(word) for word in (quad, branch | step << 16, 6, 7)]
    expected = noise.philox(tuple(counter), (torch.tensor(8), torch.tensor(9)))
    assert words.shape == (1, 4, 18)
    assert words[0, branch, 4 * quad : 4 * quad + 2].tolist() == [expected[0].item(), expected[1].item()]


def draw(ids, dtype=torch.float32, numel=4097, num_branches=3, **options):
    """branch_step on rows that are functions of their trajectory id."""
    generator = [torch.Generator().manual_seed(int(i) % 1000) for i in ids]
    state = torch.stack([torch.randn(2, numel, generator=g) for g in generator]).to(dtype)
    return ops.branch_step(state[:, 0], state[:, 1], TABLE, 2, num_branches, 11, ids, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_subset_order_and_split_give_the_same_bits(body, dtype):
    ids = torch.tensor([5, 2**40 + 5, 0, 17, 2**62])
    whole = draw(ids, dtype)
    chosen = torch.tensor([4, 0, 3])
    for got, want in zip(draw(ids[chosen], dtype), whole, strict=True):
        assert torch.equal(got, want[chosen])
    parts = [draw(part, dtype) for part in ids.split(2)]
    for got, want in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
        assert torch.equal(got, want)
    fewer = draw(ids, dtype, num_branches=2)
    assert torch.equal(fewer[1], whole[1][:, :2])


def test_any_number_of_threads_gives_the_same_bits(body):
    if body == "reference":
        pytest.skip("the sums of PyTorch's own reductions depend on its threads")

    def results():
        moved, branches, log_prob = draw(ids, numel=40_001)
        velocity = branches[:, 0].clone().requires_grad_()
        loss = ops.policy_loss(
            velocity, moved, branches, moved, log_prob, TABLE, [0, 1, 2, 3], velocity_ref=moved, beta=1.0
        )
        loss.loss.backward()
        density = ops.log_prob(branches[:, 0], moved, moved, TABLE, [0, 1, 2, 3])
        return moved, branches, log_prob, *loss, velocity.grad, density, ops.initial_noise((40_001,), 3, ids)

    ids, usual = torch.arange(4), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = results()
        for num_threads in (2, 3, 7):
            torch.set_num_threads(num_threads)
            assert all(torch.equal(got, value) for got, value in zip(results(), want, strict=True))
    finally:
        torch.set_num_threads(usual)


def test_every_coordinate_matters():
    ids = torch.tensor([3])
    zeros = torch.zeros(1, 64)
    base = ops.branch_step(zeros, zeros, TABLE, 1, 2, 11, ids)[1]
    eps = base / TABLE.s[1].float()
    others = {
        "branch": eps[:, 1],
        "step": ops.branch_step(zeros, zeros, TABLE, 2, 1, 11, ids)[1][:, 0] / TABLE.s[2].float(),
        "seed": ops.branch_step(zeros, zeros, TABLE, 1, 1, 11 + 2**32, ids)[1][:, 0] / TABLE.s[1].float(),
        "trajectory": ops.branch_step(zeros, zeros, TABLE, 1, 1, 11, ids + 2**32)[1][:, 0] / TABLE.s[1].float(),
        "start": ops.initial_noise((64,), 11, ids),
    }
    for name, other in others.items():
        assert (eps[:, 0] - other).abs().min() > 1e-6, name


def test_normals_are_normal(body):
    sample = ops.initial_noise((1024, 256), 2024, torch.arange(2)).double()
    other = ops.initial_noise((1024, 256), 2025, torch.arange(2)).double()
    count = sample.numel()
    # Five standard errors each.
    assert abs(sample.mean().item()) < 5 / count**0.5
    assert abs(sample.var().item() - 1) < 5 * (2 / count) ** 0.5
    assert abs((sample**3).mean().item()) < 5 * (15 / count) ** 0.5
    assert abs((sample**4).mean().item() - 3) < 5 * (96 / count) ** 0.5
    assert abs((sample * other).mean().item()) < 5 / count**0.5
    assert abs((sample[..., 1:] * sample[..., :-1]).mean().item()) < 5 / count**0.5
    assert abs((sample[0] * sample[1]).mean().item()) < 5 * (2 / count) ** 0.5


def test_bodies_agree_on_the_normals(body, poisoned):
    ids, seed = torch.tensor([0, 2**45 + 1]), 2**61 + 5
    want = noise.normals(ids, torch.tensor(seed), noise.INITIAL_NOISE_STEP, 1, 70_001).squeeze(1)
    torch.testing.assert_close(ops.initial_noise((70_001,), seed, ids).double(), want, rtol=1e-6, atol=1e-6)
