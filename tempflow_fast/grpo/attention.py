"""Which of torch's kernels for attention training may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Inside this context, attention is not cuDNN's; also a decorator. Other kernels and other devices are as before.

    For backward passes: torch keeps cuDNN's programs by the layout of queries, keys and values, but not by that of the
    gradient which they get (aten/src/ATen/native/cudnn/MHA.cpp), and a program reads every later gradient as it read
    its first. FLUX's single blocks give it a slice of a wider tensor, the double blocks a dense one of the same size:
    on an H100 with torch 2.11, whose default cuDNN is there, FLUX.1's shape ended in an illegal memory access, and a
    tiny one got wrong finite gradients or NaN (docs/gpu.md).

    The switch is the whole process's, as torch has it, so that calls that are repeated for a backward pass, which run
    in other threads, heed it too.
    """
    usual = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(usual)
