"""The estimate of memory against what an iteration really holds, part by part and as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.pipelines import sd3_pipeline
from support.tiny import TinyPolicy

from tempflow_fast import GRPOConfig, grpo_step
from tempflow_fast.grpo.geometry import Geometry
from tempflow_fast.grpo.live_bytes import LiveBytes
from tempflow_fast.grpo.measure import measure
from tempflow_fast.grpo.memory import GIB, Calls, Load, Memory
from tempflow_fast.policies import SD3Policy
from tempflow_fast.policies.offload import own_tensors
from tempflow_fast.prompts.sets import get_prompts
from tempflow_fast.rewards.background import WAITING_BYTES
from tempflow_fast.run.average import WeightAverage
from tempflow_fast.run.optimizers import make_optimizer
from tempflow_fast.run.prepare import load_of, prepare_policy
from tempflow_fast.settings.recipes import get_recipe
from tempflow_fast.settings.run import OptimizerConfig, PolicyConfig

MEMORY = Memory(
    network=GIB // 2,
    adapter=0,
    merged=0,
    reference=0,
    encoders=GIB // 2,
    offloaded=False,
    autoencoder=0,
    optimizer=GIB // 2,
    average=0,
    gradients=GIB // 4,
    latent=GIB // 64,
    text=0,
    image=0,
    remembered=2,
    velocities=1,
    training=Calls(0, GIB // 2),
    training_alone=Calls(0, GIB // 2),
    rollout=Calls(0, GIB // 8),
    decoding=Calls(0, GIB // 4),
    graphs=False,
)
LOAD = Load(
    trajectories=16,
    branches=64,
    pairs=32,
    later_pairs=0,
    images=64,
    prompts=4,
    training_rows=32,
    rollout_rows=64,
    decoded_rows=64,
    num_training_calls=4,
    captured_rows=80,
)
DRAWN = (32 + 128 + 32) * GIB // 64


def test_parts_of_a_perceptron():
    width, policy = 4096, TinyPolicy(width=4096)
    memory = measure(policy, GRPOConfig(num_steps=3, num_branches=2))
    num_parameters = 17 * width + width + 12 * width + 12
    assert memory.network == memory.gradients == 4 * num_parameters
    assert memory.optimizer == 8 * num_parameters
    # Hidden values before and after the tanh; with a graph the latter are kept, and two gradients come to them.
    assert memory.rollout.row == pytest.approx(2 * 4 * width, rel=0.02)
    assert memory.training.row == pytest.approx(3 * 4 * width, rel=0.02)
    assert (memory.latent, memory.text, memory.image) == (4 * 12, 4 * 4, 4 * 12)
    assert (memory.encoders, memory.autoencoder, memory.adapter, memory.reference) == (0, 0, 0, 0)
    assert all(parameter.grad is None and type(parameter) is torch.nn.Parameter for parameter in policy.parameters())
    guided = measure(policy, GRPOConfig(num_steps=3, guidance_scale=2.0))
    assert guided.training.row == pytest.approx(4 * 4 * width, rel=0.02), "the second call keeps its values, too"
    assert (memory.velocities, guided.velocities) == (1, 2)


def test_what_training_keeps_is_counted():
    policy, config = TinyPolicy(width=256), GRPOConfig(num_steps=3, beta=0.1)
    plain = measure(policy, config)
    more = measure(policy, config, OptimizerConfig(optimizer="adamw_8bit", ema_decay=0.9))
    assert (more.average, plain.average) == (plain.gradients, 0)
    assert more.optimizer == plain.optimizer // 4
    assert plain.reference == plain.network, "a network that is trained as a whole is copied for the KL term"


def test_what_a_pipeline_keeps_is_counted(tmp_path):
    pipeline = sd3_pipeline(tmp_path, with_t5=True)
    pipeline.transformer.to(torch.bfloat16)
    policy = SD3Policy(pipeline)
    policy.add_lora(4)
    kept = PolicyConfig(vae_precision="bf16", offload_text_encoders=True)
    config, vae = GRPOConfig(num_steps=3), policy.pipeline.vae
    plain = measure(policy, config)
    policy.decode_in_bf16()
    memory = measure(policy, config, kept=kept)
    assert plain.encoders == sum(weight.nbytes for weight in own_tensors(policy._encoders))
    assert plain.autoencoder == sum(weight.nbytes for weight in own_tensors([vae]))
    assert 0 < memory.autoencoder - plain.autoencoder < 2 * sum(weight.numel() for weight in vae.decoder.parameters())
    assert memory.adapter == memory.gradients == sum(weight.nbytes for weight in policy.parameters())
    assert memory.merged > 0
    assert memory.reference == 0
    assert "text encoders" not in memory.resident
    assert memory.stages(LOAD)["encode"] == memory.encoders == plain.resident["text encoders"]


def test_the_total_is_that_of_the_fullest_stage():
    stages = MEMORY.stages(LOAD)
    assert stages["rollout"] == DRAWN + 64 * GIB // 8
    assert stages["decode"] == DRAWN + 64 * GIB // 4
    assert stages["train"] == DRAWN + GIB // 4 + 32 * GIB // 2
    assert MEMORY.total(LOAD) == 3 * GIB // 2 + stages["train"]
    alone = replace(LOAD, num_training_calls=1)
    assert MEMORY.stages(alone)["train"] == DRAWN + 32 * GIB // 2, "the one call starts without gradients"
    later = replace(LOAD, later_pairs=16)
    assert MEMORY.stages(later)["train"] - stages["train"] == 16 * MEMORY.latent


def test_pools_of_captured_graphs_add_to_every_stage():
    captured = replace(MEMORY, graphs=True)
    pool = 64 * GIB // 8 + 64 * MEMORY.latent + 80 * MEMORY.latent
    assert captured.pool(LOAD) == pool
    assert captured.stages(LOAD)["rollout"] == DRAWN + pool
    for stage in ("decode", "train"):
        assert captured.stages(LOAD)[stage] - MEMORY.stages(LOAD)[stage] == pool


def test_images_that_wait_are_counted():
    images = replace(MEMORY, image=GIB // 64)
    assert images.stages(LOAD)["decode"] - MEMORY.stages(LOAD)["decode"] == GIB, "one piece waits, however large"
    small = LOAD.with_rows(32, 64, 1)
    waiting = images.stages(small)["decode"] - MEMORY.stages(small)["decode"]
    assert waiting == WAITING_BYTES


@pytest.mark.parametrize("graphs", [False, True])
def test_rows_that_fit(graphs):
    memory = replace(MEMORY, graphs=graphs)
    limit = 12 * GIB
    fitting = memory.fitting(limit, LOAD)
    assert fitting == ((7, 23, 15) if graphs else (14, 60, 30))
    larger = LOAD.with_rows(fitting[0] + 1, *fitting[1:])
    assert memory.total(LOAD.with_rows(*fitting)) <= limit
    assert graphs or limit < memory.total(larger)
    with pytest.raises(ValueError, match=r"limit must be at least \d.\d\d GiB, got 4.80 GiB"):
        memory.fitting(4.8 * GIB, LOAD)


def test_offloaded_encoders_have_to_fit_while_they_work():
    memory = replace(MEMORY, offloaded=True, encoders=20 * GIB)
    need = memory.total(LOAD.with_rows(1, 1, 1))
    assert min(memory.fitting(need, LOAD)) >= 1
    with pytest.raises(ValueError, match="limit must be at least"):
        memory.fitting(need - GIB, LOAD)


def test_the_page_names_parts_and_stages():
    lines = dict(line.rsplit(maxsplit=1) for line in MEMORY.page(LOAD).splitlines()[1:])
    assert lines["network"] == "0.500"
    assert {"text encoders", "optimizer", "peak of decode", "peak of train", "in total"} < set(lines)
    assert "adapter" not in lines


SHAPES = {
    "all weights, gradients and an average": {
        "num_updates": 2,
        "micro_batch": 5,
        "max_batch": 32,
        "ema_decay": 0.9,
        "prompts_per_iteration": 4,
    },
    "one training call, a KL term, images at once": {
        "num_updates": 1,
        "decode_batch": 100,
        "num_branches": 2,
        "prompts_per_iteration": 2,
        "beta": 0.01,
    },
    "a merged adapter in bf16, guidance, short tails": {
        "lora_rank": 16,
        "precision": "bf16",
        "guidance_scale": 4.5,
        "tail_steps": 2,
        "num_updates": 3,
        "micro_batch": 4,
        "max_batch": 16,
        "num_branches": 2,
        "prompts_per_iteration": 3,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_an_iteration_holds_what_was_estimated(shape):
    """Storages are counted from their making to their end: the size of the process would tell of allocators, libraries
    and what earlier tests have left, too."""
    config = get_recipe("shapes").with_settings(num_iterations=2, minutes=None, num_steps=6, **SHAPES[shape])
    policy = prepare_policy(config.policy)
    estimate = measure(policy, config.grpo, config.optimizer, config.policy).total(load_of(config, 1))
    weights = own_tensors([policy.network, policy.pipeline.vae, *policy._encoders])
    entries = get_prompts("shapes", None, "prompt").training(0, config.task.prompts_per_iteration, 0)

    def reward(images, prompts, metadata):
        return images.mean((1, 2, 3)) * torch.linspace(0, 1, len(images))

    with LiveBytes() as bytes_:
        if config.grpo.beta > 0:
            policy.freeze_reference()
        optimizer = make_optimizer(policy.parameters(), config.optimizer)
        decay = config.optimizer.ema_decay
        average = None if decay is None else WeightAverage(policy, optimizer, decay, 1)
        for seed in range(2):  # the optimizer's state is made in the first
            grpo_step(policy, [entry["prompt"] for entry in entries], reward, optimizer, config.grpo, seed)
    del average
    held = sum(weight.nbytes for weight in weights) + bytes_.peak
    assert estimate == pytest.approx(held, rel=0.1)


def test_the_load_is_that_of_the_busiest_process():
    config = GRPOConfig(num_steps=10, num_seeds=1, num_updates=2, max_batch=50, micro_batch=4, decode_batch=7)
    load = Load.of(Geometry(config, 7, 3), num_iterations=5)
    assert (load.trajectories, load.pairs, load.later_pairs) == (3, 27, 9)
    assert (load.branches, load.images) == (3 * 54, 3 * 54)
    assert (load.training_rows, load.rollout_rows, load.decoded_rows) == (4, 50, 7)
    assert load.prompts == 35
    assert load.num_training_calls == 5
    short = Geometry(GRPOConfig(num_steps=10, num_seeds=1, num_updates=1, tail_steps=2), 1)
    assert Load.of(short, None).decoded_rows == 12, "at the last step, two branch steps are finished together"
