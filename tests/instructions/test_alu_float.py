# ruff: noqa: E731  (each reference is a one-line function, used where it is written)
"""Floating-point instructions against rational arithmetic, rounded once by exact_numbers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest

from cute_kernels.emulator.ptx import PtxError
from tests.instructions import alu_harness
from tests.instructions.exact_numbers import (
    BF16,
    F16,
    F32,
    F64,
    Format,
    Number,
    arithmetic,
    decode,
    encode,
    is_infinite,
    is_nan,
    samples,
)

FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
LETTERS = {"f16": "h", "bf16": "h", "f32": "r", "f64": "d"}


def rows_of(form: Format, operands: int, count: int = 700) -> list[tuple[int, ...]]:
    """Random combinations of samples; each operand also meets itself negated, which cancels."""
    source = random.Random(f"{form} {operands}")
    values = samples(form)
    rows = [tuple(source.choice(values) for _ in range(operands)) for _ in range(count)]
    return rows + [
        (v, v ^ form.sign, *(source.choice(values) for _ in range(operands - 2)))
        for v in values
        if operands > 1
    ]


def check(
    body: str, rows: Sequence[tuple[int, ...]], sources: str, expected: Callable[..., int], result: str
) -> None:
    names = sources.split()
    values = {name: np.array([row[i] for row in rows], np.uint64) for i, name in enumerate(names)}
    found = alu_harness.run(body, values)[result]
    for row, got in zip(rows, found, strict=True):
        wanted = expected(*row)
        assert int(got) == wanted, (
            f"{body} of {[hex(v) for v in row]} gives {int(got):#x}, not {int(wanted):#x}"
        )


OPERANDS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3}


FORMS = [
    (name, type, mode)
    for name, type, mode in itertools.product(OPERANDS, FORMATS, ("rn", "rz", "rm", "rp"))
    if type in ("f32", "f64") or (mode == "rn" and name != "div")
]


@pytest.mark.parametrize(("name", "type", "mode"), FORMS)
def test_arithmetic_is_rounded_once(name: str, type: str, mode: str) -> None:
    form, x = FORMATS[type], LETTERS[type]
    registers = [f"%{x}{i + 2}" for i in range(OPERANDS[name])]

    def expected(*bits: int) -> int:
        return encode(arithmetic(name, [decode(b, form) for b in bits], mode), form, mode)

    rows = rows_of(form, OPERANDS[name], 250 if type == "f64" else 700)
    if type == "f64":  # which of its NaNs f64 gives is compared with recordings
        rows = [row for row in rows if not any(is_nan(bits, form) for bits in row)]
    check(
        f"{name}.{mode}.{type} %{x}1, {', '.join(registers)};", rows, " ".join(registers), expected, f"%{x}1"
    )


def test_fma_at_midpoints() -> None:
    """Sums that float64 rounds onto the midpoint of two shorter numbers, from above or below, and exact midpoints."""
    one, tiny = 0x3F800000, 0x00000001
    rows = []
    for a in (0x3F800001, 0x3F800003, 0x3FFFFFFF, 0x3F801001):
        for b in (0x3F800001, 0x3F800FFF, 0x33800000, 0x34000000, 0x33FFFFFF):
            for c in (
                0,
                one,
                one + 1,
                one | 1 << 31,
                tiny,
                tiny | 1 << 31,
                0x0D000000,
                0x8D000000,
                0x33000000,
            ):
                rows.append((a, b, c))
    expected = lambda *bits: encode(arithmetic("fma", [decode(b, F32) for b in bits], "rn"), F32)
    check("fma.rn.f32 %r1, %r2, %r3, %r4;", rows, "%r2 %r3 %r4", expected, "%r1")
    # 24929 * 673 is 2**24 + 1, half way between two float32: in float64 2**-40 more or less does not show.
    factors, tinies = (0x46C2C200, 0x44284000), (0x2B800000, 0xAB800000, 0x00000001, 0x80000001, 0)
    close = [(*pair, tiny) for pair in (factors, factors[::-1]) for tiny in tinies]
    close += [(a | 1 << 31, b, c) for a, b, c in close]
    check("fma.rn.f32 %r1, %r2, %r3, %r4;", close, "%r2 %r3 %r4", expected, "%r1")


def test_fma_of_bf16_at_midpoints() -> None:
    rows = []
    for a, b in itertools.product((0x3F81, 0x3F83, 0x3FFF, 0x3F80, 0x4080), repeat=2):
        for c in (0x0001, 0x8001, 0x0080, 0x3C00, 0xBC00, 0x3B80, 0x3F80, 0xBF80, 0x1000, 0x9000):
            rows.append((a, b, c))
    expected = lambda *bits: encode(arithmetic("fma", [decode(b, BF16) for b in bits], "rn"), BF16)
    check("fma.rn.bf16 %h1, %h2, %h3, %h4;", rows, "%h2 %h3 %h4", expected, "%h1")


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("type", ["f16x2", "bf16x2", "f32x2"])
def test_packed_types_are_two_scalars(name: str, type: str) -> None:
    scalar = type.removesuffix("x2")
    x, width = ("d", 32) if scalar == "f32" else ("r", 16)
    y = LETTERS[scalar]
    operands = OPERANDS[name]
    low, high = rows_of(FORMATS[scalar], operands), rows_of(FORMATS[scalar], operands)[::-1]
    packed = {
        f"%{x}{i + 1}": np.array([a[i] | b[i] << width for a, b in zip(low, high, strict=True)], np.uint64)
        for i in range(operands)
    }
    mode = ".rn" if name == "fma" else ""
    registers = ", ".join(packed)
    found = alu_harness.run(f"{name}{mode}.{type} %{x}9, {registers};", packed)[f"%{x}9"].astype(np.uint64)
    for rows, shift in ((low, 0), (high, width)):
        sources = {f"%{y}{i + 1}": np.array([row[i] for row in rows], np.uint64) for i in range(operands)}
        scalars = alu_harness.run(f"{name}{mode}.{scalar} %{y}9, {', '.join(sources)};", sources)[f"%{y}9"]
        assert ((found >> np.uint64(shift)) & np.uint64((1 << width) - 1) == scalars).all()


@pytest.mark.parametrize("narrow", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_mixed_precision(narrow: str, mode: str) -> None:
    form = FORMATS[narrow]
    pairs = [(a, c) for a, c in itertools.product(samples(form, 1, 8), samples(F32, 2, 8))]
    add = lambda a, c: encode(arithmetic("add", [decode(a, form), decode(c, F32)], mode), F32, mode)
    check(f"add.{mode}.f32.{narrow} %r1, %h2, %r3;", pairs, "%h2 %r3", add, "%r1")
    sub = lambda a, c: encode(arithmetic("sub", [decode(a, form), decode(c, F32)], mode), F32, mode)
    check(f"sub.{mode}.f32.{narrow} %r1, %h2, %r3;", pairs, "%h2 %r3", sub, "%r1")
    rows = [(a, b, c) for (a, c), b in zip(pairs, itertools.cycle(samples(form, 3)), strict=False)]

    def fma(a: int, b: int, c: int) -> int:
        return encode(arithmetic("fma", [decode(a, form), decode(b, form), decode(c, F32)], mode), F32, mode)

    check(f"fma.{mode}.f32.{narrow} %r1, %h2, %h3, %r4;", rows, "%h2 %h3 %r4", fma, "%r1")


def flush(bits: int, form: Format) -> int:
    return bits & form.sign if not bits >> form.fraction_bits & ((1 << form.exponent_bits) - 1) else bits


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("type", ["f32", "f16"])
def test_flushing(name: str, type: str) -> None:
    """Subnormal operands and results become zeros; a result is subnormal by what it is before it is rounded."""
    form, x = FORMATS[type], LETTERS[type]
    registers = [f"%{x}{i + 2}" for i in range(OPERANDS[name])]
    least = Fraction(2) ** (1 - form.bias)

    def expected(*bits: int) -> int:
        exact = arithmetic(name, [decode(flush(b, form), form) for b in bits], "rn")
        if isinstance(exact, Fraction) and 0 < abs(exact) < least:
            return form.sign if exact < 0 else 0
        return encode(exact, form)

    mode = ".rn" if name == "fma" else ""
    body = f"{name}{mode}.ftz.{type} %{x}1, {', '.join(registers)};"
    f = form.fraction_bits
    rounds_up = (1 << f, (form.bias << f) - 1, 0)[: OPERANDS[name]]  # just below the least normal number
    check(body, [*rows_of(form, OPERANDS[name]), rounds_up], " ".join(registers), expected, f"%{x}1")


def test_saturation_and_relu() -> None:
    def clamp(bits: int, form: Format) -> int:
        value = decode(bits, form)
        if (isinstance(value, float) and math.isnan(value)) or value <= 0:
            return 0
        return encode(min(value, Fraction(1)), form) if not is_infinite(value) else encode(Fraction(1), form)

    def rectify(bits: int, form: Format) -> int:
        return bits if is_nan(bits, form) or not bits & form.sign else 0

    for type in ("f32", "f16"):
        form, x = FORMATS[type], LETTERS[type]
        add = lambda *v, f=form: clamp(encode(arithmetic("add", [decode(b, f) for b in v], "rn"), f), f)
        check(f"add.sat.{type} %{x}1, %{x}2, %{x}3;", rows_of(form, 2), f"%{x}2 %{x}3", add, f"%{x}1")
    for type in ("f16", "bf16"):
        form = FORMATS[type]
        fma = lambda *v, f=form: rectify(encode(arithmetic("fma", [decode(b, f) for b in v], "rn"), f), f)
        check(f"fma.rn.relu.{type} %h1, %h2, %h3, %h4;", rows_of(form, 3), "%h2 %h3 %h4", fma, "%h1")


@pytest.mark.parametrize("type", FORMATS)
@pytest.mark.parametrize("name", ["min", "max"])
def test_minimum_and_maximum(name: str, type: str) -> None:
    form, x = FORMATS[type], LETTERS[type]

    def order(bits: int) -> int:
        return -(bits & form.sign - 1) - 1 if bits & form.sign else bits

    def choose(*bits: int) -> int:
        numbers = [b for b in bits if not is_nan(b, form)]
        if not numbers:
            assert form.nan is not None
            return form.nan
        return (min if name == "min" else max)(numbers, key=order)

    def strict(*bits: int) -> int:
        assert form.nan is not None
        return form.nan if any(is_nan(b, form) for b in bits) else choose(*bits)

    def crossed(*bits: int) -> int:
        chosen = choose(*(b & ~form.sign for b in bits))
        sign = (bits[0] ^ bits[1]) & form.sign
        return chosen if is_nan(chosen, form) else chosen | sign

    rows = [r for r in rows_of(form, 2) if type != "f64" or not all(is_nan(b, form) for b in r)]
    check(f"{name}.{type} %{x}1, %{x}2, %{x}3;", rows, f"%{x}2 %{x}3", choose, f"%{x}1")
    if type == "f64":
        return
    check(f"{name}.NaN.{type} %{x}1, %{x}2, %{x}3;", rows, f"%{x}2 %{x}3", strict, f"%{x}1")
    check(f"{name}.xorsign.abs.{type} %{x}1, %{x}2, %{x}3;", rows, f"%{x}2 %{x}3", crossed, f"%{x}1")
    if type == "f32":
        three = rows_of(form, 3)
        check(f"{name}.f32 %r1, %r2, %r3, %r4;", three, "%r2 %r3 %r4", choose, "%r1")
        check(f"{name}.NaN.f32 %r1, %r2, %r3, %r4;", three, "%r2 %r3 %r4", strict, "%r1")
        magnitudes = lambda *bits: choose(*(b & ~form.sign for b in bits))
        check(f"{name}.abs.f32 %r1, %r2, %r3, %r4;", three, "%r2 %r3 %r4", magnitudes, "%r1")
        strict_magnitudes = lambda *bits: strict(
            *(b & ~form.sign if not is_nan(b, form) else b for b in bits)
        )
        check(f"{name}.NaN.abs.f32 %r1, %r2, %r3, %r4;", three, "%r2 %r3 %r4", strict_magnitudes, "%r1")


def test_signs() -> None:
    for type, form in FORMATS.items():
        x = LETTERS[type]
        rows = [(v,) for v in samples(form) if type != "f64" or not is_nan(v, form)]
        keep = lambda f, form=form: lambda a: form.nan if is_nan(a, form) else f(a)
        check(f"abs.{type} %{x}1, %{x}2;", rows, f"%{x}2", keep(lambda a, s=form.sign: a & ~s), f"%{x}1")
        check(f"neg.{type} %{x}1, %{x}2;", rows, f"%{x}2", keep(lambda a, s=form.sign: a ^ s), f"%{x}1")
    pairs = rows_of(F32, 2)
    check("copysign.f32 %r1, %r2, %r3;", pairs, "%r2 %r3", lambda a, b: a & 1 << 31 | b & ~(1 << 31), "%r1")


COMPARISONS: dict[str, Callable[[Number, Number], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("type", FORMATS)
def test_comparisons(type: str) -> None:
    form, x = FORMATS[type], LETTERS[type]
    rows = rows_of(form, 2) + [(v, v) for v in samples(form)]
    for name, function in COMPARISONS.items():
        for suffix, with_nan in (("", False), ("u", True)):

            def expected(
                a: int, b: int, with_nan: bool = with_nan, f: Callable[..., bool] = function
            ) -> bool:
                if is_nan(a, form) or is_nan(b, form):
                    return with_nan
                return f(decode(a, form), decode(b, form))

            check(f"setp.{name}{suffix}.{type} %p1, %{x}1, %{x}2;", rows, f"%{x}1 %{x}2", expected, "%p1")
    unordered = lambda a, b: is_nan(a, form) or is_nan(b, form)
    check(f"setp.nan.{type} %p1, %{x}1, %{x}2;", rows, f"%{x}1 %{x}2", unordered, "%p1")
    check(
        f"setp.num.{type} %p1, %{x}1, %{x}2;", rows, f"%{x}1 %{x}2", lambda a, b: not unordered(a, b), "%p1"
    )


APPROXIMATIONS: dict[str, Callable[[float], float]] = {
    "rcp": lambda v: 1 / v,
    "sqrt": math.sqrt,
    "rsqrt": lambda v: 1 / math.sqrt(v),
    "lg2": math.log2,
    "ex2": lambda v: 2.0**v,
    "sin": math.sin,
    "cos": math.cos,
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_stand_for_their_functions(name: str) -> None:
    """Which function each is; how close to the hardware's is for the recordings."""
    values = np.linspace(0.03, 3.0, 200).astype(np.float32)
    found = alu_harness.run(f"{name}.approx.f32 %r1, %r2;", {"%r2": values.view(np.uint32)})["%r1"]
    wanted = [APPROXIMATIONS[name](float(v)) for v in values]
    np.testing.assert_allclose(np.ascontiguousarray(found).view(np.float32), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_approximations_of_double_precision(name: str) -> None:
    """They look at the upper half of their operand and give the upper half of a result."""
    given = np.array([3.7, 1e-300, 4e307, 0.0, -0.0, np.inf, 5e-324, -5e-324, -np.inf, np.nan, -2.0])
    bits = np.resize(given, 32).view(np.uint64)
    found = alu_harness.run(f"{name}.approx.ftz.f64 %d1, %d2;", {"%d2": bits | np.uint64(0xABCDEF)})["%d1"][
        :11
    ]
    of = {"rcp": lambda v: 1 / v, "rsqrt": lambda v: 1 / np.sqrt(v)}[name]
    with np.errstate(all="ignore"):
        wanted = of(np.where(np.abs(given) < 1e-307 * (given != 1e-300), np.copysign(0.0, given), given))
    values = np.ascontiguousarray(found).view(np.float64)
    np.testing.assert_allclose(values[:3], wanted[:3], rtol=2**-19)
    np.testing.assert_array_equal(values[3:], wanted[3:])
    assert not (found & np.uint64(0xFFFFFFFF)).any()
    assert found[9] == 0x7FFFFFFF00000000


@pytest.mark.parametrize(
    "instruction",
    [
        "add.rna.f32 %r1, %r2, %r3;",
        "add.rz.f16 %h1, %h2, %h3;",
        "add.ftz.f64 %d1, %d2, %d3;",
        "fma.f32 %r1, %r2, %r3, %r4;",
        "div.f32 %r1, %r2, %r3;",
        "ex2.f32 %r1, %r2;",
        "sin.approx.f64 %d1, %d2;",
        "min.xorsign.f32 %r1, %r2, %r3;",
        "min.bf16 %h1, %h2, %h3, %h4;",
        "testp.f32 %p1, %r1;",
        "setp.lo.f32 %p1, %r1, %r2;",
        "fma.rn.oob.f16 %h1, %h2, %h3, %h4;",
    ],
)
def test_refused_forms_are_named(instruction: str) -> None:
    with pytest.raises(PtxError) as fault:
        alu_harness.translate(instruction)
    assert instruction.split()[0] in str(fault.value)
