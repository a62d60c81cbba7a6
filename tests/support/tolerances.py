"""How far a body may be from the float64 reference, in one table, each line with its reason.

An entry is (relative, absolute) as in torch.testing.assert_close.
"""

from __future__ import annotations

import torch

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16

TOLERANCE = {
    # Values of magnitude up to 20 after a few float32 operations; the polynomials of the noise are good to 1e-6.
    ("latents", FLOAT): (1e-6, 4e-6),
    # The same, then one rounding to 8 (11) bits: half a unit in the last place, doubled for values at a boundary.
    ("latents", BFLOAT): (2**-8, 1e-5),
    ("latents", HALF): (2**-11, 1e-5),
    # A mean of squares of (x' - m) / s: float32 moves one residual by 1e-7 |x'| / s, and with D = 1 nothing averages.
    ("log_prob", FLOAT): (1e-5, 2e-5),
    # Narrow samples are read back as stored, so only float32 arithmetic is left.
    ("log_prob", BFLOAT): (1e-5, 2e-5),
    ("log_prob", HALF): (1e-5, 2e-5),
    # b dv times a residual of size s, over s^2: the residual carries the float32 rounding of x' and m (1e-6 of it).
    ("log_ratio", FLOAT): (2e-5, 1e-8),
    ("log_ratio", BFLOAT): (2e-5, 1e-7),
    ("log_ratio", HALF): (2e-5, 1e-7),
    # Statistics and the loss: sums of the above in float64, returned as float32.
    ("statistic", FLOAT): (1e-5, 1e-7),
    ("statistic", BFLOAT): (1e-5, 1e-7),
    ("statistic", HALF): (1e-5, 1e-7),
    # Gradients relative to the largest of a tensor: advantages of both signs cancel within an element.
    ("gradient", FLOAT): (0.0, 3e-6),
    # One rounding of the final value; half a unit of 8 (11) bits.
    ("gradient", BFLOAT): (0.0, 2**-8),
    ("gradient", HALF): (0.0, 2**-10),
}


def assert_near(kind: str, dtype: torch.dtype, got: torch.Tensor, want: torch.Tensor) -> None:
    """Compare with the float64 `want`; gradients are first divided by the largest element of `want`."""
    relative, absolute = TOLERANCE[kind, dtype]
    got, want = got.double(), want.double()
    if kind == "gradient" and want.numel():
        largest = want.abs().max().clamp_min(1e-300)
        got, want = got / largest, want / largest
    torch.testing.assert_close(got, want, rtol=relative, atol=absolute)
