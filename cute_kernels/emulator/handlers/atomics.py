"""atom and red on global and shared memory (PTX ISA, "Parallel Synchronization: atom, red").

What floating-point operations make of NaN and of subnormals is what an H200 does (tests/recorded/machine.jsonl.gz):
additions of f32 flush subnormals in global memory, and keep them in shared memory; additions of f64 quiet a NaN in
shared memory, and pass a signalling one on in global memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tma_reduce
from cute_kernels.emulator.global_order import strength
from cute_kernels.emulator.handlers.loads import (
    check_alignment,
    check_shared,
    lane_codes,
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

_OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas")
_INTEGERS = {"u32": "u32", "s32": "i32", "b32": "u32", "u64": "u64", "s64": "i64", "b64": "u64"}
_FLOATS = ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
Lanes = NDArray[Any]
Combine = Callable[[Lanes, Lanes], Lanes]  # old and given values, unsigned, to new ones


def _nbytes(type: str) -> int:
    """The bytes of one element; PtxError for what atomics do not take."""
    if type in _FLOATS:
        return 4 if type.endswith("x2") else int(type.lstrip("bf")) // 8
    if type not in (*_INTEGERS, "b16"):
        raise PtxError(f"atomics on .{type} are not modelled")
    return width_of(type) // 8


def _combine(operation: str, type: str, space: str) -> Combine:
    """The arithmetic of an operation."""
    if operation == "exch":
        return lambda old, given: given
    if (operation, type, space) == ("add", "f64", "shared"):
        return lambda old, given: (old.view(np.float64) + given.view(np.float64)).view(old.dtype)
    dtype = _INTEGERS.get(type) or type.removesuffix("x2")
    if dtype == "f32" and space == "global":
        dtype = "f32_ftz"
    if dtype not in tma_reduce.REDUCTIONS.get(operation, ()):
        raise PtxError(f"the atomic {operation} of .{type} is not modelled")

    def combined(old: Lanes, given: Lanes) -> Lanes:
        result = tma_reduce.reduced(operation, dtype, old.view(np.uint8), given.view(np.uint8))
        return result.view(old.dtype)

    return combined


@handles("atom", "red")
def _atomic(instruction: Instruction, program: Program) -> Handler:
    type = instruction.modifiers[-1]
    operation = next((m for m in instruction.modifiers if m in _OPERATIONS), None)
    if operation is None:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    operands = list(instruction.operands)
    destinations = [write(d) for d in items(operands.pop(0))] if instruction.opcode == "atom" else []
    where = address(operands[0])
    count = next((int(m[1:]) for m in instruction.modifiers if m in ("v2", "v4", "v8")), 1)
    nbytes = _nbytes(type)
    plain = f"b{8 * nbytes}"
    sources = [read(item, type if type in _INTEGERS else plain) for item in items(operands[1])]
    compare = None
    if operation == "cas":
        compare, sources = sources[0], [read(operands[2], plain)]
    if len(sources) != count:
        raise PtxError(f"{instruction.name} with {len(sources)} values")
    if type.endswith("x2") and "shared::cluster" in instruction.modifiers:
        raise PtxError(
            f"{instruction.name}, which CUDA 13.0 compiles to an integer addition for sm_90; reduce the halves one by "
            "one"
        )
    element = UNSIGNED[nbytes]
    space, how = space_of(instruction), strength(instruction)
    combines = {
        found: (lambda old, given: given) if operation == "cas" else _combine(operation, type, found)
        for found in ("global", "shared")
    }

    def run(warp: Warp, mask: Mask) -> None:
        warp.machine.events += 1
        addresses = active(where(warp), mask)
        if space == "global":
            warp.touch_global(instruction)
        check_alignment(addresses, nbytes * count, instruction.opcode)
        found, addresses = resolve(addresses) if space == "generic" else (space, addresses)
        if found not in combines:
            raise PtxError(f"atomics on the {found} space are not modelled")
        if found == "global":
            if instruction.opcode == "atom":
                warp.words.hear(addresses, mask, how)
            shadow = warp.machine.global_shadow
            shadow.write(
                shadow.generic(warp, mask, True, observes=True), shadow.lanes(addresses, nbytes * count, mask)
            )
            warp.words.tell(addresses, mask, how, keeps=True)
        for j, source in enumerate(sources):
            at = addresses + np.uint64(j * nbytes)
            values = active(source(warp), mask).astype(element, copy=False)
            wanted = None if compare is None else active(compare(warp), mask).astype(element, copy=False)
            old = _apply(warp, mask, found, at, values, wanted, combines[found])
            if destinations:
                destinations[j](warp, spread(old, mask), mask)

    return run


def _apply(
    warp: Warp,
    mask: Mask,
    space: str,
    addresses: NDArray[np.uint64],
    values: Lanes,
    wanted: Lanes | None,
    combine: Combine,
) -> Lanes:
    """Carries out one element of each lane; gives the old values."""
    old = np.zeros_like(values)
    width = values.itemsize
    if space == "global":
        cells = [warp.machine.memory.read_bytes(at, width).view(values.dtype) for at in addresses.tolist()]
        for i, cell in enumerate(cells):
            _exchange(cell, old, values, wanted, slice(i, i + 1), combine)
        return old
    for cta, offsets, positions in shared_runs(warp, addresses):
        check_shared(cta, offsets, width, "an atomic")
        # Atomics of different warps on one word do not race with each other: only what is unordered with plain
        # accesses is told, by recording them as reads.
        where = cta.shared.granules_at(offsets, width)
        lanes = lane_codes(mask, where.size // len(offsets), positions)
        cta.shared_read(where, warp.order.access(mask), warp.generic_slot, warp.epoch, lanes)
        view = cta.shared.bytes.view(values.dtype)
        for i, at in zip(positions.tolist(), (offsets // width).tolist(), strict=True):
            _exchange(view[at : at + 1], old, values, wanted, slice(i, i + 1), combine)
    return old


def _exchange(
    cell: Lanes, old: Lanes, values: Lanes, wanted: Lanes | None, lane: slice, combine: Combine
) -> None:
    """One lane's turn: lane after lane, as atomics are; the order between lanes is that of their numbers."""
    old[lane] = cell
    if wanted is None or cell[0] == wanted[lane][0]:
        cell[:] = combine(cell.copy(), values[lane])
