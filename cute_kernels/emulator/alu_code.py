"""What every instruction translator needs: operands as NumPy source, modifiers taken one by one, results written.

Registers live in a list `R` of arrays whose last axis is the 32 lanes, in a canonical dtype by width: pred bool_, 8 and
16 bits uint16, 32 bits uint32, 64 bits uint64. Generated expressions never change an array of `R`, and work
for any leading axes. Constants are arrays of 32 equal lanes: that is faster than broadcasting one element, and
array arithmetic wraps without a warning where scalar arithmetic would not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import numpy as np

from cute_kernels.emulator.ptx_types import (
    TYPE_BITS,
    Immediate,
    Instruction,
    Negated,
    Operand,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
)

LANES = 32
Definitions = list[tuple[Register, str]]
Dtype = type[np.generic]

_WIDE_SPECIALS = ("%clock64", "%globaltimer", "%current_graph_exec")


class Names(Protocol):
    """What the core offers to generated code. The texts that it gives must bind tightly: a name, a call, `R[1]`,
    or something in parentheses."""

    def constant(self, value: Any) -> str:
        """A name by which generated code reaches this prebuilt value."""

    def special(self, name: str) -> str:
        """An expression for a special register: uint32 lanes (uint64 for the 64-bit ones, bool_ for a predicate)."""

    def symbol(self, name: str) -> str:
        """An expression for the address of a variable or parameter in its own space: uint64 lanes."""

    def cvta(self, space: str, to_generic: bool, address: str) -> str:
        """An expression that takes a uint64 address of a space ("shared", "param", "shared::cta", ...) to a generic
        one, or, where `to_generic` is false, a generic one to an address of that space."""


class Code:
    """One instruction under translation. Whoever leaves a modifier untaken has not understood the instruction."""

    def __init__(self, instruction: Instruction, names: Names) -> None:
        self.instruction, self.names = instruction, names
        self.modifiers = list(instruction.modifiers)
        self.operands = instruction.operands

    def error(self, why: str) -> PtxError:
        i = self.instruction
        place = f" ({i.location})" if i.location else ""
        return PtxError(f"PTX line {i.ptx_line}{place}: {i.name}: {why}: {i.text!r}")

    def fail(self, why: str) -> NoReturn:
        raise self.error(why)

    # Modifiers

    def type(self) -> str:
        """Take the last modifier, which must be a type."""
        if not self.modifiers or self.modifiers[-1] not in TYPE_BITS:
            self.fail("the last modifier is no type that the emulator knows")
        return self.modifiers.pop()

    def flag(self, name: str) -> bool:
        """Take a modifier if it is there."""
        if name in self.modifiers:
            self.modifiers.remove(name)
            return True
        return False

    def one_of(self, *names: str) -> str:
        """Take whichever of these modifiers is there; "" if none is."""
        for name in names:
            if self.flag(name):
                return name
        return ""

    def only(self, type: str, allowed: str) -> None:
        """Refuse a type that is not among the allowed ones (given with blanks between)."""
        if type not in allowed.split():
            self.fail(f"type .{type} is not supported here (supported: {allowed})")

    def expect(self, *counts: int) -> None:
        if len(self.operands) not in counts:
            self.fail(f"{len(self.operands)} operands where {' or '.join(map(str, counts))} are expected")

    # Operands as source text

    def constant(self, value: int | float, dtype: Dtype) -> str:
        """32 lanes of one value. An integer is wrapped into the dtype's range."""
        if isinstance(value, int) and issubclass(dtype, np.integer):
            width = np.dtype(dtype).itemsize * 8
            value &= (1 << width) - 1
            unsigned = np.full(LANES, value, np.dtype(f"u{width // 8}"))
            return self.names.constant(unsigned.view(dtype))
        return self.names.constant(np.full(LANES, value, dtype))

    def bits(self, operand: Operand, type: str) -> str:
        """The operand's bits as lanes of the canonical dtype of `type`; a wider register is cut."""
        width = TYPE_BITS[type]
        if isinstance(operand, Immediate):
            return self.constant(operand.value(type), UNSIGNED[width])
        if isinstance(operand, Register):
            return self._cut(f"R[{operand.index}]", TYPE_BITS[operand.type], width)
        if isinstance(operand, Special):
            if operand.name == "WARP_SZ":
                return self.constant(LANES, UNSIGNED[width])
            wide = operand.name in _WIDE_SPECIALS
            text = self.names.special(operand.name)
            return (
                f"{text}.astype(u64)"
                if width > 32 and not wide
                else self._cut(text, 64 if wide else 32, width)
            )
        if isinstance(operand, Symbol):
            text = self.names.symbol(operand.name)
            if operand.offset:
                text = f"({text} + {self.constant(operand.offset, np.uint64)})"
            return self._cut(text, 64, width)
        raise self.error(f"operand {operand} cannot be read as .{type}")

    def _cut(self, text: str, have: int, width: int) -> str:
        if have == width or (width == 1) != (have == 1) or have < width:
            if have != width:
                self.fail(f"a register of {have} bits is read as {width} bits")
            return text
        if width == 8:
            low = text if have <= 16 else f"{text}.astype(u16)"
            return f"({low} & {self.constant(255, np.uint16)})"
        return f"{text}.astype(u{width})"

    def signed(self, operand: Operand, type: str) -> str:
        """The operand as signed lanes of the type's width (8 bits: sign-extended into int16)."""
        width = TYPE_BITS[type]
        if isinstance(operand, Immediate):
            value = operand.value(type)
            value -= (value >> (width - 1)) << width
            return self.constant(value, SIGNED[width])
        if width == 8:
            return f"{self.bits(operand, type)}.astype(i8).astype(i16)"
        return f"{self.bits(operand, type)}.view(i{width})"

    def number(self, operand: Operand, type: str) -> str:
        """The operand as lanes of the NumPy type that computes with it: iN, uN, or f32, f64, f16 (bf16: as f32)."""
        if type[0] == "s":
            return self.signed(operand, type)
        if type == "bf16":
            return f"bf16_to_f32({self.bits(operand, type)})"
        if type in ("f16", "f32", "f64"):
            if isinstance(operand, Immediate):
                value = np.array(operand.value(type), UNSIGNED[TYPE_BITS[type]]).view(
                    f"f{TYPE_BITS[type] // 8}"
                )
                return self.names.constant(np.full(LANES, value))
            return f"{self.bits(operand, type)}.view({type})"
        return self.bits(operand, type)

    def predicate(self, operand: Operand) -> str:
        """A predicate operand, `!p` and immediates included, as bool_ lanes."""
        if isinstance(operand, Negated):
            return f"(~{self.predicate(operand.value)})"
        if isinstance(operand, Immediate):
            return self.constant(bool(operand.value("pred")), np.bool_)
        if isinstance(operand, Register) and operand.type == "pred":
            return f"R[{operand.index}]"
        if isinstance(operand, Special) and operand.name == "%is_explicit_cluster":
            return self.names.special(operand.name)
        raise self.error(f"operand {operand} is no predicate")

    def immediate(self, index: int) -> int | None:
        """The value of an operand that is a literal, else None."""
        operand = self.operands[index]
        return operand.integer() if isinstance(operand, Immediate) else None

    # Results

    def write(self, operand: Operand, text: str, type: str) -> Definitions:
        """Give a destination an expression in the canonical dtype of `type`; a wider register is extended."""
        if isinstance(operand, Sink):
            return []
        if not isinstance(operand, Register):
            self.fail(f"destination {operand} is no register")
        have, width = TYPE_BITS[operand.type], TYPE_BITS[type]
        if max(have, 16) == max(width, 16) and (have == 1) == (width == 1):
            if width == 8 and have == 16 and type[0] == "s":  # a signed byte fills its 16-bit register
                text = f"{text}.astype(i8).astype(i16).view(u16)"
        elif have < width or width == 1:
            self.fail(f"a result of {width} bits does not fit register {operand.index} of {have} bits")
        elif type[0] == "s":
            narrow = f"{text}.astype(i8)" if width == 8 else f"{text}.view(i{width})"
            text = f"{narrow}.astype(i{have}).view(u{have})"
        else:
            text = f"{text}.astype(u{have})"
        return [(operand, text)]

    def write_number(self, operand: Operand, text: str, type: str) -> Definitions:
        """Give a destination an integer expression of any signedness in the type's width."""
        return self.write(
            operand, f"{text}.view(u{max(TYPE_BITS[type], 16)})" if type[0] == "s" else text, type
        )


Translator = Callable[[Code], Definitions]

UNSIGNED: dict[int, Dtype] = {
    1: np.bool_,
    8: np.uint16,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
SIGNED: dict[int, Dtype] = {8: np.int16, 16: np.int16, 32: np.int32, 64: np.int64}
