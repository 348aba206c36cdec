"""The per-lane instruction forms that record_alu.py ran on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = {"p": 1, "h": 16, "r": 32, "d": 64}  # register letters


class Form(NamedTuple):
    """One instruction or a short sequence: results in %d0, %d1, ..., sources in %s0, %s1, ....

    results: a letter of BITS each. sources: a kind of alu_inputs.values each. relative, absolute: how far a result
    may lie from the recorded one, for instructions whose result the ISA does not define to the bit.
    """

    name: str
    body: str
    results: str
    sources: tuple[str, ...]
    relative: float = 0.0
    absolute: float = 0.0
    number: str = ""  # type of the results, where they are compared as numbers

    @property
    def exact(self) -> bool:
        return not self.relative and not self.absolute


def letter(kind: str) -> str:
    """The register that a kind of source goes into."""
    width = {"pred": "p", "amount": "r", "selector": "r", "f16x2": "r", "bf16x2": "r", "f32x2": "d"}
    if kind in width:
        return width[kind]
    return {"16": "h", "32": "r", "64": "d"}[kind[-2:]]


def form(
    name: str,
    results: str,
    sources: str,
    literals: str = "",
    relative: float = 0.0,
    absolute: float = 0.0,
) -> Form:
    """An instruction whose operands are its results, joined by | where there are two, its sources, and literals."""
    kinds = tuple(sources.split())
    destination = "|".join(f"%d{i}" for i in range(len(results)))
    operands = [destination, *(f"%s{i}" for i in range(len(kinds)))] + ([literals] if literals else [])
    number = name.rsplit(".", 1)[-1] if relative or absolute else ""
    title = f"{name} {literals}".strip()
    return Form(title, f"{name} {', '.join(operands)};", results, kinds, relative, absolute, number)


def _integer_forms() -> Iterator[Form]:
    for name, width in (("h", 16), ("r", 32), ("d", 64)):
        for sign in "us":
            kind, type = f"u{width}", f"{sign}{width}"
            for opcode in ("add", "sub", "mul.lo", "mul.hi", "div", "rem", "min", "max"):
                yield form(f"{opcode}.{type}", name, f"{kind} {kind}")
            yield form(f"mad.lo.{type}", name, f"{kind} {kind} {kind}")
            yield form(f"sad.{type}", name, f"{kind} {kind} {kind}")
            yield form(f"shr.{type}", name, f"{kind} amount")
            for compare in ("lt", "le", "gt", "ge") if sign == "s" else ("lo", "hs", "lt", "le", "gt", "ge"):
                yield form(f"setp.{compare}.{type}", "pp", f"{kind} {kind}")
        for opcode in ("abs", "neg"):
            yield form(f"{opcode}.s{width}", name, f"u{width}")
        for opcode in ("and", "or", "xor"):
            yield form(f"{opcode}.b{width}", name, f"u{width} u{width}")
        for opcode in ("not", "cnot"):
            yield form(f"{opcode}.b{width}", name, f"u{width}")
        yield form(f"shl.b{width}", name, f"u{width} amount")
    for type in ("u16", "s16", "u32", "s32"):
        kind, wide = "u" + type[1:], {"16": "r", "32": "d"}[type[1:]]
        yield form(f"mul.wide.{type}", wide, f"{kind} {kind}")
        yield form(f"mad.wide.{type}", wide, f"{kind} {kind} u{2 * int(type[1:])}")
    for opcode in ("add.sat.s32", "sub.sat.s32", "min.s16x2", "max.u16x2", "add.u16x2"):
        yield form(opcode, "r", "u32 u32")
    for opcode in ("min.relu", "max.relu"):
        for type in ("s32", "s16x2"):
            yield form(f"{opcode}.{type}", "r", "u32 u32")
    yield form("mad.hi.sat.s32", "r", "u32 u32 u32")
    yield form("mul24.lo.s32", "r", "u32 u32")
    yield form("mul24.hi.u32", "r", "u32 u32")
    for left, right in itertools.product(("u32", "s32"), repeat=2):
        yield form(f"dp4a.{left}.{right}", "r", "u32 u32 u32")
        yield form(f"dp2a.{'lo' if left == right else 'hi'}.{left}.{right}", "r", "u32 u32 u32")
    carry = "{0}.cc.u32 %d0, %s0, %s1; {0}c.cc.u32 %d1, %s2, %s3; {0}c.u32 %d2, %s0, %s3;"
    yield Form("add.cc", carry.format("add"), "rrr", ("u32",) * 4)
    yield Form("sub.cc", carry.format("sub"), "rrr", ("u32",) * 4)
    multiply = "mad.lo.cc.u32 %d0, %s0, %s1, %s2; madc.hi.u32 %d1, %s0, %s1, %s3;"
    yield Form("mad.cc", multiply, "rr", ("u32",) * 4)


def _bit_forms() -> Iterator[Form]:
    for width, name in ((32, "r"), (64, "d")):
        for opcode in ("popc", "clz"):
            yield form(f"{opcode}.b{width}", "r", f"u{width}")
        yield form(f"brev.b{width}", name, f"u{width}")
        for sign in "us":
            yield form(f"bfind.{sign}{width}", "r", f"u{width}")
            yield form(f"bfind.shiftamt.{sign}{width}", "r", f"u{width}")
            yield form(f"bfe.{sign}{width}", name, f"u{width} amount amount")
        yield form(f"bfi.b{width}", name, f"u{width} u{width} amount amount")
    for literals in ("4, 8", "24, 8", "28, 8", "0, 32", "31, 1", "40, 3", "3, 0"):
        yield form("bfe.u32", "r", "u32", literals)
        if (
            literals != "40, 3"
        ):  # the compiler folds that one to all ones, against the ISA and the register form
            yield form("bfe.s32", "r", "u32", literals)
        yield form("bfi.b32", "r", "u32 u32", literals)
    for mode in ("", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"):
        yield form(f"prmt.b32{mode}", "r", "u32 u32 selector")
    for selector in ("0x5410", "0x7632", "0x3340", "0x0123", "0x8888", "0xba98", "0x7777", "0x6420"):
        yield form("prmt.b32", "r", "u32 u32", selector)
    for table in ("0xea", "0x96", "0x01", "0xca", "0x00", "0xff", "0x2d"):
        yield form("lop3.b32", "r", "u32 u32 u32", table)
    for direction, mode in itertools.product("lr", ("clamp", "wrap")):
        yield form(f"shf.{direction}.{mode}.b32", "r", "u32 u32 amount")
        yield form(f"shf.{direction}.{mode}.b32", "r", "u32 u32", "9")
        yield form(f"shf.{direction}.{mode}.b32", "r", "u32 u32", "32")
    for mode in ("clamp", "wrap"):
        yield form(f"bmsk.{mode}.b32", "r", "amount amount")
        yield form(f"szext.{mode}.s32", "r", "u32 amount")
        yield form(f"szext.{mode}.u32", "r", "u32 amount")


def _float_forms() -> Iterator[Form]:
    for type, name in (("f32", "r"), ("f64", "d")):
        modes = ("", ".rn", ".rz", ".rm", ".rp")
        for opcode, mode in itertools.product(("add", "sub", "mul"), modes):
            yield form(f"{opcode}{mode}.{type}", name, f"{type} {type}")
        for mode in modes[1:]:
            yield form(f"fma{mode}.{type}", name, f"{type} {type} {type}")
            yield form(f"div{mode}.{type}", name, f"{type} {type}")
            yield form(f"rcp{mode}.{type}", name, type)
            yield form(f"sqrt{mode}.{type}", name, type)
        for opcode in ("min", "max"):
            yield form(f"{opcode}.{type}", name, f"{type} {type}")
        for opcode in ("abs", "neg"):
            yield form(f"{opcode}.{type}", name, type)
        yield form(f"copysign.{type}", name, f"{type} {type}")
        for kind in ("finite", "infinite", "number", "notanumber", "normal", "subnormal"):
            yield form(f"testp.{kind}.{type}", "p", type)
    for opcode in (
        "add.ftz",
        "mul.ftz",
        "add.sat",
        "mul.sat",
        "mul.rz.ftz.sat",
        "min.ftz",
        "max.ftz",
        "sub.ftz",
    ):
        yield form(f"{opcode}.f32", "r", "f32 f32")
    for opcode in ("fma.rn.ftz", "fma.rn.sat", "fma.rz.ftz.sat", "mad.rn"):
        yield form(f"{opcode}.f32", "r", "f32 f32 f32")
    for opcode in ("abs.ftz", "neg.ftz", "rcp.rn.ftz", "sqrt.rn.ftz"):
        yield form(f"{opcode}.f32", "r", "f32")
    yield form("div.rn.ftz.f32", "r", "f32 f32")
    for opcode in ("min", "max"):
        for extra in (".NaN", ".xorsign.abs", ".NaN.xorsign.abs", ".ftz.NaN"):
            yield form(f"{opcode}{extra}.f32", "r", "f32 f32")
    for compare in (
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "equ",
        "neu",
        "ltu",
        "leu",
        "gtu",
        "geu",
        "num",
        "nan",
    ):
        yield form(f"setp.{compare}.f32", "pp", "f32 f32")
    for opcode in ("setp.lt.ftz.f32", "setp.eq.f64", "setp.geu.f64"):
        yield form(opcode, "pp", "f64 f64" if opcode.endswith("f64") else "f32 f32")
    yield form("setp.gt.and.s32", "pp", "u32 u32 pred")
    yield form("setp.eq.xor.f32", "pp", "f32 f32 pred")
    yield form("set.lt.u32.f32", "r", "f32 f32")
    yield form("set.geu.f32.f32", "r", "f32 f32")
    yield form("set.ne.or.s32.u32", "r", "u32 u32 pred")
    yield form("slct.b32.f32", "r", "u32 u32 f32")
    yield form("slct.b64.s32", "d", "u64 u64 u32")
    yield form("selp.b16", "h", "u16 u16 pred")


def _half_forms() -> Iterator[Form]:
    for type, name in (("f16", "h"), ("bf16", "h"), ("f16x2", "r"), ("bf16x2", "r")):
        pair, triple = f"{type} {type}", f"{type} {type} {type}"
        for opcode in ("add", "sub", "mul", "add.rn", "sub.rn", "mul.rn"):
            yield form(f"{opcode}.{type}", name, pair)
        yield form(f"fma.rn.{type}", name, triple)
        yield form(f"fma.rn.relu.{type}", name, triple)
        for opcode in ("min", "max"):
            for extra in ("", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"):
                yield form(f"{opcode}{extra}.{type}", name, pair)
        for opcode in ("abs", "neg"):
            yield form(f"{opcode}.{type}", name, type)
        if "bf16" not in type:
            for opcode in ("add.ftz", "add.sat", "mul.ftz.sat", "sub.ftz"):
                yield form(f"{opcode}.{type}", name, pair)
            yield form(f"fma.rn.ftz.{type}", name, triple)
            yield form(f"fma.rn.sat.{type}", name, triple)
    for type in ("f16", "bf16"):
        for compare in ("eq", "ne", "lt", "geu", "nan"):
            yield form(f"setp.{compare}.{type}", "p", f"{type} {type}")
            yield form(f"setp.{compare}.{type}x2", "pp", f"{type}x2 {type}x2")
    yield form("set.lt.f16x2.f16x2", "r", "f16x2 f16x2")
    yield form("set.gt.u32.f16x2", "r", "f16x2 f16x2")


def _approximate_forms() -> Iterator[Form]:
    """Bounds: PTX ISA, each instruction's table of errors; a step where results are subnormal."""
    step = 2.0**-149
    for flush in ("", ".ftz"):
        for opcode, relative, absolute in (
            ("rcp.approx", 2.0**-22, step),
            ("sqrt.approx", 2.0**-22, 0.0),
            ("rsqrt.approx", 2.0**-21.9, 0.0),
            ("lg2.approx", 2.0**-21, 2.0**-21),
            ("ex2.approx", 2.0**-21.5, step),
        ):
            yield form(f"{opcode}{flush}.f32", "r", "f32", "", relative, absolute)
        for opcode in ("sin", "cos"):
            yield form(f"{opcode}.approx{flush}.f32", "r", "angle32", "", 0.0, 2.0**-20.5)
        yield form(f"div.full{flush}.f32", "r", "f32 f32", "", 2.0**-21.5, step)
        yield form(f"div.approx{flush}.f32", "r", "f32 f32", "", 2.0**-21.5, step)
    yield form("tanh.approx.f32", "r", "f32", "", 2.0**-11)
    for type in ("f16", "f16x2"):
        name = letter(type)
        yield form(f"ex2.approx.{type}", name, type, "", 2.0**-9.5)
        yield form(f"tanh.approx.{type}", name, type, "", 2.0**-9.9)
    for type in ("bf16", "bf16x2"):
        name = letter(type)
        yield form(f"ex2.approx.ftz.{type}", name, type, "", 2.0**-6.9)
        yield form(f"tanh.approx.{type}", name, type, "", 2.0**-6.9)


def _conversion_forms() -> Iterator[Form]:
    registers = {"16": "h", "32": "r", "64": "d"}
    integers = ("u16", "s16", "u32", "s32", "u64", "s64")
    floats = {"f16": "h", "bf16": "h", "f32": "r", "f64": "d"}
    for destination, source in itertools.product(integers, repeat=2):
        kind = "u" + source[1:]
        yield form(f"cvt.{destination}.{source}", registers[destination[1:]], kind)
        contained = int(destination[1:]) - (destination[0] == "s") >= int(source[1:]) - (source[0] == "s")
        if not contained or (source[0] == "s" and destination[0] == "u"):  # else .sat is illegal
            yield form(f"cvt.sat.{destination}.{source}", registers[destination[1:]], kind)
    for destination in ("u8", "s8"):
        yield form(f"cvt.{destination}.u32", "r", "u32")
        yield form(f"cvt.sat.{destination}.s32", "r", "u32")
        yield form(f"cvt.u32.{destination}", "r", "u32")
        yield form(f"cvt.s64.{destination}", "d", "u32")
        yield form(f"cvt.rni.{destination}.f32", "r", "f32")
    for (type, name), integer in itertools.product(floats.items(), integers):
        for mode in ("rni", "rzi", "rmi", "rpi"):
            yield form(f"cvt.{mode}.{integer}.{type}", registers[integer[1:]], type)
        for mode in ("rn", "rz", "rm", "rp"):
            yield form(f"cvt.{mode}.{type}.{integer}", name, "u" + integer[1:])
    yield form("cvt.rzi.ftz.s32.f32", "r", "f32")
    yield form("cvt.rpi.ftz.s32.f32", "r", "f32")
    for type, name in floats.items():
        for mode in ("rni", "rzi", "rmi", "rpi"):
            yield form(f"cvt.{mode}.{type}.{type}", name, type)
    for destination, source in itertools.permutations(floats, 2):
        narrowing = list(floats).index(source) > list(floats).index(destination)
        if source == "f32" and narrowing:
            continue  # below, with .relu and .satfinite
        if narrowing or {destination, source} == {"f16", "bf16"}:
            for mode in ("rn", "rz", "rm", "rp"):
                yield form(f"cvt.{mode}.{destination}.{source}", floats[destination], source)
        else:
            yield form(f"cvt.{destination}.{source}", floats[destination], source)
    for name in (
        "sat.f32.f32",
        "ftz.f32.f32",
        "ftz.sat.f32.f32",
        "rn.sat.f16.f32",
        "rn.ftz.f16.f32",
        "sat.f32.f16",
    ):
        destination, source = name.split(".")[-2:]
        yield form(f"cvt.{name}", floats[destination], source)
    for mode, type in itertools.product(("rm", "rp"), ("f16", "bf16")):
        yield form(f"cvt.{mode}.{type}.f32", "h", "f32")
    for extra in ("", ".relu", ".satfinite", ".relu.satfinite"):
        for mode, type in itertools.product(("rn", "rz"), ("f16", "bf16")):
            yield form(f"cvt.{mode}{extra}.{type}.f32", "h", "f32")
            yield form(f"cvt.{mode}{extra}.{type}x2.f32", "r", "f32 f32")
    for name in ("rna", "rn", "rz", "rn.relu", "rz.relu", "rna.satfinite"):
        yield form(f"cvt.{name}.tf32.f32", "r", "f32")
    for type, relu in itertools.product(("e4m3x2", "e5m2x2"), ("", ".relu")):
        yield form(f"cvt.rn.satfinite{relu}.{type}.f32", "h", "small32 small32")
        yield form(f"cvt.rn.satfinite{relu}.{type}.f16x2", "h", "f16x2")
        yield form(f"cvt.rn{relu}.f16x2.{type}", "r", "u16")
    for type in ("u16", "s16"):
        yield form(f"cvt.pack.sat.{type}.s32", "r", "u32 u32")
    for type in ("u8", "s8", "u4", "s4", "u2", "s2"):
        yield form(f"cvt.pack.sat.{type}.s32.b32", "r", "u32 u32 u32")


def forms() -> list[Form]:
    groups = (_integer_forms, _bit_forms, _float_forms, _half_forms, _approximate_forms, _conversion_forms)
    found = [f for group in groups for f in group()]
    assert len({f.name for f in found}) == len(found)
    return found


def declarations(form: Form) -> str:
    """The registers of a form's body."""
    types = {"p": "pred", "h": "b16", "r": "b32", "d": "b64"}
    lines = [f".reg .{types[l]} %d{i};" for i, l in enumerate(form.results)]
    lines += [f".reg .{types[letter(kind)]} %s{i};" for i, kind in enumerate(form.sources)]
    return "\n".join(lines)


def as_numbers(bits: NDArray[Any], type: str) -> NDArray[np.float64]:
    """Register bits as float64, two elements a register for the packed types."""
    with np.errstate(invalid="ignore"):  # of signaling NaNs
        return _as_numbers(bits, type)


def _as_numbers(bits: NDArray[Any], type: str) -> NDArray[np.float64]:
    if type.startswith("f16"):
        return bits.view(np.float16).astype(np.float64)
    if type.startswith("bf16"):
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return bits.view({"f32": np.float32, "f64": np.float64}[type]).astype(np.float64)
