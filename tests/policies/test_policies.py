"""The policies of the three model classes against diffusers' own pipelines."""

from __future__ import annotations

import functools

import pytest
import torch
from support.pipelines import flux_pipeline, qwen_image_pipeline, sd3_pipeline
from support.tiny import PROMPTS

import tempflow_fast as tff
from tempflow_fast.grpo.memory import measure
from tempflow_fast.policies import Condition, FluxPolicy, NetworkPolicy, QwenImagePolicy, SD3Policy
from tempflow_fast.policies.prompt_cache import PromptCache
from tempflow_fast.run.load import load_policy

NUM_STEPS = 4
TALL = (24, 16)
# Name -> pipeline, policy class, text length, and the pipeline's arguments for a guidance scale.
CASES = {
    "sd3": (sd3_pipeline, SD3Policy, 9, lambda scale: {"guidance_scale": scale, "max_sequence_length": 0}),
    "sd3_t5": (
        functools.partial(sd3_pipeline, shift=1.0, with_t5=True, use_dynamic_shifting=True),
        SD3Policy,
        9,
        lambda scale: {"guidance_scale": scale},
    ),
    "flux": (flux_pipeline, FluxPolicy, 9, lambda scale: {"guidance_scale": scale}),
    "flux_schnell": (
        functools.partial(flux_pipeline, guidance_embeds=False, use_dynamic_shifting=False),
        FluxPolicy,
        9,
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [""] * len(PROMPTS)},
    ),
    # Some of the texts are cut and some padded at this length; the marks of the chat around them take 129 tokens.
    "qwen_image": (
        qwen_image_pipeline,
        QwenImagePolicy,
        150,
        lambda scale: {"true_cfg_scale": scale, "negative_prompt": [" "] * len(PROMPTS)},
    ),
}
CLASSES = pytest.mark.parametrize("name", ["sd3", "flux", "qwen_image"])


def make(name, directory, resolution=None):
    build, policy_class, length, _ = CASES[name]
    return policy_class(build(directory), resolution, length)


def pipeline_latents(policy, noise, **arguments):
    """Latents after every step of the pipeline's own loop, [N, T, *shape], and its images."""
    pipeline, steps, scale = policy.pipeline, [], policy.pipeline.vae_scale_factor
    height, width = policy.latent_shape[1:] if noise.dim() == 4 else (2 * side for side in policy._grid)
    images = pipeline(
        PROMPTS,
        latents=noise,
        height=height * scale,
        width=width * scale,
        callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(tensors["latents"]) or {},
        output_type="pt",
        **{"max_sequence_length": policy.max_text_length, **arguments},
    ).images
    return torch.stack(steps, dim=1), images


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5])
@pytest.mark.parametrize("resolution", [None, TALL], ids=["square", "tall"])
@pytest.mark.parametrize("name", CASES)
def test_rollout_without_noise_is_the_pipeline(tmp_path, name, resolution, guidance_scale):
    policy = make(name, tmp_path, resolution)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    arguments = CASES[name][3](guidance_scale)
    expected, images = pipeline_latents(policy, noise, num_inference_steps=NUM_STEPS, **arguments)
    assert images.shape[2:] == (resolution or (16, 16))

    # Branches with next to no noise follow the trunk, so the tails are compared as well.
    table = tff.step_table(policy.sigmas(NUM_STEPS), noise_level=1e-9, branch_steps=range(NUM_STEPS))
    condition = policy.encode(PROMPTS, guided=guidance_scale != 1.0)
    drawn = tff.rollout(policy, condition, table, noise, 2, guidance_scale=guidance_scale, max_batch=8)
    size = expected.abs().max()
    assert torch.equal(policy.decode(expected[:, -1]), images)
    assert torch.equal(drawn.states[:, 0], noise)
    trunk = (drawn.states[:, 1:] - expected[:, :-1]).abs().max() / size
    finished = (drawn.latents - expected[:, -1, None, None]).abs().max() / size
    pixels = (policy.decode(drawn.latents[:, -1, 0]) - images).abs().max()
    print(f"\n{name} {resolution} guidance {guidance_scale}: latents {max(trunk, finished):.1e}, pixels {pixels:.1e}")
    assert max(trunk, finished, pixels) <= 1e-5


def test_own_sigmas_are_those_of_the_pipeline(tmp_path):
    """A scheduler without shift takes the given sigmas as they are."""
    policy = SD3Policy(sd3_pipeline(tmp_path, shift=1.0))
    sigmas = tff.linear_sigmas(NUM_STEPS, shift=2.0)
    noise = torch.randn(len(PROMPTS), *policy.latent_shape)
    expected, _ = pipeline_latents(policy, noise, guidance_scale=1.0, max_sequence_length=0, sigmas=sigmas[:-1])
    drawn = tff.rollout(policy, policy.encode(PROMPTS), tff.step_table(sigmas), noise, 1)
    assert (drawn.states[:, 1:] - expected[:, :-2]).abs().max() <= 1e-5 * expected.abs().max()


def velocity(policy, latents, sigma=0.5, guidance_scale=1.0):
    return policy.velocity(latents, sigma, policy.encode(PROMPTS, guided=guidance_scale != 1.0), guidance_scale)


@CLASSES
def test_prompts_are_encoded_once_and_alone(tmp_path, name):
    policy, calls = make(name, tmp_path), []
    policy.pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    together = policy.encode([*PROMPTS, PROMPTS[0]], guided=True)
    again = policy.encode(PROMPTS[:1])
    assert calls == ([1] * 3 if name == "flux" else [1] * 4)  # its guidance is embedded: no negative prompt
    text = together.tensors["text"][3] if name == "flux" else together.tensors["text"][3, 0]
    assert torch.equal(again.tensors["text"][0], text[: again.tensors["text"].shape[1]])
    with pytest.raises(ValueError, match="encode: prompts must be at least one text, got none"):
        policy.encode([])


@pytest.mark.parametrize("name", ["sd3", "flux_schnell"])
def test_guided_velocity_is_both_velocities(tmp_path, name):
    policy = make(name, tmp_path)
    latents = torch.randn(3, *policy.latent_shape)
    cond, uncond = velocity(policy, latents, guidance_scale=2.0)
    torch.testing.assert_close(cond, velocity(policy, latents)[0])
    torch.testing.assert_close(uncond, policy.velocity(latents, 0.5, policy.encode([""] * 3))[0])
    guided_condition = policy.encode(PROMPTS, guided=True)
    torch.testing.assert_close(policy.velocity(latents, 0.5, guided_condition)[0], velocity(policy, latents)[0])
    with pytest.raises(ValueError, match="velocity: condition must be from encode"):
        policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)


def test_a_model_with_its_own_guidance_returns_it_finished(tmp_path):
    for name in ("flux", "qwen_image"):
        policy = make(name, tmp_path)
        latents = torch.randn(3, *policy.latent_shape)
        plain, (guided, uncond) = velocity(policy, latents)[0], velocity(policy, latents, guidance_scale=3.0)
        assert uncond is None
        assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided.norm(dim=-1), plain.norm(dim=-1))


@CLASSES
def test_every_row_takes_its_own_sigma(tmp_path, name):
    policy = make(name, tmp_path)
    latents = torch.randn(3, *policy.latent_shape)
    rows = velocity(policy, latents, torch.tensor([0.9, 0.2, 0.5]))[0]
    for row, sigma in enumerate((0.9, 0.2, 0.5)):
        torch.testing.assert_close(rows[row], velocity(policy, latents, sigma)[0][row])


@CLASSES
def test_saved_policy_loads_here_and_in_diffusers(tmp_path, name):
    policy = make(name, tmp_path)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    policy.save(tmp_path / "saved")
    assert (tmp_path / "saved/transformer/diffusion_pytorch_model.safetensors").is_file()
    loaded = load_policy(str(tmp_path / "saved"), resolution=16, max_text_length=policy.max_text_length)
    assert type(loaded) is type(policy)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}
    pipeline = type(policy.pipeline).from_pretrained(tmp_path / "saved", **absent)
    latents = torch.randn(3, *policy.latent_shape)
    for other in (loaded, type(policy)(pipeline, 16, policy.max_text_length)):
        assert torch.equal(velocity(other, latents)[0], velocity(policy, latents)[0])
    # One row takes kernels that round by the weights' address, so saved and loaded weights must be aligned alike.
    for sigma in (0.9, 0.7, 0.2):
        arguments = (latents[:1], sigma, policy.encode(PROMPTS[:1]))
        assert torch.equal(loaded.velocity(*arguments)[0], policy.velocity(*arguments)[0])

    want = velocity(policy, latents)[0]
    for dtype, near in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        narrow = load_policy(str(tmp_path / "saved"), "cpu", dtype, 16, policy.max_text_length)
        got = velocity(narrow, latents)[0]
        assert (narrow.dtype, got.dtype) == (dtype, torch.float32)
        assert 0 < (got - want).norm() <= near * want.norm()
    images = policy.decode(latents)
    assert torch.equal(narrow.decode(latents), images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.decode(latents), images)


@pytest.fixture
def policy(tmp_path):
    return make("sd3", tmp_path)


def test_reference_stays_where_training_started(policy):
    latents = torch.randn(3, *policy.latent_shape)
    with torch.no_grad():
        start = velocity(policy, latents)[0]
        policy.freeze_reference()
        for parameter in policy.parameters():
            parameter += 0.1
        policy.freeze_reference()
        with policy.reference():
            assert torch.equal(velocity(policy, latents)[0], start)
        with pytest.raises(ValueError, match="condition"), policy.reference():
            policy.velocity(latents, 0.5, policy.encode(PROMPTS), 2.0)
        assert not torch.equal(velocity(policy, latents)[0], start)


def test_another_module_can_take_the_place_of_the_network(policy):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.num_calls = module, 0

        def forward(self, **inputs):
            self.num_calls += 1
            return self.module(**inputs)

    latents, before = torch.randn(3, *policy.latent_shape), policy.parameters()
    start = velocity(policy, latents)[0]
    policy.network = Wrapper(policy.network)
    assert torch.equal(velocity(policy, latents)[0], start)
    assert policy.network.num_calls == 1
    assert [id(parameter) for parameter in policy.parameters()] == [id(parameter) for parameter in before]


@CLASSES
def test_what_the_output_depends_on_is_trained(tmp_path, name):
    """Data-parallel training waits for the gradient of every parameter that takes one."""
    policy = make(name, tmp_path)
    trained = {id(parameter) for parameter in policy.parameters()}
    transformer = policy.pipeline.transformer.requires_grad_(True)
    loss = velocity(policy, torch.randn(3, *policy.latent_shape))[0].square().mean()
    gradients = torch.autograd.grad(loss, list(transformer.parameters()), allow_unused=True)
    pairs = zip(transformer.parameters(), gradients, strict=True)
    assert trained == {id(parameter) for parameter, gradient in pairs if gradient is not None}
    frozen = [policy.pipeline.vae, *policy._encoders]
    assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters())


@CLASSES
def test_gradient_checkpointing_gives_the_same_gradients(tmp_path, name):
    policy, gradients, calls = make(name, tmp_path), [], []
    latents = torch.randn(3, *policy.latent_shape)
    policy.network.transformer_blocks[0].register_forward_pre_hook(lambda *args: calls.append(1))
    for _ in range(2):
        loss = velocity(policy, latents, guidance_scale=2.0)[0].square().mean()
        gradients.append(torch.autograd.grad(loss, policy.parameters()))
        policy.enable_gradient_checkpointing()
    assert len(calls) == 3  # the second backward pass ran the block again
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@CLASSES
def test_measuring_memory_leaves_the_policy_as_it_is(tmp_path, name):
    """Nothing that a policy or a network keeps between calls may come from the measurement's tensors without data."""
    policy = make(name, tmp_path)
    measure(policy, tff.GRPOConfig(num_steps=NUM_STEPS, guidance_scale=2.0))
    latents = torch.randn(3, *policy.latent_shape)
    assert torch.equal(velocity(policy, latents)[0], velocity(make(name, tmp_path), latents)[0])


def test_text_encoders_wait_in_host_memory(policy):
    moves, encoder = [], policy.pipeline.text_encoder
    move = encoder.to
    encoder.to = lambda device: moves.append(str(device)) or move(device)
    start = policy.encode(PROMPTS)
    policy.offload_text_encoders()
    assert moves == ["cpu"]
    assert torch.equal(policy.encode(PROMPTS).tensors["text"], start.tensors["text"])
    assert moves == ["cpu"]  # known prompts need no encoder
    policy.encode(["a new one", "another"])
    assert moves == ["cpu", str(policy.device), "cpu"]


def test_prompt_cache_forgets_what_was_not_asked_for():
    cache = PromptCache(limit=3 * 8)
    for prompt in "abc":
        cache.put(prompt, {"text": torch.zeros(2)})
    assert cache.get("a") is not None
    cache.put("d", {"text": torch.zeros(2)})
    assert [cache.get(prompt) is None for prompt in "abcd"] == [False, True, False, False]


def test_printing_a_policy_says_what_it_trains(policy):
    total = sum(parameter.numel() for parameter in policy.network.parameters())
    where = "latent_shape=(4, 8, 8), dtype=torch.float32, device=cpu"
    assert repr(policy) == f"SD3Policy(parameters={total:,}, trained={total:,}, {where}, adapter=None)"
    policy.add_lora(rank=2, alpha=6, targets=["attn.to_q"])
    trained = sum(parameter.numel() for parameter in policy.parameters())
    parameters = f"parameters={total + trained:,}, trained={trained:,}"
    assert repr(policy) == f"SD3Policy({parameters}, {where}, adapter=LoRA of rank 2, alpha 6, on 2 layers)"
    assert repr(NetworkPolicy(torch.nn.Linear(2, 3))).startswith("NetworkPolicy(parameters=9, trained=9, ")


def test_settings_that_do_not_fit_are_named(tmp_path):
    pipeline = sd3_pipeline(tmp_path)
    for resolution in (0, 18, -16, (16, 18), (16, 16, 16)):
        with pytest.raises(ValueError, match="SD3Policy: resolution must be a positive multiple of 4 pixels, or"):
            SD3Policy(pipeline, resolution)
    with pytest.raises(ValueError, match="SD3Policy: resolution must be at most 64 pixels a side"):
        SD3Policy(pipeline, (16, 68))
    with pytest.raises(ValueError, match=r"SD3Policy: max_text_length must be in 1..512, got 513"):
        SD3Policy(pipeline, max_text_length=513)
    (tmp_path / "model_index.json").write_text('{"_class_name": "AllegroPipeline"}')
    with pytest.raises(ValueError, match=r"load_policy: model must be one of FluxPipeline, .* got a AllegroPipeline"):
        load_policy(str(tmp_path))


def test_condition_rows():
    condition = Condition({"text": torch.arange(6).view(3, 2), "pooled": torch.arange(3)})
    tiled = condition.tile(3)
    assert (len(condition), len(tiled)) == (3, 9)
    assert tiled.tensors["pooled"].tolist() == [0, 1, 2] * 3
    assert tiled[4:6].tensors["text"].tolist() == [[2, 3], [4, 5]]
    assert tiled[:3].tensors["text"].data_ptr() == tiled.tensors["text"].data_ptr()
    assert condition[torch.tensor([2, 0])].tensors["pooled"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="Condition: tensors must be of the same length, got"):
        Condition({"text": torch.zeros(3, 2), "pooled": torch.zeros(2)})
