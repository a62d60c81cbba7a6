"""The stand-in for stream capture enforces the rules of a GPU."""

from __future__ import annotations

import pytest
import torch
from support.recording import RecordingDevice

from tempflow_fast.graphs import capture

WEIGHT = torch.ones(3)


@pytest.mark.parametrize(
    ("segment", "rule"),
    [
        (lambda inputs: (inputs["x"] * inputs["x"].sum().item(),), "the host waits"),
        (lambda inputs: (inputs["x"] * torch.tensor([2.0]),), "host memory is read"),
        (lambda inputs: (inputs["x"][inputs["x"].nonzero()],), "the host waits"),
    ],
)
def test_the_stand_in_refuses_what_a_capture_cannot_do(segment, rule):
    device = RecordingDevice()
    with pytest.raises(RuntimeError, match=rule):
        device.capture(lambda: segment({"x": WEIGHT}))
    assert device.violations


def test_the_stand_in_knows_addresses_and_the_shared_pool():
    device, x, weights = RecordingDevice(), torch.ones(3), [torch.full((3,), 2.0)]
    replay, (doubled,) = device.capture(lambda: (x * weights[0],))
    assert doubled.isnan().all()  # nothing has run yet
    replay()
    assert doubled.tolist() == [2, 2, 2]
    x.fill_(3)
    weights[0].add_(1)
    replay()
    assert doubled.tolist() == [9, 9, 9]
    replay_other, _ = device.capture(lambda: (x + weights[0],))
    replay_other()
    assert doubled.isnan().all()  # the pool belongs to the graph that ran last
    with pytest.raises(RuntimeError, match="pool memory of another graph"):
        device.capture(lambda: (doubled + 1,))
    weights.clear()
    with pytest.raises(RuntimeError, match="memory that was freed"):
        replay()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_rules_of_the_stand_in_are_those_of_a_gpu():
    device = capture.CudaCapturer(torch.device("cuda", 0))
    x = torch.ones(3, device="cuda")
    _, waits = device.warm_up(lambda: x.sum().item())
    assert waits
    replay, (doubled,) = device.capture(lambda: (2 * x,))
    x.fill_(3)
    replay()
    assert doubled.tolist() == [6, 6, 6]
