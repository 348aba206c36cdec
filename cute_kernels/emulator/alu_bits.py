"""Logic, shifts and bit fields. Semantics: PTX ISA, "Logic and Shift Instructions", and bfe to szext.

NumPy's own shifts clamp as PTX's do: by the width or more they give 0, or the sign.
"""

from __future__ import annotations

import functools

import numpy as np

from cute_kernels.emulator.alu_code import UNSIGNED, Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import TYPE_BITS, Pair

_BITS = "b16 b32 b64"


def _logic(symbol: str) -> Translator:
    def translate(code: Code) -> Definitions:
        type = code.type()
        code.expect(3)
        d, a, b = code.operands
        if type == "pred":
            return code.write(d, f"{code.predicate(a)} {symbol} {code.predicate(b)}", type)
        code.only(type, _BITS)
        return code.write(d, f"{code.bits(a, type)} {symbol} {code.bits(b, type)}", type)

    return translate


def not_(code: Code) -> Definitions:
    type = code.type()
    code.expect(2)
    d, a = code.operands
    if type == "pred":
        return code.write(d, f"~{code.predicate(a)}", type)
    code.only(type, _BITS)
    return code.write(d, f"~{code.bits(a, type)}", type)


def cnot(code: Code) -> Definitions:
    type = code.type()
    code.only(type, _BITS)
    code.expect(2)
    zero = code.constant(0, UNSIGNED[TYPE_BITS[type]])
    return code.write(
        code.operands[0], f"({code.bits(code.operands[1], type)} == {zero}).astype(u{type[1:]})", type
    )


@functools.cache
def _formulas() -> dict[int, str]:
    """The shortest formula in {0}, {1}, {2} and & | ^ ~ for each of the 256 functions of three bits.

    A function is its truth table, with 0xF0, 0xCC and 0xAA for the three operands, as `lop3` defines its immediate.
    """
    formulas = {0xF0: "{0}", 0xCC: "{1}", 0xAA: "{2}"}
    by_cost: list[list[int]] = [list(formulas)]
    while len(formulas) < 254:  # all but the two constants
        cost = len(by_cost)
        fresh: dict[int, str] = {}
        for f in by_cost[cost - 1]:
            fresh.setdefault(f ^ 0xFF, f"~{formulas[f]}")
        for left_cost in range(cost):
            for f in by_cost[left_cost]:
                for g in by_cost[cost - 1 - left_cost]:
                    for table, symbol in ((f & g, "&"), (f | g, "|"), (f ^ g, "^")):
                        if table not in formulas:
                            fresh.setdefault(table, f"({formulas[f]} {symbol} {formulas[g]})")
        fresh = {
            table: text for table, text in fresh.items() if table not in formulas and table not in (0, 255)
        }
        formulas.update(fresh)
        by_cost.append(list(fresh))
    return formulas


def lop3(code: Code) -> Definitions:
    """Any function of three operands by its truth table; `.and`/`.or` also combine (d != 0) with a predicate."""
    type, combine = code.type(), code.one_of("or", "and")
    code.only(type, "b32")
    code.expect(6 if combine else 5)
    table = code.immediate(4)
    if table is None:
        code.fail("the truth table must be a literal")
    table &= 255
    zero = code.constant(0, np.uint32)
    if table in (0, 255):
        value = code.constant(-(table & 1), np.uint32)
    else:
        value = _formulas()[table].format(*(code.bits(v, type) for v in code.operands[1:4]))
    if not combine:
        return code.write(code.operands[0], value, type)
    destination = code.operands[0]
    if not isinstance(destination, Pair):
        code.fail("a destination d|p is required")
    symbol = "|" if combine == "or" else "&"
    predicate = f"({value} != {zero}) {symbol} {code.predicate(code.operands[5])}"
    return code.write(destination.first, value, type) + code.write(destination.second, predicate, "pred")


def shl(code: Code) -> Definitions:
    type = code.type()
    code.only(type, _BITS)
    return _shift(code, "<<", type)


def shr(code: Code) -> Definitions:
    type = code.type()
    code.only(type, "b16 b32 b64 u16 u32 u64 s16 s32 s64")
    return _shift(code, ">>", type)


def _shift(code: Code, symbol: str, type: str) -> Definitions:
    code.expect(3)
    d, a, b = code.operands
    width, signed = TYPE_BITS[type], type[0] == "s"
    value = code.signed(a, type) if signed else code.bits(a, type)
    kind = "i" if signed else "u"
    amount = code.immediate(2)
    if amount is not None:
        dtype = np.dtype(f"{kind}{width // 8}").type
        text = f"{value} {symbol} {code.constant(min(amount & 0xFFFFFFFF, width), dtype)}"
    elif width == 16:  # the amount has 32 bits: shift in 32, so that it is not cut
        text = f"({value}.astype({kind}32) {symbol} {code.bits(b, 'b32')}.view({kind}32)).astype({kind}16)"
    elif width == 64:
        text = f"{value} {symbol} {code.bits(b, 'b32')}.astype({kind}64)"
    else:
        text = f"{value} {symbol} {code.bits(b, 'b32')}.view({kind}32)"
    return code.write(d, f"({text}).view(u{width})" if signed else text, type)


def shf(code: Code) -> Definitions:
    """Funnel shift of the 64 bits b:a; shifts by 32 are exact because NumPy's shift by the width gives 0."""
    type, direction, mode = code.type(), code.one_of("l", "r"), code.one_of("clamp", "wrap")
    code.only(type, "b32")
    code.expect(4)
    if not direction or not mode:
        code.fail("a direction .l or .r and a mode .clamp or .wrap are required")
    d, a, b, c = code.operands
    low, high = code.bits(a, type), code.bits(b, type)
    literal = code.immediate(3)
    if literal is not None:
        count = literal & 31 if mode == "wrap" else min(literal & 0xFFFFFFFF, 32)
        amount, rest = code.constant(count, np.uint32), code.constant(32 - count, np.uint32)
        if direction == "l":
            return code.write(d, f"({high} << {amount}) | ({low} >> {rest})", type)
        return code.write(d, f"({low} >> {amount}) | ({high} << {rest})", type)
    return code.write(d, f"funnel_{direction}({low}, {high}, shift_{mode}({code.bits(c, type)}))", type)


def prmt(code: Code) -> Definitions:
    """Bytes of b:a picked by four selectors. A literal selector without sign replication becomes shifts and masks."""
    mode, type = code.one_of("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"), code.type()
    code.only(type, "b32")
    code.expect(4)
    d, a, b, c = code.operands
    x, y, selector = code.bits(a, type), code.bits(b, type), code.immediate(3)
    if mode:
        return code.write(d, f"permute_{mode}({x}, {y}, {code.bits(c, type)})", type)
    if selector is None or selector & 0x8888:
        return code.write(d, f"permute({x}, {y}, {code.bits(c, type)})", type)
    masks: dict[tuple[int, int], int] = {}  # (source, byte distance) -> bytes of the result
    for place in range(4):
        source, byte = divmod(selector >> 4 * place & 7, 4)
        masks[source, place - byte] = masks.get((source, place - byte), 0) | 255 << 8 * place
    terms = []
    for (source, distance), mask in masks.items():
        text = (x, y)[source]
        moved = 0xFFFFFFFF  # the bytes that the shift alone lets through
        if distance:
            text = f"({text} {'<<' if distance > 0 else '>>'} {code.constant(8 * abs(distance), np.uint32)})"
            moved = (moved << 8 * distance if distance > 0 else moved >> -8 * distance) & 0xFFFFFFFF
        terms.append(text if moved == mask else f"({text} & {code.constant(mask, np.uint32)})")
    return code.write(d, " | ".join(terms), type)


def _literal_bounds(position: int, length: int, width: int) -> tuple[int, int]:
    """As integer_ops bounds the registers of a bit field."""
    if width == 32:
        return position & 255, length & 255
    return min(position & 0xFFFFFFFF, 255), min(length & 0xFFFFFFFF, 255)


def bfe(code: Code) -> Definitions:
    """A bit field of `length` bits at `position`, extended; beyond the value's end a signed field repeats its sign."""
    type = code.type()
    code.only(type, "u32 s32 u64 s64")
    code.expect(4)
    d, a, b, c = code.operands
    width = TYPE_BITS[type]
    position, length = code.immediate(2), code.immediate(3)
    if position is not None and length is not None:
        position, length = (
            value & 255 if width == 32 else min(value & 0xFFFFFFFF, 255) for value in (position, length)
        )
        if type[0] == "u":
            mask = (1 << length) - 1 if length < width else -1
            dtype = UNSIGNED[width]
            shift = code.constant(position, dtype)
            return code.write(d, f"({code.bits(a, type)} >> {shift}) & {code.constant(mask, dtype)}", type)
        if length > 0 and position + length <= width:
            dtype = np.dtype(f"i{width // 8}").type
            left, right = (
                code.constant(width - position - length, dtype),
                code.constant(width - length, dtype),
            )
            return code.write(d, f"(({code.signed(a, type)} << {left}) >> {right}).view(u{width})", type)
    fields = f"{code.bits(b, 'b32')}, {code.bits(c, 'b32')}"
    kind = "signed" if type[0] == "s" else "unsigned"
    return code.write(d, f"field_{kind}({code.bits(a, type)}, {fields})", type)


def bfi(code: Code) -> Definitions:
    """b with the low `length` bits of a put in at `position`."""
    type = code.type()
    code.only(type, "b32 b64")
    code.expect(5)
    d, a, b, c, e = code.operands
    width = TYPE_BITS[type]
    x, y = code.bits(a, type), code.bits(b, type)
    position, length = code.immediate(3), code.immediate(4)
    if position is None or length is None:
        return code.write(d, f"insert_field({x}, {y}, {code.bits(c, 'b32')}, {code.bits(e, 'b32')})", type)
    position, length = (
        value & 255 if width == 32 else min(value & 0xFFFFFFFF, 255) for value in (position, length)
    )
    mask = ((1 << length) - 1) << position & ((1 << width) - 1)
    dtype = UNSIGNED[width]
    keep, take, shift = (code.constant(value, dtype) for value in (~mask, mask, position))
    return code.write(d, f"({y} & {keep}) | (({x} << {shift}) & {take})", type)


def bmsk(code: Code) -> Definitions:
    """A mask of `length` bits at `position`, both clamped to 32 (.clamp) or taken modulo 32 (.wrap)."""
    type, mode = code.type(), code.one_of("clamp", "wrap")
    code.only(type, "b32")
    code.expect(3)
    d, a, b = code.operands
    return code.write(d, f"mask_{mode or 'clamp'}({code.bits(a, type)}, {code.bits(b, type)})", type)


def szext(code: Code) -> Definitions:
    """The low N bits of a, sign- or zero-extended."""
    type, mode = code.type(), code.one_of("clamp", "wrap")
    code.only(type, "u32 s32")
    code.expect(3)
    d, a, b = code.operands
    kind = "signed" if type == "s32" else "unsigned"
    return code.write(
        d, f"extend_{kind}({code.bits(a, type)}, {code.bits(b, 'b32')}, {mode == 'wrap'})", type
    )


def _count(function: str) -> Translator:
    def translate(code: Code) -> Definitions:
        type = code.type()
        code.only(type, "b32 b64")
        code.expect(2)
        return code.write(code.operands[0], f"{function}({code.bits(code.operands[1], type)})", "b32")

    return translate


def brev(code: Code) -> Definitions:
    type = code.type()
    code.only(type, "b32 b64")
    code.expect(2)
    return code.write(code.operands[0], f"reverse_bits({code.bits(code.operands[1], type)})", type)


def bfind(code: Code) -> Definitions:
    """The place of the highest bit that differs from the sign; 0xFFFFFFFF if there is none."""
    type, distance = code.type(), code.flag("shiftamt")
    code.only(type, "u32 s32 u64 s64")
    code.expect(2)
    value = code.bits(code.operands[1], type)
    if type[0] == "s":
        value = f"without_sign({value})"
    return code.write(code.operands[0], f"highest_bit({value}, {distance})", "b32")


TRANSLATORS: dict[str, Translator] = {
    "and": _logic("&"),
    "or": _logic("|"),
    "xor": _logic("^"),
    "not": not_,
    "cnot": cnot,
    "lop3": lop3,
    "shl": shl,
    "shr": shr,
    "shf": shf,
    "prmt": prmt,
    "bfe": bfe,
    "bfi": bfi,
    "bmsk": bmsk,
    "szext": szext,
    "popc": _count("count_ones"),
    "clz": _count("count_leading_zeros"),
    "brev": brev,
    "bfind": bfind,
}
