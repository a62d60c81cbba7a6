"""The average of the weights."""

from __future__ import annotations

import torch
from support.tiny import TinyPolicy

from tempflow_fast.run.average import WeightAverage


def test_average_follows_the_updates_of_the_optimizer():
    """Against the definition, with a decay that rises with the updates as u / (u + 9)."""
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    average = WeightAverage(policy, optimizer, decay=0.5, every=2)
    weight = policy.parameters()[0]
    expected, decays = weight.detach().clone(), []
    for update in range(1, 13):
        for parameter in policy.parameters():
            parameter.grad = torch.full_like(parameter, float(update))
        optimizer.step()
        if update % 2 == 0:
            decays.append(min(0.5, update / (9 + update)))
            expected = decays[-1] * expected + (1 - decays[-1]) * weight.detach()
    assert decays[:2] == [2 / 11, 4 / 13]
    assert decays[-2:] == [0.5, 0.5], "the rise is over"
    trained = weight.detach().clone()
    with average.applied():
        assert torch.allclose(weight, expected, atol=1e-6)
        assert not torch.allclose(weight, trained)
    assert torch.equal(weight, trained)
    assert average.counts() == {"num_updates": 12, "num_steps": 6}


def test_before_its_first_step_the_trained_weights_count():
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    average = WeightAverage(policy, optimizer, decay=0.5, every=2)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    trained = policy.parameters()[0].detach().clone()
    with average.applied():
        assert torch.equal(policy.parameters()[0], trained)
    optimizer.step()
    trained = policy.parameters()[0].detach().clone()
    with average.applied():
        assert not torch.equal(policy.parameters()[0], trained)


def test_the_decay_continues_after_a_resume():
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    average = WeightAverage(policy, optimizer, decay=0.9, every=8)
    average.set_counts(79, 9)
    before, weight = average.weights[0].clone(), policy.parameters()[0]
    weight.data += 1.0
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(average.weights[0], before + (1 - 80 / 89) * (weight.detach() - before))
