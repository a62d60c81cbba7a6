"""Which body serves which op, and why."""

from __future__ import annotations

import platform

import torch

from . import native, ops  # noqa: F401  ops holds the schemas that are asked about here

OPS = (
    "guided_velocity",
    "euler_step",
    "branch_step",
    "initial_noise",
    "log_prob",
    "log_prob_backward",
    "policy_loss",
)


class Info(dict[str, str]):
    """Facts by name; printed one per line."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {fact}" for name, fact in self.items())


def info() -> Info:
    """Versions, what was built and why, and the live body of every op, as a dict that prints as a table."""
    from . import __version__

    built, record = native.build_info(), native.build_record()
    facts = Info(tempflow_fast=__version__, torch=torch.__version__, python=platform.python_version())
    facts["native"] = (
        f"{native.reason}; {built['compiler']}, torch {built['torch']}, runs on torch >= {built['torch_target']}"
        if built
        else native.reason
    )
    facts["native_cuda"] = _cuda_fact(built, record)
    for op in OPS:
        facts[op] = f"cpu: {_body(op, 'CPU')}; cuda: {_body(op, 'CUDA')}; float64: reference"
    return facts


def _cuda_fact(built: dict[str, str], record: dict[str, str]) -> str:
    if built.get("cuda"):
        return f"nvcc {built['cuda']} for {built['cuda_arch']}"
    return record.get("cuda", "not built")


def _body(op: str, key: str) -> str:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"tempflow_fast::{op}", key):
        return "reference"
    return f"native ({native.cpu_isa()})" if key == "CPU" else "native"
