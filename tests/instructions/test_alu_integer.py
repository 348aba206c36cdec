# ruff: noqa: E731, B023, PLW0108  (each reference is a one-line function, used where it is written)
"""Integer arithmetic against Python's integers, over edge values and random ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from cute_kernels.emulator.ptx import PtxError
from tests.instructions import alu_harness
from tests.instructions.integer_checks import LETTERS, check, pairs, samples, signed


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("sign", "us")
@pytest.mark.parametrize("name", [*BINARY, "mul.hi", "div", "rem", "sad"])
def test_arithmetic(name: str, sign: str, width: int) -> None:
    letter = LETTERS[width]
    number = (lambda v: signed(v, width)) if sign == "s" else (lambda v: v)
    functions = BINARY | {
        "mul.hi": lambda a, b: a * b >> width,
        "div": lambda a, b: truncated(a, b) if b else -1,
        "rem": lambda a, b: a - truncated(a, b) * b if b else -1,
        "sad": lambda a, b: abs(a - b) + 5,
    }
    extra = ", 5" if name == "sad" else ""
    body = f"{name}.{sign}{width} %{letter}1, %{letter}2, %{letter}3{extra};"
    expected = lambda a, b: functions[name](number(a), number(b))
    check(body, pairs(width), f"%{letter}2 %{letter}3", expected, f"%{letter}1")


@pytest.mark.parametrize("literal", [0, 1, -1, 7, 0x80000000, 0xFFFFFFFF, -(1 << 31)])
@pytest.mark.parametrize("name", [*BINARY, "mul.hi", "div", "mul.wide"])
def test_literals(name: str, literal: int) -> None:
    """A literal goes the same way as a register that holds it."""
    result = "%d1" if name == "mul.wide" else "%r1"
    for sign in "us":
        by_register = f"mov.b32 %r3, {literal}; {name}.{sign}32 {result}, %r2, %r3;"
        by_literal = f"{name}.{sign}32 {result}, %r2, {literal};"
        values = {"%r2": np.array(samples(32), np.uint64)}
        found = [alu_harness.run(body, values)[result] for body in (by_register, by_literal)]
        assert (found[0] == found[1]).all(), by_literal


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32"])
def test_wide_and_mad(type: str) -> None:
    width = int(type[1:])
    narrow, wide = LETTERS[width], LETTERS[2 * width]
    number = (lambda v: signed(v, width)) if type[0] == "s" else (lambda v: v)
    check(
        f"mul.wide.{type} %{wide}1, %{narrow}2, %{narrow}3;",
        pairs(width),
        f"%{narrow}2 %{narrow}3",
        lambda a, b: number(a) * number(b),
        f"%{wide}1",
    )
    rows = [
        (a, b, c) for (a, b), c in zip(pairs(width), itertools.cycle(samples(2 * width, 3)), strict=False)
    ]
    check(
        f"mad.wide.{type} %{wide}1, %{narrow}2, %{narrow}3, %{wide}4;",
        rows,
        f"%{narrow}2 %{narrow}3 %{wide}4",
        lambda a, b, c: number(a) * number(b) + c,
        f"%{wide}1",
    )
    for part, shift in (("lo", 0), ("hi", width)):
        check(
            f"mad.{part}.{type} %{narrow}1, %{narrow}2, %{narrow}3, %{narrow}4;",
            [(a, b, c % (1 << width)) for a, b, c in rows],
            f"%{narrow}2 %{narrow}3 %{narrow}4",
            lambda a, b, c, shift=shift: (number(a) * number(b) >> shift) + c,
            f"%{narrow}1",
        )


def test_saturation() -> None:
    clamp = lambda v: max(-(1 << 31), min((1 << 31) - 1, v))
    s = lambda v: signed(v, 32)
    for name, function in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b)):
        expected = lambda a, b, f=function: clamp(f(s(a), s(b)))
        check(f"{name}.sat.s32 %r1, %r2, %r3;", pairs(32), "%r2 %r3", expected, "%r1")
    check(
        "mad.hi.sat.s32 %r1, %r2, %r3, %r2;",
        pairs(32),
        "%r2 %r3",
        lambda a, b: clamp((s(a) * s(b) >> 32) + s(a)),
        "%r1",
    )


@pytest.mark.parametrize("width", [32, 64])
def test_carries_make_wide_arithmetic(width: int) -> None:
    """Two registers with a carry are one of twice the width; the last step alone leaves the carry as it is."""
    x, rows = LETTERS[width], []
    source = random.Random(width)
    for _ in range(300):
        rows.append(tuple(source.choice(samples(width)) for _ in range(4)))
    for name, function in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b)):
        body = (
            f"{name}.cc.u{width} %{x}11, %{x}1, %{x}2; {name}c.cc.u{width} %{x}12, %{x}3, %{x}4;"
            f"{name}c.u{width} %{x}13, %{x}1, %{x}1;"
        )

        def whole(a: int, b: int, c: int, d: int, f: Callable[[int, int], int] = function) -> int:
            return f(a | c << width, b | d << width)

        sources = f"%{x}1 %{x}2 %{x}3 %{x}4"
        check(body, rows, sources, lambda *v: whole(*v), f"%{x}11")
        check(body, rows, sources, lambda *v: whole(*v) >> width, f"%{x}12")
        step = 1 if name == "add" else -1
        carry = lambda a, b, c, d, f=function: int(not 0 <= whole(a, b, c, d, f) < 1 << 2 * width)
        check(body, rows, sources, lambda *v, f=function, s=step: f(v[0], v[0]) + s * carry(*v), f"%{x}13")


def test_multiply_add_with_carry() -> None:
    rows = [(a, b, c) for (a, b), c in zip(pairs(32), itertools.cycle(samples(64, 5)), strict=False)]
    body = """mov.b64 {%r3, %r4}, %d1;
        mad.lo.cc.u32 %r5, %r1, %r2, %r3;
        madc.hi.u32 %r6, %r1, %r2, %r4;
        mov.b64 %d2, {%r5, %r6};"""
    check(body, rows, "%r1 %r2 %d1", lambda a, b, c: a * b + c, "%d2")


def test_24_bits() -> None:
    low = lambda v: v & 0xFFFFFF
    sign = lambda v: signed(v, 24)
    for type, number in (("u32", low), ("s32", sign)):
        for part, shift in (("lo", 0), ("hi", 16)):
            expected = lambda a, b, n=number, s=shift: n(a) * n(b) >> s
            check(f"mul24.{part}.{type} %r1, %r2, %r3;", pairs(32), "%r2 %r3", expected, "%r1")
    check("mad24.lo.s32 %r1, %r2, %r3, %r3;", pairs(32), "%r2 %r3", lambda a, b: sign(a) * sign(b) + b, "%r1")


def test_packed_halves() -> None:
    def halves(f: Callable[[int, int], int], sign: bool) -> Callable[[int, int], int]:
        n = (lambda v: signed(v, 16)) if sign else (lambda v: v & 0xFFFF)
        return lambda a, b: f(n(a), n(b)) & 0xFFFF | (f(n(a >> 16), n(b >> 16)) & 0xFFFF) << 16

    for name, function in (("add", lambda a, b: a + b), ("min", min), ("max", max)):
        for sign in "us":
            check(
                f"{name}.{sign}16x2 %r1, %r2, %r3;",
                pairs(32),
                "%r2 %r3",
                halves(function, sign == "s"),
                "%r1",
            )
    relu = halves(lambda a, b: max(0, min(a, b)), True)
    check("min.relu.s16x2 %r1, %r2, %r3;", pairs(32), "%r2 %r3", relu, "%r1")


@pytest.mark.parametrize("width", [16, 32, 64])
def test_unary(width: int) -> None:
    x = LETTERS[width]
    rows = [(v,) for v in samples(width, 9, 100)]
    check(f"abs.s{width} %{x}1, %{x}2;", rows, f"%{x}2", lambda a: abs(signed(a, width)), f"%{x}1")
    check(f"neg.s{width} %{x}1, %{x}2;", rows, f"%{x}2", lambda a: -a, f"%{x}1")
    check(f"not.b{width} %{x}1, %{x}2;", rows, f"%{x}2", lambda a: ~a, f"%{x}1")
    check(f"cnot.b{width} %{x}1, %{x}2;", rows, f"%{x}2", lambda a: int(a == 0), f"%{x}1")


def test_results_stay_whole_warps_of_the_canonical_dtype() -> None:
    """Even what comes from constants alone has 32 lanes, so that a core may store it as it is."""
    body = "mov.b32 %r1, 5; add.s32 %r2, 5, 6; mov.b64 %d1, {%r1, 7}; setp.eq.s32 %p1, 1, 1; selp.b32 %r3, 1, 0, %p1;"
    found = alu_harness.run(body, {})
    assert [int(found[name][0]) for name in ("%r1", "%r2", "%r3")] == [5, 11, 1]
    assert int(found["%d1"][0]) == 7 << 32 | 5


@pytest.mark.parametrize(
    "instruction",
    [
        "add.frob.s32 %r1, %r2, %r3;",
        "add.sat.u32 %r1, %r2, %r3;",
        "add.s32 %r1, %r2;",
        "add.s8 %r1, %r2, %r3;",
        "mul.s32 %r1, %r2, %r3;",
        "mul.wide.s64 %d1, %d2, %d3;",
        "shf.l.b32 %r1, %r2, %r3, %r4;",
        "lop3.b32 %r1, %r2, %r3, %r4, %r5;",
        "setp.lt.and.s32 %p1, %r1, %r2;",
        "setp.lo.s32 %p1, %r1, %r2;",
        "setp.equ.s32 %p1, %r1, %r2;",
        "mov.b128 %d1, %d2;",
        "mov.b64 {%r1, %r2, %r3}, %d1;",
        "add.s64 %d1, %r1, %d2;",
        "add.s32 %h1, %r1, %r2;",
        "add.s32 %p1, %r1, %r2;",
        "selp.b32 %r1, %r2, %r3, %r4;",
        "cvta.moon.u64 %d1, %d2;",
        "min.relu.u32 %r1, %r2, %r3;",
    ],
)
def test_refused_forms_are_named(instruction: str) -> None:
    with pytest.raises(PtxError) as fault:
        alu_harness.translate(instruction)
    assert instruction.split()[0] in str(fault.value)
    assert "PTX line" in str(fault.value)


@pytest.mark.parametrize(
    "instruction", ["ld.shared.b32 %r1, [%r2];", "bar.sync 0;", "shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;"]
)
def test_what_is_no_alu_instruction_is_left_to_the_core(instruction: str) -> None:
    assert alu_harness.translate(instruction) is None
