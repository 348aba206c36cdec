# ruff: noqa: E731  (each reference is a one-line function, used where it is written)
"""cvt in all its forms against rational arithmetic, and against torch's own 8-bit formats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch

from cute_kernels import formats
from cute_kernels.emulator.ptx import PtxError
from tests.instructions import alu_harness
from tests.instructions.exact_numbers import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    F16,
    F32,
    F64,
    Format,
    Number,
    decode,
    encode,
    is_infinite,
    is_nan,
    samples,
)
from tests.instructions.integer_checks import check, signed
from tests.instructions.integer_checks import samples as integers

FLOATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
NARROW = {"e4m3": E4M3, "e5m2": E5M2, "e2m1": E2M1, "e2m3": E2M3, "e3m2": E3M2}
INTEGERS = [f"{sign}{width}" for width in (8, 16, 32, 64) for sign in "us"]
ROUNDINGS = ["rn", "rz", "rm", "rp"]


def letter(type: str) -> str:
    return {"8": "o", "16": "h", "32": "r", "64": "d"}[type.lstrip("usbf")]


def bounds(type: str) -> tuple[int, int]:
    width = int(type[1:])
    return (-(1 << width - 1), (1 << width - 1) - 1) if type[0] == "s" else (0, (1 << width) - 1)


def number_of(bits: int, type: str) -> int:
    width = int(type[1:])
    bits &= (1 << width) - 1
    return signed(bits, width) if type[0] == "s" else bits


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("destination", INTEGERS)
def test_between_integers(destination: str, source: str) -> None:
    x, y = letter(destination), letter(source)
    rows = [(v,) for v in integers(int(source[1:]))]
    check(
        f"cvt.{destination}.{source} %{x}1, %{y}2;", rows, f"%{y}2", lambda a: number_of(a, source), f"%{x}1"
    )
    least, most = bounds(destination)
    clamp = lambda a: max(least, min(most, number_of(a, source)))
    check(f"cvt.sat.{destination}.{source} %{x}1, %{y}2;", rows, f"%{y}2", clamp, f"%{x}1")


def test_registers_wider_than_the_types() -> None:
    rows = [(v,) for v in integers(32)]
    check("cvt.s8.u32 %r1, %r2;", rows, "%r2", lambda a: signed(a, 8), "%r1")
    check("cvt.u8.u32 %r1, %r2;", rows, "%r2", lambda a: a & 255, "%r1")
    check("cvt.s8.s32 %h1, %r2;", rows, "%r2", lambda a: signed(a, 8), "%h1")
    check("cvt.s16.s32 %d1, %r2;", rows, "%r2", lambda a: signed(a, 16), "%d1")
    check("cvt.s32.s8 %r1, %r2;", rows, "%r2", lambda a: signed(a, 8), "%r1")
    check("cvt.u64.u8 %d1, %r2;", rows, "%r2", lambda a: a & 255, "%d1")
    check("cvt.u32.u16 %r1, %r2;", rows, "%r2", lambda a: a & 0xFFFF, "%r1")
    check("cvt.rn.f16.f32 %r1, %r2;", [(0xBF800000,)], "%r2", lambda a: 0xBC00, "%r1")


INTEGRAL: dict[str, Callable[[Fraction], int]] = {
    "rni": round,
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
}


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("destination", INTEGERS)
def test_float_to_integer(destination: str, source: str) -> None:
    form, (least, most), x, y = FLOATS[source], bounds(destination), letter(destination), letter(source[-3:])
    width = int(destination[1:])
    near = [
        encode(Fraction(v) + d, form)
        for v in (least, most, 0, 1)
        for d in (Fraction(-1, 2), 0, Fraction(1, 2), 1)
    ]
    rows = [(v,) for v in samples(form) + near]
    for mode, function in INTEGRAL.items():

        def expected(bits: int, f: Callable[[Fraction], int] = function) -> int:
            value = decode(bits, form)
            if is_nan(bits, form):
                return 1 << width - 1 if source == "f64" or width == 64 else 0
            if is_infinite(value):
                return most if value > 0 else least
            return max(least, min(most, f(Fraction(value))))

        check(f"cvt.{mode}.{destination}.{source} %{x}1, %{y}2;", rows, f"%{y}2", expected, f"%{x}1")


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("destination", FLOATS)
def test_integer_to_float(destination: str, source: str) -> None:
    form, x, y = FLOATS[destination], letter(destination[-3:]), letter(source)
    width, f = int(source[1:]), form.fraction_bits
    ties = [
        v for k in range(f + 2, width) for v in ((1 << k) + (1 << k - f - 1), (1 << k) + (1 << k - f - 1) + 1)
    ]
    rows = [(v % (1 << width),) for v in integers(width) + ties + [-v for v in ties]]
    for mode in ROUNDINGS:
        expected = lambda a, m=mode: encode(Fraction(number_of(a, source)), form, m)
        check(f"cvt.{mode}.{destination}.{source} %{x}1, %{y}2;", rows, f"%{y}2", expected, f"%{x}1")


def midpoints(form: Format, target: Format) -> list[int]:
    """Numbers of `form` on the midpoints of a shorter format and next to them."""
    found = []
    for bits in samples(target, 5):
        value = decode(bits, target)
        if isinstance(value, float):
            continue
        above = decode(min(bits + 1, target.sign - 1 | bits & target.sign), target)
        if isinstance(above, float):
            continue
        middle = encode((value + above) / 2, form)
        found += [middle, middle + 1, max(middle - 1, 0)]
    return found


@pytest.mark.parametrize(
    ("destination", "source"),
    [(d, s) for d, s in itertools.permutations(FLOATS, 2) if (d, s) != ("f32", "bf16")],
)
def test_between_floats(destination: str, source: str) -> None:
    to, form = FLOATS[destination], FLOATS[source]
    x, y = letter(destination[-3:]), letter(source[-3:])
    bits = samples(form) + (midpoints(form, to) if to.fraction_bits < form.fraction_bits else [])
    rows = [(v,) for v in bits if not is_nan(v, form) or "f64" not in (source, destination)]
    exact = to.fraction_bits >= form.fraction_bits and to.exponent_bits >= form.exponent_bits
    for mode in [""] if exact else ROUNDINGS:
        name = f"cvt{'.' if mode else ''}{mode}.{destination}.{source}"
        expected = lambda a, m=mode: encode(decode(a, form), to, m or "rn")
        check(f"{name} %{x}1, %{y}2;", rows, f"%{y}2", expected, f"%{x}1")


def test_bf16_to_f32_keeps_the_bits() -> None:
    check("cvt.f32.bf16 %r1, %h2;", [(v,) for v in range(0, 1 << 16, 13)], "%h2", lambda a: a << 16, "%r1")


@pytest.mark.parametrize("type", FLOATS)
def test_rounding_to_integral_numbers(type: str) -> None:
    form, x = FLOATS[type], letter(type[-3:])
    rows = [(v,) for v in samples(form) if not (type == "f64" and is_nan(v, form))]
    for mode, function in INTEGRAL.items():

        def expected(bits: int, f: Callable[[Fraction], int] = function) -> int:
            value = decode(bits, form)
            if isinstance(value, float):
                return encode(value, form)
            return encode(Fraction(f(value)), form) | bits & form.sign

        check(f"cvt.{mode}.{type}.{type} %{x}1, %{x}2;", rows, f"%{x}2", expected, f"%{x}1")


def rectified(value: Number) -> Number:
    if isinstance(value, float) and math.isnan(value):
        return value
    return value if value > 0 else Fraction(0)


@pytest.mark.parametrize("extra", ["", ".relu", ".satfinite", ".relu.satfinite"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("type", ["f16", "bf16"])
def test_two_floats_to_a_pair(type: str, mode: str, extra: str) -> None:
    """The first operand fills the upper half."""
    form = FLOATS[type]
    bits = samples(F32) + midpoints(F32, form)

    def half(a: int) -> int:
        value = decode(a, F32)
        return encode(rectified(value) if "relu" in extra else value, form, mode, "satfinite" in extra)

    rows = list(zip(bits, bits[7:] + bits[:7], strict=True))
    body = f"cvt.{mode}{extra}.{type}x2.f32 %r1, %r2, %r3;"
    check(body, rows, "%r2 %r3", lambda a, b: half(a) << 16 | half(b), "%r1")
    check(f"cvt.{mode}{extra}.{type}.f32 %h1, %r2;", rows, "%r2 %r3", lambda a, b: half(a), "%h1")


def test_tf32() -> None:
    """10 bits of fraction in a float32; what becomes of NaNs is compared with recordings."""
    tf32 = Format(8, 10, None)
    rows = [
        (v,)
        for v in samples(F32) + [m << 13 | t for m in (0x1FC00, 0x1FC01) for t in (0xFFF, 0x1000, 0x1001)]
    ]
    rows = [row for row in rows if not is_nan(row[0], F32)]
    for mode in ("rna", "rn", "rz"):
        expected = lambda a, m=mode: encode(decode(a, F32), tf32, m) << 13
        check(f"cvt.{mode}.tf32.f32 %r1, %r2;", rows, "%r2", expected, "%r1")
    relu = lambda a: encode(rectified(decode(a, F32)), tf32) << 13
    check("cvt.rn.relu.tf32.f32 %r1, %r2;", rows, "%r2", relu, "%r1")
    finite = lambda a: encode(decode(a, F32), tf32, "rn", True) << 13
    check("cvt.rn.satfinite.tf32.f32 %r1, %r2;", rows, "%r2", finite, "%r1")


def code(value: Number, name: str, relu: bool) -> int:
    """What .rn.satfinite makes of a number: NaN is the largest one where the format has none."""
    form = NARROW[name]
    if isinstance(value, float) and math.isnan(value):
        return 0x7F if form.nan is not None else form.sign - 1
    return encode(rectified(value) if relu else value, form, "rn", True)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_formats_from_wider_ones(name: str, relu: bool) -> None:
    form = NARROW[name]
    nibbles, width = name == "e2m1", 4 if name == "e2m1" else 8
    result = "%o1" if nibbles else "%h1"
    modifiers = f"rn.satfinite{'.relu' if relu else ''}.{name}x2"
    for source, bits in (
        ("f32", samples(F32) + midpoints(F32, form)),
        ("f16x2", samples(F16) + midpoints(F16, form)),
        ("bf16x2", samples(BF16) + midpoints(BF16, form)),
    ):
        wide = FLOATS[source.removesuffix("x2")]
        one = lambda a, wide=wide: code(decode(a, wide), name, relu)
        rows = list(zip(bits, bits[5:] + bits[:5], strict=True))
        if source == "f32":
            expected = lambda a, b, one=one: one(a) << width | one(b)
            check(f"cvt.{modifiers}.f32 {result}, %r2, %r3;", rows, "%r2 %r3", expected, result)
        else:
            pairs = [(a << 16 | b,) for a, b in rows]
            of_pair = lambda v, one=one: one(v >> 16) << width | one(v & 0xFFFF)
            check(f"cvt.{modifiers}.{source} {result}, %r2;", pairs, "%r2", of_pair, result)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_eight_bit_formats_agree_with_torch(name: str) -> None:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    limit = torch.finfo(dtype).max
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 5, 4096, 2)
    values = values.clamp(-limit, limit)
    source = {"%r2": values.numpy().view(np.uint32), "%r3": values.flip(0).numpy().view(np.uint32)}
    found = alu_harness.run(f"cvt.rn.satfinite.{name}x2.f32 %h1, %r2, %r3;", source)["%h1"]
    assert (found >> 8 == values.to(dtype).view(torch.uint8).numpy()).all()
    assert (found & 255 == values.flip(0).to(dtype).view(torch.uint8).numpy()).all()
    codes = np.arange(1 << 16, dtype=np.uint16)
    halves = alu_harness.run(f"cvt.rn.f16x2.{name}x2 %r1, %h2;", {"%h2": codes})["%r1"]
    decoded = torch.from_numpy(codes.view(np.uint8)).view(dtype).to(torch.float16).numpy()
    np.testing.assert_array_equal(np.ascontiguousarray(halves).view(np.float16), decoded)


def test_e2m1_agrees_with_the_thresholds_of_the_host() -> None:
    """Another statement of the same rounding; the codes of NaN are compared with rational arithmetic above alone."""
    bits = np.array([v for v in samples(F32) + midpoints(F32, E2M1) if not is_nan(v, F32)], np.uint32)
    high, low = bits, np.roll(bits, 3)
    found = alu_harness.run("cvt.rn.satfinite.e2m1x2.f32 %o1, %r2, %r3;", {"%r2": high, "%r3": low})["%o1"]
    codes = [formats.encode_e2m1(torch.from_numpy(x.view(np.float32))).numpy() for x in (high, low)]
    assert (found == codes[0] << 4 | codes[1]).all()
    assert len(np.unique(codes[0])) == 16


@pytest.mark.parametrize("wide", ["f16", "bf16"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", NARROW)
def test_narrow_formats_to_pairs(name: str, relu: bool, wide: str) -> None:
    form, to = NARROW[name], FLOATS[wide]
    width = 4 if name == "e2m1" else 8
    mask = 2 * form.sign - 1
    register = "o" if name == "e2m1" else "h"

    def one(bits: int) -> int:
        value = decode(bits & mask, form)
        return encode(rectified(value) if relu else value, to)

    low = (1 << width) - 1
    rows = [(v,) for v in range(0, 1 << 2 * width, 1 if width == 4 else 7)]
    body = f"cvt.rn{'.relu' if relu else ''}.{wide}x2.{name}x2 %r1, %{register}2;"
    check(body, rows, f"%{register}2", lambda v: one(v >> width) << 16 | one(v & low), "%r1")


def scale(byte: int) -> Number:
    return math.nan if byte == 255 else Fraction(2) ** (byte - 127)


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("name", [*NARROW, "s2f6"])
def test_scaled_narrow_formats_to_bf16(name: str, finite: bool) -> None:
    """Each number times the power of two that its byte of the scale operand names."""
    width = 4 if name == "e2m1" else 8
    register = "o" if name == "e2m1" else "h"

    def one(bits: int, exponent: int) -> int:
        value = (
            Fraction(signed(bits, 8), 64)
            if name == "s2f6"
            else decode(bits % (2 * NARROW[name].sign), NARROW[name])
        )
        factor = scale(exponent)
        if any(isinstance(v, float) and math.isnan(v) for v in (value, factor)):
            return 0x7FFF
        product = value if isinstance(value, float) else value * factor
        return encode(product, BF16, "rn", finite)

    low = (1 << width) - 1
    codes = range(0, 1 << 2 * width, 3 if width == 4 else 251)
    rows = list(itertools.product(codes, (0x7F7F, 0x8001, 0x00FE, 0xFF80, 0x85FF)))
    extra = ".satfinite" if finite else ""
    body = f"cvt.rn{extra}.scaled::n2::ue8m0.bf16x2.{name}x2 %r1, %{register}2, %h3;"
    expected = lambda v, s: one(v >> width, s >> 8) << 16 | one(v & low, s & 255)
    check(body, rows, f"%{register}2 %h3", expected, "%r1")


def exponent_code(value: Number, mode: str, finite: bool) -> int:
    """ue8m0 of a number's size: the power of two below (rz) or above (rp) it, 2**-127 at least."""
    if isinstance(value, float) and math.isnan(value):
        return 255
    if is_infinite(value):
        return 254 if finite else 255
    size = abs(Fraction(value))
    exponent = -127
    while exponent < 128 and (
        Fraction(2) ** (exponent + 1) <= size if mode == "rz" else Fraction(2) ** exponent < size
    ):
        exponent += 1
    return min(exponent + 127, 254 if finite else 255)


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("mode", ["rz", "rp"])
def test_scale_factors(mode: str, finite: bool) -> None:
    name = f"cvt.{mode}{'.satfinite' if finite else ''}.ue8m0x2"
    one = lambda a: exponent_code(decode(a, F32), mode, finite)
    bits = samples(F32) + [0x00400000, 0x00400001, 0x003FFFFF, 0x80400001, 0x7F000000, 0x7F000001, 0x00800000]
    rows = list(zip(bits, bits[3:] + bits[:3], strict=True))
    check(f"{name}.f32 %h1, %r2, %r3;", rows, "%r2 %r3", lambda a, b: one(a) << 8 | one(b), "%h1")
    pairs = [
        (a << 16 | b,) for a, b in zip(samples(BF16), samples(BF16)[2:] + samples(BF16)[:2], strict=True)
    ]
    half = lambda a: exponent_code(decode(a & 0xFFFF, BF16), mode, finite)
    check(f"{name}.bf16x2 %h1, %r2;", pairs, "%r2", lambda v: half(v >> 16) << 8 | half(v), "%h1")


def test_scale_factors_to_bf16() -> None:
    one = lambda byte: encode(scale(byte), BF16)
    rows = [(v,) for v in range(0, 1 << 16, 101)] + [(0xFF00,), (0x00FF,)]
    check("cvt.rn.bf16x2.ue8m0x2 %r1, %h2;", rows, "%h2", lambda v: one(v >> 8) << 16 | one(v & 255), "%r1")


@pytest.mark.parametrize("type", ["u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2"])
def test_pack(type: str) -> None:
    width = int(type[1:])
    least, most = bounds(type)
    field = lambda v: max(least, min(most, signed(v, 32))) & (1 << width) - 1
    rows = list(zip(integers(32, 1), integers(32, 2), integers(32, 3), strict=True))
    third, suffix = (", %r4", ".b32") if width < 16 else ("", "")
    expected = lambda a, b, c: (c << 2 * width if third else 0) | field(a) << width | field(b)
    check(f"cvt.pack.sat.{type}.s32{suffix} %r1, %r2, %r3{third};", rows, "%r2 %r3 %r4", expected, "%r1")


REFUSED: Sequence[str] = [
    "cvt.f16.f32 %h1, %r2;",
    "cvt.s32.f32 %r1, %r2;",
    "cvt.f32.s32 %r1, %r2;",
    "cvt.rni.f16.f32 %h1, %r2;",
    "cvt.rn.e4m3x2.f32 %h1, %r2, %r3;",
    "cvt.rs.f16x2.f32 %r1, %r2, %r3, %r4;",
    "cvt.rs.satfinite.e4m3x4.f32 %r1, {%r2, %r3, %r4, %r5}, %r6;",
    "cvt.rn.satfinite.ue8m0x2.f32 %h1, %r2, %r3;",
    "cvt.rn.f16x2.ue8m0x2 %r1, %h2;",
    "cvt.rn.satfinite.s2f6x2.f32 %h1, %r2, %r3;",
    "cvt.ftz.f16.f16 %h1, %h2;",
    "cvt.pack.u8.s32.b32 %r1, %r2, %r3, %r4;",
    "cvt.rna.bf16.f32 %h1, %r2;",
    "cvt.rn.e4m3.f32 %h1, %r2;",
]


@pytest.mark.parametrize("instruction", REFUSED)
def test_refused_forms_are_named(instruction: str) -> None:
    with pytest.raises(PtxError) as fault:
        alu_harness.translate(instruction)
    assert instruction.split()[0] in str(fault.value)
