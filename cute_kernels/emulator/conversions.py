"""Conversions that generated code calls: arrays of lanes in, arrays of lanes out, any leading axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.float_ops import finish_bf16, finish_f16
from cute_kernels.emulator.float_rounding import narrowed, odd_f32, sum_to_odd
from cute_kernels.emulator.lane_constants import ByLength
from cute_kernels.emulator.ptx_types import TYPE_BITS

Lanes = NDArray[Any]


def _range(type: str) -> tuple[int, int]:
    bits = TYPE_BITS[type]
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if type[0] == "s" else (0, (1 << bits) - 1)


def _canonical(type: str) -> Any:
    return np.dtype(f"u{max(TYPE_BITS[type], 16) // 8}").type


def clamped(x: Lanes, type: str) -> Lanes:
    """Integer lanes (in their own signedness) clamped to another integer type, in its canonical dtype.

    8-bit results occupy the low byte.
    """
    least, most = _range(type)
    have = np.iinfo(x.dtype)
    if least > have.min:
        x = np.maximum(x, x.dtype.type(least))
    if most < have.max:
        x = np.minimum(x, x.dtype.type(most))
    result = x.astype(_canonical(type))
    return result & np.uint16(255) if TYPE_BITS[type] == 8 else result


def to_integer(x: Lanes, type: str, from_f64: bool) -> Lanes:
    """Integral float lanes as integers, saturating; NaN gives 0, or only the top bit where 64 bits are involved."""
    bits = TYPE_BITS[type]
    least, most = _range(type)
    wide = x.astype(np.float64)
    nan = wide != wide
    if bits == 64:
        dtype = np.dtype(f"{'i' if type[0] == 's' else 'u'}8").type
        too_large = wide >= float(1 << 63 if type[0] == "s" else 1 << 64)
        inside = np.where(too_large | nan, 0.0, np.maximum(wide, float(least)))
        result = np.where(too_large, dtype(most), inside.astype(dtype)).view(np.uint64)
    else:
        inside = np.fmin(np.fmax(wide, float(least)), float(most))
        result = inside.astype(np.int64).astype(_canonical(type))
        if bits == 8:
            result = result & np.uint16(255)
    if not np.count_nonzero(nan):
        return result
    return np.where(nan, result.dtype.type(1 << bits - 1 if from_f64 or bits == 64 else 0), result)


def wide_to_odd(x: Lanes) -> Lanes:
    """64-bit integer lanes as float64, rounded to odd."""
    high, low = _halves(x)
    return sum_to_odd(high, low, high + low)


def wide_to_f64(x: Lanes, mode: str) -> Lanes:
    """64-bit integer lanes as float64, rounded "rn", "rz", "rm" or "rp"."""
    high, low = _halves(x)
    total = high + low
    if mode == "rn":
        return total
    error = low - (total - high)  # exact: |high| is 0 or at least 2**32 > low
    down, up = error < 0, error > 0
    if mode == "rz":
        down, up = down & (total > 0), up & (total < 0)
    elif mode == "rm":
        up = np.zeros_like(up)
    else:
        down = np.zeros_like(down)
    lower, upper = np.nextafter(total, -np.inf), np.nextafter(total, np.inf)
    return np.where(down, lower, np.where(up, upper, total))


def _halves(x: Lanes) -> tuple[Lanes, Lanes]:
    """float64 lanes whose exact sum is the 64-bit integer."""
    low = (x & x.dtype.type(0xFFFFFFFF)).astype(np.float64)
    return (x >> x.dtype.type(32)).astype(np.float64) * 2.0**32, low


def bf16_towards(x: Lanes, mode: str) -> Lanes:
    """float32 lanes rounded "rz", "rm" or "rp" to numbers that bf16 has, as float32."""
    bits = x.view(np.uint32)
    cut = bits & np.uint32(0xFFFF0000)
    if mode != "rz":
        away = (cut != bits) & (np.signbit(x) == (mode == "rm"))
        cut = np.where(away, cut + np.uint32(0x10000), cut)
    return np.where(np.isfinite(x), cut.view(np.float32), x)


def to_tf32(bits: Lanes, mode: str, finite: bool) -> Lanes:
    """float32 bits with 10 bits of fraction left, to nearest even ("rn") or cut ("rz"); NaN as sm_90 writes it."""
    x = bits.view(np.float32)
    if mode == "rn":
        bits = bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    rounded = np.where(np.isinf(x), x.view(np.uint32), bits & np.uint32(0xFFFFE000))
    if finite:
        rounded = _less_infinite(rounded)
    return np.where(x != x, np.uint32(0x7FFFE000), rounded)


def to_tf32_away(bits: Lanes, finite: bool) -> Lanes:
    """float32 bits with 10 bits of fraction left, to nearest, ties away; what is not finite is cut, as sm_90 does.

    With `finite`, one step is taken off everything beyond the largest number: off an infinity, but also off a NaN.
    """
    rounded = np.where(np.isfinite(bits.view(np.float32)), bits + np.uint32(0x1000), bits) & np.uint32(
        0xFFFFE000
    )
    return _less_infinite(rounded) if finite else rounded


def _less_infinite(bits: Lanes) -> Lanes:
    beyond = (bits & np.uint32(0x7FFFFFFF)) >= np.uint32(0x7F800000)
    return np.where(beyond, bits - np.uint32(0x2000), bits)


_LAYOUTS = {"f16": (16, 10), "bf16": (16, 7), "f32": (32, 23), "f64": (64, 52)}  # width, bits of fraction


def with_payload(result: Lanes, bits: Lanes, destination: str, source: str) -> Lanes:
    """A conversion's result, its NaNs replaced by the source's own: sign, upper bits of the fraction, made quiet.

    Conversions from and to f64 keep that; all others give the canonical NaN.
    """
    width, fraction = _LAYOUTS[source]
    wide = bits.astype(np.uint64)
    magnitude = wide & np.uint64((1 << width - 1) - 1)
    nan = magnitude > np.uint64(((1 << width - 1 - fraction) - 1) << fraction)
    if not np.count_nonzero(nan):
        return result
    to_width, to_fraction = _LAYOUTS[destination]
    aligned = wide << np.uint64(64 - width)  # the sign at the top, an exponent of ones below it
    payload = (
        (wide & np.uint64((1 << fraction) - 1)) << np.uint64(52 - fraction) >> np.uint64(52 - to_fraction)
    )
    sign = aligned >> np.uint64(63) << np.uint64(to_width - 1)
    quiet = np.uint64(((1 << to_width - to_fraction) - 1) << to_fraction - 1 & (1 << to_width - 1) - 1)
    return np.where(nan, (sign | quiet | payload).astype(result.dtype), result)


def finish_finite(x: Lanes, kind: str) -> Lanes:
    """Bits of f16 (from float16 lanes) or bf16 (from float32 lanes), infinities made the largest number."""
    bits = finish_f16(x) if kind == "f16" else finish_bf16(x)
    infinity = np.uint16(0x7C00 if kind == "f16" else 0x7F80)
    return np.where((bits & np.uint16(0x7FFF)) == infinity, bits - np.uint16(1), bits)


# Packing

_LOWER_HALF, _SIXTEEN = ByLength(np.uint32(0xFFFF)), ByLength(np.uint32(16))
_EIGHT, _FOUR = ByLength(np.uint16(8)), ByLength(np.uint16(4))


def upper_half_odd(bits: Lanes) -> Lanes:
    """The upper 16 bits of float32 bits, the lowest of them set where a lower one was, as uint32."""
    low = _LOWER_HALF[bits.shape[-1]]
    return (bits | ((bits & low) + low)) >> _SIXTEEN[
        bits.shape[-1]
    ]  # the sum carries where a lower bit is set


def joined_halves(high: Lanes, low: Lanes) -> Lanes:
    return (high.astype(np.uint32) << np.uint32(16)) | low


def joined_bytes(high: Lanes, low: Lanes) -> Lanes:
    return (high << _EIGHT[high.shape[-1]]) | low


def joined_nibbles(high: Lanes, low: Lanes) -> Lanes:
    return (high << _FOUR[high.shape[-1]]) | low


def joined_bytes_of(pairs: Lanes) -> Lanes:
    """Two codes a lane, the lower one first."""
    return joined_bytes(pairs[..., 1::2], pairs[..., 0::2])


def joined_nibbles_of(pairs: Lanes) -> Lanes:
    return joined_nibbles(pairs[..., 1::2], pairs[..., 0::2])


def split_nibbles(codes: Lanes) -> Lanes:
    """The two codes of each byte, the lower one first, in twice as many lanes."""
    return np.stack((codes & np.uint16(15), codes >> np.uint16(4)), -1).reshape(*codes.shape[:-1], -1)


def saturated_field(x: Lanes, least: Lanes, most: Lanes, bits: int) -> Lanes:
    """int32 lanes clamped to [least, most], as the low bits of uint32."""
    return np.minimum(np.maximum(x, least), most).view(np.uint32) & np.uint32((1 << bits) - 1)


NAMESPACE: dict[str, Any] = {
    f.__name__: f
    for f in (
        clamped, to_integer, wide_to_odd, wide_to_f64, narrowed, bf16_towards, to_tf32, to_tf32_away,
        with_payload, finish_finite, odd_f32, upper_half_odd, joined_halves, joined_bytes, joined_nibbles,
        joined_bytes_of, joined_nibbles_of, split_nibbles, saturated_field,
    )
}  # fmt: skip
