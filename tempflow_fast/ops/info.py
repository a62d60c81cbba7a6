"""Which body serves which op, and why."""

from __future__ import annotations

import platform

import torch

from ..version import __version__
from . import bodies, native


class Info(dict[str, str]):
    """Facts by name; printed one per line."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {fact}" for name, fact in self.items())


def info() -> Info:
    """Versions, what was built and why, and the live body of every op.

    Returns:
        A dict that prints as a table.
    """
    built = native.build_info()
    facts = Info(tempflow_fast=__version__, torch=torch.__version__, python=platform.python_version())
    facts["native"] = (
        f"{native.reason}; {built['compiler']}, torch {built['torch']}, runs on torch >= {built['torch_target']}"
        if built
        else native.reason
    )
    facts["native_cuda"] = f"nvcc {built['cuda']} for {built['cuda_arch']}" if built.get("cuda") else _no_cuda()
    facts["cpu"], facts["cuda"] = bodies.why["cpu"], bodies.why["cuda"]
    for op in bodies.OPS:
        facts[op] = f"cpu: {_cpu_body(op)}; cuda: {bodies.body(op, 'cuda')}; float64: reference"
    return facts


def bodies_on(device_type: str) -> str:
    """Returns the implementations that serve the ops on a device, such as "native (avx2)".

    Args:
        device_type: cpu or cuda.
    """
    own = {_cpu_body(op) if device_type == "cpu" else bodies.body(op, device_type) for op in bodies.OPS}
    return " and ".join(sorted(own))


def _no_cuda() -> str:
    return native.build_record().get("cuda", "not built")


def _cpu_body(op: str) -> str:
    name = bodies.body(op, "cpu")
    return f"native ({native.cpu_isa()})" if name == "native" else name
