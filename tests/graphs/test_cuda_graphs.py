"""Captured rollouts against plain ones, on a stand-in that enforces the rules of stream capture."""

from __future__ import annotations

import gc
import inspect
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline
from support.recording import RecordingDevice
from support.tiny import PROMPTS, TinyPolicy, brightness
from torch import nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

import tempflow_fast as tff
from tempflow_fast.batching import rounded_counts
from tempflow_fast.graphs import capture
from tempflow_fast.graphs.capture import obstacle, replayable, state_of
from tempflow_fast.graphs.replay import CudaGraphs, graphs_of
from tempflow_fast.policies import Condition, FluxPolicy, QwenImagePolicy, SD3Policy
from tempflow_fast.policies.compiled import compile_blocks
from tempflow_fast.run.prepare import compute_in

FIELDS = ("states", "branches", "log_prob", "latents")


@pytest.fixture
def device():
    recorder = RecordingDevice()
    yield recorder
    assert not recorder.violations


def draw(policy, graphs, iteration=0, guidance_scale=4.5, max_batch=5, steps=4, prompts=PROMPTS, **table):
    """A rollout whose noise, ids, seed, schedule and texts are those of `iteration`."""
    schedule = [sigma ** (1 + 0.1 * iteration) for sigma in policy.sigmas(steps)]
    table = tff.step_table(schedule, noise_level=0.7 + 0.1 * iteration, **table)
    condition = policy.encode(prompts, guided=guidance_scale != 1)
    condition = Condition({name: part + 0.1 * iteration for name, part in condition.tensors.items()})
    ids = torch.arange(len(prompts)) + 100 * iteration
    noise = tff.ops.initial_noise(policy.latent_shape, iteration, ids)
    return tff.rollout(policy, condition, table, noise, 3, iteration, ids, max_batch, guidance_scale, graphs)


def assert_equal(got, want):
    for field in FIELDS:
        assert torch.equal(getattr(got, field), getattr(want, field)), field
    assert got.latents.isfinite().all()


def nudge(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0, "max_batch": None}, {"branch_steps": (0, 2)}])
def test_replays_equal_eager_and_follow_seed_ids_schedule_text_and_weights(device, options):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    for iteration in range(4):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
        nudge(policy)
    assert device.events.count("capture") == graphs.num_captures == graphs.num_graphs > 0
    # From the third iteration on, nothing is left to warm up or to capture.
    calls = draw(policy, None, **options).num_calls
    assert device.events[-2 * calls :] == ["replay"] * (2 * calls)


@pytest.mark.parametrize(
    ("policy_class", "pipeline", "guidance_scale"),
    [(SD3Policy, sd3_pipeline, 4.5), (FluxPolicy, flux_pipeline, 3.5), (QwenImagePolicy, qwen_image_pipeline, 1.0)],
)
def test_the_models_can_be_captured_with_an_adapter_that_learns(
    device, tmp_path, policy_class, pipeline, guidance_scale
):
    policy, graphs = policy_class(pipeline(tmp_path)), CudaGraphs(device)
    policy.add_lora(rank=2, alpha=4)
    options = {"steps": 3, "max_batch": 2, "prompts": PROMPTS[:1], "guidance_scale": guidance_scale}
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
        nudge(policy)
    assert graphs.num_replays > graphs.num_captures > 0


def test_qwen_image_waits_where_texts_differ_in_length(device, tmp_path):
    policy, graphs = QwenImagePolicy(qwen_image_pipeline(tmp_path)), CudaGraphs(device)
    # diffusers hands the length of the text to the device there, in every call.
    expect_eager(policy, graphs, "the host waits for the device at lift_fresh", steps=2, max_batch=2)


class AnySizePolicy(TinyPolicy):
    """One network for images of any size and texts of any length, which answers otherwise while it is in training."""

    def __init__(self):
        super().__init__()
        self.network = PerPixel()

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        text = condition.tensors["text"]
        return self.acting(latents, text), self.acting(latents, 0 * text) if guidance_scale != 1 else None


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
        (nothing, {"branch_steps": (1, 2)}),
    ],
)
def test_no_graph_is_stale(device, change, options):
    policy, graphs = AnySizePolicy(), CudaGraphs(device)
    for _ in range(3):
        draw(policy, graphs)
    before = graphs.num_captures
    change(policy)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert graphs.num_captures > before


def test_a_graph_is_found_again_when_its_state_returns(device):
    policy, graphs = AnySizePolicy(), CudaGraphs(device)
    for mode in (True, False):
        policy.network.train(mode)
        for _ in range(2):
            draw(policy, graphs)
    before = graphs.num_captures
    for iteration in range(4):
        policy.network.train(iteration % 2 == 0)
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
    assert graphs.num_captures == before


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


def test_graphs_of_all_sizes_read_their_inputs_at_one_address(device):
    graphs, addresses = CudaGraphs(device), set()
    graphs.begin(TinyPolicy(), num_rows=8)

    def double(inputs):
        addresses.add(inputs["x"].data_ptr())
        return (2 * inputs["x"],)

    for num_rows in (5, 8, 3):
        for value in range(4):
            (result,) = graphs.run("double", double, {"x": torch.full((num_rows, 2), float(value))})
            assert result.tolist() == [[2 * value, 2 * value]] * num_rows
    assert graphs.num_graphs == 3
    assert len(addresses) == 1


def test_graphs_keep_their_inputs_where_larger_ones_are_made(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    few, many = {"prompts": PROMPTS[:1], "max_batch": 2}, {"max_batch": 8}
    for iteration, options in enumerate((few, few, many, many, few, few)):
        before = graphs.num_captures
        assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert graphs.num_captures == before


def test_few_graphs_are_kept(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device, max_graphs=3)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
        assert graphs.num_graphs <= 3
    assert graphs.num_captures > 3


def test_many_row_counts_become_few_and_the_eager_twin_pads_alike(device):
    policy, graphs, twin = TinyPolicy(), CudaGraphs(device), CudaGraphs(None)
    for iteration in range(3):
        options = {"iteration": iteration, "max_batch": None, "steps": 22}
        captured, eager = draw(policy, graphs, **options), draw(policy, twin, **options)
        assert_equal(captured, eager)
        assert captured.num_row_evaluations == eager.num_row_evaluations
    assert len({count for count, _ in policy.calls}) <= 16
    plain = draw(policy, None, **options)
    assert plain.num_row_evaluations < captured.num_row_evaluations < 1.1 * plain.num_row_evaluations
    torch.testing.assert_close(captured.latents, plain.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("counts", "limit", "rounded"),
    [
        ([4, 14, 13, 16], 4, {4: 4, 13: 13, 14: 14, 16: 16}),
        ([1, 2, 3, 4, 5], 3, {1: 2, 2: 2, 3: 4, 4: 4, 5: 5}),
        ([7, 9], 1, {7: 9, 9: 9}),
    ],
)
def test_rounded_counts(counts, limit, rounded):
    assert rounded_counts(counts, limit) == rounded


class WaitingPolicy(TinyPolicy):
    """Asks for a value on the way, as a model does that masks by length."""

    waits = 1000

    def velocity(self, latents, sigma, condition, guidance_scale=1.0):
        if self.waits:
            self.waits -= 1
            assert sigma.max().item() > 0
        return super().velocity(latents, sigma, condition, guidance_scale)


def expect_eager(policy, graphs, reason, **options):
    """Three rollouts without a graph, equal to plain ones, with one warning in all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for iteration in range(3):
            assert_equal(draw(policy, graphs, iteration, **options), draw(policy, None, iteration, **options))
    assert [str(warning.message) for warning in caught if "CUDA graphs" in str(warning.message)] == [
        f"rollout: network calls run without CUDA graphs: {reason}"
    ]


def test_a_waiting_network_is_found_before_any_capture(device):
    graphs = CudaGraphs(device)
    expect_eager(WaitingPolicy(), graphs, "the host waits for the device at _local_scalar_dense")
    assert "capture" not in device.events
    assert not graphs.num_replays


def test_one_wait_while_something_compiles_is_forgiven(device):
    policy, graphs = WaitingPolicy(), CudaGraphs(device)
    policy.waits = 1
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
    assert graphs.num_captures > 0


def test_a_capture_that_fails_leaves_eager_calls(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    device.capture = lambda function: device.fail()
    device.fail = lambda: (_ for _ in ()).throw(RuntimeError("operation not permitted when stream is capturing\nmore"))
    expect_eager(policy, graphs, "capture failed: operation not permitted when stream is capturing")


def test_hooks_are_named_and_respected_until_they_go(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    seen = []
    handle = policy.network[0].register_forward_hook(lambda *_: seen.append(1))
    expect_eager(policy, graphs, "Linear '0' has forward hooks, which a replay would not call")
    assert seen
    assert not device.events
    handle.remove()
    policy.network[0].register_forward_hook(replayable(lambda *_: None))
    for _ in range(3):
        draw(policy, graphs)
    assert graphs.num_replays > 0


def test_autocast_by_hooks_is_captured_with_the_weights_as_they_are(device):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    compute_in(policy.network, torch.bfloat16)
    for iteration in range(3):
        assert_equal(draw(policy, graphs, iteration), draw(policy, None, iteration))
        nudge(policy)
    assert graphs.num_replays > 0


def test_blocks_are_compiled_one_by_one_and_captured_or_refused(device, tmp_path):
    policy = SD3Policy(sd3_pipeline(tmp_path))
    eager = draw(policy, None, steps=2, prompts=PROMPTS[:1])
    names = [name for name, _ in policy.network.named_parameters()]
    blocks = policy.network.transformer_blocks
    compiled = []
    for block in blocks:  # what is compiled is the block's own forward; the compiler is torch's affair
        block.compile = lambda block=block, **options: compiled.append(block)
    assert compile_blocks(policy.network) == len(compiled) == len(blocks)
    assert compiled == list(blocks)
    assert [name for name, _ in policy.network.named_parameters()] == names
    for block in blocks:
        nn.Module.compile(block, backend="eager")
    assert_equal(draw(policy, None, steps=2, prompts=PROMPTS[:1]), eager)
    graphs = CudaGraphs(device)
    for _ in range(3):
        assert_equal(draw(policy, graphs, steps=2, prompts=PROMPTS[:1]), eager)
    assert graphs.num_replays > 0
    with pytest.raises(ValueError, match="compile_blocks: network must keep its blocks in a ModuleList, got Sequent"):
        compile_blocks(TinyPolicy().network)


def test_offloaded_networks_and_hooks_of_all_modules_are_named():
    network = nn.Sequential(nn.Linear(2, 2))
    assert obstacle(network) is None
    every = nn.modules.module
    for register in (every.register_module_forward_hook, every.register_module_forward_pre_hook):
        handle = register(lambda *_: None)
        assert obstacle(network) == "there are global forward hooks, which a replay would not call"
        handle.remove()
    assert obstacle(network) is None
    network[0]._hf_hook = object()
    assert "moved between devices" in obstacle(network)


def test_a_sharded_network_runs_as_it_is(device, tmp_path):
    policy, graphs = TinyPolicy(), CudaGraphs(device)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fsdp.fully_shard(policy.network, mesh=init_device_mesh("cpu", (1,)))
        reason = "FSDPSequential is sharded by FSDP, whose all-gathers run outside a graph"
        expect_eager(policy, graphs, reason)
    finally:
        torch.distributed.destroy_process_group()
    assert not device.events


def test_on_a_cpu_graphs_are_eager_without_a_word(recwarn):
    policies = [TinyPolicy(), TinyPolicy()]
    assert graphs_of(policies[0]) is None
    for policy, wanted in zip(policies, (True, False), strict=True):
        config = tff.GRPOConfig(num_steps=3, num_branches=2, num_seeds=1, cuda_graphs=wanted)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        tff.grpo_step(policy, PROMPTS, brightness, optimizer, config, 1)
    assert not [warning for warning in recwarn if "graph" in str(warning.message)]
    assert torch.equal(policies[0].network[0].weight, policies[1].network[0].weight)


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


class FakeCuda:
    """As much of torch.cuda as `CudaCapturer` calls, which notes the calls in their order."""

    def __init__(self):
        self.events, self.now, self.graph_arguments = [], "main", []

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
    monkeypatch.setattr(capture, "torch", SimpleNamespace(cuda=fake))
    return fake


def test_warming_up_happens_on_the_side_stream_between_two_waits(cuda):
    def work():
        cuda.events.append(f"runs on {cuda.now}")
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        return 5

    result, places = capture.CudaCapturer("cuda:0").warm_up(work)
    assert result == 5
    assert [place.partition(":")[0].endswith("test_cuda_graphs.py") for place in places] == [True]
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
