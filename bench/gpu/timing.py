"""Times work that a device does asynchronously."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from tempflow_fast.graphs.capture import Capturer, CudaCapturer

from .children import ROOT

CALLS_PER_GRAPH = 20


def capturer_of(device: torch.device) -> Capturer:
    """What captures graphs on the device; on a CPU the stand-in of the tests, which enforces the rules of capture."""
    if device.type == "cuda":
        return CudaCapturer(device)
    sys.path.insert(0, str(ROOT / "tests"))
    from support.recording import RecordingDevice

    return RecordingDevice()


def wait(device: torch.device) -> None:
    """Returns when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, with everything that it queues on the device."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], device: torch.device, budget: float = 0.3, warm_up: int = 3) -> float:
    """Median seconds per call.

    On a GPU these are device seconds between events, with all calls queued at once.

    Args:
        call: the work.
        device: where it runs.
        budget: total seconds of the timed calls, about.
        warm_up: calls before the timed ones.
    """
    for _ in range(warm_up):
        call()
    rounds = max(3, min(200, int(budget / max(seconds_of(call, device), 1e-6))))
    if device.type != "cuda":
        return statistics.median(seconds_of(call, device) for _ in range(rounds))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    for event in events[:-1]:
        event.record()
        call()
    events[-1].record()
    wait(device)
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / 1e3


def replayed_seconds(
    calls: Sequence[Callable[[], object]], device: torch.device, capturer: Capturer, budget: float
) -> float:
    """Median seconds per call in replays of a captured graph of many calls, without Python between the kernels.

    Args:
        calls: the same work on different memory, taken in turn, so that no cache holds all of it. Their results are
            kept, so that every call writes to memory of its own.
        device: where they run.
        capturer: captures the graph.
        budget: total seconds of the timed replays, about.
    """
    for _ in range(2):  # a compiler may specialise in the second call
        capturer.warm_up(lambda: [call() for call in calls])
    order = [calls[i % len(calls)] for i in range(CALLS_PER_GRAPH)]
    replay, kept = capturer.capture(lambda: [call() for call in order])
    seconds = median_seconds(replay, device, budget) / CALLS_PER_GRAPH
    del kept
    return seconds
