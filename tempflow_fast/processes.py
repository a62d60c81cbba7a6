"""The processes that share a run: one by itself, or many under accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from .policies.base import Policy

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

MINUTES = 30.0
"""How long a process waits for the others: longer than the slowest reward, and than saving a checkpoint."""


class ProcessLostError(RuntimeError):
    """Another process of the run does not answer: it ended, or its machine is out of reach."""


class Processes:
    """One process by itself. Nothing here waits, copies or imports accelerate."""

    index = 0
    """Which process this is, 0 .. count - 1."""
    count = 1
    """How many processes share the run."""
    kind = "1 process"
    """How many there are and how they hold the network, in words."""
    device: torch.device | None = None
    """Where this process has to compute; None: wherever it likes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.index == 0

    def prepare(self, policy: Policy, optimizer: Optimizer) -> Optimizer:
        """Makes `policy.network` and the optimizer fit to be trained by all processes; returns the optimizer to use.

        To be called once, after `policy.freeze_reference()` where there is a KL to the starting weights, and before a
        learning-rate schedule takes hold of the optimizer.
        """
        return optimizer

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor that has one shape in all of them; same device, same bits in all."""
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The largest value over all processes, element by element, as in `sum`."""
        return tensor

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this process's share of the loss; the whole loss is the sum over the processes."""
        loss.backward()

    def accumulating(self, network: nn.Module) -> AbstractContextManager[None]:
        """Inside this context gradients stay with their process; the next backward outside it adds up all of them."""
        return nullcontext()

    def clip_grad_norm(self, parameters: Sequence[Parameter], max_norm: float) -> Tensor:
        """Scales the gradient of the whole loss down to `max_norm`; returns its norm before, a scalar tensor."""
        return clip_grad_norm_(parameters, max_norm).detach()

    def trained_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Copies of the parameters that take a gradient, whole, on the host, under the names of the bare network.

        All processes must call it together; all but the main one get an empty dictionary.
        """
        trained = ((name, value) for name, value in network.named_parameters() if value.requires_grad)
        return {name: value.detach().to("cpu", copy=True) for name, value in trained}

    def whole(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside this context the main process can save the policy: its trained parameters are whole there.

        All processes must enter it together; none may call the network inside.
        """
        return nullcontext()

    def wait(self) -> None:
        """Returns when every process has come here."""

    def guarded(self) -> AbstractContextManager[None]:
        """Inside this context the loss of another process is a `ProcessLostError` with a sentence that says so."""
        return nullcontext()


class AcceleratedProcesses(Processes):
    """The processes of an `accelerate launch`, with DDP or FSDP2 as it was configured there.

    Args:
        accelerator: the one of this run; see `launched` for one with the settings that suit this package.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.index, self.count, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device
        self.kind = f"{self.count} processes by {'FSDP2' if accelerator.is_fsdp2 else 'DDP'}"

    def prepare(self, policy: Policy, optimizer: Optimizer) -> Optimizer:
        policy.network, optimizer = self.accelerator.prepare(policy.network, optimizer)
        if isinstance(policy.network, DistributedDataParallel):
            policy.network.broadcast_buffers = False  # they are constants, up to 0.9 GB of them in SD3
        elif hasattr(policy.network, "set_reshard_after_forward"):  # FSDP2
            # Weights are also changed between calls, by averages and checkpoints, and what stayed gathered after the
            # last call would not see it.
            policy.network.set_reshard_after_forward(True)
        return optimizer

    def sum(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor).sum(dim=0).to(tensor.device)

    def max(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor).amax(dim=0).to(tensor.device)

    def _gather(self, tensor: Tensor) -> Tensor:
        """[count, *shape]. Adding these up in order gives all processes the same bits."""
        return self.accelerator.gather(tensor.detach().to(self.device)[None].contiguous())

    def backward(self, loss: Tensor) -> None:
        # DDP and FSDP2 average over the processes, and the shares are to be added.
        self.accelerator.backward(loss * self.count)

    def accumulating(self, network: nn.Module) -> AbstractContextManager[None]:
        return self.accelerator.no_sync(network)

    def clip_grad_norm(self, parameters: Sequence[Parameter], max_norm: float) -> Tensor:
        self.accelerator.unscale_gradients()
        return _whole(clip_grad_norm_(parameters, max_norm).detach())  # of shards: a norm that is sharded, too

    def trained_state(self, network: nn.Module) -> dict[str, Tensor]:
        state = {}
        for name, value in self.accelerator.unwrap_model(network).named_parameters():
            if value.requires_grad:
                whole = _whole(value.detach())  # parameter by parameter: never a second copy of all of them
                if self.is_main:
                    state[name] = whole.to("cpu", copy=True)
        return state

    @contextmanager
    def whole(self, policy: Policy) -> Iterator[None]:
        sharded = [
            (module, name, parameter)
            for module in policy.network.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and _is_sharded(parameter)
        ]
        for module, name, parameter in sharded:
            tensor = parameter.detach().full_tensor()
            if self.is_main:
                module._parameters[name] = Parameter(tensor.cpu())
        try:
            yield
        finally:
            for module, name, parameter in sharded:
                module._parameters[name] = parameter

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise ProcessLostError(
                f"process {self.index} of {self.count} lost the others: one of them ended, does not answer or cannot "
                "be reached; its own last lines say why"
            ) from error


def launched(cpu: bool = False, minutes: float = MINUTES) -> Processes:
    """The processes of this launch: many under `accelerate launch` or torchrun, else this one by itself.

    To be called before a model is loaded, and once.

    Args:
        cpu: use the CPU even where there is an accelerator.
        minutes: how long a process waits for the others before it gives them up.

    Raises:
        ValueError: if the launch asks for FSDP of version 1.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ValueError(f"launched: FSDP must be of version 2 (--fsdp_version 2), got {version}")
    # By default accelerate's launcher has transformers load weights in the first process alone, for FSDP to send them
    # on. Text encoders are not sharded: those of the other processes would stay empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, InitProcessGroupKwargs

    handlers = [InitProcessGroupKwargs(timeout=timedelta(minutes=minutes))]
    # Without the first argument, processes on a machine that has nothing but CPUs would not know of each other.
    cpu = cpu or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
    if sharded and accelerator.device.type == "cpu":
        shard_on_cpu(accelerator, FullyShardedDataParallelPlugin())
    return AcceleratedProcesses(accelerator)


def shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """From here on `accelerator.prepare` shards; asked for FSDP on CPUs, accelerate itself uses DDP without a word."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    accelerator.state.fsdp_plugin = plugin
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every process; any other as it is."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor


def _is_sharded(tensor: Tensor) -> bool:
    # By name: the import of DTensor takes two seconds, which one process by itself need not wait.
    return hasattr(tensor, "full_tensor")


def _is_lost_connection(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    text = str(error).lower()
    return isinstance(error, DistError) or "gloo" in text or "connection closed by peer" in text
