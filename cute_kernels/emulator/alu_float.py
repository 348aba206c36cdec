"""Floating-point arithmetic. Semantics: PTX ISA, "Floating Point Instructions", half precision and mixed precision too.

A format says how lanes of a type are loaded for NumPy and how a result is stored: packed types are computed as
twice as many lanes, bf16 in float32 with one correct rounding at the end.
"""

from __future__ import annotations

from typing import NamedTuple

from cute_kernels.emulator.alu_code import Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import Operand


class Format(NamedTuple):
    load: str  # register bits -> float lanes
    finish: str  # float lanes -> register bits, NaN canonical


FORMATS = {
    "f32": Format("{}.view(f32)", "finish_f32({})"),
    "f64": Format("{}.view(f64)", "finish_f64({}, {sources})"),
    "f16": Format("{}.view(f16)", "finish_f16({})"),
    "bf16": Format("bf16_to_f32({})", "finish_bf16({})"),
    "f16x2": Format("{}.view(f16)", "finish_f16({}).view(u32)"),
    "bf16x2": Format("bf16_to_f32({}.view(u16))", "finish_bf16({}).view(u32)"),
    "f32x2": Format("{}.view(f32)", "finish_f32({}).view(u64)"),
}
_ROUNDINGS = ("rn", "rz", "rm", "rp")
_HALVES = "f16 f16x2 bf16 bf16x2"
_ALL = f"f32 f64 f32x2 {_HALVES}"


def by_type(float_translator: Translator, integer_translator: Translator) -> Translator:
    """One opcode for both kinds: the last modifier decides."""

    def translate(code: Code) -> Definitions:
        is_float = any(modifier in FORMATS for modifier in code.modifiers[-2:])
        return (float_translator if is_float else integer_translator)(code)

    return translate


class _Float:
    """Type, flushing and the ends of a floating-point instruction's result, taken from its modifiers."""

    def __init__(self, code: Code, allowed: str = _ALL) -> None:
        self.code = code
        self.type = code.type()
        code.only(self.type, allowed)
        self.flushes = code.flag("ftz")
        self.saturates = code.flag("sat")
        self.relu = code.flag("relu")
        self.sources: list[str] = []  # as read; a f64 NaN comes from the last one that is a NaN
        if self.flushes and self.type not in ("f32", "f32x2", "f16", "f16x2"):
            code.fail(f".ftz does not go with .{self.type}")

    def load(self, operand: Operand, type: str = "") -> str:
        type = type or self.type
        if type in ("f32", "f64", "f16"):
            text = self.code.number(operand, type)
        else:
            text = FORMATS[type].load.format(self.code.bits(operand, type))
        self.sources.append(text)
        return f"flushed({text})" if self.flushes else text

    def loaded(self, first: int, last: int) -> list[str]:
        return [self.load(v) for v in self.code.operands[first : last + 1]]

    def store(self, text: str) -> Definitions:
        if self.flushes:
            text = f"flushed({text})"
        if self.saturates:
            text = f"saturated({text})"
        if self.relu:
            text = f"rectified({text})"
        text = FORMATS[self.type].finish.format(text, sources=", ".join(self.sources))
        return self.code.write(self.code.operands[0], text, self.type)


def _sum(symbol: str) -> Translator:
    name = {"+": "add", "-": "sub"}[symbol]

    def translate(code: Code) -> Definitions:
        narrow = _mixed_operand(code)
        f = _Float(code)
        mode = code.one_of(*_ROUNDINGS) or "rn"
        code.expect(3)
        x, y = f.load(code.operands[1], narrow), f.load(code.operands[2])
        if narrow == "f16":
            x = f"{x}.astype(f32)"
        if mode == "rn":
            return f.store(f"{x} {symbol} {y}")
        code.only(f.type, "f32 f64 f32x2")
        return f.store(f'rounded_{name}({x}, {y}, "{mode}")')

    return translate


def _mixed_operand(code: Code) -> str:
    """Take the narrower type of a mixed-precision form (`add.rn.f32.bf16`), leaving the wider one; else ""."""
    if code.modifiers[-1:] == ["sat"]:  # some write it behind the types
        code.modifiers.insert(0, code.modifiers.pop())
    if code.modifiers[-2:] in (["f32", "f16"], ["f32", "bf16"]):
        return code.modifiers.pop()
    return ""


def mul(code: Code) -> Definitions:
    f = _Float(code)
    mode = code.one_of(*_ROUNDINGS) or "rn"
    code.expect(3)
    x, y = f.loaded(1, 2)
    if mode != "rn":
        code.only(f.type, "f32 f64 f32x2")
    if f.flushes:
        return f.store(f'product_ftz({x}, {y}, "{mode}")')
    return f.store(f"{x} * {y}" if mode == "rn" else f'rounded_mul({x}, {y}, "{mode}")')


def fma(code: Code) -> Definitions:
    narrow = _mixed_operand(code)
    f = _Float(code)
    mode = code.one_of(*_ROUNDINGS)
    code.expect(4)
    if not mode:
        code.fail("a rounding mode is required")
    if mode != "rn":
        code.only(f.type, "f32 f64 f32x2")
    x, y = (f.load(v, narrow) for v in code.operands[1:3])
    z = f.load(code.operands[3])
    if narrow == "f16":
        x, y = f"{x}.astype(f32)", f"{y}.astype(f32)"
    f.sources = [x, z, y]  # of several NaNs in f64 the second factor's goes first, then the addend's
    kind = f.type.removesuffix("x2")
    if f.flushes:
        return f.store(f'fma_ftz({x}, {y}, {z}, "{mode}")')
    return f.store(
        f"fma_{kind}({x}, {y}, {z})" if mode == "rn" else f'rounded_fma_{kind}({x}, {y}, {z}, "{mode}")'
    )


def div(code: Code) -> Definitions:
    f = _Float(code, "f32 f64")
    mode = code.one_of(*_ROUNDINGS, "approx", "full")
    code.expect(3)
    x, y = f.loaded(1, 2)
    f.sources.reverse()  # of two NaNs in f64 the dividend's is the result
    if mode in ("rn", "full"):
        return f.store(f"{x} / {y}")
    if not mode:
        code.fail("one of .rn, .rz, .rm, .rp, .approx, .full is required")
    if mode == "approx":
        code.only(f.type, "f32")
        return f.store(f"divide_approx({x}, {y})")
    return f.store(f'rounded_div({x}, {y}, "{mode}")')


def _sign(function: str) -> Translator:
    """abs, neg."""

    def translate(code: Code) -> Definitions:
        f = _Float(code, f"f32 f64 {_HALVES}")
        code.expect(2)
        return f.store(f"np.{function}({f.load(code.operands[1])})")

    return translate


def _extremum(name: str) -> Translator:
    """min, max: of two numbers the other one where one is NaN (with .NaN: NaN), -0 below +0, three operands too."""

    def translate(code: Code) -> Definitions:
        f = _Float(code, f"f32 f64 {_HALVES}")
        strict = code.flag("NaN")
        by_magnitude = code.flag("abs")
        crosses = code.flag("xorsign")
        code.expect(3, 4)
        if crosses and not by_magnitude:
            code.fail(".xorsign goes with .abs")
        values = f.loaded(1, len(code.operands) - 1)
        if len(values) == 3:
            code.only(f.type, "f32")
        texts = [f"np.abs({v})" for v in values] if by_magnitude else values
        function = f"float_{name}" + ("_nan" if strict else "")
        result = f"{function}({texts[0]}, {texts[1]})"
        if len(texts) == 3:
            result = f"{function}({result}, {texts[2]})"
        if crosses:
            result = f"signed_by_product({result}, {', '.join(values)})"
        return f.store(result)

    return translate


def _unary(function: str, types: str, modes: tuple[str, ...] = ("approx",)) -> Translator:
    """An approximation, computed better than its documented error; or a correctly rounded function."""

    def translate(code: Code) -> Definitions:
        flush_bf16 = code.modifiers[-1:] in (["bf16"], ["bf16x2"]) and code.flag("ftz")
        gross = code.modifiers[-3:] == ["approx", "ftz", "f64"] and code.flag("ftz")
        f = _Float(code, types)
        mode = code.one_of(*modes)
        code.expect(2)
        if not mode:
            code.fail(f"one of .{', .'.join(modes)} is required")
        (x,) = f.loaded(1, 1)
        if flush_bf16:
            x = f"flushed({x})"
        if gross:
            return code.write(code.operands[0], f"gross(np_{function}, {x})", "f64")
        if mode == "approx":
            cut = {"f16": "cut_f16", "bf16": "cut_bf16"}.get(f.type.removesuffix("x2"), "")
            text = f"{cut}(approximate(np_{function}, {x}))"
            return f.store(f"flushed({text})" if flush_bf16 else text)
        return f.store(f'rounded_unary(np_{function}, {x}, "{mode}")')

    return translate


def copysign(code: Code) -> Definitions:
    """The magnitude of b with the sign of a."""
    type = code.type()
    code.only(type, "f32 f64")
    code.expect(3)
    d, a, b = code.operands
    return code.write(d, f"copy_sign({code.bits(a, type)}, {code.bits(b, type)})", type)


TRANSLATORS: dict[str, Translator] = {
    "add": _sum("+"),
    "sub": _sum("-"),
    "mul": mul,
    "fma": fma,
    "mad": fma,
    "div": div,
    "abs": _sign("abs"),
    "neg": _sign("negative"),
    "min": _extremum("min"),
    "max": _extremum("max"),
    "copysign": copysign,
    "rcp": _unary("rcp", "f32 f64", ("approx", *_ROUNDINGS)),
    "sqrt": _unary("sqrt", "f32 f64", ("approx", *_ROUNDINGS)),
    "rsqrt": _unary("rsqrt", "f32 f64"),
    "sin": _unary("sin", "f32"),
    "cos": _unary("cos", "f32"),
    "lg2": _unary("lg2", "f32"),
    "ex2": _unary("ex2", f"f32 {_HALVES}"),
    "tanh": _unary("tanh", f"f32 {_HALVES}"),
}
