"""Bulk copies and tensor copies (TMA), their reductions and groups (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor").

A load writes shared memory through the async proxy and signals an mbarrier with the bytes of its whole box. A store or
a reduction reads shared memory through the async proxy and completes in bulk groups of the thread that issued it: first
the read (wait_group.read), then the write (wait_group).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tma_reduce
from cute_kernels.emulator.clocks import BULK, WRITTEN
from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.global_cells import Run, Touched
from cute_kernels.emulator.global_shadow import OverwriteError
from cute_kernels.emulator.handlers.registry import active, address, handles, read, steps, uniform
from cute_kernels.emulator.memory import OFFSET_MASK, SHARED_WINDOW
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.shadow import Region, Where
from cute_kernels.emulator.shared_chunks import Chunks, chunks_of_run
from cute_kernels.emulator.sleep import Sleepers, sleep_until, wake
from cute_kernels.emulator.tma_box import BoxPlan
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program, Step

REDUCED_AS = {"s32": "i32", "b32": "u32", "s64": "i64", "b64": "u64"}  # PTX types as tma_reduce names them
LOAD_TARGETS = ("shared::cluster", "shared::cta")


@dataclass
class BulkOperation:
    """A bulk store or reduction in a group of the thread that issued it."""

    time: int
    read_done: bool = False
    done: bool = False
    awaited: bool = False  # whether its thread has waited for its read at least
    until_read: Sleepers = field(default_factory=list)
    until_done: Sleepers = field(default_factory=list)

    def has_read(self) -> None:
        self.read_done = True
        wake(self.until_read)

    def has_written(self) -> None:
        self.done = True
        wake(self.until_done)


def lanes_of(mask: Mask) -> list[int]:
    if mask is None:
        return list(range(LANES))
    executing = mask.tobytes()
    return [executing.index(1)] if executing.count(1) == 1 else np.flatnonzero(mask).tolist()


def warn_of_repetition(
    warp: Warp, mask: Mask, instruction: Instruction, what: str, operands: list[NDArray[Any]]
) -> bool:
    """Warns where several lanes issue the very same copy: each is done in full, and one would do. Whether so."""
    lanes = LANES if mask is None else mask.tobytes().count(1)
    repeated = lanes > 1 and all((here := active(values, mask)).min() == here.max() for values in operands)
    if repeated:
        warp.machine.warn(
            f"{warp.program.source(instruction)}: {lanes} lanes issue the same {what}; elect one"
        )
    return repeated


def issue_load(
    warp: Warp,
    lane: int,
    instruction: Instruction,
    cta: Cta,
    chunks: Chunks,
    barrier: MBarrier,
) -> None:
    """Checks and records the write of chunks of shared memory, and poisons them until the data lands."""
    if chunks.hold_barrier(cta):
        raise EmulationError("barrier", f"{instruction.name} writes over a live mbarrier", address=chunks.low)
    barrier.check_visible(warp.order, lane)
    cta.shared_write(chunks.region, warp.order.async_access_of(lane), barrier.slot, barrier.time)
    chunks.poison(cta)
    barrier.start_transfer(warp.order, lane)


def submit(warp: Warp, instruction: Instruction, land: Any) -> None:
    warp.machine.events += 1
    warp.touch_global(instruction)
    warp.machine.report.count(instruction.name.partition(".shared")[0].partition(".global")[0])
    # Each transfer is on its own: transfers complete in any order.
    warp.machine.engine.submit(
        object(), Operation(instruction.name, land, warp.program.place(warp, instruction))
    )


def issue_read(warp: Warp, lane: int, where: Where | Region) -> BulkOperation:
    """Checks and records that a bulk store reads shared memory; puts it into the open group of its thread."""
    cta = warp.cta
    slot, time = cta.slot(warp.index, BULK), warp.next_time(BULK)
    cta.shared_read(where, warp.order.async_access_of(lane), slot, time)
    bulk = BulkOperation(time)
    warp.bulk_groups.setdefault(lane, [[]])[-1].append(bulk)
    return bulk


def reads_global(warp: Warp, lane: int, barrier: MBarrier, touched: Touched) -> None:
    """Checks and records that a load reads global memory."""
    shadow = warp.machine.global_shadow
    shadow.read(shadow.asynchronous(warp, lane, barrier.slot, barrier.time), touched)


def writes_global(
    warp: Warp, lane: int, instruction: Instruction, touched: Touched, data: NDArray[np.uint8], reduces: bool
) -> None:
    """Checks and records that the bulk store to be issued now writes data to global memory, or reduces them into it."""
    shadow, stores = warp.machine.global_shadow, warp.cta.stores
    slot, time = warp.cta.slot(warp.index, WRITTEN), int(warp.times[BULK]) + 1
    place = (touched.start, *touched.shape) if isinstance(touched, BoxPlan) else tuple(touched)
    digest = zlib.crc32(data.data)
    try:
        shadow.write(shadow.asynchronous(warp, lane, slot, time, reduces), touched)
    except OverwriteError:
        if stores.get(place) != digest:
            raise
        warp.machine.warn(
            f"{warp.program.source(instruction)}: several warps issue the same {instruction.name}; elect one"
        )
    stores[place] = digest


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
    operation = next((m for m in instruction.modifiers if m in tma_reduce.REDUCTIONS), None)
    type = instruction.modifiers[-1]
    dtype = REDUCED_AS.get(type, type)
    if operation is None or dtype not in tma_reduce.REDUCTIONS[operation]:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    if instruction.modifiers[3:5] == ("shared::cluster", "shared::cta"):
        return _bulk_load(instruction, from_shared=True, reduction=(operation, dtype))
    if instruction.modifiers[3] != "global":
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    return _bulk_store(instruction, operation, dtype)


def _check_run(where: int, nbytes: int, name: str) -> None:
    if where % 16 or nbytes % 16:
        raise EmulationError(
            "misaligned", f"{name} of {nbytes} bytes at {where:#x}; both are multiples of 16", address=where
        )


def _bulk_load(
    instruction: Instruction, from_shared: bool = False, reduction: tuple[str, str] | None = None
) -> Handler:
    """Into shared memory of the cluster. reduction: the operation and the type (of tma_reduce), or None to copy."""
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    size, barrier_at = read(instruction.operands[2]), address(instruction.operands[3])
    multicast = "multicast::cluster" in instruction.modifiers
    ranks = read(instruction.operands[4], "b16") if multicast else None

    def run(warp: Warp, mask: Mask) -> None:
        warn_of_repetition(warp, mask, instruction, "bulk copy", [target(warp), source(warp), size(warp)])
        for lane in lanes_of(mask):
            nbytes = int(size(warp)[lane])
            to, origin = warp.shared_address(int(target(warp)[lane])), int(source(warp)[lane])
            _check_run(to, nbytes, instruction.name)
            _check_run(origin, nbytes, instruction.name)
            signal = warp.shared_address(int(barrier_at(warp)[lane]))
            if from_shared:
                origin = warp.shared_address(origin) & OFFSET_MASK
            chosen = None if ranks is None else int(ranks(warp)[lane])
            for cta, barrier in bulk_destinations(warp, instruction.name, to, signal, chosen):
                run_of = _Run(cta, to & OFFSET_MASK, origin, nbytes, barrier, from_shared, reduction)
                if nbytes:
                    _load_run(warp, lane, instruction, run_of)

    return run


def bulk_destinations(
    warp: Warp, name: str, to: int, signal: int, ranks: int | None
) -> list[tuple[Cta, MBarrier]]:
    """The CTAs that a copy writes, each with the barrier it signals; ranks: the mask of a multicast."""
    cluster = warp.cta.cluster
    if ranks is None:
        owner, offset = cluster.at_address(signal)
        return [(cluster.at_address(to)[0], owner.mbarrier(offset, name))]
    if not ranks or ranks >> cluster.size:
        raise EmulationError(
            "out-of-range", f"a multicast mask of {ranks:#x} in a cluster of {cluster.size} CTAs"
        )
    chosen = [cta for cta in cluster.ctas if ranks >> cta.rank & 1]
    return [(cta, cta.mbarrier(signal & OFFSET_MASK, name)) for cta in chosen]


@dataclass(frozen=True)
class _Run:
    """Bytes on their way into a CTA's shared memory."""

    cta: Cta
    offset: int
    origin: int  # a global address, or an offset in the issuing CTA's shared memory
    nbytes: int
    barrier: MBarrier
    from_shared: bool
    reduction: tuple[str, str] | None


def _read_source(warp: Warp, lane: int, origin: int, nbytes: int, barrier: MBarrier) -> None:
    """A copy between CTAs reads its own CTA's shared memory until its barrier's phase completes."""
    cta = warp.cta
    cta.shared.check(origin, origin + nbytes, "cp.async.bulk")
    access = warp.order.async_access_of(lane)
    cta.shared_read(cta.shared.granules(origin, nbytes), access, barrier.slot, barrier.time)


def _load_run(warp: Warp, lane: int, instruction: Instruction, run: _Run) -> None:
    cta, barrier = run.cta, run.barrier
    cta.shared.check(run.offset, run.offset + run.nbytes, instruction.name)
    if run.from_shared:
        _read_source(warp, lane, run.origin, run.nbytes, barrier)
    else:
        reads_global(warp, lane, barrier, Run(run.origin, run.nbytes))
    chunks = chunks_of_run(run.offset, run.nbytes, cta.shared.granule)
    if run.reduction is None:
        issue_load(warp, lane, instruction, cta, chunks, barrier)
    else:
        # Like atomics, reductions do not race with each other: recorded as reads.
        barrier.check_visible(warp.order, lane)
        cta.shared_read(chunks.region, warp.order.async_access_of(lane), barrier.slot, barrier.time)
        barrier.start_transfer(warp.order, lane)

    def land() -> None:
        if run.from_shared:
            data = warp.cta.shared.bytes[run.origin : run.origin + run.nbytes]
        else:
            data = warp.machine.memory.read_bytes(run.origin, run.nbytes)
        target = cta.shared.bytes[run.offset : run.offset + run.nbytes]
        target[:] = data if run.reduction is None else tma_reduce.reduced(*run.reduction, target, data)
        barrier.end_transfer(run.nbytes)
        warp.machine.events += 1

    submit(warp, instruction, land)


def _bulk_store(instruction: Instruction, operation: str | None, dtype: str) -> Handler:
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    size = read(instruction.operands[2])

    def run(warp: Warp, mask: Mask) -> None:
        same = [target(warp), source(warp), size(warp)]
        repeated = warn_of_repetition(warp, mask, instruction, "bulk copy", same)
        for i, lane in enumerate(lanes_of(mask)):
            nbytes = int(size(warp)[lane])
            to, origin = int(target(warp)[lane]), warp.shared_address(int(source(warp)[lane])) & OFFSET_MASK
            _check_run(to, nbytes, instruction.name)
            _check_run(origin, nbytes, instruction.name)
            if to >= SHARED_WINDOW:
                raise PtxError(f"{instruction.name} to a generic address outside global memory")
            if nbytes:
                warp.cta.shared.check(origin, origin + nbytes, instruction.name)
                if not (repeated and i):  # one copy that lanes repeat does not race with itself
                    data = warp.cta.shared.bytes[origin : origin + nbytes]
                    writes_global(warp, lane, instruction, Run(to, nbytes), data, operation is not None)
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
        bulk.has_read()

        def write_global() -> None:
            memory = warp.machine.memory.read_bytes(to, nbytes)
            if operation is None:
                memory[:] = data
            else:
                memory[:] = tma_reduce.reduced(operation, dtype, memory, data)
            bulk.has_written()
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
        waiting = np.zeros(LANES, dtype=bool)  # each lane learns about its own groups alone
        for lane, groups in warp.bulk_groups.items():
            if not group.mask[lane]:
                continue
            first = warp.bulk_read.get(lane, 0) if reads else 0
            mine = [operation for one in groups[first : max(0, len(groups) - 1 - left)] for operation in one]
            waiting[lane] = bool(mine)
            awaited += mine

        unfinished = [op for op in awaited if not (op.read_done if reads else op.done)]
        if unfinished:
            group.why = "its bulk stores"
            sleep_until(warp, group, *(op.until_read if reads else op.until_done for op in unfinished))
            return Status.WAIT
        for operation in awaited:
            operation.awaited = True
        for lane in np.flatnonzero(waiting).tolist():
            until = len(warp.bulk_groups[lane]) - 1 - left
            if not reads:
                del warp.bulk_groups[lane][:until]
                until = max(0, warp.bulk_read.get(lane, 0) - until)
            warp.bulk_read[lane] = until
        if awaited:
            last = max(operation.time for operation in awaited)
            warp.order.learn(warp.cta.slot(warp.index, BULK), last, waiting)
            if not reads:
                warp.order.learn(warp.cta.slot(warp.index, WRITTEN), last, waiting)
        return Status.NEXT

    return run


@handles(
    "cp.async.bulk.prefetch", "prefetch.tensormap", "prefetch.param.tensormap", "prefetch.const.tensormap"
)
def _prefetch(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        return None

    return run
