"""Three fixes for Triton's interpreter (3.7 to 3.9): bfloat16 and fma round as in hardware, and it runs faster."""

from __future__ import annotations

import numpy as np
import torch


def fix() -> None:
    """Makes the interpreter's results meet the tolerances of a GPU."""
    _round_to_nearest()
    _round_fma_once()
    _patch_the_language_once()


def _round_to_nearest() -> None:
    """Rounds float32 to bfloat16 as hardware does; the interpreter truncates."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    usual = InterpreterBuilder.cast_impl

    def cast_impl(self, source, destination):
        if (source.dtype.scalar, destination.scalar) != (tl.float32, tl.bfloat16):
            return usual(self, source, destination)
        values = torch.from_numpy(np.ascontiguousarray(source.data))
        return TensorHandle(values.bfloat16().view(torch.int16).numpy().view(np.uint16), destination.scalar)

    InterpreterBuilder.cast_impl = cast_impl


def _round_fma_once() -> None:
    """Rounds a float32 fma once; interpreters before 3.9 multiply, round and add."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    usual = InterpreterBuilder.create_fma

    def create_fma(self, x, y, z):
        if x.data.dtype != np.float32:
            return usual(self, x, y, z)
        return TensorHandle(fma(x.data, y.data, z.data), x.dtype)

    InterpreterBuilder.create_fma = create_fma


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z of float32 arrays with one rounding.

    The product is exact in float64, and the sum is rounded to odd there, which a second rounding cannot spoil.
    """
    product, addend = x.astype(np.float64) * y, z.astype(np.float64)
    total = np.atleast_1d(product + addend)
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    bits += ((np.abs(lost) > 0) & (bits & 1 == 0)) * np.where((lost > 0) == (total > 0), 1, -1)
    return total.astype(np.float32).reshape(np.shape(product + addend))


def _patch_the_language_once() -> None:
    """Halves the interpreter's time: it patches triton.language once per launch, not at every call of a device
    function."""
    from triton.runtime import interpreter

    usual, patched, known = interpreter._patch_lang, set(), {id(interpreter.tl), id(interpreter.tl.core)}

    def patch_lang(fn):
        languages = known & {id(value) for value in fn.__globals__.values()}
        if languages <= patched:
            return interpreter._LangPatchScope()
        scope = usual(fn)
        patched.update(languages)
        restore = scope.restore

        def restore_all() -> None:
            restore()
            patched.clear()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_lang
