"""ldmatrix, stmatrix, movmatrix and mma.sync (PTX ISA, "Warp Level Matrix Instructions")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import fragments, mma_sync
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.loads import check_alignment, check_shared, shared_runs
from cute_kernels.emulator.handlers.registry import address, handles, items, read, write
from cute_kernels.emulator.handlers.tensor_memory import whole_warp
from cute_kernels.emulator.memory import SHARED_WINDOW, WINDOW_MASK
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.shadow import COLLECTIVE, SEVERAL
from cute_kernels.emulator.warp import Mask, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.program import Handler, Program


def _row_addresses(warp: Warp, where: NDArray[np.uint64], rows: int, name: str) -> NDArray[np.uint64]:
    """The addresses of the rows, which threads 0 to rows - 1 give."""
    addresses = where[:rows]
    if (addresses >= np.uint64(SHARED_WINDOW)).any():
        addresses = addresses & np.uint64(WINDOW_MASK)
    check_alignment(addresses, fragments.ROW_BYTES, name)
    return addresses


def _all_lanes(warp: Warp, mask: Mask, name: str) -> None:
    whole_warp(warp, mask, name)
    if int(warp.alive.sum()) != LANES:
        raise EmulationError("divergence", f"{name} in a warp of which lanes have exited or never were")


@handles("ldmatrix")
def _ldmatrix(instruction: Instruction, program: Program) -> Handler:
    form = fragments.matrix_form("ldmatrix", instruction.modifiers)
    puts = [write(item) for item in items(instruction.operands[0])]
    where = address(instruction.operands[1])
    if len(puts) != form.registers:
        raise PtxError(f"{instruction.name} with {len(puts)} destinations; it has {form.registers}")

    def run(warp: Warp, mask: Mask) -> None:
        _all_lanes(warp, mask, instruction.name)
        addresses = _row_addresses(warp, where(warp), form.rows, instruction.opcode)
        rows = np.empty((form.rows, fragments.ROW_BYTES), dtype=np.uint8)
        for cta, offsets, at in shared_runs(warp, addresses):
            check_shared(cta, offsets, fragments.ROW_BYTES, instruction.opcode)
            touched = cta.shared.granules_at(offsets, form.chunk_bytes)
            whole = np.full(touched.shape, COLLECTIVE, dtype=np.int8)
            cta.shared_read(touched, warp.order.access(None), warp.generic_slot, warp.epoch, whole)
            rows[at] = cta.shared.bytes.reshape(-1, fragments.ROW_BYTES)[offsets // fragments.ROW_BYTES]
        for put, value in zip(puts, fragments.ldmatrix(form, rows), strict=True):
            put(warp, np.ascontiguousarray(value), None)

    return run


@handles("stmatrix")
def _stmatrix(instruction: Instruction, program: Program) -> Handler:
    form = fragments.matrix_form("stmatrix", instruction.modifiers)
    where = address(instruction.operands[0])
    sources = [read(item) for item in items(instruction.operands[1])]
    if len(sources) != form.registers:
        raise PtxError(f"{instruction.name} with {len(sources)} sources; it has {form.registers}")

    def run(warp: Warp, mask: Mask) -> None:
        _all_lanes(warp, mask, instruction.name)
        addresses = _row_addresses(warp, where(warp), form.rows, instruction.opcode)
        rows = fragments.stmatrix(form, [source(warp) for source in sources])
        for cta, offsets, at in shared_runs(warp, addresses):
            check_shared(cta, offsets, fragments.ROW_BYTES, instruction.opcode)
            touched = cta.shared.granules_at(offsets, fragments.ROW_BYTES)
            whole = np.full(touched.shape, SEVERAL, dtype=np.int8)
            cta.shared_write(touched, warp.order.access(None), warp.generic_slot, warp.epoch, whole)
            cta.shared.bytes.reshape(-1, fragments.ROW_BYTES)[offsets // fragments.ROW_BYTES] = rows[at]
        warp.machine.events += 1

    return run


@handles("movmatrix")
def _movmatrix(instruction: Instruction, program: Program) -> Handler:
    put, source = write(instruction.operands[0]), read(instruction.operands[1])

    def run(warp: Warp, mask: Mask) -> None:
        _all_lanes(warp, mask, instruction.name)
        put(warp, fragments.movmatrix(source(warp)), None)

    return run


@handles("mma")
def _mma(instruction: Instruction, program: Program) -> Handler:
    form = mma_sync.form(instruction.modifiers)
    puts = [write(item) for item in items(instruction.operands[0])]
    a, b, c = ([read(item) for item in items(operand)] for operand in instruction.operands[1:4])
    # Block-scaled forms: {scale A}, {byte id, thread id}, {scale B}, {byte id, thread id}.
    scales = [[read(item) for item in items(operand)] for operand in instruction.operands[4:]]

    def run(warp: Warp, mask: Mask) -> None:
        _all_lanes(warp, mask, instruction.name)
        values = [[source(warp) for source in group] for group in (a, b, c, *scales)]
        for put, value in zip(puts, mma_sync.multiply(form, *values), strict=True):
            put(warp, value, None)

    return run
