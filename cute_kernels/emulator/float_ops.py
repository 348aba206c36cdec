"""Floating-point functions that generated code calls: arrays of lanes in, arrays of lanes out, any leading axes.

`finish_*` turn float lanes into register bits with the canonical NaN of NVIDIA hardware. bf16 lanes are float32
until they are finished. NumPy's warnings must be off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import float_rounding
from cute_kernels.emulator.float_rounding import (
    fma_f32,
    narrowed,
    nearest_f32,
    odd_f32,
    signed_zero,
    sum_to_odd,
)
from cute_kernels.emulator.lane_constants import ByLength

Lanes = NDArray[Any]

NAN_F32 = np.uint32(0x7FFFFFFF).view(np.float32)
NAN_F64 = np.uint64(0xFFF8000000000000).view(np.float64)
NAN_F16 = np.uint16(0x7FFF).view(np.float16)
_SIXTEEN, _ONE = ByLength(np.uint32(16)), ByLength(np.uint32(1))
_BELOW_HALF, _HALF = ByLength(np.uint32(0x7FFF)), ByLength(np.uint32(0x8000))  # of bf16's last place
_LOWER_HALF, _UPPER_HALF = ByLength(np.uint32(0xFFFF)), ByLength(np.uint32(0xFFFF0000))
_LEAST_NORMAL = {np.dtype(t): ByLength(np.finfo(t).tiny) for t in (np.float16, np.float32, np.float64)}
_LEAST_NORMAL_F32 = ByLength(np.float64(np.finfo(np.float32).tiny))
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


# Between registers and numbers


def bf16_to_f32(bits: Lanes) -> Lanes:
    return (bits.astype(np.uint32) << _SIXTEEN[bits.shape[-1]]).view(np.float32)


def finish_f32(x: Lanes) -> Lanes:
    nan = x != x
    if np.count_nonzero(nan):
        x = np.where(nan, NAN_F32, x)
    return x.view(np.uint32)


def finish_f64(x: Lanes, *operands: Lanes) -> Lanes:
    """float64 alone passes NaNs on: the last one among the operands, made quiet."""
    nan = x != x
    bits = x.view(np.uint64)
    if not np.count_nonzero(nan):
        return bits
    result: Lanes = np.where(nan, NAN_F64.view(np.uint64), bits)
    for operand in operands:
        quiet = operand.view(np.uint64) | np.uint64(1 << 51)
        result = np.where(nan & (operand != operand), quiet, result)
    return result


def finish_f16(x: Lanes) -> Lanes:
    nan = x != x
    if np.count_nonzero(nan):
        x = np.where(nan, NAN_F16, x)
    return x.view(np.uint16)


def finish_bf16(x: Lanes) -> Lanes:
    """float32 lanes rounded to nearest even, as bf16 bits."""
    result = (_rounded_to_bf16(x) >> _SIXTEEN[x.shape[-1]]).astype(np.uint16)
    nan = x != x
    return np.where(nan, np.uint16(0x7FFF), result) if np.count_nonzero(nan) else result


def finish_bf16_pair(high: Lanes, low: Lanes) -> Lanes:
    """Two arrays of float32 lanes rounded to nearest even, as bf16 bits in one register."""
    n = high.shape[-1]
    pair: Lanes = (_rounded_to_bf16(high) & _UPPER_HALF[n]) | (_rounded_to_bf16(low) >> _SIXTEEN[n])
    if np.count_nonzero(high != high) or np.count_nonzero(low != low):
        return (finish_bf16(high).astype(np.uint32) << np.uint32(16)) | finish_bf16(low)
    return pair


def _rounded_to_bf16(x: Lanes) -> Lanes:
    """float32 bits whose upper half is rounded to nearest even; wrong for NaN."""
    bits, n = x.view(np.uint32), x.shape[-1]
    return bits + (_BELOW_HALF[n] + ((bits >> _SIXTEEN[n]) & _ONE[n]))


# Ends of a result


def flushed(x: Lanes) -> Lanes:
    """Subnormal numbers as zeros of their sign."""
    small = np.abs(x) < _LEAST_NORMAL[x.dtype][x.shape[-1]]
    return np.where(small, np.copysign(x.dtype.type(0), x), x) if np.count_nonzero(small) else x


def saturated(x: Lanes) -> Lanes:
    """Clamped to [0, 1]; NaN and -0 become +0."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    return np.where(x > zero, np.minimum(x, one), zero)


def rectified(x: Lanes) -> Lanes:
    """Negative numbers and -0 become +0; NaN stays."""
    return np.where(x <= 0, x.dtype.type(0), x)


# Signs


def copy_sign(a: Lanes, b: Lanes) -> Lanes:
    """Register bits: the sign of a, the rest of b."""
    sign = a.dtype.type(1 << (8 * a.itemsize - 1))
    return (a & sign) | (b & ~sign)


def signed_by_product(x: Lanes, *factors: Lanes) -> Lanes:
    """|x| with the exclusive or of the factors' signs."""
    negative = np.signbit(factors[0])
    for factor in factors[1:]:
        negative = negative ^ np.signbit(factor)
    return np.where(negative, -np.abs(x), np.abs(x))


# Minimum and maximum: where the operands are equal their bits decide between the zeros.


def _either(a: Lanes, b: Lanes, result: Lanes, join: Any) -> Lanes:
    equal = a == b
    if not np.count_nonzero(equal):
        return result
    unsigned = _UNSIGNED[a.itemsize]
    return np.where(equal, join(a.view(unsigned), b.view(unsigned)).view(a.dtype), result)


def float_min(a: Lanes, b: Lanes) -> Lanes:
    return _either(a, b, np.fmin(a, b), np.bitwise_or)


def float_max(a: Lanes, b: Lanes) -> Lanes:
    return _either(a, b, np.fmax(a, b), np.bitwise_and)


def float_min_nan(a: Lanes, b: Lanes) -> Lanes:
    return _either(a, b, np.minimum(a, b), np.bitwise_or)


def float_max_nan(a: Lanes, b: Lanes) -> Lanes:
    return _either(a, b, np.maximum(a, b), np.bitwise_and)


def is_subnormal(x: Lanes) -> Lanes:
    return (np.abs(x) < np.finfo(x.dtype).tiny) & (x != 0)


def is_normal(x: Lanes) -> Lanes:
    """Neither NaN nor infinite nor subnormal: zeros are normal."""
    return np.isfinite(x) & ~is_subnormal(x)


# Arithmetic beyond NumPy's operators


def fma_f16(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """float64 holds every sum of an f16 product and an f16 number that can come near a rounding boundary."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float16)


def fma_bf16(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """float32 lanes of bf16 numbers in; out comes a float32 that rounds to bf16 as the exact sum does.

    A second rounding errs only from a midpoint: there the inexact sum is redone rounded to odd.
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    once, n = total.astype(np.float32), a.shape[-1]
    if not np.count_nonzero((once.view(np.uint32) & _LOWER_HALF[n]) == _HALF[n]):
        return once
    total = sum_to_odd(product, addend, total)
    if not np.count_nonzero(once.astype(np.float64) != total):
        return once
    return odd_f32(total)


def product_ftz(a: Lanes, b: Lanes, mode: str) -> Lanes:
    """float32 or float16 product; .ftz looks at it before it is rounded: what rounds up to normal is flushed too."""
    wide = np.float64 if a.dtype == np.float32 else np.float32
    exact = a.astype(wide) * b.astype(wide)
    return _flushed_by(exact, narrowed(exact, a.dtype.type, mode))


def fma_ftz(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    """As product_ftz; float32 or float16, whose sums fit float64 where they are small."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    if a.dtype == np.float32:
        if mode == "rn" and not np.count_nonzero(np.abs(total) <= _LEAST_NORMAL_F32[a.shape[-1]]):
            return nearest_f32(product, addend, total)
        total = signed_zero(sum_to_odd(product, addend, total), product, addend, mode)
    return _flushed_by(total, narrowed(total, a.dtype.type, mode))


def _flushed_by(exact: Lanes, rounded: Lanes) -> Lanes:
    small = np.abs(exact) < float(np.finfo(rounded.dtype).tiny)
    return np.where(small, np.copysign(rounded.dtype.type(0), rounded), rounded)


def divide_approx(a: Lanes, b: Lanes) -> Lanes:
    """a * (1 / b): beyond 2**126 the reciprocal is flushed to zero."""
    huge = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    quotient = a / b
    return np.where(huge, a * np.copysign(np.float32(0), b), quotient) if np.count_nonzero(huge) else quotient


def approximate(function: Any, x: Lanes) -> Lanes:
    """A function by its float64 value, as float32 (float64 for float64)."""
    wide = function(x.astype(np.float64))
    return wide if x.dtype == np.float64 else wide.astype(np.float32)


def cut_f16(x: Lanes) -> Lanes:
    """float32 lanes as float16: the half-precision approximations truncate."""
    return np.where(np.abs(x) < np.float32(65536), narrowed(x, np.float16, "rz"), x.astype(np.float16))


def cut_bf16(x: Lanes) -> Lanes:
    return np.where(x == x, (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), x)


def gross(function: Any, x: Lanes) -> Lanes:
    """.approx.ftz.f64: the bits of results' upper halves, for those of operands; hardware's differ in the last ones."""
    high = np.uint64(0xFFFFFFFF00000000)
    x = _no_subnormals((x.view(np.uint64) & high).view(np.float64))
    result = _no_subnormals(function(x))
    return np.where(np.isnan(result), np.uint64(0x7FFFFFFF00000000), result.view(np.uint64) & high)


def _no_subnormals(x: Lanes) -> Lanes:
    return np.where(np.abs(x) < np.finfo(np.float64).smallest_normal, np.copysign(0.0, x), x)


def rounded_unary(function: Any, x: Lanes, mode: str) -> Lanes:
    """A function whose float64 value of a float32 is exact or no float32 at all (reciprocal, square root)."""
    if x.dtype == np.float64:
        if mode == "rn":
            return function(x)
        return float_rounding.exact_unary(function.__name__, x, mode)
    return narrowed(function(x.astype(np.float64)), np.float32, mode)


def np_sin(x: Lanes) -> Lanes:
    return np.sin(_angle(x))


def np_cos(x: Lanes) -> Lanes:
    return np.cos(_angle(x))


def _angle(x: Lanes) -> Lanes:
    """The angle that the hardware takes for x: full turns in float32, rounded to zero; most of its error is here."""
    turns = narrowed(x * float(np.float32(1 / (2 * np.pi))), np.float32, "rz").astype(np.float64)
    return np.fmod(turns, 1.0) * (2 * np.pi)


def np_rcp(x: Lanes) -> Lanes:
    return 1.0 / x


def np_rsqrt(x: Lanes) -> Lanes:
    return 1.0 / np.sqrt(x)


NAMESPACE: dict[str, Any] = {
    f.__name__: f
    for f in (
        bf16_to_f32, finish_f32, finish_f64, finish_f16, finish_bf16, finish_bf16_pair, flushed, saturated, rectified,
        copy_sign, signed_by_product, float_min, float_max, float_min_nan, float_max_nan, is_subnormal,
        is_normal, product_ftz, fma_ftz, fma_f16, fma_bf16, divide_approx, approximate, cut_f16, cut_bf16,
        gross, rounded_unary, np_rcp, np_rsqrt, np_sin, np_cos, fma_f32,
    )
}  # fmt: skip
NAMESPACE |= {"np_sqrt": np.sqrt, "np_lg2": np.log2}
NAMESPACE |= {"np_ex2": np.exp2, "np_tanh": np.tanh}
NAMESPACE |= float_rounding.NAMESPACE
