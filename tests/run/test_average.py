"""The average of the weights."""

from __future__ import annotations

import torch
from support.tiny import TinyPolicy

from tempflow_fast.run.average import WeightAverage


def test_average_follows_the_updates_of_the_optimizer():
    """Against the definition, with the decay rising as (1 + n) / (10 + n) from the second step on."""
    policy = TinyPolicy()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    average = WeightAverage(policy, optimizer, decay=0.25, every=2)
    weight = policy.parameters()[0]
    expected, num_steps, seen = weight.detach().clone(), 0, []
    for update in range(1, 11):
        for parameter in policy.parameters():
            parameter.grad = torch.full_like(parameter, float(update))
        optimizer.step()
        if update % 2 == 0:
            num_steps += 1
            decay = min(0.25, num_steps / (9 + num_steps)) if num_steps > 1 else 0.0
            seen.append(decay)
            expected = decay * expected + (1 - decay) * weight.detach()
    assert seen[0] == 0.0
    assert seen[-1] == 0.25, "the rise is over"
    trained = weight.detach().clone()
    with average.applied():
        assert torch.allclose(weight, expected, atol=1e-6)
        assert not torch.allclose(weight, trained)
    assert torch.equal(weight, trained)
    assert average.counts() == {"num_updates": 10, "num_steps": 5}
