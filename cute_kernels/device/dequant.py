"""Narrow floating-point codes to wider ones in registers: shifts, masks, exact multiplications, no tables.

A code's bits go where a wider format keeps the same fields. The value is then right but for the difference of
the two exponent biases, a power of two, which a multiplication takes back exactly. Subnormal codes need no
case of their own, because they become subnormals of the wider format. For all kernels that read FP4 weights.
"""

from __future__ import annotations

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
