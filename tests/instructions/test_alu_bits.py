# ruff: noqa: E731, B023, PLW0108  (each reference is a one-line function, used where it is written)
"""Logic, shifts, bit fields, comparisons, selection and moves against Python's integers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from tests.instructions import alu_harness
from tests.instructions.integer_checks import LETTERS, check, pairs, samples, signed


@pytest.mark.parametrize("width", [32, 64])
def test_counting(width: int) -> None:
    x, rows = LETTERS[width], [(v,) for v in samples(width, 4, 100)]
    flip = lambda a: ~a % (1 << width) if a >> width - 1 else a
    check(f"popc.b{width} %r1, %{x}2;", rows, f"%{x}2", lambda a: a.bit_count(), "%r1")
    check(f"clz.b{width} %r1, %{x}2;", rows, f"%{x}2", lambda a: width - a.bit_length(), "%r1")
    reverse = lambda a: int(f"{a:0{width}b}"[::-1], 2)
    check(f"brev.b{width} %{x}1, %{x}2;", rows, f"%{x}2", reverse, f"%{x}1")
    for sign, value in (("u", lambda a: a), ("s", flip)):
        place = lambda a, f=value: f(a).bit_length() - 1
        check(f"bfind.{sign}{width} %r1, %{x}2;", rows, f"%{x}2", place, "%r1")
        distance = lambda a, f=place: width - 1 - f(a) if f(a) >= 0 else -1
        check(f"bfind.shiftamt.{sign}{width} %r1, %{x}2;", rows, f"%{x}2", distance, "%r1")


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("literal", [False, True])
def test_shifts_clamp(width: int, literal: bool) -> None:
    x = LETTERS[width]
    amounts = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 0x80000000, 0xFFFFFFFF]
    for name, function in (
        (f"shl.b{width}", lambda a, n: a << min(n, width)),
        (f"shr.u{width}", lambda a, n: a >> min(n, width)),
        (f"shr.b{width}", lambda a, n: a >> min(n, width)),
        (f"shr.s{width}", lambda a, n: signed(a, width) >> min(n, width)),
    ):
        if not literal:
            rows = list(itertools.product(samples(width), amounts))
            check(f"{name} %{x}1, %{x}2, %r3;", rows, f"%{x}2 %r3", function, f"%{x}1")
            continue
        for n in amounts:
            values = [(v,) for v in samples(width)]
            expected = lambda a, f=function, n=n: f(a, n)
            check(f"{name} %{x}1, %{x}2, {n};", values, f"%{x}2", expected, f"%{x}1")


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts(mode: str) -> None:
    amounts = [0, 1, 8, 31, 32, 33, 40, 64, 0xFFFFFFFF]
    count = (lambda n: min(n, 32)) if mode == "clamp" else (lambda n: n & 31)
    left = lambda a, b, n: (b << 32 | a) << count(n) >> 32
    right = lambda a, b, n: (b << 32 | a) >> count(n)
    for direction, function in (("l", left), ("r", right)):
        rows = [(a, b, n) for (a, b), n in itertools.product(pairs(32)[::7], amounts)]
        check(f"shf.{direction}.{mode}.b32 %r1, %r2, %r3, %r4;", rows, "%r2 %r3 %r4", function, "%r1")
        for n in amounts:
            expected = lambda a, b, f=function, n=n: f(a, b, n)
            check(f"shf.{direction}.{mode}.b32 %r1, %r2, %r3, {n};", pairs(32), "%r2 %r3", expected, "%r1")


def byte_of(a: int, b: int, selector: int) -> int:
    byte = (b << 32 | a) >> 8 * (selector & 7) & 255
    return (255 if byte & 128 else 0) if selector & 8 else byte


def permuted(a: int, b: int, selector: int) -> int:
    return sum(byte_of(a, b, selector >> 4 * i & 15) << 8 * i for i in range(4))


def test_prmt() -> None:
    source = random.Random(0)
    selectors = [source.getrandbits(16) for _ in range(60)] + [
        0x5410,
        0x7632,
        0x3210,
        0x7654,
        0x0000,
        0x8888,
        0x4444,
    ]
    rows = [(a, b, s) for (a, b), s in itertools.product(pairs(32)[::31], selectors)]
    check("prmt.b32 %r1, %r2, %r3, %r4;", rows, "%r2 %r3 %r4", permuted, "%r1")
    for s in selectors:
        expected = lambda a, b, s=s: permuted(a, b, s)
        check(f"prmt.b32 %r1, %r2, %r3, {s:#x};", pairs(32)[::3], "%r2 %r3", expected, "%r1")


@pytest.mark.parametrize("mode", ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"])
def test_prmt_modes(mode: str) -> None:
    """PTX ISA, prmt: which bytes each mode picks for result bytes 0 to 3, given two control bits n."""
    bytes_of: dict[str, Callable[[int, int], int]] = {
        "f4e": lambda n, i: (n + i) % 8,
        "b4e": lambda n, i: (n - i) % 8,
        "rc8": lambda n, i: n,
        "ecl": lambda n, i: max(n, i),
        "ecr": lambda n, i: min(n, i),
        "rc16": lambda n, i: 2 * (n & 1) + i % 2,
    }
    rows = [(a, b, n) for (a, b), n in itertools.product(pairs(32)[::11], (0, 1, 2, 3, 7, 0xFFFFFFFC))]
    pick = lambda a, b, n: sum(byte_of(a, b, bytes_of[mode](n & 3, i)) << 8 * i for i in range(4))
    check(f"prmt.b32.{mode} %r1, %r2, %r3, %r4;", rows, "%r2 %r3 %r4", pick, "%r1")


def test_every_lop3() -> None:
    rows = [tuple(samples(32, i, 4)[-4:][j] for i in range(3)) for j in range(4)] + [
        (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA)
    ]
    values = {f"%r{i + 1}": np.array([row[i] for row in rows], np.uint64) for i in range(3)}
    for table in range(256):
        found = alu_harness.run(f"lop3.b32 %r4, %r1, %r2, %r3, {table};", values)["%r4"]
        for row, got in zip(rows, found, strict=True):
            wanted = 0
            for bit in range(32):
                index = sum((row[i] >> bit & 1) << 2 - i for i in range(3))
                wanted |= (table >> index & 1) << bit
            assert int(got) == wanted, f"table {table:#x}"


def test_lop3_with_a_predicate() -> None:
    rows = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for name, function in (("or", lambda a, p: a != 0 or p), ("and", lambda a, p: a != 0 and p)):
        body = f"lop3.{name}.b32 %r2|%p2, %r1, %r1, %r1, 0xc0, %p1;"
        check(body, rows, "%r1 %p1", lambda a, p, f=function: bool(f(a, p)), "%p2")
        check(
            f"lop3.{name}.b32 _|%p2, %r1, 0, 0, 0xf0, !%p1;",
            rows,
            "%r1 %p1",
            lambda a, p, f=function: bool(f(a, not p)),
            "%p2",
        )


@pytest.mark.parametrize("sign", "us")
@pytest.mark.parametrize("width", [32, 64])
def test_bit_fields(width: int, sign: str) -> None:
    """PTX ISA, bfe and bfi, for positions and lengths up to 255."""
    x = LETTERS[width]

    def extract(a: int, position: int, length: int) -> int:
        last = min(position + length - 1, width - 1)
        bit = a >> last & 1 if sign == "s" and length else 0
        bits = [a >> position + i & 1 if i < length and position + i < width else bit for i in range(width)]
        return sum(b << i for i, b in enumerate(bits))

    def insert(a: int, b: int, position: int, length: int) -> int:
        for i in range(length):
            if position + i < width:
                b = b & ~(1 << position + i) | (a >> i & 1) << position + i
        return b

    fields = list(itertools.product((0, 1, 5, 31, 32, 63, 64, 100, 255), repeat=2))
    rows = [(a, p, n) for a, (p, n) in itertools.product(samples(width, 0, 6), fields)]
    check(f"bfe.{sign}{width} %{x}1, %{x}2, %r3, %r4;", rows, f"%{x}2 %r3 %r4", extract, f"%{x}1")
    values = [(v,) for v in samples(width, 1, 4)]
    for p, n in fields:
        expected = lambda a, p=p, n=n: extract(a, p, n)
        check(f"bfe.{sign}{width} %{x}1, %{x}2, {p}, {n};", values, f"%{x}2", expected, f"%{x}1")
    both = [(a, ~a % (1 << width) ^ 0x5A, p, n) for a, p, n in rows]
    check(f"bfi.b{width} %{x}1, %{x}2, %{x}3, %r4, %r5;", both, f"%{x}2 %{x}3 %r4 %r5", insert, f"%{x}1")
    for p, n in fields:
        inserted = lambda a, b, p=p, n=n: insert(a, b, p, n)
        body = f"bfi.b{width} %{x}1, %{x}2, %{x}3, {p}, {n};"
        check(body, pairs(width)[::17], f"%{x}2 %{x}3", inserted, f"%{x}1")


def test_masks_and_extension() -> None:
    rows = list(itertools.product([0, 1, 7, 31, 32, 33, 64, 0xFFFFFFFF], repeat=2))
    ones = lambda n: (1 << n) - 1
    clamp, wrap = (lambda n: min(n, 32)), (lambda n: n & 31)
    for mode, f in (("clamp", clamp), ("wrap", wrap)):
        mask = lambda p, n, f=f: ones(f(n)) << f(p)
        check(f"bmsk.{mode}.b32 %r1, %r2, %r3;", rows, "%r2 %r3", mask, "%r1")
        values = list(itertools.product(samples(32), [0, 1, 8, 31, 32, 40]))
        zero = lambda a, n, f=f: a & ones(f(n))
        check(f"szext.{mode}.u32 %r1, %r2, %r3;", values, "%r2 %r3", zero, "%r1")
        sign = lambda a, n, f=f: signed(a, f(n)) if f(n) else 0
        check(f"szext.{mode}.s32 %r1, %r2, %r3;", values, "%r2 %r3", sign, "%r1")


@pytest.mark.parametrize("right", ["u32", "s32"])
@pytest.mark.parametrize("left", ["u32", "s32"])
def test_dot_products(left: str, right: str) -> None:
    ones = lambda n: (1 << n) - 1
    part = lambda v, i, bits, type: (
        signed(v >> bits * i, bits) if type[0] == "s" else v >> bits * i & ones(bits)
    )
    dot = lambda a, b: sum(part(a, i, 8, left) * part(b, i, 8, right) for i in range(4)) + a
    check(f"dp4a.{left}.{right} %r1, %r2, %r3, %r2;", pairs(32), "%r2 %r3", dot, "%r1")
    for half, first in (("lo", 0), ("hi", 2)):
        dot2 = lambda a, b, f=first: (
            sum(part(a, i, 16, left) * part(b, f + i, 8, right) for i in range(2)) + b
        )
        check(f"dp2a.{half}.{left}.{right} %r1, %r2, %r3, %r3;", pairs(32), "%r2 %r3", dot2, "%r1")


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("width", [16, 32, 64])
def test_setp(width: int) -> None:
    x = LETTERS[width]
    for name, function in COMPARISONS.items():
        for sign in "us" if name not in ("eq", "ne") else "usb":
            number = (lambda v: signed(v, width)) if sign == "s" else (lambda v: v)
            body = f"setp.{name}.{sign}{width} %p1|%p2, %{x}1, %{x}2;"
            expected = lambda a, b, f=function, n=number: f(n(a), n(b))
            check(body, pairs(width), f"%{x}1 %{x}2", expected, "%p1")
            check(body, pairs(width), f"%{x}1 %{x}2", lambda a, b, e=expected: not e(a, b), "%p2")
    for name, same in UNSIGNED.items():
        body = f"setp.{name}.u{width} %p1, %{x}1, %{x}2;"
        check(body, pairs(width), f"%{x}1 %{x}2", COMPARISONS[same], "%p1")


def test_setp_combines_with_a_predicate() -> None:
    rows = [(a, b, p) for a, b, p in itertools.product((0, 1, 0xFFFFFFFF), (0, 1, 0xFFFFFFFF), (0, 1))]
    functions = {"and": lambda c, p: c and p, "or": lambda c, p: c or p, "xor": lambda c, p: c != p}
    for name, f in functions.items():
        body = f"setp.lt.{name}.s32 %p1|%p2, %r1, %r2, %p3;"
        less = lambda a, b: signed(a, 32) < signed(b, 32)
        check(body, rows, "%r1 %r2 %p3", lambda a, b, p, f=f: f(less(a, b), bool(p)), "%p1")
        check(body, rows, "%r1 %r2 %p3", lambda a, b, p, f=f: f(not less(a, b), bool(p)), "%p2")
        body = f"setp.lt.{name}.s32 %p1, %r1, %r2, !%p3;"
        check(body, rows, "%r1 %r2 %p3", lambda a, b, p, f=f: f(less(a, b), not p), "%p1")


def test_selection() -> None:
    rows = [(a, b, p) for (a, b), p in itertools.product(pairs(32)[::5], (0, 1))]
    check("selp.b32 %r1, %r2, %r3, %p1;", rows, "%r2 %r3 %p1", lambda a, b, p: a if p else b, "%r1")
    check("selp.s32 %r1, -1, %r3, !%p1;", rows, "%r2 %r3 %p1", lambda a, b, p: b if p else -1, "%r1")
    check("selp.b64 %d1, 1, 0, %p1;", rows, "%r2 %r3 %p1", lambda a, b, p: p, "%d1")
    check(
        "slct.u32.s32 %r1, 7, %r2, %r3;",
        rows,
        "%r2 %r3 %p1",
        lambda a, b, p: 7 if signed(b, 32) >= 0 else a,
        "%r1",
    )
    check(
        "set.lt.u32.s32 %r1, %r2, %r3;",
        rows,
        "%r2 %r3 %p1",
        lambda a, b, p: -(signed(a, 32) < signed(b, 32)),
        "%r1",
    )
    check("set.lo.f32.u32 %r1, %r2, %r3;", rows, "%r2 %r3 %p1", lambda a, b, p: 0x3F800000 * (a < b), "%r1")


def test_logic() -> None:
    for name, f in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)):
        for width, x in LETTERS.items():
            check(f"{name}.b{width} %{x}1, %{x}2, %{x}3;", pairs(width), f"%{x}2 %{x}3", f, f"%{x}1")
        rows = list(itertools.product((0, 1), repeat=2))
        check(f"{name}.pred %p1, %p2, %p3;", rows, "%p2 %p3", lambda a, b, f=f: bool(f(a, b)), "%p1")
    check("not.pred %p1, %p2;", [(0,), (1,)], "%p2", lambda a: not a, "%p1")


def test_moves() -> None:
    rows = [(v,) for v in samples(64, 7, 60)]
    check("mov.b64 {%r1, %r2}, %d1;", rows, "%d1", lambda a: a, "%r1")
    check("mov.b64 {_, %r2}, %d1;", rows, "%d1", lambda a: a >> 32, "%r2")
    check("mov.b64 {%h1, %h2, %h3, %h4}, %d1;", rows, "%d1", lambda a: a >> 32, "%h3")
    check("mov.b64 {%h1, %h2, %h3, %h4}, %d1; mov.b64 %d2, {%h4, %h3, %h2, %h1};", rows, "%d1",
          lambda a: sum((a >> 16 * i & 0xFFFF) << 16 * (3 - i) for i in range(4)), "%d2")  # fmt: skip
    check(
        "mov.b64 {%r1, %r2}, %d1; mov.b64 %d2, {%r2, %r1};", rows, "%d1", lambda a: a >> 32 | a << 32, "%d2"
    )
    narrow = [(v,) for v in samples(32, 8, 60)]
    check("mov.b32 {%o1, %o2, %o3, %o4}, %r1; mov.b32 %r2, {%o4, %o3, %o2, %o1};", narrow, "%r1",
          lambda a: int.from_bytes(a.to_bytes(4, "little"), "big"), "%r2")  # fmt: skip
    check("mov.b16 {%o1, %o2}, %h1; mov.b16 %h2, {%o2, %o1};", [(0x1234,), (0xFF00,)], "%h1",
          lambda a: a >> 8 | a << 8, "%h2")  # fmt: skip
    check(
        "mov.b32 {%h1, %h2}, %r1; mov.b32 %r2, {%h2, 0xABCD};",
        narrow,
        "%r1",
        lambda a: a >> 16 | 0xABCD0000,
        "%r2",
    )
    check("mov.pred %p1, %p2; mov.pred %p3, -1;", [(0,), (1,)], "%p2", bool, "%p1")
    found = alu_harness.run(
        "mov.u32 %r1, %laneid; mov.u16 %h1, %tid.x; mov.u64 %d1, %clock64; mov.u32 %r2, %clock64;", {}
    )
    for name in ("%r1", "%h1", "%d1", "%r2"):
        assert (found[name] == np.arange(32)).all()


def test_symbols_and_windows() -> None:
    declared = ".shared .align 4 .b8 area[64];"
    body = """mov.u64 %d1, area+8; mov.b32 %r1, area; cvta.shared.u64 %d2, %d1; cvta.to.shared.u64 %d3, %d2;
        cvta.to.global.u64 %d4, %d2; add.u64 %d5, %d1, area;"""
    found = alu_harness.run(body, {}, declared)
    base = 0x1000 + len("area")
    assert set(found["%d1"]) == {base + 8}
    assert set(found["%r1"]) == {base}
    assert set(found["%d2"]) == {base + 8 + (1 << 40)}
    assert set(found["%d3"]) == {base + 8}
    assert set(found["%d4"]) == {base + 8 + (1 << 40)}
    assert set(found["%d5"]) == {2 * base + 8}
