"""Quantizing in registers: a lane holds whole groups of consecutive values, so none need ask another.

The rules are those of cute_kernels/formats.py, and so are the bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Pointer, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device.store import scale
from cute_kernels.scale_layout import blocked_offset, ceil_div, packed_offset

E4M3_MAX_EXPONENT = 8  # of 448 = 1.75 * 2^8
UE8M0_NAN = 255
INFINITY = 0x7F800000  # as Float32 bits
NAN = 0x7FC00000
LEAST_FACTOR, MOST_FACTOR = 2.0**-60, 2.0**30  # of what is multiplied by together with a scale
LEAST_BYTE = 32  # of such a scale, but for groups of zeros: of 2^-95


class DScales(NamedTuple):
    """Where the scale factors of a quantized D [m, n] go, and by which rule they are made."""

    out: Pointer  # Int32
    m: Any
    groups: Any  # of a row
    blocked: Any  # 0 for the packed layout, another number for the 128 x 4 one
    carry: Any  # of MXFP8: see `Rule`
    factor: Any  # of NVFP4: Pointer to the global scale, a Float32


def largest_magnitude(values: list[Any]) -> Any:
    """Return the largest magnitude of some Float32; NaN, if any value is one."""
    largest = values[0]
    rest = values[1:] + values[-1:] * (len(values) % 2 == 0)
    for a, b in zip(rest[::2], rest[1::2], strict=True):
        largest = prims.inline_ptx(
            "max.NaN.abs.f32 {$w0}, {$r0}, {$r1}, {$r2};",
            write_only_types=[Float32],
            read_only_args=[largest, a, b],
        )
    return Float32(largest)


def pack_e4m3(values: list[Any]) -> Any:
    """Return four Float32 as E4M3 in a word, the first in its low byte: to nearest even, saturated."""
    return prims.inline_ptx(
        "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, {$r1}, {$r0}; "
        "cvt.rn.satfinite.e4m3x2.f32 high, {$r3}, {$r2}; mov.b32 {$w0}, {low, high}; }",
        write_only_types=[Int32],
        read_only_args=values,
    )


class Rule(NamedTuple):
    """How groups become MXFP8.

    carry: Uint32 that is added to the bits of the largest magnitude before its exponent is taken. 0 is the rule
        "floor" of formats.scale_exponent; 0x7FFFFF less the mantissa of 448 carries into the exponent where the
        magnitude's mantissa is larger, which is the rule "ceil".
    by: what values are multiplied by, or None. early: whether they are that before all else. late: what they are
        multiplied by together with the scale: the same or 1. least: byte of the least scale that is multiplied by.
    """

    carry: Any
    by: Any = None
    early: Any = None
    late: Any = None
    least: Any = None


@cute.jit
def rule(carry: Any, by: Any = None) -> Rule:
    """Return the rule for values that are sums of NVFP4 times `by`, rounded; or, where that is None, values.

    A scale is a power of two, so that one product with both is the product with one after the other, rounded once,
    unless some result is subnormal or infinite. The size of such sums is bounded, and with a common `by` none is.
    """
    if cutlass.const_expr(by is None):
        return Rule(carry)
    size = cutlass.max(by, -by)
    early, late, least = Int32(0), by, Int32(LEAST_BYTE)
    if not ((size >= LEAST_FACTOR) & (size <= MOST_FACTOR)):
        early, late, least = Int32(1), Float32(1.0), Int32(0)
    return Rule(carry, by, early, late, least)


@cute.jit
def mxfp8(values: list[Any], of: Rule) -> tuple[list[Any], Any]:
    """Quantize a group of Float32: return E4M3 words of four elements each, and the UE8M0 byte of the scale."""
    if cutlass.const_expr(of.by is not None):  # noqa: SIM102 - the inner one is the device's
        if of.early != 0:
            values = scale(values, of.by)
    largest = largest_magnitude(values)
    if cutlass.const_expr(of.by is not None):
        largest = largest_magnitude([largest * of.late] * 2)
    bits = largest.bitcast(Uint32)
    exponent = Int32((bits + of.carry) >> 23) - E4M3_MAX_EXPONENT
    byte = cutlass.max(exponent, Int32(0))
    # 254 - byte is the byte of the reciprocal. A group with an infinity or NaN becomes NaN as a whole.
    inverse = Int32(254) - (byte if of.by is None else cutlass.max(exponent, of.least))
    reciprocal = inverse << 23
    if bits >= INFINITY:
        byte, reciprocal = Int32(UE8M0_NAN), Int32(NAN)
    factor = reciprocal.bitcast(Float32)
    scaled = scale(values, factor if of.by is None else factor * of.late)
    return [pack_e4m3(scaled[i : i + 4]) for i in range(0, len(scaled), 4)], byte


@cute.jit
def store_scales(scales: Constexpr, word: Any, row: Any, group: Any, keep: Any = None) -> None:
    """Store four scale factors of a row, the bytes of a word, where DScales says.

    group: of the first of them, a multiple of 4. Rows from m on are padding, of the 128 x 4 layout only.
    keep: whether to store those of this row, where not all of them belong to somebody.
    """
    row, group, m, groups = (Uint32(value) for value in (row, group, scales.m, scales.groups))
    place, rows = packed_offset(row, group, m) // 4, m
    if scales.blocked != 0:
        place, rows = blocked_offset(row, group, groups) // 4, ceil_div(m, 128) * 128
    inside = (row < rows) & (group < groups)
    if cutlass.const_expr(keep is not None):
        inside = inside & keep
    if inside:
        (scales.out + place).store(word)
