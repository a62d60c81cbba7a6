"""Parametrizations that tests of the ops share."""

from __future__ import annotations

import pytest
import torch

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
GUIDED = pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
