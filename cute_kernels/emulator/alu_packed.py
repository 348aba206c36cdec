"""cvt of packed types (f16x2, bf16x2, e4m3x2, e5m2x2, e2m1x2, e2m3x2, e3m2x2, ue8m0x2, s2f6x2) and cvt.pack.

Narrow formats are converted by tables: every one of them has so few bits that a float32 may first be cut to its upper
16 bits, with the lowest of these set where anything was lost (rounding to odd), and 65536 entries do the rest.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import number_formats
from cute_kernels.emulator.alu_code import Code, Definitions
from cute_kernels.emulator.float_ops import finish_bf16, finish_f16
from cute_kernels.emulator.ptx_types import Operand

_HALVES = ("f16x2", "bf16x2")
_NARROW = ("e4m3x2", "e5m2x2", "e2m1x2", "e2m3x2", "e3m2x2")
_SCALED = "scaled::n2::ue8m0"
TYPES = frozenset((*_HALVES, *_NARROW, "ue8m0x2", "s2f6x2", "e4m3x4", "e5m2x4", "e2m1x4", "e2m3x4", "e3m2x4"))


def convert(code: Code, destination: str, source: str) -> Definitions:
    if destination in _HALVES and source == "f32":
        return _halves_from_f32(code, destination)
    if destination in (*_NARROW, "ue8m0x2") and source in ("f32", *_HALVES):
        return _encode(code, destination, source)
    if destination in _HALVES and source in (*_NARROW, "ue8m0x2", "s2f6x2"):
        return _decode(code, destination, source)
    raise code.error(f"conversion from .{source} to .{destination} is not supported")


def _halves_from_f32(code: Code, destination: str) -> Definitions:
    """The first operand goes to the upper half."""
    mode, relu, finite = code.one_of("rn", "rz"), code.flag("relu"), code.flag("satfinite")
    code.expect(3)
    if not mode:
        code.fail("one of .rn, .rz is required")
    kind = destination.removesuffix("x2")
    if kind == "bf16" and mode == "rn" and not relu and not finite:
        numbers = ", ".join(code.number(operand, "f32") for operand in code.operands[1:3])
        return code.write(code.operands[0], f"finish_bf16_pair({numbers})", "b32")
    halves = []
    for operand in code.operands[1:3]:
        text = code.number(operand, "f32")
        if kind == "f16":
            text = f"{text}.astype(f16)" if mode == "rn" else f'narrowed({text}, f16, "rz")'
        elif mode == "rz":
            text = f'bf16_towards({text}, "rz")'
        if relu:
            text = f"rectified({text})"
        halves.append(f'finish_finite({text}, "{kind}")' if finite else f"finish_{kind}({text})")
    return code.write(code.operands[0], f"joined_halves({halves[0]}, {halves[1]})", "b32")


def _encode(code: Code, destination: str, source: str) -> Definitions:
    """Two numbers to two codes: from two float32 operands, or from one operand with two halves."""
    relu, finite = code.flag("relu"), code.flag("satfinite")
    if destination == "ue8m0x2":
        mode = code.one_of("rz", "rp")
        if not mode or source == "f16x2":
            code.fail("one of .rz, .rp is required, from .f32 or .bf16x2")
        table = encode_scale_table(mode, finite)
    else:
        if not finite or not code.flag("rn"):
            code.fail(".rn.satfinite is required")
        table = encode_table(destination.removesuffix("x2"), relu)
    codes = code.names.constant(table)
    joined = "joined_nibbles" if destination == "e2m1x2" else "joined_bytes"
    width = "b8" if destination == "e2m1x2" else "b16"
    if source == "f32":
        code.expect(3)
        high, low = (f"{codes}[upper_half_odd({code.bits(v, 'f32')})]" for v in code.operands[1:3])
        return code.write(code.operands[0], f"{joined}({high}, {low})", width)
    code.expect(2)
    halves = f"{code.bits(code.operands[1], 'b32')}.view(u16)"
    if source == "f16x2":
        halves = f"upper_half_odd({halves}.view(f16).astype(f32).view(u32))"
    return code.write(code.operands[0], f"{joined}_of({codes}[{halves}])", width)


def _decode(code: Code, destination: str, source: str) -> Definitions:
    scaled = code.flag(_SCALED)
    relu, finite = code.flag("relu"), code.flag("satfinite")
    if not code.flag("rn"):
        code.fail(".rn is required")
    code.expect(3 if scaled else 2)
    kind = destination.removesuffix("x2")
    if (scaled or finite or source in ("ue8m0x2", "s2f6x2")) and kind != "bf16":
        code.fail(f"this conversion goes to .bf16x2, not to .{destination}")
    nibbles = source == "e2m1x2"
    value = code.bits(code.operands[1], "b8" if nibbles else "b16")
    name = source.removesuffix("x2")
    if not scaled:
        if nibbles:
            return code.write(code.operands[0], f"{code.names.constant(_pairs(kind, relu))}[{value}]", "b32")
        table = code.names.constant(decode_table(name, kind, relu, finite))
        return code.write(code.operands[0], f"{table}[{value}.view(u8)].view(u32)", "b32")
    numbers = code.names.constant(_values(name))
    scales = code.names.constant(number_formats.UE8M0)
    elements = f"split_nibbles({value})" if nibbles else f"{value}.view(u8)"
    text = f"({numbers}[{elements}] * {scales}[{code.bits(code.operands[2], 'b16')}.view(u8)])"
    if relu:
        text = f"rectified({text})"
    text = f'finish_finite({text}, "bf16")' if finite else f"finish_bf16({text})"
    return code.write(code.operands[0], f"{text}.view(u32)", "b32")


# Tables


def _values(name: str) -> NDArray[np.float32]:
    """The number behind each byte; a format shorter than a byte does not look at the upper bits."""
    if name == "s2f6":
        return np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32) / np.float32(64)
    table = number_formats.TABLES[name]
    return table[np.arange(256) % len(table)]


@functools.cache
def decode_table(name: str, kind: str, relu: bool, finite: bool) -> NDArray[np.uint16]:
    """Bits of f16 or bf16 for each byte of a narrow format."""
    values = _values(name)
    if relu:
        values = np.where(values <= 0, np.float32(0), values)
    if finite:
        values = np.where(np.isinf(values), np.copysign(np.float32(3.3895313892515355e38), values), values)
    with np.errstate(all="ignore"):
        return finish_f16(values.astype(np.float16)) if kind == "f16" else finish_bf16(values)


@functools.cache
def _pairs(kind: str, relu: bool) -> NDArray[np.uint32]:
    """For each byte of two e2m1 codes the two numbers, packed."""
    table = decode_table("e2m1", kind, relu, False).astype(np.uint32)
    code = np.arange(256)
    return table[code & 15] | table[code >> 4] << np.uint32(16)


@functools.cache
def encode_table(name: str, relu: bool) -> NDArray[np.uint16]:
    """The code nearest to each bf16 number, ties to the even code, saturating (PTX ISA: .rn.satfinite)."""
    bits = number_formats.BITS[name]
    magnitudes = number_formats.TABLES[name][: 1 << (bits - 1)]
    magnitudes = magnitudes[np.isfinite(magnitudes)].astype(np.float64)
    largest = len(magnitudes) - 1
    with np.errstate(invalid="ignore"):  # signaling NaNs are among them
        x = number_formats.decode_bf16(np.arange(1 << 16, dtype=np.uint16)).astype(np.float64)
    size = np.minimum(np.abs(x), magnitudes[largest])
    above = np.minimum(np.searchsorted(magnitudes, size), largest)
    below = np.maximum(above - 1, 0)
    up, down = magnitudes[above] - size, size - magnitudes[below]
    code = np.where((down < up) | ((down == up) & (below % 2 == 0)), below, above)
    negative = np.signbit(x)
    code = np.where(negative, 0 if relu else code | 1 << (bits - 1), code)
    # 8-bit formats have a NaN, whose canonical form has all bits set but the sign; the others give their largest.
    nan = 0x7F if bits == 8 else largest
    return np.where(np.isnan(x), nan, code).astype(np.uint16)


@functools.cache
def encode_scale_table(mode: str, finite: bool) -> NDArray[np.uint16]:
    """ue8m0 of each bf16 number: its exponent, rounded up (rp) or not (rz), its sign ignored; NaN is 0xFF."""
    bits = np.arange(1 << 16) & 0x7FFF
    code = bits >> 7
    if mode == "rp":
        code = code + ((bits & 0x7F != 0) & (bits > 0x40) & (bits < 0x7F80))
    if finite:
        code = np.where(bits <= 0x7F80, np.minimum(code, 0xFE), code)
    return code.astype(np.uint16)


# cvt.pack

_PACKED_INTEGERS = {f"{sign}{bits}": bits for sign in "us" for bits in (2, 4, 8, 16)}


def pack_integers(code: Code) -> Definitions:
    """Two s32 saturated to fewer bits, a above b; what remains above them comes from the low bits of c."""
    types = [code.modifiers.pop() for _ in range(len(code.modifiers))][::-1]
    if (
        types[:1] != ["sat"]
        or len(types) not in (3, 4)
        or types[2] != "s32"
        or types[1] not in _PACKED_INTEGERS
    ):
        code.fail("supported: cvt.pack.sat.{u16,s16}.s32 and cvt.pack.sat.{u8,s8,u4,s4,u2,s2}.s32.b32")
    bits, signed = _PACKED_INTEGERS[types[1]], types[1][0] == "s"
    code.expect(3 if bits == 16 else 4)
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    bounds = f"{code.constant(least, np.int32)}, {code.constant(most, np.int32)}, {bits}"

    def field(operand: Operand) -> str:
        return f"saturated_field({code.signed(operand, 's32')}, {bounds})"

    shift = code.constant(bits, np.uint32)
    text = f"({field(code.operands[1])} << {shift}) | {field(code.operands[2])}"
    if bits < 16:
        text += f" | ({code.bits(code.operands[3], 'b32')} << {code.constant(2 * bits, np.uint32)})"
    return code.write(code.operands[0], text, "b32")
