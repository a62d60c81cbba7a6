"""The noise of csrc/noise.h in Triton: the same words, polynomials (of Cephes) and roundings.

Triton's own `randn4x` is another function (31-bit uniforms, clamped at 1e-7), and its sine and cosine have a slow path.
"""

import triton
import triton.language as tl

from .launch import THREADS

SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)  # the bits of sqrt(1/2) as a float32
MANTISSA = tl.constexpr(0x007FFFFF)  # of a float32
LN_2 = tl.constexpr(0.693147180559945)
TWO_PI_OVER_2_TO_32 = tl.constexpr(1.4629180792671596e-9)  # radians per unit of a word
TWO_TO_MINUS_31, TWO_TO_MINUS_32 = tl.constexpr(2.0**-31), tl.constexpr(2.0**-32)
WORD = tl.constexpr(0xFFFFFFFF)


@triton.jit
def minus_two_log(u):
    """-2 ln u for u in (0, 1]: u = 2^e (1 + m) with 1 + m in [sqrt(1/2), sqrt(2)), and a polynomial for ln(1 + m)."""
    bits = u.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    e = (bits >> 23).to(tl.float32)
    m = ((bits & MANTISSA) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    m2 = m * m
    p = tl.fma(m, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, m, 1.1676998740e-1)
    p = tl.fma(p, m, -1.2420140846e-1)
    p = tl.fma(p, m, 1.4249322787e-1)
    p = tl.fma(p, m, -1.6668057665e-1)
    p = tl.fma(p, m, 2.0000714765e-1)
    p = tl.fma(p, m, -2.4999993993e-1)
    p = tl.fma(p, m, 3.3333331174e-1)
    return -2.0 * tl.fma(e, LN_2, m + tl.fma(m * m2, p, -0.5 * m2))


@triton.jit
def sincos_turn(t):
    """sin and cos of 2 pi t / 2^32 for a uint32 t; the nearest quarter turn is subtracted in integers."""
    quarter = ((t + 0x20000000) >> 30).to(tl.int32)
    f = (t.to(tl.int32, bitcast=True) - (quarter << 30)).to(tl.float32) * TWO_PI_OVER_2_TO_32
    f2 = f * f
    s = tl.fma(f2, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(s, f2, -1.6666654611e-1)
    s = tl.fma(s * f2, f, f)
    c = tl.fma(f2, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(c, f2, 4.166664568298827e-2)
    c = tl.fma(c * f2, f2, tl.fma(f2, -0.5, 1.0))
    odd = (quarter & 1) != 0
    sine = tl.where(odd, c, s).to(tl.int32, bitcast=True) ^ ((quarter & 2) << 30)
    cosine = tl.where(odd, s, c).to(tl.int32, bitcast=True) ^ (((quarter + 1) & 2) << 30)
    return sine.to(tl.float32, bitcast=True), cosine.to(tl.float32, bitcast=True)


@triton.jit
def box_muller(radius_word, angle_word):
    """Two normals from two uint32 words; half a unit is added to the 31 bits, so that no logarithm is that of 0."""
    wide = (radius_word >> 1).to(tl.int32).to(tl.float32)
    radius = tl.sqrt_rn(minus_two_log(tl.fma(wide, TWO_TO_MINUS_31, TWO_TO_MINUS_32)))
    sine, cosine = sincos_turn(angle_word)
    return radius * cosine, radius * sine


@triton.jit
def quad_words(seed, trajectory_id, branch_step, quad):
    """The four uint32 words of each quad. Only `quad` is a tensor: the scalars' part of round 1 is computed once."""
    low, high = (trajectory_id & WORD).to(tl.uint32), (trajectory_id >> 32).to(tl.uint32)
    return tl.philox(seed, quad, tl.cast(branch_step, tl.uint32), low, high)


@triton.jit
def quad_normals(seed, trajectory_id, branch_step, quad):
    """The normals of elements 4 quad .. 4 quad + 3, as four tensors."""
    a, b, c, d = quad_words(seed, trajectory_id, branch_step, quad)
    n0, n1 = box_muller(a, b)
    n2, n3 = box_muller(c, d)
    return n0, n1, n2, n3


@triton.jit
def normals(seed, trajectory_id, branch_step, first, BLOCK: tl.constexpr):
    """The normals of elements first .. first + BLOCK - 1 in order, and the four tensors of all threads' (first) quads.

    A thread draws the 4 or 8 neighbouring elements that it stores, 8 of them from two tensors of quads: quads in a
    single tensor would first have to pass through shared memory.
    """
    PAIRED: tl.constexpr = BLOCK // THREADS == 8  # noqa: N806
    tl.static_assert(PAIRED or BLOCK // THREADS == 4)
    lane = tl.arange(0, THREADS).to(tl.uint32)
    quad = (first // 4).to(tl.uint32) + (2 * lane if PAIRED else lane)
    n0, n1, n2, n3 = quad_normals(seed, trajectory_id, branch_step, quad)
    even, odd = tl.interleave(n0, n2), tl.interleave(n1, n3)
    if PAIRED:
        m0, m1, m2, m3 = quad_normals(seed, trajectory_id, branch_step, quad + 1)
        even = tl.interleave(tl.interleave(n0, m0), tl.interleave(n2, m2))
        odd = tl.interleave(tl.interleave(n1, m1), tl.interleave(n3, m3))
    return tl.interleave(even, odd), n0, n1, n2, n3


@triton.jit
def sum_squares(n0, n1, n2, n3, left):
    """The sum of the squares of the first `left` elements of quads, one quad per thread, before they are put in order.

    For a sum of the ordered tensor, the compiler would make a second tensor in another order.
    """
    place = 4 * tl.arange(0, THREADS)
    square = tl.where(place < left, n0 * n0, 0.0) + tl.where(place + 1 < left, n1 * n1, 0.0)
    return tl.sum(square + (tl.where(place + 2 < left, n2 * n2, 0.0) + tl.where(place + 3 < left, n3 * n3, 0.0)))
