"""Correct rounding where NumPy rounds twice or in one direction only: fused multiply-add, and rz, rm, rp.

The tool is rounding to odd (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008): an inexact
float64 is moved to whichever neighbour of the exact value has an odd last bit; any later rounding to a shorter
format, in any direction, then gives what rounding the exact value would.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.lane_constants import ByLength

Lanes = NDArray[Any]

_ABOVE, _BELOW = ByLength(np.float64(1.0 + 2.0**-52)), ByLength(np.float64(1.0 - 2.0**-52))


def fma_f32(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """float32 a * b + c, rounded once to nearest even. The product of two float32 is exact in float64."""
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    return nearest_f32(product, addend, product + addend)


def nearest_f32(product: Lanes, addend: Lanes, total: Lanes) -> Lanes:
    """The float32 nearest to the exact sum of two float64, given their rounded sum.

    Where both float64 neighbours of the rounded sum give the same float32, so does the exact sum between them; only
    elsewhere is the rounding error of the sum looked at.
    """
    n = total.shape[-1]
    below, above = (total * _BELOW[n]).astype(np.float32), (total * _ABOVE[n]).astype(np.float32)
    if not np.count_nonzero(below != above):
        return below
    return sum_to_odd(product, addend, total).astype(np.float32)


def sum_to_odd(x: Lanes, y: Lanes, total: Lanes) -> Lanes:
    """x + y rounded to odd, given its rounding to nearest (all float64)."""
    part = total - x
    error = (x - (total - part)) + (y - part)
    inexact = error != 0
    if not np.count_nonzero(inexact):
        return total
    inexact &= np.isfinite(total)  # a sum with infinities leaves a NaN for its error
    bits = total.view(np.int64)
    away = (error > 0) == (total > 0)  # the exact sum lies farther from zero than the rounded one
    step = np.where(away, np.int64(1), np.int64(-1))
    return np.where(inexact & ((bits & 1) == 0), bits + step, bits).view(np.float64)


def odd_f32(x: Lanes) -> Lanes:
    """float64 to float32, rounded to odd."""
    nearest = x.astype(np.float32)
    wide = nearest.astype(np.float64)
    bits = nearest.view(np.int32)
    step = np.where(np.abs(wide) > np.abs(x), np.int32(-1), np.int32(1))
    move = (wide != x) & (x == x) & ((bits & 1) == 0)
    return np.where(move, bits + step, bits).view(np.float32)


def narrowed(x: Lanes, dtype: Any, mode: str) -> Lanes:
    """Float lanes in a shorter NumPy type: to nearest even "rn", to zero "rz", down "rm" or up "rp"."""
    nearest = x.astype(dtype)
    if mode == "rn":
        return nearest
    wide = nearest.astype(x.dtype)
    if mode == "rz":
        return np.where(np.abs(wide) > np.abs(x), np.nextafter(nearest, dtype(0)), nearest)
    if mode == "rm":
        return np.where(wide > x, np.nextafter(nearest, dtype(-np.inf)), nearest)
    return np.where(wide < x, np.nextafter(nearest, dtype(np.inf)), nearest)


def signed_zero(total: Lanes, x: Lanes, y: Lanes, mode: str) -> Lanes:
    """Rounding down, a sum that cancels is -0."""
    if mode != "rm":
        return total
    cancelled = (total == 0) & (np.signbit(x) | np.signbit(y))
    return np.where(cancelled, -0.0, total)


def rounded_add(a: Lanes, b: Lanes, mode: str) -> Lanes:
    if a.dtype == np.float64:
        return _exact(lambda x, y: x + y, mode, signed_zero(a + b, a, b, mode), a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    total = sum_to_odd(x, y, x + y)
    return narrowed(signed_zero(total, x, y, mode), np.float32, mode)


def rounded_sub(a: Lanes, b: Lanes, mode: str) -> Lanes:
    return rounded_add(a, -b, mode)


def rounded_mul(a: Lanes, b: Lanes, mode: str) -> Lanes:
    if a.dtype == np.float64:
        return _exact(lambda x, y: x * y, mode, a * b, a, b)
    return narrowed(a.astype(np.float64) * b.astype(np.float64), np.float32, mode)


def rounded_div(a: Lanes, b: Lanes, mode: str) -> Lanes:
    """A float64 quotient of float32 numbers is exact or no float32: their 24 bits leave it at least 2**-48 away."""
    if a.dtype == np.float64:
        return _exact(lambda x, y: x / y, mode, a / b, a, b)
    return narrowed(a.astype(np.float64) / b.astype(np.float64), np.float32, mode)


def rounded_fma_f32(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = sum_to_odd(product, addend, product + addend)
    return narrowed(signed_zero(total, product, addend, mode), np.float32, mode)


def fma_f64(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return rounded_fma_f64(a, b, c, "rn")


def rounded_fma_f64(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    # The product is not rounded, so finite factors never overflow against an infinite addend.
    nearest = np.where(np.isinf(c) & np.isfinite(a) & np.isfinite(b), c, a * b + c)
    return _exact(lambda x, y, z: x * y + z, mode, signed_zero(nearest, a * b, c, mode), a, b, c)


def exact_unary(name: str, x: Lanes, mode: str) -> Lanes:
    """Reciprocal and square root of float64 in a direction."""
    if name == "np_rcp":
        return _exact(lambda v: 1 / v, mode, 1.0 / x, x)
    result: Lanes = np.sqrt(x)
    flat, roots = x.ravel(), result.reshape(-1)
    for i in np.flatnonzero(np.isfinite(roots)):
        square, exact = Fraction(float(roots[i])) ** 2, Fraction(float(flat[i]))
        roots[i] = _directed(float(roots[i]), square > exact, square < exact, mode)
    return result


def _exact(function: Callable[..., Fraction], mode: str, usual: Lanes, *operands: Lanes) -> Lanes:
    """A rational function of float64 lanes rounded once, lane by lane in integers of any size.

    Slow, and rare: float64 is fused or rounded in a direction by few kernels. `usual` gives the results that are
    zero or have an operand that is not finite.
    """
    arrays = np.broadcast_arrays(usual, *operands)
    result = np.array(arrays[0], np.float64)
    out, flat = result.reshape(-1), [v.ravel() for v in arrays[1:]]
    for i in np.flatnonzero(np.logical_and.reduce([np.isfinite(v) for v in flat])):
        try:
            exact = function(*(Fraction(float(v[i])) for v in flat))
        except ZeroDivisionError:
            continue
        if exact:
            out[i] = _rounded(exact, mode)
    return result


def _rounded(exact: Fraction, mode: str) -> float:
    try:
        nearest = exact.numerator / exact.denominator  # Python rounds this division once, to nearest even
    except OverflowError:
        nearest = math.inf if exact > 0 else -math.inf
    if mode == "rn":
        return nearest
    return _directed(nearest, nearest > exact, nearest < exact, mode)


def _directed(nearest: float, above: bool, below: bool, mode: str) -> float:
    """The neighbour on the right side of an exact value that the nearest number lies above or below of, or neither."""
    if above and (mode == "rm" or (mode == "rz" and nearest > 0)):
        return math.nextafter(nearest, -math.inf)
    if below and (mode == "rp" or (mode == "rz" and nearest < 0)):
        return math.nextafter(nearest, math.inf)
    return nearest


NAMESPACE: dict[str, Any] = {
    f.__name__: f
    for f in (
        fma_f64,
        rounded_add,
        rounded_sub,
        rounded_mul,
        rounded_div,
        rounded_fma_f32,
        rounded_fma_f64,
    )
}
