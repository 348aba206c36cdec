"""Comparison and selection: setp, set, selp, slct, testp. PTX ISA, "Comparison and Selection Instructions"."""

from __future__ import annotations

import numpy as np

from cute_kernels.emulator.alu_code import Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import TYPE_BITS, Pair

_INTEGER_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED_COMPARISONS = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# For floating point: the formula; the unordered ones are the negation of the opposite ordered comparison.
_FLOAT_COMPARISONS = {
    "eq": "{a} == {b}",
    "ne": "({a} < {b}) | ({a} > {b})",
    "lt": "{a} < {b}",
    "le": "{a} <= {b}",
    "gt": "{a} > {b}",
    "ge": "{a} >= {b}",
    "equ": "~(({a} < {b}) | ({a} > {b}))",
    "neu": "{a} != {b}",
    "ltu": "~({a} >= {b})",
    "leu": "~({a} > {b})",
    "gtu": "~({a} <= {b})",
    "geu": "~({a} < {b})",
    "num": "({a} == {a}) & ({b} == {b})",
    "nan": "({a} != {a}) | ({b} != {b})",
}
_INTEGER_TYPES = "b16 b32 b64 u16 u32 u64 s16 s32 s64"
_FLOAT_TYPES = "f16 bf16 f16x2 bf16x2 f32 f64"
_COMPARISONS = (*_FLOAT_COMPARISONS, *_UNSIGNED_COMPARISONS)


def _comparison(code: Code, type: str) -> str:
    """The comparison of operands 1 and 2 as an expression: bool_ lanes, twice as many for a packed type."""
    name = code.one_of(*_COMPARISONS)
    flush = code.flag("ftz")
    a, b = code.operands[1:3]
    if type in _FLOAT_TYPES.split() and name in _FLOAT_COMPARISONS:
        x, y = (_float_operand(code, v, type, flush) for v in (a, b))
        return _FLOAT_COMPARISONS[name].format(a=x, b=y)
    if flush:
        code.fail(".ftz is for floating-point types")
    if name in _UNSIGNED_COMPARISONS:
        code.only(type, "u16 u32 u64 b16 b32 b64")
        return f"{code.bits(a, type)} {_UNSIGNED_COMPARISONS[name]} {code.bits(b, type)}"
    if name not in _INTEGER_COMPARISONS:
        code.fail(f"no comparison of .{type} (integers: {', '.join(_INTEGER_COMPARISONS)})")
    code.only(type, _INTEGER_TYPES)
    read = code.bits if name in ("eq", "ne") else code.number
    return f"{read(a, type)} {_INTEGER_COMPARISONS[name]} {read(b, type)}"


def _float_operand(code: Code, operand: object, type: str, flush: bool) -> str:
    if type == "f16x2":
        text = f"{code.bits(operand, type)}.view(f16)"  # type: ignore[arg-type]
    elif type == "bf16x2":
        text = f"bf16_to_f32({code.bits(operand, type)}.view(u16))"  # type: ignore[arg-type]
    else:
        text = code.number(operand, type)  # type: ignore[arg-type]
    return f"flushed({text})" if flush else text


def _combined(code: Code, comparison: str, symbol: str, third: int) -> tuple[str, str]:
    """The comparison and its complement, each combined with the predicate operand `third` if there is a symbol."""
    if not symbol:
        return comparison, f"~({comparison})"
    c = code.predicate(code.operands[third])
    operator = {"and": "&", "or": "|", "xor": "^"}[symbol]
    return f"({comparison}) {operator} {c}", f"~({comparison}) {operator} {c}"


def setp(code: Code) -> Definitions:
    type, symbol = code.type(), code.one_of("and", "or", "xor")
    code.expect(4 if symbol else 3)
    comparison = _comparison(code, type)
    destination = code.operands[0]
    first, second = (
        (destination.first, destination.second) if isinstance(destination, Pair) else (destination, None)
    )
    if type in ("f16x2", "bf16x2"):  # p is for the lower half, q for the upper one
        halves = [_combined(code, f"({comparison})[..., {i}::2]", symbol, 3)[0] for i in (0, 1)]
        if second is None:
            code.fail("a destination p|q is required")
        return code.write(first, halves[0], "pred") + code.write(second, halves[1], "pred")
    true, false = _combined(code, comparison, symbol, 3)
    written = code.write(first, true, "pred")
    return written if second is None else written + code.write(second, false, "pred")


def set_(code: Code) -> Definitions:
    """A comparison as a number: all ones or 1.0 where it holds, else 0."""
    type = code.type()
    result = code.type()
    symbol = code.one_of("and", "or", "xor")
    code.expect(4 if symbol else 3)
    comparison = _comparison(code, type)
    d = code.operands[0]
    if type in ("f16x2", "bf16x2"):
        code.only(result, f"{type} u32 s32")
        if symbol:
            code.fail("packed comparisons combine with no predicate here")
        ones = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(result, 0xFFFF)
        return code.write(d, f"np.where({comparison}, u16({ones}), u16(0)).view(u32)", result)
    code.only(result, "u32 s32 f32 u16 s16 f16 bf16")
    true, _ = _combined(code, comparison, symbol, 3)
    ones = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(result, -1)
    dtype = np.uint32 if TYPE_BITS[result] == 32 else np.uint16
    return code.write(d, f"np.where({true}, {code.constant(ones, dtype)}, {code.constant(0, dtype)})", result)


def selp(code: Code) -> Definitions:
    type = code.type()
    code.only(type, f"{_INTEGER_TYPES} f32 f64 pred")
    code.expect(4)
    d, a, b, c = code.operands
    if type == "pred":
        x, y = code.predicate(a), code.predicate(b)
    else:
        x, y = code.bits(a, type), code.bits(b, type)
    return code.write(d, f"np.where({code.predicate(c)}, {x}, {y})", type)


def slct(code: Code) -> Definitions:
    """a where c >= 0, else b; a NaN is not >= 0."""
    selector = code.type()
    type = code.type()
    flush = code.flag(
        "ftz"
    )  # a flushed subnormal is a zero, which changes no comparison but that of -denormals
    code.only(type, f"{_INTEGER_TYPES} f32 f64")
    code.only(selector, "s32 f32")
    code.expect(4)
    d, a, b, c = code.operands
    text = code.number(c, selector)
    if flush:
        text = f"flushed({text})"
    zero = code.constant(0, np.int32) if selector == "s32" else code.constant(0.0, np.float32)
    return code.write(d, f"np.where({text} >= {zero}, {code.bits(a, type)}, {code.bits(b, type)})", type)


def testp(code: Code) -> Definitions:
    type = code.type()
    kind = code.one_of("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    code.only(type, "f32 f64")
    code.expect(2)
    x = code.number(code.operands[1], type)
    tests = {
        "finite": f"np.isfinite({x})",
        "infinite": f"np.isinf({x})",
        "number": f"{x} == {x}",
        "notanumber": f"{x} != {x}",
        "normal": f"is_normal({x})",
        "subnormal": f"is_subnormal({x})",
    }
    if not kind:
        code.fail(f"one of .{', .'.join(tests)} is required")
    return code.write(code.operands[0], tests[kind], "pred")


TRANSLATORS: dict[str, Translator] = {"setp": setp, "set": set_, "selp": selp, "slct": slct, "testp": testp}
