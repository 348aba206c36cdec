"""atom and red on global and shared memory (PTX ISA, "Parallel Synchronization: atom, red")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import READY
from cute_kernels.emulator.handlers.loads import (
    check_alignment,
    check_shared,
    resolve,
    shared_runs,
    space_of,
    spread,
)
from cute_kernels.emulator.handlers.registry import active, address, handles, items, read, width_of, write
from cute_kernels.emulator.memory import UNSIGNED
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program

_FLOATS: dict[str, str] = {"f16": "f2", "f32": "f4", "f64": "f8"}
Combine = Callable[[Any, Any, Any], Any]


def _wrap_inc(old: Any, value: Any, _: Any) -> Any:
    return 0 if old >= value else old + 1


def _wrap_dec(old: Any, value: Any, _: Any) -> Any:
    return value if old == 0 or old > value else old - 1


_COMBINE: dict[str, Combine] = {
    "add": lambda old, value, _: old + value,
    "min": lambda old, value, _: min(old, value),
    "max": lambda old, value, _: max(old, value),
    "and": lambda old, value, _: old & value,
    "or": lambda old, value, _: old | value,
    "xor": lambda old, value, _: old ^ value,
    "exch": lambda old, value, _: value,
    "inc": _wrap_inc,
    "dec": _wrap_dec,
}


def _element(type: str) -> np.dtype[Any]:
    """The NumPy type that the operation computes in."""
    if type in _FLOATS:
        return np.dtype(_FLOATS[type])
    if type[0] in "sub" and width_of(type) in (32, 64):
        return np.dtype(f"{'i' if type[0] == 's' else 'u'}{width_of(type) // 8}")
    raise PtxError(f"atomics on .{type} are not modelled")


@handles("atom", "red")
def _atomic(instruction: Instruction, program: Program) -> Handler:
    if "async" in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    type = instruction.modifiers[-1]
    operation = next((m for m in instruction.modifiers if m in _COMBINE or m == "cas"), None)
    if operation is None:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    operands = list(instruction.operands)
    destinations = [write(d) for d in items(operands.pop(0))] if instruction.opcode == "atom" else []
    where = address(operands[0])
    count = next((int(m[1:]) for m in instruction.modifiers if m in ("v2", "v4", "v8")), 1)
    sources = [read(item, type) for item in items(operands[1])]
    compare = None
    if operation == "cas":
        compare, sources = sources[0], [read(operands[2], type)]
    element = _element(type)
    space = space_of(instruction)
    if len(sources) != count:
        raise PtxError(f"{instruction.name} with {len(sources)} values")

    def run(warp: Warp, mask: Mask) -> None:
        warp.machine.events += 1
        addresses = active(where(warp), mask)
        if space == "global":
            warp.touch_global(instruction)
        check_alignment(addresses, element.itemsize * count, instruction.opcode)
        found, addresses = resolve(addresses) if space == "generic" else (space, addresses)
        for j, source in enumerate(sources):
            at = addresses + np.uint64(j * element.itemsize)
            values = active(source(warp), mask).view(element)
            wanted = None if compare is None else active(compare(warp), mask).view(element)
            old = _apply(warp, found, at, values, wanted, operation, element)
            if destinations:
                destinations[j](warp, spread(old.view(UNSIGNED[element.itemsize]), mask), mask)

    return run


def _apply(
    warp: Warp,
    space: str,
    addresses: NDArray[np.uint64],
    values: NDArray[Any],
    wanted: NDArray[Any] | None,
    operation: str,
    element: np.dtype[Any],
) -> NDArray[Any]:
    """Lane after lane, as atomics are: the order between lanes is that of their numbers. Gives the old values."""
    old = np.zeros(len(addresses), dtype=element)
    if space == "global":
        for i, at in enumerate(addresses.tolist()):
            cell = warp.machine.memory.read_bytes(at, element.itemsize).view(element)
            old[i] = cell[0]
            cell[0] = _combine(cell[0], values[i], None if wanted is None else wanted[i], operation, element)
        return old
    if space != "shared":
        raise PtxError(f"atomics on the {space} space are not modelled")
    for cta, offsets, positions in shared_runs(warp, addresses):
        check_shared(cta, offsets, element.itemsize, "an atomic")
        # Atomics of different warps on one word do not race with each other: only what is unordered with plain
        # accesses is told, by recording them as reads.
        where = cta.shared.granules_at(offsets, element.itemsize)
        cta.shared_read(where, warp.clock, warp.clock[READY], warp.generic_slot, warp.epoch)
        view = cta.shared.bytes.view(element)
        for i, at in zip(positions.tolist(), (offsets // element.itemsize).tolist(), strict=True):
            old[i] = view[at]
            view[at] = _combine(
                view[at], values[i], None if wanted is None else wanted[i], operation, element
            )
    return old


def _combine(old: Any, value: Any, wanted: Any, operation: str, element: np.dtype[Any]) -> Any:
    if operation == "cas":
        return value if old == wanted else old
    with np.errstate(over="ignore"):
        return element.type(_COMBINE[operation](old, value, None))
