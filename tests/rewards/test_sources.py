"""Rewards that compare results with the images that they were made of."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image
from support.servers import FaultyServer, client, running
from torch import Tensor

from tempflow_fast.rewards import source_images
from tempflow_fast.rewards.cache import CachedReward
from tempflow_fast.rewards.wire import pack_request, unpack_request

TEXTS = ["bluer", "redder", "darker"]


def likeness(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
    """Minus the difference in brightness from the mean of the sources; 0 without one."""
    rows = zip(images, source_images(metadata), strict=True)
    return torch.stack(
        [
            -(image.mean() - torch.stack([s.mean() for s in sources]).mean()).abs() if sources else torch.zeros(())
            for image, sources in rows
        ]
    )


@pytest.fixture
def entries(tmp_path):
    """Prompts about one image, two and none; image k is 51 k everywhere, and k + 1 pixels high."""
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for k, path in enumerate(paths):
        Image.fromarray(numpy.full((k + 1, 2, 3), 51 * k, numpy.uint8)).save(path)
    return [{"image": str(paths[2])}, {"image": [str(paths[0]), str(paths[2])]}, {"n": 1}]


RESULTS = torch.tensor([0.4, 0.6, 0.8]).view(3, 1, 1, 1).expand(3, 3, 4, 4).contiguous()
EXPECTED = torch.tensor([0.0, -0.4, 0.0])


def test_a_reward_sees_sources_and_results(entries):
    shapes = [[list(image.shape) for image in row] for row in source_images(entries)]
    assert shapes == [[[3, 3, 2]], [[3, 1, 2], [3, 3, 2]], []]
    assert torch.allclose(likeness(RESULTS, TEXTS, entries), EXPECTED, atol=1e-6)


def test_a_server_gets_the_images_and_not_their_paths(entries):
    with running(FaultyServer(reward=likeness)) as server:
        scores = client(server, batch_size=2)(RESULTS, TEXTS, entries)
    assert torch.allclose(scores.float(), EXPECTED, atol=1e-6)
    body = pack_request((255 * RESULTS).to(torch.uint8), TEXTS, entries)
    assert b".png" not in body
    assert body.count(b"source.") == 2  # an image of two prompts travels once


@pytest.mark.parametrize("image", ["/etc/hostname", ["/etc/hostname"], [7], 0, [[0]]])
def test_a_server_opens_no_path_of_a_request(image):
    from safetensors.torch import load, save

    body = pack_request((255 * RESULTS[:1]).to(torch.uint8), ["a"], [{"other": 1}])
    request = body[8 : 8 + int.from_bytes(body[:8], "little")]
    import json

    changed = json.loads(json.loads(request)["__metadata__"]["request"])
    changed["metadata"][0]["image"] = image
    forged = save(load(body), {"request": json.dumps(changed)})
    with pytest.raises(ValueError, match="image must be numbers of source images"):
        unpack_request(forged)


def test_the_cache_tells_source_images_apart(entries, tmp_path):
    calls = []

    def counting(images: Tensor, prompts: list[str], metadata: list[dict]) -> Tensor:
        calls.append(len(images))
        return likeness(images, prompts, metadata)

    cached, same = CachedReward(counting, 9), RESULTS[:1].expand(3, -1, -1, -1)
    cached(same, ["a"] * 3, entries)
    sent = unpack_request(pack_request((255 * same).to(torch.uint8), ["a"] * 3, entries))[2]
    cached(same, ["a"] * 3, sent)  # the same images, not by their paths
    assert calls == [3]
    sent[0]["image"] = [sent[0]["image"][0] + 1]
    cached(same, ["a"] * 3, sent)
    assert calls == [3, 1]
