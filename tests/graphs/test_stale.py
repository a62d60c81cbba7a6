"""A graph is replayed only for the policy state and inputs that it was captured with."""

from __future__ import annotations

import gc

import pytest
import torch
from support.captured import assert_equal, draw, nudge
from support.pipelines import sd3_pipeline
from support.tiny import PROMPTS, TinyPolicy
from torch import nn

from tempflow_fast.graphs.capture import state_of
from tempflow_fast.graphs.replay import CudaGraphs
from tempflow_fast.policies import Condition, SD3Policy


class AnySizePolicy(TinyPolicy):
    """One network for images of any size and texts of any length, with another output in training mode."""

    def __init__(self):
        super().__init__()
        self.network = PerPixel()

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        text = condition.tensors["text"]
        return self.acting(latents, text), self.acting(latents, 0 * text) if guidance_scale > 1 else None


class PerPixel(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, latents, text):
        velocity = self.mix(latents) + text.mean(1)[:, None, None, None]
        return 2 * velocity if self.training else velocity


def longer_texts(policy):
    encode = policy.encode
    policy.encode = lambda prompts, guided=False: Condition(
        {"text": encode(prompts, guided).tensors["text"].repeat(1, 2)[:, :6]}
    )


def larger_images(policy):
    policy.latent_shape = (3, 2, 4)


def the_same_number_of_elements(policy):
    policy.latent_shape = (3, 4, 1)


def replaced_weights(policy):
    for parameter in policy.parameters():
        parameter.data = parameter.data + 1.0
    gc.collect()


def in_another_mode(policy):
    policy.network.eval()


def nothing(policy):
    pass


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (longer_texts, {}),
        (larger_images, {}),
        (the_same_number_of_elements, {}),
        (replaced_weights, {}),
        (in_another_mode, {}),
        (nothing, {"guidance_scale": 2.0}),
        (nothing, {"prompts": PROMPTS[:2]}),
    ],
)
def test_no_graph_is_stale(device, change, options):
    policy, graphs = AnySizePolicy(), CudaGraphs(device)
    for _ in range(3):
        draw(policy, graphs)
    before = device.events.count("capture")
    change(policy)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert device.events.count("capture") > before


def test_a_graph_is_reused_when_its_state_returns(device):
    policy, graphs = AnySizePolicy(), CudaGraphs(device)
    for mode in (True, False):
        policy.network.train(mode)
        for _ in range(2):
            draw(policy, graphs)
    before = device.events.count("capture")
    for iteration in range(4):
        policy.network.train(iteration % 2 == 0)
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
    assert device.events.count("capture") == before


def test_the_state_of_a_network_is_its_modes_adapters_addresses_and_precision(tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    policy.add_lora(rank=2, alpha=4)
    network = policy.network.eval()
    usual = state_of(network)
    nudge(policy)
    assert state_of(network) == usual
    with policy.reference():
        assert state_of(network) != usual
    with torch.autocast("cpu", torch.bfloat16):
        assert state_of(network) != usual
    network.transformer_blocks[0].train()
    assert state_of(network) != usual
    network.eval()
    assert state_of(network) == usual
    network.transformer_blocks[0].compile(backend="eager")
    compiled = state_of(network)
    assert compiled != usual
    network.proj_out.bias.data = network.proj_out.bias.data.clone()
    assert state_of(network) not in (usual, compiled)
