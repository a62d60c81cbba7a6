"""Text encoders in host memory: one direction of copies, and the same bits."""

from __future__ import annotations

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS

from tempflow_fast.policies import SD3Policy, offload
from tempflow_fast.policies.offload import HostCopies, own_tensors, swapped


@pytest.fixture
def copied(monkeypatch):
    """A stand-in for the device: its copies are others in the same memory. Returns what was copied to it."""
    made = []

    def on_device(tensor, device):
        made.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(offload, "_on", on_device)
    return made


@pytest.fixture
def policy(tmp_path):
    return SD3Policy(sd3_pipeline(tmp_path, with_t5=True))


def storages(tensors):
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def test_encodings_keep_their_bits_and_the_host_keeps_its_storage(policy, copied):
    start = policy.encode(PROMPTS)
    policy.offload_text_encoders()
    policy._cache = type(policy._cache)()
    weights = own_tensors(policy._encoders)
    before, bits = storages(weights), [weight.clone() for weight in weights]
    seen = []
    policy.pipeline.text_encoder.register_forward_pre_hook(lambda *_: seen.append(storages(weights)))
    again = policy.encode(PROMPTS)
    assert all(torch.equal(again.tensors[name], start.tensors[name]) for name in start.tensors)
    assert not set(seen[0]) & {place for place in before if place[1]}, "the encoders compute on the device's copies"
    assert storages(weights) == before, "nothing is copied back"
    assert all(map(torch.equal, weights, bits))


def test_known_prompts_copy_nothing(policy, copied):
    policy.encode(PROMPTS)
    policy.offload_text_encoders()
    policy.encode(PROMPTS)
    assert not copied
    policy.encode(["a new one", "another"])
    assert len(copied) == len(own_tensors(policy._encoders)), "once for all new prompts"


def test_the_device_drops_its_copies_after_a_failure(policy, copied):
    policy.offload_text_encoders()
    before = storages(own_tensors(policy._encoders))
    policy.pipeline.text_encoder.forward = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        policy.encode(["a new one"])
    assert copied
    assert storages(own_tensors(policy._encoders)) == before


def test_a_weight_that_is_shared_is_copied_once(copied):
    table = torch.nn.Embedding(5, 3)
    head = torch.nn.Linear(3, 5)
    head.weight = table.weight
    copies = HostCopies([table, head], torch.device("cpu"))
    with copies.on_device():
        assert head.weight.data_ptr() == table.weight.data_ptr()
    assert len(copied) == 2


def test_pinned_blocks_hold_every_weight_aligned(monkeypatch):
    """Pinning needs a driver; here its blocks are plain memory, and small."""
    sizes = []
    monkeypatch.setattr(offload, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(offload, "_pinned", lambda size: sizes.append(size) or torch.empty(size, dtype=torch.uint8))
    tensors = [torch.randn(3, 5), torch.randn(100).bfloat16(), torch.arange(200), torch.randn(()), torch.zeros(0, 2)]
    pinned = offload._PinnedBlocks()
    copies = [pinned.copied(tensor) for tensor in tensors]
    assert sizes == [1000, 1600, 1000]
    for copy, tensor in zip(copies, tensors, strict=True):
        assert torch.equal(copy, tensor)
        assert copy.dtype == tensor.dtype
        assert copy.storage_offset() * copy.element_size() % offload.ALIGNMENT == 0


def test_weights_that_are_no_plain_tensors_are_refused():
    class Packed(torch.nn.Parameter):
        pass

    layer = torch.nn.Linear(2, 2)
    layer.weight = Packed(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"text encoders must be of plain tensors, .* got Packed"):
        HostCopies([layer], torch.device("cpu"))


def test_swapped_tensors_come_back_one_by_one():
    first, second = torch.zeros(2), torch.zeros(2)

    def others():
        yield torch.ones(2)
        raise MemoryError

    with pytest.raises(MemoryError), swapped([first, second], others()):
        pass
    assert not first.any()
