"""Narrow floating-point codes to wider ones in registers: shifts, masks, exact multiplications, no tables.

A code's bits go where a wider format keeps the same fields. The value is then right but for the difference of
the two exponent biases, a power of two, which a multiplication takes back exactly. Subnormal codes need no
case of their own, because they become subnormals of the wider format. For all kernels that read FP4 weights.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Uint32
from cutlass.experimental import primitives as prims

# BF16's exponent bias is 127, E2M1's is 1: a code placed in BF16 reads as its value times 2^-126.
E2M1_IN_BF16 = 126
# E4M3's bias is 7: placed in BF16 it reads as its value times 2^-120.
E4M3_IN_BF16 = 120


@cute.jit
def multiply_bf16x2(a: Uint32, b: Uint32) -> Uint32:
    """a * b in both halves, each rounded to nearest even once.

    An FMA with -0, because sm_80 has no mul.bf16x2; +0 would lose the sign of a -0. BF16 arithmetic keeps
    subnormals.
    """
    return prims.inline_ptx(
        "{ .reg .b32 zero; mov.b32 zero, 0x80008000; fma.rn.bf16x2 {$w0}, {$r0}, {$r1}, zero; }",
        write_only_types=[Uint32],
        read_only_args=[a, b],
    )


@cute.jit
def raise_bf16x2(a: Uint32, exponent: Constexpr[int]) -> Uint32:
    """a * 2^exponent in both halves; -126 <= exponent <= 127."""
    assert -126 <= exponent <= 127, f"2^{exponent} is not a normal BF16 number"
    factor = ((exponent + 127) << 7) * 0x00010001
    return prims.inline_ptx(
        "{ .reg .b32 factor, zero; "
        f"mov.b32 factor, 0x{factor:08x}; mov.b32 zero, 0x80008000; "
        "fma.rn.bf16x2 {$w0}, {$r0}, factor, zero; }",
        write_only_types=[Uint32],
        read_only_args=[a],
    )


@cute.jit
def e2m1_pair(word: Uint32, index: Constexpr[int]) -> Uint32:
    """Codes index and index + 4 of the eight in word, as a BF16 pair (index in the low half). Exact."""
    top = word << (12 - 4 * index)
    bits = (top & Uint32(0x80008000)) | ((top >> 6) & Uint32(0x01C001C0))
    return raise_bf16x2(bits, E2M1_IN_BF16)


@cute.jit
def e4m3_pair(code: Uint32) -> Uint32:
    """One E4M3 code (0 to 255) in both halves of a BF16 pair. Exact; NaN for 0x7F and 0xFF."""
    magnitude = code & 0x7F
    bits = ((code * Uint32(0x01000100)) & Uint32(0x80008000)) | (magnitude * Uint32(0x00100010))
    value = raise_bf16x2(bits, E4M3_IN_BF16)
    return Uint32(0x7FFF7FFF) if magnitude == 0x7F else value


@cute.jit
def bf16_low(pair: Uint32) -> Float32:
    """The low half of a BF16 pair as float32."""
    return (pair << 16).bitcast(Float32)


@cute.jit
def bf16_high(pair: Uint32) -> Float32:
    """The high half of a BF16 pair as float32."""
    return (pair & Uint32(0xFFFF0000)).bitcast(Float32)


@cute.jit
def to_bf16x2(low: Float32, high: Float32) -> Uint32:
    """Two float32 as a BF16 pair, rounded to nearest even; NaN becomes 0x7FFF."""
    return prims.inline_ptx(
        "cvt.rn.bf16x2.f32 {$w0}, {$r0}, {$r1};", write_only_types=[Uint32], read_only_args=[high, low]
    )


# A fragment's weights are 2^-7 of what they stand for: BF16 and FP16 then hold code * scale exactly.
FRAGMENT_SHIFT = 7


@cute.jit
def fragment_scales(code: Uint32, half: Constexpr[int], dtype: Constexpr[str]) -> tuple[Uint32, Uint32]:
    """A lane's two scale factors for one half of a packed unit (w4a16_layout.py), each twice in a pair.

    code: UE4M3 of rows g (bytes 0, 1: halves 0 and 1 of the unit's K) and g + 8 (bytes 2, 3).
    dtype: "bf16": times 2^119, so that a code read as E2M1 * 2^-126 comes out as FRAGMENT_SHIFT says. "f16": times 2^7,
        for codes read as E2M1 * 2^-14.
    """
    if cutlass.const_expr(dtype == "bf16"):
        bits = (code << 4 if half == 0 else code >> 4) & Uint32(0x07F007F0)
        pair = raise_bf16x2(raise_bf16x2(bits, 127), 119 + E4M3_IN_BF16 - 127)
    else:
        bits = (code << 7 if half == 0 else code >> 1) & Uint32(0x3F803F80)
        pair = multiply_f16x2(bits, Uint32(0x78007800))  # 2^15: UE4M3 in FP16 reads as its value times 2^-8
    twice = [Uint32(cute.arch.prmt(pair, pair, selector)) for selector in (0x1010, 0x3232)]
    return twice[0], twice[1]


@cute.jit
def fragment_pair(
    word: Uint32, scales: tuple[Uint32, Uint32], index: Constexpr[int], dtype: Constexpr[str]
) -> Uint32:
    """Pair `index` of the four of a lane's A fragment of mma.m16n8k16, from its word of a packed unit.

    The word's bits lie so that a shift brings three of the pairs, and for the fourth a second one its last bit, to
    BF16's sign, two exponent and first mantissa bits. scales: of rows g and g + 8 (`fragment_scales`).
    """
    if cutlass.const_expr(dtype == "bf16"):
        mask = Uint32(0x81C081C0)
        if cutlass.const_expr(index == 0):
            bits = (word << 2) & mask
        elif cutlass.const_expr(index == 1):
            bits = (word << 6) & mask
        elif cutlass.const_expr(index == 2):
            bits = ((word << 12) | (word >> 20)) & mask
        else:
            bits = (word & Uint32(0x81808180)) | ((word >> 8) & Uint32(0x00400040))
        return multiply_bf16x2(bits, scales[index % 2])
    sign, magnitude = Uint32(0x80008000), Uint32(0x0E000E00)
    if cutlass.const_expr(index == 0):
        bits = ((word << 2) & sign) | ((word << 5) & magnitude)
    elif cutlass.const_expr(index == 1):
        bits = ((word << 6) & sign) | ((word << 9) & magnitude)
    elif cutlass.const_expr(index == 2):
        bits = ((word << 12) & sign) | (((word << 15) | (word >> 17)) & magnitude)
    else:
        bits = (word & sign) | ((word << 3) & Uint32(0x0C000C00)) | ((word >> 5) & Uint32(0x02000200))
    return multiply_f16x2(bits, scales[index % 2])


@cute.jit
def multiply_f16x2(a: Uint32, b: Uint32) -> Uint32:
    """a * b in both halves, each rounded to nearest even once, subnormals kept."""
    return prims.inline_ptx(
        "{ .reg .b32 factor; mov.b32 factor, {$r1}; mul.rn.f16x2 {$w0}, {$r0}, factor; }",
        write_only_types=[Uint32],
        read_only_args=[a, b],
    )


@cute.jit
def to_pair(low: Float32, high: Float32, dtype: Constexpr[str]) -> Uint32:
    """Two float32 as a pair of "bf16" or "f16", rounded to nearest even."""
    return prims.inline_ptx(
        f"cvt.rn.{dtype}x2.f32 {{$w0}}, {{$r0}}, {{$r1}};",
        write_only_types=[Uint32],
        read_only_args=[high, low],
    )
