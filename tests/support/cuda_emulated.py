"""The CUDA kernels executed on the CPU under sanitizers, in one process for all calls.

The methods of an Emulator take and return what the ops of their names do. cuda_emulated.cpp describes the protocol.
"""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from support import ROOT
from support.op_draws import Call

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
KERNEL_THREADS, ACCESS_BYTES = 256, 16


def build(compiler: str, program: Path, has_fma: bool) -> None:
    """Compiles the kernels for the CPU; without fma, the last bits of results may differ from those of other bodies."""
    flags = ["-std=c++17", "-O1", "-DTF_EMULATE", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    flags += ["-Wno-clobbered", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *["-mfma"] * has_fma]
    source = ROOT / "tests/support/cuda_emulated.cpp"
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)


def blocks_of(numel: int, dtype: torch.dtype) -> int:
    return -(-numel // (KERNEL_THREADS * ACCESS_BYTES // dtype.itemsize))


def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory full of NaN (or of large integers), which a kernel has to write before it reads."""
    return torch.full(shape, torch.nan if dtype.is_floating_point else 2**30, dtype=dtype)


class Zeros(NamedTuple):
    """Rows of zeros at a distance of `stride` elements; only what is read takes memory."""

    num_rows: int
    stride: int


class Emulator:
    """Calls launchers. Every argument is copied to the process, and results are new tensors.

    Args:
        program: the output of `build`, or a program that runs it.
        options: "backwards" runs blocks and threads in the opposite order; "forgetful" fills the rows with NaN before
            the second launch; or the arguments of the program that runs it.
    """

    num_launches = 0
    """The launches of the last call."""

    def __init__(self, program: Path, *options: str) -> None:
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # leaks of a test program say nothing
        command, pipe = [program, *options], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def launch(self, name: str, dtype: torch.dtype, *arguments: object) -> None:
        """Calls a launcher, which changes the tensors in place.

        Args:
            name: the launcher's name.
            dtype: the latents' dtype.
            arguments: in the order of the launcher's argument struct.
        """
        tokens, buffers = [], []
        for argument in arguments:
            kind = "i" if isinstance(argument, int) else "f" if isinstance(argument, float) else "p"
            if argument is None:
                tokens.append("n")
            elif isinstance(argument, Zeros):
                tokens.append(f"z {argument.num_rows * argument.stride * dtype.itemsize}")
            elif kind == "p":
                buffers.append(memory_of(argument).view(torch.uint8).numpy())
                tokens.append(f"p {buffers[-1].nbytes}")
            else:
                tokens.append(f"{kind} {argument!r}")
        stream = self.process.stdin
        stream.write(f"{name} {DTYPE_CODES[dtype]} {' '.join(tokens)}\n".encode() + b"".join(map(bytes, buffers)))
        stream.flush()
        length = self.process.stdout.readline()
        if not length:
            raise AssertionError(f"{name}: {self.process.communicate()[1].decode()[-4000:]}")
        length, self.num_launches = map(int, length.split())
        error = self.process.stdout.read(length).decode()
        for buffer in buffers:
            buffer[:] = bytearray(self.process.stdout.read(buffer.nbytes))
        assert not error, error

    def guided_velocity(self, velocity: Tensor, uncond: Tensor, scale: float) -> Tensor:
        out = scratch(*velocity.shape, dtype=velocity.dtype)
        guided = (*rows(velocity), *rows(uncond), scale)
        self.launch("guided_velocity", velocity.dtype, *guided, out, *velocity.shape)
        return out

    def euler_step(
        self, latents: Tensor | Zeros, velocity: Tensor, uncond: Tensor | None, scale: float, coefficients: Tensor,
        step: int,
    ) -> Tensor:  # fmt: skip
        out = scratch(*velocity.shape, dtype=velocity.dtype)
        state = (*rows(latents), *rows(velocity), *rows(uncond), scale, coefficients[step].clone())
        self.launch("euler_step", velocity.dtype, *state, out, *velocity.shape)
        return out

    def branch_step(
        self, latents: Tensor, velocity: Tensor, uncond: Tensor | None, scale: float, coefficients: Tensor, step: int,
        num_branches: int, seed: Tensor, trajectory_ids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (n, d), dtype = latents.shape, latents.dtype
        latents_next, branches = scratch(n, d, dtype=dtype), scratch(n, num_branches, d, dtype=dtype)
        partial, log_prob = scratch(n, num_branches, blocks_of(d, dtype)), scratch(n, num_branches)
        state = (*rows(latents), *rows(velocity), *rows(uncond), scale, coefficients[step].clone(), step)
        noise = (seed.clone(), trajectory_ids.clone())
        self.launch("branch_step", dtype, *state, *noise, latents_next, branches, partial, log_prob, n, num_branches, d)
        return latents_next, branches, log_prob

    def initial_noise(self, trajectory_ids: Tensor, seed: Tensor, numel: int) -> Tensor:
        out = scratch(len(trajectory_ids), numel)
        self.launch("initial_noise", torch.float32, seed.clone(), trajectory_ids.clone(), out, *out.shape)
        return out

    def log_prob(
        self, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
    ) -> Tensor:
        (n, d), dtype = latents.shape, latents.dtype
        out, partial = scratch(n), scratch(n, blocks_of(d, dtype))
        state = (*rows(latents_next), *rows(latents), *rows(velocity), *step_of_row(coefficients, steps))
        self.launch("log_prob", dtype, *state, partial, out, None, None, n, d)
        return out

    def log_prob_backward(
        self, grad: Tensor, latents_next: Tensor, latents: Tensor, velocity: Tensor, coefficients: Tensor, steps: Tensor
    ) -> Tensor:
        out = scratch(*latents.shape, dtype=latents.dtype)
        state = (*rows(latents_next), *rows(latents), *rows(velocity), *step_of_row(coefficients, steps))
        self.launch("log_prob_backward", latents.dtype, *state, None, None, grad.clone(), out, *latents.shape)
        return out

    def policy_loss(
        self, velocity: Tensor, uncond: Tensor | None, latents: Tensor, branches: Tensor, old: Tensor,
        ref: Tensor | None, advantages: Tensor, coefficients: Tensor, steps: Tensor, scale: float, clip_range: float,
        beta: float, with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        (n, k, d), dtype = branches.shape, branches.dtype
        loss, clip_fraction, kl, log_ratio = scratch(1), scratch(1), scratch(1), scratch(n, k)
        gradient = scratch(n, d) if with_gradient else None
        memory = (scratch(n, k + 2, blocks_of(d, dtype)), scratch(n, 3, dtype=torch.float64))
        self.launch(
            "policy_loss", dtype, *rows(velocity), *rows(uncond), scale, *rows(latents), *rows(old), *rows(ref),
            *rows(branches), branches.stride(1), advantages.clone(), *step_of_row(coefficients, steps),
            clip_range, beta, *memory, scratch(1, dtype=torch.int32), loss, clip_fraction, kl, log_ratio, gradient,
            n, k, d,
        )  # fmt: skip
        return loss[0], log_ratio, clip_fraction[0], kl[0], gradient


def memory_of(tensor: Tensor) -> Tensor:
    """The tensor's whole storage in one dimension."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def rows(tensor: Tensor | Zeros | None) -> tuple[Tensor | Zeros | None, int, int]:
    """The tokens of Rows: a copy of the tensor's memory, the offset of its first row, and its stride."""
    if isinstance(tensor, Zeros):
        return tensor, 0, tensor.stride
    return (None, 0, 0) if tensor is None else (memory_of(tensor).clone(), tensor.storage_offset(), tensor.stride(0))


def step_of_row(coefficients: Tensor, steps: Tensor) -> tuple[Tensor, int, Tensor]:
    """The tokens of StepOfRow: copies of the coefficients and of the rows' steps, with the number of steps between."""
    return coefficients.clone(), len(coefficients), steps.clone()


def results(cuda: Emulator, call: Call) -> dict[str, Tensor]:
    """What `op_bounds.results` gives for a drawn call, from the CUDA kernels."""
    rows_by_name = {k: v.flatten(1) for k, v in call.arguments.items() if isinstance(v, Tensor) and v.dim() > 2}
    named = call.arguments | rows_by_name
    velocity, uncond, scale = named.get("velocity"), named.get("velocity_uncond"), named.get("guidance_scale", 1.0)
    if call.op == "guided_velocity":
        return _shaped(call, {"0": cuda.guided_velocity(velocity, uncond, scale)})
    key, ids = torch.tensor(named.get("seed", 0)), torch.tensor(named.get("trajectory_ids", []), dtype=torch.int64)
    if call.op == "initial_noise":
        shape = named["shape"]
        return {"0": cuda.initial_noise(ids, key, math.prod(shape)).view(len(ids), *shape)}
    table, steps = named["table"].coefficients(), torch.tensor(named.get("steps", []), dtype=torch.int64)
    state = (named["latents"], velocity, uncond, scale, table)
    if call.op == "euler_step":
        return _shaped(call, {"0": cuda.euler_step(*state, named["step"])})
    if call.op == "branch_step":
        drawn = cuda.branch_step(*state, named["step"], named["num_branches"], key, ids)
        return _shaped(call, dict(zip("012", drawn, strict=True)))
    if call.op == "log_prob":
        inputs = (named["latents_next"], named["latents"], velocity, table, steps)
        gradient = cuda.log_prob_backward(torch.ones(len(steps)), *inputs)
        return {"0": cuda.log_prob(*inputs)} | _shaped(call, {"gradient": gradient})
    branches = call.arguments["branches"].flatten(2)
    options = (scale, named["clip_range"], named.get("beta", 0.0), True)
    policies = (named["velocity_old"], named.get("velocity_ref"), call.arguments["advantages"])
    *statistics, gradient = cuda.policy_loss(
        velocity, uncond, named["latents"], branches, *policies, table, steps, *options
    )
    shares = {"gradient": scale, "uncond_gradient": 1 - scale} if uncond is not None else {"gradient": 1.0}
    gradients = {name: (gradient * share).to(velocity.dtype) for name, share in shares.items()}
    return dict(zip(("loss", "log_ratio", "clip_fraction", "kl"), statistics, strict=True)) | _shaped(call, gradients)


def _shaped(call: Call, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows [*, D] in the shape of the call's latents; result 2, of branch_step, has no rows."""
    shape, numel = call.arguments["velocity"].shape[1:], call.arguments["velocity"].shape[1:].numel()
    wide = {
        name: value.unflatten(-1, shape)
        for name, value in found.items()
        if value.shape[-1:] == (numel,) and name != "2"
    }
    return found | wide
