"""The tables of instruction factories, and what reads operands for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.ptx import (
    Address,
    Immediate,
    Instruction,
    PtxError,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from cute_kernels.emulator.registers import LANES, STORAGE, merge

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program, Step
    from cute_kernels.emulator.warp import Mask, Warp

HANDLERS: dict[str, Callable[[Instruction, Program], Handler]] = {}
STEPS: dict[str, Callable[[Instruction, Program], Step]] = {}

Read = Callable[["Warp"], NDArray[Any]]
Write = Callable[["Warp", NDArray[Any], "Mask"], None]

_SHAPE = (LANES,)


def handles(
    *names: str,
) -> Callable[[Callable[[Instruction, Program], Handler]], Callable[[Instruction, Program], Handler]]:
    """Registers a factory of handlers for instructions whose names begin so."""

    def register(
        factory: Callable[[Instruction, Program], Handler],
    ) -> Callable[[Instruction, Program], Handler]:
        HANDLERS.update(dict.fromkeys(names, factory))
        return factory

    return register


def steps(
    *names: str,
) -> Callable[[Callable[[Instruction, Program], Step]], Callable[[Instruction, Program], Step]]:
    """Registers a factory of steps."""

    def register(factory: Callable[[Instruction, Program], Step]) -> Callable[[Instruction, Program], Step]:
        STEPS.update(dict.fromkeys(names, factory))
        return factory

    return register


def longest_match(table: dict[str, Any], name: str) -> str | None:
    """The longest key that is the name or a dotted beginning of it."""
    while name:
        if name in table:
            return name
        name = name.rpartition(".")[0]
    return None


def width_of(type: str) -> int:
    """Bits of a PTX type name such as "u32" or "pred"."""
    if type == "pred":
        return 1
    digits = "".join(c for c in type if c.isdigit())
    if not digits or type.endswith(("x2", "x4")):
        raise PtxError(f"a value of type .{type} is not modelled here")
    return int(digits)


def read(operand: Any, type: str = "b32") -> Read:
    """A function of the warp that gives the operand in 32 lanes, in its storage type."""
    if isinstance(operand, Register):
        index = operand.index
        return lambda warp: warp.registers[index]
    if isinstance(operand, Immediate):
        constant = np.full(LANES, operand.value(type), dtype=STORAGE[width_of(type)])
        return lambda warp: constant
    if isinstance(operand, Special):
        name = operand.name
        return lambda warp: warp.special[name]
    if isinstance(operand, Symbol):
        symbol = operand
        return lambda warp: np.full(
            LANES, warp.symbol(symbol.name, symbol.offset), dtype=STORAGE[width_of(type)]
        )
    raise PtxError(f"the operand {operand!r} is not one that can be read as a value")


def write(operand: Any) -> Write:
    """A function that writes lanes of a destination register."""
    if isinstance(operand, Sink):
        return lambda warp, value, mask: None
    if not isinstance(operand, Register):
        raise PtxError(f"the destination {operand!r} is no register")
    index = operand.index
    dtype = np.dtype(STORAGE[width_of(operand.type)])

    def put(warp: Warp, value: NDArray[Any], mask: Mask) -> None:
        if value.dtype != dtype:
            value = value.astype(dtype)
        if value.shape != _SHAPE:
            value = np.broadcast_to(value, (LANES,)).copy()
        warp.registers[index] = value if mask is None else merge(mask, value, warp.registers[index])

    return put


def items(operand: Any) -> list[Any]:
    """The elements of a vector operand, or the operand alone."""
    return list(operand.items) if isinstance(operand, Vector) else [operand]


def address(operand: Any) -> Read:
    """A function that gives an address operand, offset included, as uint64 in 32 lanes."""
    if isinstance(operand, Address):
        base, offset = operand.base, operand.offset
    else:
        base, offset = operand, 0
    if isinstance(base, Symbol):
        name, extra = base.name, base.offset + offset
        return lambda warp: warp.symbol_lanes(name, extra)
    if isinstance(base, Immediate):
        constant = np.full(LANES, base.integer() + offset, dtype=np.uint64)
        return lambda warp: constant
    if not isinstance(base, Register):
        raise PtxError(f"the address {operand!r} has no register, variable or number as its base")
    index, wide = base.index, width_of(base.type) == 64
    if wide:
        if not offset:
            return lambda warp: warp.registers[index]
        step64 = np.full(LANES, offset & (2**64 - 1), np.uint64)
        return lambda warp: warp.registers[index] + step64
    if not offset:
        return lambda warp: warp.registers[index].astype(np.uint64)
    step32 = np.full(LANES, offset & (2**32 - 1), np.uint32)
    return lambda warp: (warp.registers[index] + step32).astype(np.uint64)


def active(values: NDArray[Any], mask: Mask) -> NDArray[Any]:
    """The values of the lanes that execute."""
    return values if mask is None else values[mask]


def alike(values: NDArray[Any]) -> bool:
    """Whether all values are the same, bit for bit."""
    held = values.tobytes()
    return held == held[: values.itemsize] * len(values)


def uniform(values: NDArray[Any], mask: Mask, what: str) -> int:
    """The value that all executing lanes share."""
    here = active(values, mask)
    first = int(here[0])
    if not alike(here):
        raise PtxError(f"{what} differs between the lanes of a warp, which the instruction does not allow")
    return first
