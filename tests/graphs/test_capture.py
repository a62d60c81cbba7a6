"""The calls to torch.cuda that a capture makes, in order."""

from __future__ import annotations

import inspect
import threading
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tempflow_fast.graphs import capture


class FakeCuda:
    """The part of torch.cuda that `CudaCapturer` calls; it records the calls in order."""

    def __init__(self):
        self.events, self.now, self.graph_arguments, self.has_ended = [], "main", [], False

    def Stream(self, device):  # noqa: N802  torch's name
        return FakeStream(self, "side")

    def current_stream(self, device=None):
        return FakeStream(self, self.now)

    def set_stream(self, stream):
        self.now = stream.name

    def graph_pool_handle(self):
        self.events.append("pool")
        return object()

    @contextmanager
    def stream(self, stream):
        usual, self.now = self.now, stream.name
        yield
        self.now = usual

    @contextmanager
    def device(self, device):
        yield

    @contextmanager
    def graph(self, *arguments, **options):
        inspect.signature(torch.cuda.graph.__init__).bind(None, *arguments, **options)
        self.graph_arguments.append((*arguments[1:], options["capture_error_mode"]))
        self.now = arguments[2].name
        yield
        self.now = "main"  # not reached by a capture that fails, as in torch

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: self.events.append("replay"))

    def current_device(self):
        return 0

    def _cuda_endAllocateToPool(self, device, pool):  # noqa: N802
        self.events.append(f"allocations to the pool end on {device}")
        if self.has_ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def get_sync_debug_mode(self):
        return 0

    def set_sync_debug_mode(self, mode):
        self.events.append(f"sync debug mode {mode}")


class FakeStream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_stream(self, other):
        self.cuda.events.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(capture, "torch", SimpleNamespace(cuda=fake, _C=fake))
    return fake


def test_warming_up_happens_on_the_side_stream_between_two_waits(cuda):
    def work():
        cuda.events.append(f"runs on {cuda.now}")
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        return 5

    result, places = capture.CudaCapturer("cuda:0").warm_up(work)
    assert result == 5
    assert [place.partition(":")[0].endswith("test_capture.py") for place in places] == [True]
    assert cuda.events == [
        "side waits for main", "sync debug mode warn", "runs on side", "sync debug mode 0", "main waits for side",
    ]  # fmt: skip


def test_captures_share_a_pool_and_a_side_stream_and_leave_both_when_they_fail(cuda):
    capturer = capture.CudaCapturer("cuda:0")
    for _ in range(2):
        replay, where = capturer.capture(lambda: cuda.now)
        assert (where, cuda.now) == ("side", "main")
    (pool, stream, mode), other = cuda.graph_arguments
    assert (pool, stream.name, mode) == (other[0], "side", "thread_local")
    assert cuda.events == ["pool"]
    replay()
    assert cuda.events == ["pool", "replay"]
    with pytest.raises(ZeroDivisionError):
        capturer.capture(lambda: 1 / 0)
    assert cuda.now == "main"


@pytest.mark.parametrize("has_ended", [False, True], ids=["torch 2.12", "torch 2.13"])
def test_a_failed_capture_ends_the_allocators_part_and_tells_its_own_cause(cuda, has_ended):
    cuda.has_ended = has_ended
    with pytest.raises(ZeroDivisionError):
        capture.CudaCapturer("cuda:0").capture(lambda: 1 / 0)
    assert cuda.events == ["pool", "allocations to the pool end on 0"]


def test_the_capture_after_a_failed_one_has_a_pool_of_its_own(cuda):
    capturer = capture.CudaCapturer("cuda:0")
    with pytest.raises(ZeroDivisionError):
        capturer.capture(lambda: 1 / 0)
    capturer.capture(lambda: cuda.now)
    (failed, *_), (later, *_) = cuda.graph_arguments
    assert failed is not later


def test_waits_of_other_threads_do_not_count_and_their_warnings_arrive(cuda):
    def elsewhere():
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("a reward's own", UserWarning, stacklevel=1)

    def watched():
        with capture.host_syncs() as places:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        return places

    with pytest.warns(UserWarning, match="a reward's own") as seen:
        assert watched() == []
    assert len(seen) == 1
