"""Moves: mov with packing and unpacking, and cvta. Semantics: PTX ISA, "Data Movement and Conversion Instructions"."""

from __future__ import annotations

import numpy as np

from cute_kernels.emulator.alu_code import UNSIGNED, Code, Definitions, Translator
from cute_kernels.emulator.ptx_types import TYPE_BITS, Operand, Register, Sink, Vector
from cute_kernels.emulator.registers import join


def mov(code: Code) -> Definitions:
    type = code.type()
    code.expect(2)
    d, a = code.operands
    if type == "pred":
        return code.write(d, code.predicate(a), type)
    if type == "b128":
        return _split(code, d, a) if isinstance(d, Vector) else _join(code, d, a)
    if isinstance(d, Vector):
        return _unpack(code, d, a, type)
    if isinstance(a, Vector):
        return code.write(d, _pack(code, a, type), type)
    code.only(type, "b8 b16 b32 b64 u16 u32 u64 s16 s32 s64 f16 bf16 f32 f64 f16x2 bf16x2")
    return code.write(d, code.bits(a, type), type)


def _element(code: Code, vector: Vector, type: str) -> int:
    bits, rest = divmod(TYPE_BITS[type], len(vector.items))
    if rest or bits not in (8, 16, 32):
        code.fail(f"{len(vector.items)} elements do not make up .{type}")
    return bits


def _pack(code: Code, vector: Vector, type: str) -> str:
    """Elements into one value, the first into the lowest bits."""
    bits, width = _element(code, vector, type), TYPE_BITS[type]
    terms = []
    for i, item in enumerate(vector.items):
        text = code.bits(item, f"b{bits}")
        if width > 16:
            text = f"{text}.astype(u{width})"
        terms.append(f"({text} << {code.constant(i * bits, UNSIGNED[width])})" if i else text)
    return " | ".join(terms)


def _join(code: Code, d: Operand, a: Operand) -> Definitions:
    """Two halves into a register of 128 bits, or a copy of one."""
    if isinstance(a, Register):
        return code.write(d, code.bits(a, "b128"), "b128")
    if not isinstance(a, Vector) or len(a.items) != 2:
        code.fail("128 bits are moved from one register, or from two of 64 bits")
    halves = ", ".join(code.bits(half, "b64") for half in a.items)
    return code.write(d, f"{code.names.constant(join)}({halves})", "b128")


def _split(code: Code, vector: Vector, source: Operand) -> Definitions:
    """A register of 128 bits into its halves, the lower one first."""
    if not isinstance(source, Register) or len(vector.items) != 2:
        code.fail("128 bits are moved to one register, or to two of 64 bits")
    value = code.bits(source, "b128")
    written: Definitions = []
    for item, half in zip(vector.items, ("low", "high"), strict=True):
        if not isinstance(item, Sink):
            written += code.write(item, f"{value}[{half!r}]", "b64")
    return written


def _unpack(code: Code, vector: Vector, source: Operand, type: str) -> Definitions:
    bits, width = _element(code, vector, type), TYPE_BITS[type]
    value = code.bits(source, type)
    written: Definitions = []
    for i, item in enumerate(vector.items):
        if isinstance(item, Sink):
            continue
        text = f"({value} >> {code.constant(i * bits, UNSIGNED[width])})" if i else value
        if width > 16:
            text = f"{text}.astype(u{max(bits, 16)})"
        if bits == 8:
            text = f"({text} & {code.constant(255, np.uint16)})"
        written += code.write(item, text, f"b{bits}")
    return written


def cvta(code: Code) -> Definitions:
    """Addresses between a space and the generic one; the core knows where the windows lie."""
    type, to_space = code.type(), code.flag("to")
    space = code.one_of(
        "global", "shared", "shared::cta", "shared::cluster", "const", "local", "param", "param::entry"
    )
    code.only(type, "u64")
    code.expect(2)
    if not space:
        code.fail("a state space is required")
    d, a = code.operands
    return code.write(d, code.names.cvta(space, not to_space, code.bits(a, type)), type)


TRANSLATORS: dict[str, Translator] = {"mov": mov, "cvta": cvta}
