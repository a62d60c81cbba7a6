"""Policies from configuration files alone: tensors have shapes and no data, so that any machine can measure them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.utils.flop_counter import FlopCounterMode

from ..errors import fail, require
from ..ops.schedule import linear_sigmas
from ..quiet import quiet
from ..source_images import Sources
from . import lora
from .base import Condition, guides
from .families import FAMILIES, pixels_of
from .model_files import INDEX, LIBRARIES
from .network import NetworkPolicy
from .places import OTHERS
from .weightless_calls import CALLS, SOURCE_GRID

PUBLISHED = Path(__file__).with_name("published.json")
"""Model -> file -> configuration: the published dimensions of models whose weights are large."""
DEFAULT_SIDE = 128
"""Of latents, where a configuration does not say it."""
CLIP_TOKENS = 77
CPU = torch.device("cpu")
Files = Mapping[str, Mapping[str, Any]]
"""Path inside a model directory -> what its JSON holds."""


class WeightlessPolicy(NetworkPolicy):
    """The network, autoencoder and text encoders of a model, for `measure` and for counting operations.

    Args:
        files: of the model directory, see `model_configs`.
        dtype: of everything but the autoencoder.
        resolution: side of square images in pixels, or (height, width); None: that of training.
        max_text_length: tokens of a prompt; None: as the family's policies cut it.

    Raises:
        ValueError: if the calls of its network are not known here.
    """

    device = CPU

    @quiet(*LIBRARIES)  # diffusers warns of changed precisions
    def __init__(
        self,
        files: Files,
        dtype: torch.dtype,
        resolution: int | tuple[int, int] | None = None,
        max_text_length: int | None = None,
    ) -> None:
        index = files[INDEX]
        expected = f"one with a network of {', '.join(CALLS)}"
        require(is_known(files), "WeightlessPolicy", "model", expected, index.get("_class_name"))
        self.family, self.dtype = FAMILIES[index["_class_name"]], dtype
        self._for_cpu = False
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        named = [name for name in index if f"{name}/config.json" in files]
        parts = {name: _on_meta(name, files) for name in named}
        self.config = parts["transformer"].config
        factor = pixels_of(parts["vae"].config)
        side = resolution or factor * self.config.get("sample_size", DEFAULT_SIDE)
        height, width = (side, side) if isinstance(side, int) else side
        self.grid = height // (2 * factor), width // (2 * factor)
        self.tokens: int = max_text_length or self.family.text_length or self.family.longest_text
        self.clip_tokens: int = files["text_encoder/config.json"].get("max_position_embeddings", CLIP_TOKENS)
        self.has_t5 = "text_encoder_3" in parts
        self.num_images = self.family.images
        self.num_sources = self.family.images[0]
        self._call = CALLS[index["transformer"][1]]
        self.latent_shape = self._call.latent_shape(self)
        for name, part in parts.items():
            part.to(torch.float32 if name == "vae" else dtype).requires_grad_(name == "transformer").eval()
        super().__init__(parts["transformer"])
        self._call.prepare(self.network)
        for name in self.family.idle(self.network):
            self.network.get_submodule(name).requires_grad_(False)
        self.pipeline = SimpleNamespace(components=parts, vae=parts["vae"])

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str] | None = None) -> None:
        """Trains an adapter in float32 instead of the network.

        Args:
            rank: inner dimension.
            alpha: scale.
            targets: ends of the adapted layers' names; None: the layers of attention.
        """
        network: Any = self.network
        lora.add_lora(network, rank, alpha, targets, "gaussian", 0, excluded=self.family.idle(network))

    @torch.no_grad()
    def operations(self, guidance_scale: float) -> tuple[int, int]:
        """Floating-point operations of one row of a network call, and of decoding one image; before `take_for_cpu`.

        Args:
            guidance_scale: of the call.
        """
        counts = []
        latents, condition = self._empty((1, *self.latent_shape), torch.float32), self.encode([""], True)
        for call in (lambda: self.velocity(latents, 0.5, condition, guidance_scale), lambda: self.decode(latents)):
            with FlopCounterMode(display=False) as counter:
                call()
            counts.append(counter.get_total_flops())
        return counts[0], counts[1]

    def take_for_cpu(self) -> None:
        """From now on tensors pass for those of a CPU, whose attention is one operator as on a GPU."""
        self._for_cpu = True
        self._call.prepare(self.network)  # tables of earlier calls have no data
        taken: dict[int, Parameter] = {}  # weights that modules share stay shared

        def fake(weight: Parameter) -> Parameter:
            if id(weight) not in taken:
                data = FakeTensor(self.mode, weight.detach(), CPU)
                taken[id(weight)] = Parameter(data, requires_grad=weight.requires_grad)
            return taken[id(weight)]

        for part in self.pipeline.components.values():
            modules = list(part.modules())
            kept = [weight for module in modules for weight in module._parameters.values()]  # or ids would come again
            for module in modules:
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = fake(weight)
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = FakeTensor(self.mode, buffer.to("meta"), CPU)
            del kept

    def guides(self, guidance_scale: float) -> bool:
        """Whether a scale calls for a second velocity.

        Args:
            guidance_scale: g.
        """
        return guides(guidance_scale) and not self.family.embedded(self.config)

    def encode(
        self, prompts: Sequence[str], guided: bool = False, images: Sequence[Sources] | None = None
    ) -> Condition:
        """Encodings of the right shapes, with `num_sources` source images of the largest size.

        Args:
            prompts: P texts.
            guided: with the negative prompt.
            images: of the prompts; not used.
        """
        rows = (len(prompts), 2) if guided else (len(prompts),)
        shapes = self._call.text_shapes(self)
        if self.num_sources:
            shapes = {**shapes, OTHERS: (self.num_sources * math.prod(SOURCE_GRID), self.latent_shape[1])}
        return Condition({name: self._empty((*rows, *shape), self.dtype) for name, shape in shapes.items()})

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, condition: Condition, guidance_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """As `Policy.velocity`.

        Args:
            latents: [R, *latent_shape].
            sigma: one number or [R].
            condition: R rows.
            guidance_scale: g.
        """
        paired, tensors = self.guides(guidance_scale), condition.tensors
        hidden = latents.to(self.dtype)
        if not isinstance(sigma, Tensor):
            sigma = torch.full((len(latents),), sigma, device=latents.device)
        if tensors["text"].dim() == 4:
            tensors = {name: part.flatten(0, 1) if paired else part[:, 0] for name, part in tensors.items()}
        if paired:
            hidden, sigma = hidden.repeat_interleave(2, dim=0), sigma.repeat_interleave(2)
        joined = torch.cat([hidden, tensors[OTHERS]], 1) if OTHERS in tensors else hidden
        made = self.acting(**self._call.arguments(self, joined, sigma, tensors), return_dict=False)[0]
        made = torch.stack(made) if isinstance(made, list) else made
        made = made[:, : hidden.shape[1]] if OTHERS in tensors else made
        velocity = made.reshape(hidden.shape).to(latents.dtype).contiguous()
        if not paired:
            return velocity, None
        cond, uncond = velocity[0::2], velocity[1::2]
        return (
            (cond, uncond) if self.family.combine is None else (self.family.combine(cond, uncond, guidance_scale), None)
        )

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [R, 3, H, W] in float32.

        Args:
            latents: [R, *latent_shape].
        """
        decoded = self.pipeline.vae.decode(self._call.for_vae(self, latents), return_dict=False)[0]
        images = decoded[:, :, 0] if decoded.dim() == 5 else decoded
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def sigmas(self, num_steps: int) -> list[float]:
        """Any schedule: sizes do not depend on it.

        Args:
            num_steps: T.
        """
        return linear_sigmas(num_steps)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Where the network is."""
        empty = torch.empty(*shape, dtype=dtype, device="meta")
        return FakeTensor(self.mode, empty, CPU) if self._for_cpu else empty


def is_known(files: Files) -> bool:
    """Whether `WeightlessPolicy` takes a model.

    Args:
        files: of the model.
    """
    index = files[INDEX]
    return index.get("transformer", ("", None))[1] in CALLS and index.get("_class_name") in FAMILIES


def model_configs(model: str | Path) -> Files | None:
    """The configuration files of a model.

    Args:
        model: a directory, which need not hold weights, or the name of a published model.

    Returns:
        None if there is no such directory and the name is not among those whose dimensions are shipped.
    """
    directory = Path(model)
    if (directory / INDEX).is_file():
        found = (directory / INDEX, *directory.glob("*/config.json"))
        return {str(file.relative_to(directory)): _json(file) for file in found}
    published: dict[str, Files] = json.loads(PUBLISHED.read_text())
    return published.get(str(model))


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        fail("model_configs", "model", f"one whose {file} is JSON", error)
    require(isinstance(data, dict), "model_configs", "model", f"one whose {file} is a JSON object", type(data).__name__)
    return {str(name): value for name, value in data.items()}


@quiet(*LIBRARIES)
def _on_meta(name: str, files: Files) -> Any:
    """A part of a model without data.

    Args:
        name: of the part.
        files: of the model.
    """
    (library, kind), config = files[INDEX][name], dict(files[f"{name}/config.json"])
    require(library in LIBRARIES, "model_configs", "model", f"one of classes of {' and '.join(LIBRARIES)}", library)
    made: Any = getattr(import_module(library), kind)
    with torch.device("meta"):
        if library == "diffusers":
            return made.from_config(config)
        part = made(made.config_class.from_dict(config))
        part.tie_weights()  # transformers 5.0 does it only where weights are loaded
        return part
