"""A policy's parts in bytes, and the peaks of its calls on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..policies.base import Condition, Policy, encoded
from ..policies.compiled import uncompiled
from ..policies.lora import has_adapter
from ..policies.merged import merges, num_merged_bytes
from ..policies.offload import own_tensors
from ..policies.vae import bf16_weights
from ..policies.weightless import WeightlessPolicy
from ..settings.iteration import GRPOConfig
from .budget import most_branches
from .image_statistics import image_statistics
from .live_bytes import WithoutData
from .memory import Calls, Memory
from .objective import MicroBatch, micro_batch_loss

if TYPE_CHECKING:
    from ..settings.run import OptimizerConfig, PolicyConfig

ROWS = 64
DECODED_ROWS = 4
PROMPT = "a prompt"
MOMENTS = {"adamw": 2.0, "adamw_8bit": 0.5}
"""What an optimizer remembers of a float32 weight, in weights."""


def measure(
    policy: Policy,
    config: GRPOConfig,
    optimizer: OptimizerConfig | None = None,
    kept: PolicyConfig | None = None,
    entry: Mapping[str, Any] | None = None,
) -> Memory:
    """The memory that a policy needs in an iteration; one prompt is encoded and one network row computed for it.

    To be called before the network is wrapped for many processes.

    Args:
        policy: changed in nothing.
        config: the iteration.
        optimizer: AdamW without a moving average, if not given.
        kept: how the policy is kept in memory; as it is, if not given.
        entry: metadata of a prompt with source images, where the policy needs them.
    """
    from ..settings.run import OptimizerConfig, PolicyConfig  # needs tyro, which a program without commands may lack

    optimizer, kept = optimizer or OptimizerConfig(), kept or PolicyConfig()
    scale, network = config.guidance_scale, policy.network
    condition = encoded("measure", policy, [PROMPT], [entry or {}], policy.guides(scale))
    with torch.no_grad(), uncompiled():
        # Networks keep tables from their first call (rotary embeddings); those must not be tensors without data.
        policy.velocity(torch.zeros(1, *policy.latent_shape, device=policy.device), 0.5, condition, scale)
    named = [*network.named_parameters(), *network.named_buffers()]
    adapter = _num_bytes(weight for name, weight in named if ".lora_" in name)
    trained = _num_bytes(weight for weight in network.parameters() if weight.requires_grad)
    whole = _num_bytes(own_tensors([network])) - adapter
    copied = config.beta > 0 and not has_adapter(network)
    parts = _parts(policy)
    vae = parts.pop("vae", None)
    copies = [] if vae is None or kept.vae_precision == "fp32" else bf16_weights(vae)
    calls = _Calls(policy, condition, config)
    rollout, (training, alone) = calls.rollout(), calls.training()
    latent = 4 * torch.Size(policy.latent_shape).numel()
    return Memory(
        network=whole,
        adapter=adapter,
        merged=num_merged_bytes(network) if merges(network, config.rollout_weights) else 0,
        reference=whole if copied else 0,
        encoders=_num_bytes(own_tensors(parts.values())),
        offloaded=kept.offload_text_encoders,
        autoencoder=_num_bytes(own_tensors([vae] if vae is not None else [])) + 2 * sum(w.numel() for w in copies),
        optimizer=int(MOMENTS[optimizer.optimizer] * trained),
        average=0 if optimizer.ema_decay is None else trained,
        gradients=trained,
        latent=latent,
        text=_num_bytes(condition.tensors.values()),
        image=calls.image_bytes(),
        remembered=2 if config.tail_solver == "euler" else 3,
        velocities=calls.num_velocities,
        training=training,
        training_alone=alone,
        rollout=rollout,
        decoding=calls.decoding(),
        graphs=config.cuda_graphs,
    )


def _parts(policy: Policy) -> dict[str, nn.Module]:
    """A pipeline's modules but for its network."""
    parts = getattr(getattr(policy, "pipeline", None), "components", {})
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module) and part is not policy.network}


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class _Calls:
    """The calls of an iteration on tensors without data."""

    def __init__(self, policy: Policy, condition: Condition, config: GRPOConfig) -> None:
        self.policy, self.condition, self.config = policy, condition, config
        self.table = config.table(policy)
        self.num_velocities = 1

    def rollout(self) -> Calls:
        """One that gathers its rows and evaluates the network."""

        def call(rows: int) -> None:
            velocities = self.policy.velocity(*self._inputs(rows), self.config.guidance_scale)
            self.num_velocities = sum(velocity is not None for velocity in velocities)

        with torch.no_grad():
            return _line(ROWS, [self._peak(call, rows) for rows in (ROWS, 2 * ROWS)])

    def training(self) -> tuple[Calls, Calls]:
        """Forward and backward of pairs with their branches: next to earlier gradients, and with its own alone."""
        counts = []
        for rows in (ROWS, 2 * ROWS):
            with _without_data(self.policy) as bytes_, self._dropping_gradients(bytes_):
                self._train(rows)
            counts.append(bytes_)
        alone = [count.undropped_peak for count in counts]
        return _line(ROWS, [count.peak for count in counts]), _line(ROWS, alone)

    @contextmanager
    def _dropping_gradients(self, bytes_: WithoutData) -> Iterator[None]:
        """Inside this context no gradient stays: those of real parameters must not become tensors without data."""

        def drop(weight: Tensor) -> None:
            if weight.grad is not None:
                bytes_.dropped += weight.grad.nbytes
                weight.grad = None

        hooks = [weight.register_post_accumulate_grad_hook(drop) for weight in self.policy.parameters()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _train(self, rows: int) -> None:
        c = self.config
        count = max(most_branches(c))
        latents, sigma, condition = self._inputs(rows)
        steps: Any = [self.table.branch_steps[0]] * rows  # on the host, where tensors without data have no values
        batch = MicroBatch(
            latents=latents,
            branches=latents[:, None].repeat(1, count, *[1] * (latents.dim() - 1)),
            advantages=latents.new_empty(rows, count),
            steps=steps,
            sigma=sigma,
            condition=condition,
            table=self.table,
        )
        velocity_ref = latents.clone() if c.beta > 0 else None
        # The old velocity is there before the call.
        micro_batch_loss(self.policy, batch, latents, c.clip_range, 0.0, c.training_guidance).loss.backward()
        del velocity_ref

    def decoding(self) -> Calls:
        """One that decodes, and takes the images' statistics."""

        group = max(most_branches(self.config))

        def call(rows: int) -> None:
            images = self.policy.decode(self._latents(rows))
            image_statistics(images[None, :group])

        with torch.no_grad():
            few = max(DECODED_ROWS, group)
            return _line(few, [self._peak(call, rows) for rows in (few, 2 * few)])

    def image_bytes(self) -> int:
        """One image."""
        with torch.no_grad(), _without_data(self.policy):
            return self.policy.decode(self._latents(1)).nbytes

    def _peak(self, call: Callable[[int], None], rows: int) -> int:
        """Most bytes alive at once in a call, beyond weights."""
        with _without_data(self.policy) as bytes_:
            call(rows)
        return bytes_.peak

    def _latents(self, rows: int) -> Tensor:
        return torch.empty(rows, *self.policy.latent_shape, device=self.policy.device)

    def _inputs(self, rows: int) -> tuple[Tensor, Tensor, Condition]:
        """Gathered rows of a call."""
        texts = {
            name: part.expand(rows, *part.shape[1:]).clone(memory_format=torch.contiguous_format)
            for name, part in self.condition.tensors.items()
        }
        kinds = self.condition.kinds and self.condition.kinds * rows  # of one prompt
        return self._latents(rows), torch.full((rows,), 0.5, device=self.policy.device), Condition(texts, kinds)


def _line(rows: int, peaks: Sequence[int]) -> Calls:
    """Of the peaks with so many rows and twice as many: with few, what does not depend on them may be the peak."""
    row = (peaks[1] - peaks[0]) // rows
    return Calls(max(peaks[1] - 2 * rows * row, 0), row)


@contextmanager
def _without_data(policy: Policy) -> Iterator[WithoutData]:
    mode = policy.mode if isinstance(policy, WeightlessPolicy) else FakeTensorMode(allow_non_fake_inputs=True)
    with mode, uncompiled(), WithoutData(mode) as bytes_:
        yield bytes_
