"""Which lanes of a warp a fault is of; asked for reports alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.handlers.registry import address
from cute_kernels.emulator.ptx_types import Address, Register
from cute_kernels.emulator.registers import LANES

if TYPE_CHECKING:
    from cute_kernels.emulator.ptx import Instruction
    from cute_kernels.emulator.warp import Mask, Warp

_GRANULE = 4  # bytes that an address in a report may stand for
_WIDEST = 16  # bytes of an access whose name does not say how many


def lanes_at_fault(warp: Warp, instruction: Instruction, mask: Mask, at: int | None) -> tuple[int, ...]:
    """The lanes that execute an instruction; of these those alone, if any, whose access touches the address."""
    executing = np.ones(LANES, bool) if mask is None else mask.copy()
    if instruction.guard is not None:
        taken = warp.registers[instruction.guard.index]
        if isinstance(taken, np.ndarray):
            executing &= taken != instruction.guard_negated
    if at is not None:
        for operand in instruction.operands:
            if isinstance(operand, Address) and isinstance(operand.base, Register):
                touching = executing & _touches(warp, operand, _width(instruction), at)
                if touching.any():
                    executing = touching
                    break
    return tuple(np.flatnonzero(executing).tolist())


def _touches(warp: Warp, operand: Address, width: int, at: int) -> NDArray[np.bool_]:
    """The lanes whose access of so many bytes touches an address, or else the granule that begins there."""
    assert isinstance(operand.base, Register)
    if not isinstance(warp.registers[operand.base.index], np.ndarray):
        return np.zeros(LANES, bool)
    first = address(operand)(warp).astype(object)
    exactly: NDArray[np.bool_] = ((first <= at) & (at < first + width)).astype(bool)
    return exactly if exactly.any() else ((first < at + _GRANULE) & (at < first + width)).astype(bool)


def _width(instruction: Instruction) -> int:
    """Bytes of each lane's access."""
    types = [int(m[1]) for m in (re.fullmatch(r"[usbf](\d+)", x) for x in instruction.modifiers) if m]
    counts = [int(m[1]) for m in (re.fullmatch(r"v(\d)", x) for x in instruction.modifiers) if m]
    return (types[-1] // 8 if types else _WIDEST) * (counts[-1] if counts else 1)


def text(lanes: tuple[int, ...]) -> str:
    """Lanes as reports name them: "lane 5", "lanes 0-3, 8"."""
    runs: list[list[int]] = []
    for lane in lanes:
        if runs and lane == runs[-1][1] + 1:
            runs[-1][1] = lane
        else:
            runs.append([lane, lane])
    named = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    return f"lane{'s' if len(lanes) > 1 else ''} {named}" if lanes else ""
