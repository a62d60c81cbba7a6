"""The precision of a network's calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tempflow_fast.run.prepare import compute_in


def test_autocast_keeps_the_weights_and_sees_their_updates():
    network = nn.Linear(8, 8)
    compute_in(network, torch.bfloat16)
    rows = torch.randn(2, 8)
    first = network(rows)
    assert first.dtype == torch.bfloat16
    assert network.weight.dtype == torch.float32
    first.float().sum().backward()
    assert network.weight.grad.dtype == torch.float32
    with torch.no_grad():
        network.weight.add_(1.0)
    assert not torch.equal(network(rows), first), "a cast of the old weights was kept"
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5))
    assert not torch.is_autocast_enabled("cpu"), "a failed call must not leave autocast on"
