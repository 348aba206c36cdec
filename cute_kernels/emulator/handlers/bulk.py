"""Bulk copies and tensor copies (TMA), their reductions and groups (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor").

A load writes shared memory through the async proxy and signals an mbarrier with the bytes of its whole box. A store or
a reduction reads shared memory through the async proxy and completes in bulk groups of the thread that issued it: first
the read (wait_group.read), then the write (wait_group).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import bulk_reduce, tma_box
from cute_kernels.emulator.clocks import BULK, async_view
from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.registry import address, handles, read, steps, uniform
from cute_kernels.emulator.memory import (
    OFFSET_MASK,
    SHARED_WINDOW,
    poison,
)
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.shadow import Where
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program, Step

LOAD_TARGETS = ("shared::cluster", "shared::cta")


@dataclass
class BulkOperation:
    """A bulk store or reduction in a group of the thread that issued it."""

    time: int
    read_done: bool = False
    done: bool = False
    awaited: bool = False  # whether its thread has waited for its read at least


def lanes_of(mask: Mask) -> list[int]:
    return list(range(LANES)) if mask is None else np.flatnonzero(mask).tolist()


def issue_load(
    warp: Warp, instruction: Instruction, cta: Cta, where: Where, chunks: NDArray[np.int64], barrier: MBarrier
) -> None:
    """Checks and records the write of 16-byte chunks of shared memory, and poisons them until the data lands."""
    if cta.shared.barrier_bytes[np.concatenate([chunks // 8, chunks // 8 + 1])].any():
        raise EmulationError(
            "barrier", f"{instruction.name} writes over a live mbarrier", address=int(chunks.min())
        )
    barrier.check_visible(warp.clock)
    cta.shared_write(
        where, warp.clock, async_view(warp.clock, cta.cluster.slots.generic), barrier.slot, barrier.time
    )
    cta.shared.bytes.reshape(-1, tma_box.CHUNK)[chunks // tma_box.CHUNK] = poison(1)[0]
    barrier.start_transfer()


def submit(warp: Warp, instruction: Instruction, land: Any) -> None:
    warp.machine.events += 1
    warp.touch_global(instruction)
    name = instruction.name.split(".shared")[0].split(".global")[0]
    warp.machine.report.count(name)
    # Each transfer is on its own: transfers complete in any order.
    warp.machine.engine.submit(
        object(), Operation(instruction.name, land, warp.program.place(warp, instruction))
    )


def issue_read(warp: Warp, lane: int, where: Where) -> BulkOperation:
    """Checks and records that a bulk store reads shared memory; puts it into the open group of its thread."""
    cta = warp.cta
    slot, time = cta.slot(warp.index, BULK), warp.next_time(BULK)
    cta.shared_read(where, warp.clock, async_view(warp.clock, cta.cluster.slots.generic), slot, time)
    bulk = BulkOperation(time)
    warp.bulk_groups.setdefault(lane, [[]])[-1].append(bulk)
    return bulk


def submit_write(warp: Warp, instruction: Instruction, write: Any) -> None:
    warp.machine.events += 1
    warp.machine.engine.submit(
        object(), Operation(instruction.name, write, warp.program.place(warp, instruction))
    )


# --- copies of plain runs of bytes ----------------------------------------------------------------------------------


@handles("cp.async.bulk")
def _bulk_copy(instruction: Instruction, program: Program) -> Handler:
    target, source = instruction.modifiers[2], instruction.modifiers[3]
    if target in LOAD_TARGETS and source == "global":
        return _bulk_load(instruction)
    if target in LOAD_TARGETS and source == "shared::cta":
        return _bulk_load(instruction, from_shared=True)
    if target == "global" and source == "shared::cta":
        return _bulk_store(instruction, None, "")
    raise PtxError(f"the instruction {instruction.name} is not modelled")


@handles("cp.reduce.async.bulk")
def _bulk_reduce(instruction: Instruction, program: Program) -> Handler:
    operation = next((m for m in instruction.modifiers if m in bulk_reduce.OPERATIONS), None)
    if operation is None or "global" not in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    return _bulk_store(instruction, operation, instruction.modifiers[-1])


def _check_run(where: int, nbytes: int, name: str) -> None:
    if where % 16 or nbytes % 16:
        raise EmulationError(
            "misaligned", f"{name} of {nbytes} bytes at {where:#x}; both are multiples of 16", address=where
        )


def _bulk_load(instruction: Instruction, from_shared: bool = False) -> Handler:
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    size, barrier_at = read(instruction.operands[2]), address(instruction.operands[3])
    if "multicast::cluster" in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")

    def run(warp: Warp, mask: Mask) -> None:
        for lane in lanes_of(mask):
            nbytes = int(size(warp)[lane])
            to, origin = warp.shared_address(int(target(warp)[lane])), int(source(warp)[lane])
            _check_run(to, nbytes, instruction.name)
            _check_run(origin, nbytes, instruction.name)
            cta, offset = warp.cta.cluster.at_address(to)
            signal = warp.shared_address(int(barrier_at(warp)[lane]))
            owner, barrier_offset = warp.cta.cluster.at_address(signal)
            barrier = owner.mbarrier(barrier_offset, instruction.name)
            cta.shared.check(offset, offset + nbytes, instruction.name)
            if from_shared:
                origin = warp.shared_address(origin) & OFFSET_MASK
                _read_source(warp, origin, nbytes, barrier)
            _load_run(warp, instruction, cta, offset, origin, nbytes, barrier, from_shared)

    return run


def _read_source(warp: Warp, origin: int, nbytes: int, barrier: MBarrier) -> None:
    """A copy between CTAs reads its own CTA's shared memory until its barrier's phase completes."""
    cta = warp.cta
    cta.shared.check(origin, origin + nbytes, "cp.async.bulk")
    known = async_view(warp.clock, cta.cluster.slots.generic)
    cta.shared_read(cta.shared.granules(origin, nbytes), warp.clock, known, barrier.slot, barrier.time)


def _load_run(
    warp: Warp,
    instruction: Instruction,
    cta: Cta,
    offset: int,
    origin: int,
    nbytes: int,
    barrier: MBarrier,
    from_shared: bool,
) -> None:
    chunks = np.arange(offset, offset + nbytes, tma_box.CHUNK, dtype=np.int64)
    if nbytes:
        issue_load(warp, instruction, cta, cta.shared.granules(offset, nbytes), chunks, barrier)

    def land() -> None:
        memory = warp.cta.shared.bytes[origin : origin + nbytes] if from_shared else None
        if memory is None:
            memory = warp.machine.memory.read_bytes(origin, nbytes)
        cta.shared.bytes[offset : offset + nbytes] = memory
        barrier.end_transfer(nbytes)
        warp.machine.events += 1

    if nbytes:
        submit(warp, instruction, land)


def _bulk_store(instruction: Instruction, operation: str | None, dtype: str) -> Handler:
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    size = read(instruction.operands[2])

    def run(warp: Warp, mask: Mask) -> None:
        for lane in lanes_of(mask):
            nbytes = int(size(warp)[lane])
            to, origin = int(target(warp)[lane]), warp.shared_address(int(source(warp)[lane])) & OFFSET_MASK
            _check_run(to, nbytes, instruction.name)
            _check_run(origin, nbytes, instruction.name)
            if to >= SHARED_WINDOW:
                raise PtxError(f"{instruction.name} to a generic address outside global memory")
            if nbytes:
                warp.cta.shared.check(origin, origin + nbytes, instruction.name)
                _store_run(warp, instruction, lane, to, origin, nbytes, operation, dtype)

    return run


def _store_run(
    warp: Warp,
    instruction: Instruction,
    lane: int,
    to: int,
    origin: int,
    nbytes: int,
    operation: str | None,
    dtype: str,
) -> None:
    cta = warp.cta
    bulk = issue_read(warp, lane, cta.shared.granules(origin, nbytes))

    def read_shared() -> None:
        data = cta.shared.bytes[origin : origin + nbytes].copy()
        bulk.read_done = True

        def write_global() -> None:
            memory = warp.machine.memory.read_bytes(to, nbytes)
            if operation is None:
                memory[:] = data
            else:
                bulk_reduce.into(memory, data, dtype, operation)
            bulk.done = True
            warp.machine.events += 1

        submit_write(warp, instruction, write_global)

    submit(warp, instruction, read_shared)


# --- groups ---------------------------------------------------------------------------------------------------------


@handles("cp.async.bulk.commit_group")
def _commit(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        for lane in lanes_of(mask):
            if lane in warp.bulk_groups:
                warp.bulk_groups[lane].append([])

    return run


@steps("cp.async.bulk.wait_group")
def _wait(instruction: Instruction, program: Program) -> Step:
    reads = "read" in instruction.modifiers
    allowed = read(instruction.operands[0])

    def run(warp: Warp, group: Group) -> Status:
        left = uniform(allowed(warp), group.mask, "the number of groups")
        awaited: list[BulkOperation] = []
        for lane in np.flatnonzero(group.mask).tolist():
            groups = warp.bulk_groups.get(lane, [[]])
            awaited += [operation for one in groups[: max(0, len(groups) - 1 - left)] for operation in one]

        def finished() -> bool:
            return all(operation.read_done if reads else operation.done for operation in awaited)

        if not finished():
            group.why = "its bulk stores"
            group.wake = finished
            return Status.WAIT
        for operation in awaited:
            operation.awaited = True
        if awaited:
            slot = warp.cta.slot(warp.index, BULK)
            warp.clock[:, slot] = np.maximum(
                warp.clock[:, slot], max(operation.time for operation in awaited)
            )
        return Status.NEXT

    return run


@handles(
    "cp.async.bulk.prefetch", "prefetch.tensormap", "prefetch.param.tensormap", "prefetch.const.tensormap"
)
def _prefetch(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        return None

    return run


@handles("tensormap.replace", "tensormap.cp_fenceproxy")
def _tensormap(instruction: Instruction, program: Program) -> Handler:
    raise PtxError(f"the instruction {instruction.name} is not modelled")
