"""The processes that share a run: a single one, or many under accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from .connections import watched
from .errors import finite, require
from .policies.base import Policy
from .policies.sharding import gathered, is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

MINUTES = 30.0
"""How long a process waits for the others: longer than the slowest reward, and longer than saving a checkpoint."""

DECIDED_HERE = {
    "ACCELERATE_MIXED_PRECISION": ("no", "--precision decides"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "--micro-batch decides"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "--compile-blocks decides"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "FSDP2 shards weights"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "FSDP2 shards weights"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "FSDP2 shards weights"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("0", "--precision decides"),
    "NVIDIA_TF32_OVERRIDE": ("0", "--precision decides"),
}
"""Variables that would change the numbers of a run without a trace in its settings, most of them set by accelerate's
launcher from its config file: the one value that is allowed, and what decides instead."""


class ProcessLostError(RuntimeError):
    """Another process of the run does not answer: it has ended, or its machine cannot be reached."""


class Processes:
    """A single process. Nothing here waits, copies or imports accelerate."""

    index = 0
    """Which process this is, 0 .. count - 1."""
    count = 1
    """How many processes share the run."""
    kind = "1 process"
    """How many processes there are and how they hold the network, in words."""
    shards = False
    """Whether they divide the network among themselves (FSDP)."""
    device: torch.device | None = None
    """The device that this process has to use; None: any."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.index == 0

    def say(self, text: object) -> None:
        """Prints in the main process only.

        Args:
            text: what to print.
        """
        if self.is_main:
            print(text)

    def prepare(self, policy: Policy, optimizer: Optimizer) -> Optimizer:
        """Prepares `policy.network` and the optimizer for training by all processes.

        Call it once: after `policy.freeze_reference()` if there is a KL to the starting weights, and before a
        learning-rate schedule is made for the optimizer.

        Args:
            policy: whose network may be replaced by a wrapper.
            optimizer: of the policy's parameters.

        Returns:
            The optimizer to use.
        """
        return optimizer

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, which all of them must call together.

        Args:
            tensor: of any shape, the same in all processes.

        Returns:
            The sum, on the device of `tensor` and with the same bits in all processes.
        """
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes, element by element, which all of them must call together.

        Args:
            tensor: of any shape, the same in all processes.

        Returns:
            The maximum, on the device of `tensor`.
        """
        return tensor

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this process's share of the loss.

        Args:
            loss: a scalar; the whole loss is the sum over the processes.
        """
        loss.backward()

    def accumulating(self, network: nn.Module) -> AbstractContextManager[None]:
        """Inside this context gradients stay in their process; the next backward outside it sums them.

        Args:
            network: the policy's.
        """
        return nullcontext()

    def clip_grad_norm(self, parameters: Sequence[Parameter], max_norm: float) -> Tensor:
        """Scales the gradient of the whole loss down to `max_norm`.

        Args:
            parameters: those with the gradient.
            max_norm: the largest norm to leave.

        Returns:
            The norm before, a scalar tensor.
        """
        return clip_grad_norm_(parameters, max_norm).detach()

    def trained_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Copies of the trained parameters, which all processes must ask for together.

        Args:
            network: the policy's, in its wrapper.

        Returns:
            Name in the unwrapped network -> the whole parameter on the host; empty in all but the main process.
        """
        trained = ((name, value) for name, value in network.named_parameters() if value.requires_grad)
        return {name: value.detach().to("cpu", copy=True) for name, value in trained}

    def whole(self, policy: Policy) -> AbstractContextManager[None]:
        """Inside this context the main process can save the policy: its trained parameters are whole there.

        All processes must enter it together; none may call the network inside.

        Args:
            policy: the one to save.
        """
        return nullcontext()

    def wait(self) -> None:
        """Returns when every process has called this."""

    def guarded(self) -> AbstractContextManager[None]:
        """Inside this context the loss of another process is a `ProcessLostError` with a sentence that says so.

        A loss that no wait reports, such as a cut link, prints the sentence and ends this process within a minute. All
        processes must enter it together.
        """
        return nullcontext()


class AcceleratedProcesses(Processes):
    """The processes of an `accelerate launch`, with DDP or FSDP2 as configured there.

    Args:
        accelerator: the run's; `launched` makes one with the settings that this package needs.

    Raises:
        ValueError: if the accelerator would change precision or gradients.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        for name, wanted in (("mixed_precision", "no"), ("gradient_accumulation_steps", 1)):
            value = getattr(accelerator, name)
            require(value == wanted, "AcceleratedProcesses", f"accelerator.{name}", repr(wanted), repr(value))
        self.accelerator = accelerator
        self.index, self.count, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device
        self.shards = accelerator.is_fsdp2
        self.kind = f"{self.count} processes by {'FSDP2' if self.shards else 'DDP'}"
        self._is_watched = False

    def prepare(self, policy: Policy, optimizer: Optimizer) -> Optimizer:
        policy.network, optimizer = self.accelerator.prepare(policy.network, optimizer)
        network: Any = policy.network
        if isinstance(network, DistributedDataParallel):
            network.broadcast_buffers = False  # buffers are constants, up to 0.9 GB in SD3
        elif hasattr(network, "set_reshard_after_forward"):  # FSDP2
            # Averages and checkpoints also change weights between calls, and weights that stayed gathered after the
            # last call would not change with them.
            network.set_reshard_after_forward(True)
        return optimizer

    def sum(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor).sum(dim=0).to(tensor.device)

    def max(self, tensor: Tensor) -> Tensor:
        return self._gather(tensor).amax(dim=0).to(tensor.device)

    def _gather(self, tensor: Tensor) -> Tensor:
        """[count, *shape]. Adding these up in order gives all processes the same bits."""
        return self.accelerator.gather(tensor.detach().to(self.device)[None].contiguous())

    def backward(self, loss: Tensor) -> None:
        # DDP and FSDP2 average over the processes, but the shares must be summed.
        self.accelerator.backward(loss * self.count)

    def accumulating(self, network: nn.Module) -> AbstractContextManager[None]:
        return self.accelerator.no_sync(network)

    def clip_grad_norm(self, parameters: Sequence[Parameter], max_norm: float) -> Tensor:
        self.accelerator.unscale_gradients()
        return gathered(clip_grad_norm_(parameters, max_norm).detach())  # the norm of shards is sharded, too

    def trained_state(self, network: nn.Module) -> dict[str, Tensor]:
        state = {}
        for name, value in self.accelerator.unwrap_model(network).named_parameters():
            if value.requires_grad:
                whole = gathered(value.detach())  # one at a time, to avoid a second copy of all parameters
                if self.is_main:
                    state[name] = whole.to("cpu", copy=True)
        return state

    @contextmanager
    def whole(self, policy: Policy) -> Iterator[None]:
        sharded = [
            (module, name, parameter)
            for module in policy.network.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and is_sharded(parameter)
        ]
        for module, name, parameter in sharded:
            tensor = gathered(parameter.detach())
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
        lost = (
            f"process {self.index} of {self.count} lost the others: one of them ended, does not answer or cannot "
            "be reached; its last lines of output say why"
        )
        try:
            with self._watched(lost):
                yield
        except RuntimeError as error:
            if not _is_lost_connection(error):
                raise
            raise ProcessLostError(lost) from error

    @contextmanager
    def _watched(self, lost: str) -> Iterator[None]:
        """Inside the outermost of these contexts, the loss of another process ends this one."""
        if self._is_watched:
            yield
            return
        self._is_watched = True
        try:
            with watched(self.count, lambda value: int(self.max(torch.tensor(value))), self.is_main, lost):
                yield
        finally:
            self._is_watched = False


def launched(cpu: bool = False, minutes: float = MINUTES) -> Processes:
    """The processes of this launch: many under `accelerate launch` or torchrun, else this one alone.

    Call it once, before a model is loaded.

    Args:
        cpu: use the CPU even if there is an accelerator.
        minutes: how long a process waits for the others before it fails.

    Returns:
        The processes as this process sees them.

    Raises:
        ValueError: if the launch asks for FSDP of version 1, or for something else that would change the numbers of the
            run (see `DECIDED_HERE`).
    """
    require(finite("launched", "minutes", minutes) > 0, "launched", "minutes", "positive", minutes)
    for name, (wanted, instead) in DECIDED_HERE.items():
        value = os.environ.get(name, wanted)
        require(value.lower() == wanted, "launched", name, f"{wanted!r}, since {instead}", repr(value))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    version = os.environ.get("FSDP_VERSION", "1")
    require(not sharded or version == "2", "launched", "FSDP", "of version 2 (--fsdp_version 2)", version)
    # By default accelerate's launcher has transformers load weights in the first process only, and FSDP sends them to
    # the others. Text encoders are not sharded: in the other processes they would stay empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, InitProcessGroupKwargs

    handlers = [InitProcessGroupKwargs(timeout=timedelta(minutes=minutes))]
    # Without the first argument, processes on a machine with only CPUs would not find each other.
    cpu = cpu or not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
    if sharded and accelerator.device.type == "cpu":
        shard_on_cpu(accelerator, FullyShardedDataParallelPlugin())
    return AcceleratedProcesses(accelerator)


def shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Makes `accelerator.prepare` shard on CPUs, where accelerate silently uses DDP when asked for FSDP.

    Args:
        accelerator: the run's.
        plugin: the settings of FSDP.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    accelerator.state.fsdp_plugin = plugin
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP


def _is_lost_connection(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    text = str(error).lower()
    return isinstance(error, DistError) or "gloo" in text or "connection closed by peer" in text
