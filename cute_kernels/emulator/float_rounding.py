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

Lanes = NDArray[Any]

_ABOVE, _BELOW = 1.0 + 2.0**-52, 1.0 - 2.0**-52


def fma_f32(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """float32 a * b + c, rounded once to nearest even.

    The product of two float32 is exact in float64. Where both float64 neighbours of the rounded sum give the same
    float32, so does the exact sum between them; only elsewhere is the rounding error of the sum looked at.
    """
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    below, above = (total * _BELOW).astype(np.float32), (total * _ABOVE).astype(np.float32)
    if not np.count_nonzero(below != above):
        return below
    return sum_to_odd(product, addend, total).astype(np.float32)


def sum_to_odd(x: Lanes, y: Lanes, total: Lanes) -> Lanes:
    """x + y rounded to odd, given its rounding to nearest (all float64)."""
    part = total - x
    error = (x - (total - part)) + (y - part)
    inexact = (error != 0) & np.isfinite(total)  # a sum with infinities leaves a NaN for its error
    if not np.count_nonzero(inexact):
        return total
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


def _signed_zero(total: Lanes, x: Lanes, y: Lanes, mode: str) -> Lanes:
    """Rounding down, a sum that cancels is -0."""
    if mode != "rm":
        return total
    cancelled = (total == 0) & (np.signbit(x) | np.signbit(y))
    return np.where(cancelled, -0.0, total)


def rounded_add(a: Lanes, b: Lanes, mode: str) -> Lanes:
    if a.dtype == np.float64:
        return _exact(lambda x, y: x + y, mode, a + b, a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    total = sum_to_odd(x, y, x + y)
    return narrowed(_signed_zero(total, x, y, mode), np.float32, mode)


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
    return narrowed(_signed_zero(total, product, addend, mode), np.float32, mode)


def fma_f64(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    return rounded_fma_f64(a, b, c, "rn")


def rounded_fma_f64(a: Lanes, b: Lanes, c: Lanes, mode: str) -> Lanes:
    # The product is not rounded, so finite factors never overflow against an infinite addend.
    nearest = np.where(np.isinf(c) & np.isfinite(a) & np.isfinite(b), c, a * b + c)
    return _exact(lambda x, y, z: x * y + z, mode, nearest, a, b, c)


def exact_unary(name: str, x: Lanes, mode: str) -> Lanes:
    """Reciprocal and square root of float64 in a direction."""
    if name == "np_rcp":
        return _exact(lambda v: 1 / v, mode, 1.0 / x, x)
    nearest = np.sqrt(x)
    return _exact(lambda v: v, mode, nearest, x, compare=lambda root: root * root)


def _exact(
    function: Callable[..., Fraction],
    mode: str,
    nearest: Lanes,
    *operands: Lanes,
    compare: Callable[[Fraction], Fraction] = lambda v: v,
) -> Lanes:
    """A float64 result rounded by comparing `compare(candidate)` with the exact rational value, lane by lane.

    Slow, and rare: float64 is fused or rounded in a direction by few kernels. `nearest` is within an ulp or two of
    the result, and is the result where an operand is not finite or the exact value has no rational form.
    """
    arrays = np.broadcast_arrays(nearest, *operands)
    result = np.array(arrays[0], np.float64)
    flat = [v.ravel() for v in arrays]
    out = result.reshape(-1)
    for i in range(out.size):
        values = [float(v[i]) for v in flat[1:]]
        if not all(map(math.isfinite, values)):
            continue
        try:
            exact = function(*map(Fraction, values))
        except ZeroDivisionError:
            continue
        out[i] = _round_exact(exact, float(out[i]), mode, values, compare)
    return result


def _round_exact(
    exact: Fraction, guess: float, mode: str, values: list[float], compare: Callable[[Fraction], Fraction]
) -> float:
    if exact == 0 or guess != guess:
        negative = any(math.copysign(1.0, v) < 0 for v in values)
        return -0.0 if exact == 0 and mode == "rm" and len(values) > 1 and guess == 0 and negative else guess
    largest = np.finfo(np.float64).max
    low = min(max(guess, -largest), largest)
    while compare(Fraction(low)) > exact:  # the greatest float64 not above the exact value
        if low == -largest:
            return -math.inf if mode in ("rn", "rm") and _overflows(exact, mode) else -largest
        low = math.nextafter(low, -math.inf)
    while low < largest and compare(Fraction(math.nextafter(low, math.inf))) <= exact:
        low = math.nextafter(low, math.inf)
    if compare(Fraction(low)) == exact:
        return low
    high = math.nextafter(low, math.inf)
    if mode == "rz":
        return low if exact > 0 else high
    if mode in ("rm", "rp"):
        return low if mode == "rm" else high
    if math.isinf(high):
        return high if _overflows(exact, mode) else low
    middle = (Fraction(low) + Fraction(high)) / 2
    if exact == middle:
        return low if int(np.float64(low).view(np.int64)) % 2 == 0 else high
    return low if exact < middle else high


def _overflows(exact: Fraction, mode: str) -> bool:
    """Whether rounding in this mode takes a value beyond the largest float64 to infinity."""
    return mode != "rn" or abs(exact) >= Fraction(2) ** 1024 - Fraction(2) ** 970


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
