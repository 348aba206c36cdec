"""Quantizing to NVFP4 in registers, to the bits of formats.quantize_nvfp4, which divides exactly and rounds once.

A block of 16 values x has the scale factor b = E4M3(amax / 6 / g), where g is the global scale, and the elements
E2M1(x / (b * g)). Both roundings are of a number that products with reciprocals come near to, and never decrease where
it grows. So both are made twice: of a product that is too small for certain, and of one that is too large. Where all
32 lanes of a warp find no difference, there is none to the exact result either. For random x that is so 99 times in
100. Else the warp does it again, exactly:

- amax / 6 / g is two float32 quotients, one after the other. Each is a product with the reciprocal, corrected by its
  exact remainder, which makes it the nearest float32 (Markstein, "Computation of elementary functions on the IBM RISC
  System/6000 processor", 1990).
- x / (b * g) need not be known, only on which side it lies of the numbers half-way between two of E2M1. These have
  three significant bits. So a number t of three bits next to the quotient is taken from an approximation, the sign of
  the remainder x - t * b * g is found exactly (b * g as a sum of two float32, by fma), and t moved to that side by less
  than its distance from the next number of three bits. Where the remainder is zero t stays, and a tie goes to even.

g is from 2^-64 to 2^100, which leaves room for every product here.

Where x is a sum times a factor f, rounded, the products are of the sum, and f is part of what it is multiplied by.
That takes an f of common size, and sums of NVFP4, whose size is bounded; any other f takes the exact way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device.quantize import INFINITY, NAN, largest_magnitude
from cute_kernels.device.store import packed, scale

GROUP = 16
SIXTH = 0.1666666716337204  # the float32 nearest to it
OVER = 512.0  # more than the largest E4M3, so it saturates
THREE_BITS = -(1 << 21)  # mask of a Float32's sign, exponent and upper two bits of the mantissa
UPWARDS = 1 + 2.0**-20  # by more than what an approximate quotient may lack
DECISIVE = 2.0**40  # makes any remainder that is not zero larger than 1/2, in units of the quotient
NUDGE = 2.0**-5  # of t: an eighth of the least distance to the next number of three bits
MARGIN = 2.0**-20  # more than twice what seven roundings to 24 bits, and a reciprocal's, come to
LEAST, MOST = 2.0**-60, 2.0**60  # of what sums are multiplied by on the fast way

Pair = tuple[Any, Any]


class Unit(NamedTuple):
    """What all blocks need of a global scale.

    factor, reciprocal: the scale, and its reciprocal to nearest. largest: a sixth of amax beyond which the scale factor
    saturates. by: f, or None. slow: Int32, not 0 where f is of no common size. for_scale, for_elements: pairs less and
    more than |f| / (6 * factor), and than f, or 1: by as much as all roundings come to.
    """

    factor: Any
    reciprocal: Any
    largest: Any
    by: Any
    slow: Any
    for_scale: Pair
    for_elements: Pair


@cute.jit
def unit(factor: Any, by: Any = None) -> Unit:
    """Return what all blocks need of a global scale, and of what sums are multiplied by, Float32 both."""
    reciprocal = Float32(
        prims.inline_ptx("rcp.rn.f32 {$w0}, {$r0};", write_only_types=[Float32], read_only_args=[factor])
    )
    size, sign, slow = Float32(1.0), Float32(1.0), Int32(0)
    if cutlass.const_expr(by is not None):
        size, sign = cutlass.max(by, -by), by
        common = (size >= LEAST) & (size <= MOST)
        slow = Int32(0) if common else Int32(1)
    sixth = size * (reciprocal * Float32(SIXTH))
    bounds = Float32(1.0 - MARGIN), Float32(1.0 + MARGIN)
    return Unit(
        factor,
        reciprocal,
        factor * OVER,
        by,
        slow,
        (sixth * bounds[0], sixth * bounds[1]),
        (sign * bounds[0], sign * bounds[1]),
    )


@cute.jit
def nvfp4(values: list[Any], of: Unit) -> tuple[list[Any], Any]:
    """Quantize 32 Float32: return E2M1, the first in the lowest bits of four words, and two UE4M3 bytes in one.

    A block that holds an infinity or NaN gets the scale factor NaN, and its elements mean nothing.
    """
    blocks = values[:GROUP], values[GROUP:]
    amax = [largest_magnitude(block) for block in blocks]
    nan = packed("mul", amax, [Float32(0.0)] * 2)  # where it is not finite; else 0
    low, *decoded = through_e4m3(*packed("fma", amax, [of.for_scale[0]] * 2, nan))
    high, *_ = through_e4m3(*packed("fma", amax, [of.for_scale[1]] * 2, nan))
    divisors = packed("mul", decoded, [of.factor] * 2)
    words, encoded, differ = [], low, of.slow | (low ^ high)
    for i in cutlass.range_constexpr(2):
        inverse = reciprocal_of(divisors[i]) if decoded[i] > 0.0 else Float32(0.0)
        bounds = packed("mul", [inverse] * 2, list(of.for_elements))
        for j in cutlass.range_constexpr(0, GROUP, 8):
            below, above = (pack_e2m1(scale(blocks[i][j : j + 8], bound)) for bound in bounds)
            words.append(below)
            differ = differ | (below ^ above)
    a, b, c, d = words
    if cute.arch.vote_any_sync(differ != 0):
        (a, b, c, d), encoded = exactly(scale(values, of.by) if of.by is not None else values, of)
    return [a, b, c, d], encoded


@cute.jit
def exactly(values: list[Any], of: Unit) -> tuple[list[Any], Any]:
    """Do as `nvfp4` does, without approximating anything."""
    blocks = values[:GROUP], values[GROUP:]
    amax = [largest_magnitude(block) for block in blocks]
    sixth = quotient((amax[0], amax[1]), Float32(6.0), Float32(SIXTH))
    limited = smaller(sixth[0], of.largest), smaller(sixth[1], of.largest)
    scales = quotient(limited, of.factor, of.reciprocal)
    nan = Int32(NAN).bitcast(Float32)
    low = scales[0] if amax[0].bitcast(Uint32) < INFINITY else nan
    high = scales[1] if amax[1].bitcast(Uint32) < INFINITY else nan
    encoded, *decoded = through_e4m3(low, high)
    moved = [divide(block, b, of.factor) for block, b in zip(blocks, decoded, strict=True)]
    return [pack_e2m1(x[i : i + 8]) for x in moved for i in (0, 8)], encoded


def quotient(dividends: Pair, divisor: Any, reciprocal: Any) -> Pair:
    """Return two quotients in float32, rounded to nearest, given the nearest reciprocal; none may be subnormal."""
    near = cute.arch.mul_packed_f32x2(dividends, (reciprocal, reciprocal))
    remainders = cute.arch.fma_packed_f32x2((-divisor, -divisor), near, dividends)
    result: Pair = cute.arch.fma_packed_f32x2(remainders, (reciprocal, reciprocal), near)
    return result


def smaller(a: Any, b: Any) -> Any:
    """Return the smaller of two Float32, or the one that is a number."""
    result = prims.inline_ptx(
        "min.f32 {$w0}, {$r0}, {$r1};", write_only_types=[Float32], read_only_args=[a, b]
    )
    return Float32(result)


def through_e4m3(low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Return two Float32 as E4M3 in the lower bytes of a word, and as the Float32 that these are."""
    encoded, *decoded = prims.inline_ptx(
        "{ .reg .b16 codes, first, second; .reg .b32 both; cvt.rn.satfinite.e4m3x2.f32 codes, {$r1}, {$r0}; "
        "cvt.u32.u16 {$w0}, codes; cvt.rn.f16x2.e4m3x2 both, codes; mov.b32 {first, second}, both; "
        "cvt.f32.f16 {$w1}, first; cvt.f32.f16 {$w2}, second; }",
        write_only_types=[Int32, Float32, Float32],
        read_only_args=[low, high],
    )
    return encoded, Float32(decoded[0]), Float32(decoded[1])


@cute.jit
def divide(values: list[Any], block: Any, factor: Any) -> list[Any]:
    """Return x / (block * factor) of each value, moved within what rounds to the same E2M1; zeros if block is 0."""
    divisor = block * factor
    (rest, _) = cute.arch.fma_packed_f32x2((block, block), (factor, factor), (-divisor, -divisor))
    inverse = reciprocal_of(divisor) if block > 0.0 else Float32(0.0)
    near = [
        (x.bitcast(Int32) & THREE_BITS).bitcast(Float32) for x in scale(values, inverse * Float32(UPWARDS))
    ]
    weights = scale(near, inverse * Float32(DECISIVE))
    moved = []
    for i in cutlass.range_constexpr(0, len(values), 2):
        t, x = (near[i], near[i + 1]), (values[i], values[i + 1])
        remainder = cute.arch.fma_packed_f32x2(t, (-divisor, -divisor), x)
        remainder = cute.arch.fma_packed_f32x2(t, (-rest, -rest), remainder)
        # 0, 1/2 or 1: the magnitude of x / (block * factor) is below that of t, the same, or above.
        side = [saturated(remainder[j], weights[i + j]) for j in (0, 1)]
        by = cute.arch.fma_packed_f32x2(
            (side[0], side[1]), (Float32(2 * NUDGE),) * 2, (Float32(1 - NUDGE),) * 2
        )
        moved += cute.arch.mul_packed_f32x2(t, by)
    return moved


def reciprocal_of(x: Any) -> Any:
    """Return 1 / x, or a Float32 next to it."""
    result = prims.inline_ptx(
        "rcp.approx.ftz.f32 {$w0}, {$r0};", write_only_types=[Float32], read_only_args=[x]
    )
    return Float32(result)


def saturated(a: Any, b: Any) -> Any:
    """Return a * b + 1/2 within 0 and 1."""
    result = prims.inline_ptx(
        "fma.rn.sat.f32 {$w0}, {$r0}, {$r1}, 0f3F000000;",
        write_only_types=[Float32],
        read_only_args=[a, b],
    )
    return Float32(result)


def pack_e2m1(values: list[Any]) -> Any:
    """Return eight Float32 as E2M1 in a word, the first in its lowest bits: to nearest even, saturated."""
    pairs = [f"cvt.rn.satfinite.e2m1x2.f32 byte{i}, {{$r{2 * i + 1}}}, {{$r{2 * i}}};" for i in range(4)]
    return prims.inline_ptx(
        f"{{ .reg .b8 byte0, byte1, byte2, byte3; {' '.join(pairs)} "
        "mov.b32 {$w0}, {byte0, byte1, byte2, byte3}; }",
        write_only_types=[Int32],
        read_only_args=values,
    )
