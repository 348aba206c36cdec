"""Integer arithmetic: add to dp4a. PTX ISA, "Integer Arithmetic", "Extended-Precision Integer Arithmetic"."""

from __future__ import annotations

import numpy as np

from cute_kernels.emulator.alu_code import Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import TYPE_BITS

_INTEGERS = "u16 s16 u32 s32 u64 s64"
_PAIRS = ("u16x2", "s16x2")


def _operator(symbol: str) -> Translator:
    """add, sub: wrapping, saturating (.sat.s32), packed, or with a carry out (.cc)."""
    carry = {"+": "carry_of_add", "-": "borrow_of_sub"}[symbol]

    def translate(code: Code) -> Definitions:
        type = code.type()
        carries, saturates = code.flag("cc"), code.flag("sat")
        code.expect(4 if carries else 3)
        d, a, b = code.operands[:3]
        if type in _PAIRS:
            x, y = (f"{code.bits(v, type)}.view(u16)" for v in (a, b))
            return code.write(d, f"({x} {symbol} {y}).view(u32)", type)
        code.only(type, _INTEGERS)
        if saturates:
            code.only(type, "s32")
            x, y = (f"{code.signed(v, type)}.astype(i64)" for v in (a, b))
            return code.write(d, f"saturate_s32({x} {symbol} {y})", type)
        x, y = code.bits(a, type), code.bits(b, type)
        written = code.write(d, f"{x} {symbol} {y}", type)
        if carries:
            written += code.write(code.operands[3], f"{carry}({x}, {y})", "pred")
        return written

    return translate


def _with_carry(symbol: str) -> Translator:
    """addc, subc: the condition-code register is the last operand that the reader appends."""
    carry = {"+": "carry_of_add", "-": "borrow_of_sub"}[symbol]

    def translate(code: Code) -> Definitions:
        type = code.type()
        code.only(type, "u32 s32 u64 s64 b32 b64")
        code.expect(4)
        d, a, b, flag = code.operands
        x, y, c = code.bits(a, type), code.bits(b, type), code.predicate(flag)
        written = code.write(d, f"{x} {symbol} {y} {symbol} {c}.astype(u{TYPE_BITS[type]})", type)
        if code.flag("cc"):
            written += code.write(flag, f"{carry}({x}, {y}, {c})", "pred")
        return written

    return translate


def _product(code: Code, part: str, type: str) -> str:
    """a * b, in the result's width: part "lo", "hi" or "wide"."""
    a, b = code.operands[1:3]
    width = TYPE_BITS[type]
    if part == "lo":
        return f"{code.bits(a, type)} * {code.bits(b, type)}"
    if part == "hi" and width == 64:
        x, y = code.number(a, type), code.number(b, type)
        return f"mul_hi_{type}({x}, {y})"
    kind = "i" if type[0] == "s" else "u"
    x, y = (_widened(code, i, type) for i in (1, 2))
    if part == "wide":
        return f"({x} * {y}).view(u{2 * width})" if kind == "i" else f"{x} * {y}"
    shift = code.constant(width, np.int64 if width == 32 else np.int32)
    if kind == "u":
        shift = code.constant(width, np.uint64 if width == 32 else np.uint32)
    return f"({x} * {y} >> {shift}).astype(u{width})"


def _widened(code: Code, index: int, type: str) -> str:
    """An operand in twice its width, extended by its sign."""
    width = 2 * TYPE_BITS[type]
    value = code.immediate(index)
    if value is not None:
        half = TYPE_BITS[type]
        value &= (1 << half) - 1
        if type[0] == "s":
            value -= (value >> (half - 1)) << half
            return code.constant(value, np.int32 if width == 32 else np.int64)
        return code.constant(value, np.uint32 if width == 32 else np.uint64)
    return f"{code.number(code.operands[index], type)}.astype({'i' if type[0] == 's' else 'u'}{width})"


def _wide_type(type: str) -> str:
    return f"{type[0]}{2 * TYPE_BITS[type]}"


def mul(code: Code) -> Definitions:
    type, part = code.type(), code.one_of("lo", "hi", "wide")
    code.only(type, _INTEGERS if part != "wide" else "u16 s16 u32 s32")
    code.expect(3)
    if not part:
        code.fail("one of .lo, .hi, .wide is required")
    return code.write(
        code.operands[0], _product(code, part, type), _wide_type(type) if part == "wide" else type
    )


def mad(code: Code) -> Definitions:
    type, part = code.type(), code.one_of("lo", "hi", "wide")
    carries = code.flag("cc")
    code.only(type, _INTEGERS if part != "wide" else "u16 s16 u32 s32")
    code.expect(5 if carries else 4)
    d, c = code.operands[0], code.operands[3]
    if not part:
        code.fail("one of .lo, .hi, .wide is required")
    result = _wide_type(type) if part == "wide" else type
    product = _product(code, part, type)
    if code.flag("sat"):
        if part != "hi" or type != "s32":
            code.fail(".sat goes with .hi.s32 alone")
        total = f"({product}).view(i32).astype(i64) + {code.signed(c, type)}.astype(i64)"
        return code.write(d, f"saturate_s32({total})", type)
    addend = code.bits(c, result)
    written = code.write(d, f"{product} + {addend}", result)
    if carries:
        written += code.write(code.operands[4], f"carry_of_add({product}, {addend})", "pred")
    return written


def madc(code: Code) -> Definitions:
    type, part = code.type(), code.one_of("lo", "hi")
    code.only(type, "u32 s32 u64 s64")
    code.expect(5)
    d, _, _, c, flag = code.operands
    product, addend, carry = _product(code, part, type), code.bits(c, type), code.predicate(flag)
    written = code.write(d, f"{product} + {addend} + {carry}.astype(u{TYPE_BITS[type]})", type)
    if code.flag("cc"):
        written += code.write(flag, f"carry_of_add({product}, {addend}, {carry})", "pred")
    return written


def _product_24(code: Code) -> tuple[str, str]:
    type, part = code.type(), code.one_of("lo", "hi")
    code.only(type, "u32 s32")
    x, y = (f"low_24_{type}({code.bits(v, type)})" for v in code.operands[1:3])
    shift = code.constant(16 if part == "hi" else 0, np.int64)
    return type, f"({x} * {y} >> {shift}).astype(u32)"


def mul24(code: Code) -> Definitions:
    code.expect(3)
    type, product = _product_24(code)
    return code.write(code.operands[0], product, type)


def mad24(code: Code) -> Definitions:
    code.expect(4)
    type, product = _product_24(code)
    return code.write(code.operands[0], f"{product} + {code.bits(code.operands[3], type)}", type)


def _quotient(name: str) -> Translator:
    def translate(code: Code) -> Definitions:
        type = code.type()
        code.only(type, _INTEGERS)
        code.expect(3)
        d, a, b = code.operands
        kind = "signed" if type[0] == "s" else "unsigned"
        return code.write(d, f"{name}_{kind}({code.number(a, type)}, {code.number(b, type)})", type)

    return translate


def abs_(code: Code) -> Definitions:
    type = code.type()
    code.only(type, "s16 s32 s64")
    code.expect(2)
    return code.write_number(code.operands[0], f"np.abs({code.signed(code.operands[1], type)})", type)


def neg(code: Code) -> Definitions:
    type = code.type()
    code.only(type, "s16 s32 s64")
    code.expect(2)
    return code.write(code.operands[0], f"np.negative({code.bits(code.operands[1], type)})", type)


def sad(code: Code) -> Definitions:
    type = code.type()
    code.only(type, _INTEGERS)
    code.expect(4)
    d, a, b, c = code.operands
    x, y = code.number(a, type), code.number(b, type)
    return code.write(d, f"{code.bits(c, type)} + absolute_difference({x}, {y})", type)


def _extremum(name: str) -> Translator:
    """min, max: integers of every width and packed 16-bit pairs, with .relu on the signed ones."""

    def translate(code: Code) -> Definitions:
        type, relu = code.type(), code.flag("relu")
        code.expect(3)
        d, a, b = code.operands
        if type in _PAIRS:
            dtype = "i16" if type[0] == "s" else "u16"
            x, y = (f"{code.bits(v, type)}.view({dtype})" for v in (a, b))
            result = f"np.{name}imum({x}, {y})"
            if relu:
                result = f"np.maximum({result}, {dtype}(0))"
            return code.write(d, f"{result}.view(u32)", type)
        code.only(type, _INTEGERS)
        result = f"np.{name}imum({code.number(a, type)}, {code.number(b, type)})"
        if relu:
            code.only(type, "s32")
            result = f"np.maximum({result}, {code.constant(0, np.int32)})"
        return code.write_number(d, result, type)

    return translate


def dp4a(code: Code) -> Definitions:
    """Four products of bytes and an addend; `.atype.btype` give each side's sign."""
    right, left = code.type(), code.type()
    code.only(left, "u32 s32")
    code.only(right, "u32 s32")
    code.expect(4)
    d, a, b, c = code.operands
    x, y = (f"{code.bits(v, t)}.view({t[0].replace('s', 'i')}8)" for v, t in ((a, left), (b, right)))
    return code.write(d, f"dot_bytes({x}, {y}, {code.bits(c, 'b32')})", "b32")


def dp2a(code: Code) -> Definitions:
    """Two products of 16-bit halves of a with the low or high two bytes of b."""
    right, left = code.type(), code.type()
    half = code.one_of("lo", "hi")
    code.only(left, "u32 s32")
    code.only(right, "u32 s32")
    code.expect(4)
    d, a, b, c = code.operands
    x = f"{code.bits(a, left)}.view({left[0].replace('s', 'i')}16)"
    y = f"{code.bits(b, right)}.view({right[0].replace('s', 'i')}8)"
    return code.write(d, f"dot_halves({x}, {y}, {code.bits(c, 'b32')}, {2 * (half == 'hi')})", "b32")


TRANSLATORS: dict[str, Translator] = {
    "add": _operator("+"),
    "sub": _operator("-"),
    "addc": _with_carry("+"),
    "subc": _with_carry("-"),
    "mul": mul,
    "mad": mad,
    "madc": madc,
    "mul24": mul24,
    "mad24": mad24,
    "div": _quotient("divide"),
    "rem": _quotient("remainder"),
    "abs": abs_,
    "neg": neg,
    "sad": sad,
    "min": _extremum("min"),
    "max": _extremum("max"),
    "dp4a": dp4a,
    "dp2a": dp2a,
}
