"""tcgen05.alloc, dealloc and cp (PTX ISA, "Tensor Memory Allocation", "Tensor Memory Data Movement")."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tmem_access
from cute_kernels.emulator.clocks import FOREVER, PIPE, READY, SLOTS_A_WARP, TENSOR, TENSOR_READY
from cute_kernels.emulator.cta import TMEM_COLUMNS, TMEM_LANES, Cta
from cute_kernels.emulator.diagnosis import last_events
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.cta_pairs import cta_group, pair
from cute_kernels.emulator.handlers.loads import store
from cute_kernels.emulator.handlers.registry import address, handles, read, steps, uniform
from cute_kernels.emulator.ptx import Instruction, PtxError
from cute_kernels.emulator.registers import ALL_BYTES
from cute_kernels.emulator.shadow import Cells, Region, Where, region_of
from cute_kernels.emulator.shared_chunks import Chunks, chunks_at
from cute_kernels.emulator.sleep import sleep_until
from cute_kernels.emulator.umma_descriptors import decode_matrix_descriptor
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.lanes import Access
    from cute_kernels.emulator.program import Handler, Program, Step
    from cute_kernels.emulator.shadow import Conflict


def whole_warp(warp: Warp, mask: Mask, name: str) -> None:
    """Refuses an aligned instruction that only a part of the warp executes."""
    if mask is not None and mask.tobytes() != warp.alive.tobytes():
        raise EmulationError("divergence", f"{name} is aligned, and only some lanes of the warp execute it")


def one_lane(mask: Mask, name: str) -> int:
    """The lane that executes; refuses an instruction that several threads issue at once, and so several times."""
    executing = ALL_BYTES if mask is None else mask.tobytes()
    lanes = executing.count(1)
    if lanes != 1:
        raise EmulationError(
            "divergence", f"{lanes} lanes issue {name}, each an operation of its own; elect one lane"
        )
    return executing.index(1)


# --- shadow of tensor memory ----------------------------------------------------------------------------------------


def cells(lanes: NDArray[np.int64], columns: NDArray[np.int64]) -> Where:
    """Tensor memory cells, lanes and columns broadcast against each other: the rectangle that they fill, if any."""
    each = np.unique(lanes * TMEM_COLUMNS + columns)
    rows, across = (slice(int(of.min()), int(of.max()) + 1) for of in (lanes, columns))
    if len(each) == (rows.stop - rows.start) * (across.stop - across.start):
        return Cells(rows, across)
    return each


def pipe_view(warp: Warp, mask: Mask) -> NDArray[np.int64]:
    """What a tcgen05 operation of this warp is ordered after: its own earlier ones run before it in the pipe."""
    known = warp.order.known(mask)[TENSOR_READY].copy()
    known[warp.cta.slot(warp.index, PIPE)] = FOREVER
    return known


def known_now(warp: Warp) -> NDArray[np.int64]:
    """What an aligned tcgen05 operation of the whole warp is ordered after: see lanes.py."""
    return warp.order.known_by_any(None)[TENSOR_READY]


def read_cells(
    warp: Warp, cta: Cta, where: Where | Region, known: NDArray[np.int64], slot: int, time: int
) -> None:
    """Checks and records a read of tensor memory."""
    shadow = cta.tensor_memory().shadow
    where = shadow.region(where)
    conflict = shadow.read(where, known, slot, time, ordered=partial(_completed, warp))
    if conflict is not None:
        raise _conflict(warp, cta, conflict, "a read of")
    bad = shadow.first_invalid(where)
    if bad is not None:
        lane, column = divmod(bad, TMEM_COLUMNS)
        raise EmulationError(
            "uninitialised",
            f"a read of tensor memory lane {lane}, column {column}, which nothing wrote",
            address=bad,
        )


def write_cells(
    warp: Warp, cta: Cta, where: Where | Region, known: NDArray[np.int64], slot: int, time: int
) -> None:
    """Checks and records a write to tensor memory."""
    shadow = cta.tensor_memory().shadow
    conflict = shadow.write(where, known, slot, time, known, ordered=partial(_completed, warp))
    if conflict is not None:
        raise _conflict(warp, cta, conflict, "a write to")


def _completed(warp: Warp, kind: str, slot: int, time: int, code: int, lane: int) -> bool:
    """Whether a tcgen05.mma or cp before this access is known to be complete, and just the fence is missing.

    The ISA asks for the fence; NVIDIA's own kernels leave it out behind the wait for a tcgen05.commit: a warning. Where
    that is tolerated, the same holds for a tcgen05.ld or st.
    """
    slots = warp.cta.cluster.slots
    excused = (PIPE, TENSOR) if "tcgen05.ld" in warp.machine.tolerate else (PIPE,)
    if slot >= slots.grid_dependency or slot % SLOTS_A_WARP not in excused:
        return False
    if warp.order.known_by_any(None)[READY, slot] < time:
        return False
    warp.machine.warn(
        f"tensor memory is touched behind a {kind} by {slots.describe(slot)}, which is complete, with no "
        "tcgen05.fence::after_thread_sync between"
    )
    return True


def _conflict(warp: Warp, cta: Cta, conflict: Conflict, doing: str) -> EmulationError:
    lane, column = divmod(conflict.granule, TMEM_COLUMNS)
    cell, earlier = f"tensor memory lane {lane}, column {column}", f"the {conflict.kind}"
    who = cta.cluster.slots.describe(conflict.slot)
    kind, message = (
        "race",
        f"{doing} {cell} is not ordered after {earlier} of it by {who}; that needs tcgen05.wait or commit, "
        "tcgen05.fence::before_thread_sync, a barrier, and tcgen05.fence::after_thread_sync",
    )
    if warp.clock[READY, conflict.slot] >= conflict.time:
        kind = "missing-tcgen05-fence"
        message = (
            f"{doing} {cell} follows {earlier} by {who} with no tcgen05.fence::after_thread_sync between"
        )
    fault = EmulationError(kind, message, address=conflict.granule)
    fault.events = last_events(cta, cta.tensor_memory().shadow, conflict.granule)
    return fault


# --- allocation -----------------------------------------------------------------------------------------------------


@steps("tcgen05.alloc")
def _alloc(instruction: Instruction, program: Program) -> Step:
    where = address(instruction.operands[0])
    count = read(instruction.operands[1])
    group_size = cta_group(instruction, program)

    def run(warp: Warp, group: Group) -> Status:
        whole_warp(warp, group.mask, instruction.name)
        columns = uniform(count(warp), group.mask, "the number of columns")
        at = uniform(where(warp), group.mask, "the address")
        memory = warp.cta.tensor_memory()
        if warp.index in memory.joining:
            return join(warp, group)
        first = memory.allocate(columns)
        if first is None:
            group.why = f"{columns} free columns of tensor memory"
            sleep_until(warp, group, [])  # it is tried again when nothing else goes on
            return Status.WAIT
        lane0 = np.array([warp.shared_address(at)], dtype=np.uint64)
        store(warp, None, "shared", lane0, 4, [np.array([first], dtype=np.uint32)])
        warp.machine.report.count("tcgen05.alloc")
        if group_size == 1:
            return Status.NEXT
        memory.joined += 1
        memory.joining[warp.index] = memory.joined
        warp.machine.events += 1
        return join(warp, group)

    def join(warp: Warp, group: Group) -> Status:
        """A pair allocates together: neither CTA goes on before the other one has."""
        memory = warp.cta.tensor_memory()
        if any(cta.tensor_memory().joined < memory.joining[warp.index] for cta in pair(warp, 2)):
            group.why = "the other CTA of its pair to allocate tensor memory"
            return Status.WAIT
        del memory.joining[warp.index]
        return Status.NEXT

    if group_size not in (1, 2):
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    return run


@handles("tcgen05.dealloc")
def _dealloc(instruction: Instruction, program: Program) -> Handler:
    where, count = read(instruction.operands[0]), read(instruction.operands[1])

    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        memory = warp.cta.tensor_memory()
        at, size = (
            uniform(where(warp), mask, "the address"),
            uniform(count(warp), mask, "the number of columns"),
        )
        columns = memory.release(at, size)
        freed = Cells(slice(0, TMEM_LANES), columns)
        slot = warp.cta.slot(warp.index, TENSOR)
        conflict = memory.shadow.write(
            freed, warp.clock[READY], slot, warp.next_time(TENSOR), warp.clock[READY]
        )
        memory.shadow.forget(freed)
        if conflict is not None:
            raise _conflict(warp, warp.cta, conflict, "giving back")

    return run


@handles("tcgen05.relinquish_alloc_permit")
def _relinquish(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        whole_warp(warp, mask, instruction.name)
        warp.cta.tensor_memory().relinquished = True

    return run


# --- copies from shared memory --------------------------------------------------------------------------------------


@handles("tcgen05.cp")
def _cp(instruction: Instruction, program: Program) -> Handler:
    where, source = address(instruction.operands[0]), read(instruction.operands[1], "b64")
    group = cta_group(instruction, program)
    forms = [m for m in instruction.modifiers[1:] if not m.startswith("cta_group")]
    shape = forms[0]
    multicast = next((m for m in forms[1:] if m.startswith("warpx")), "")
    packed = next((m for m in forms[1:] if m in ("b4x16_p64", "b6x16_p32")), "")
    plan = tmem_access.copy_plan(shape, multicast, packed)

    @lru_cache(maxsize=256)
    def source_chunks(descriptor: int, granule: int) -> Chunks:
        return chunks_at(tmem_access.copy_chunks(plan, decode_matrix_descriptor(descriptor)), granule)

    @lru_cache(maxsize=256)
    def target_cells(lane: int, column: int) -> Region:
        tmem_access.check_copy_lane(shape, lane)
        where = cells((plan.lanes + lane).reshape(-1, 1), np.arange(column, column + plan.columns))
        return region_of(where, TMEM_COLUMNS)

    def run(warp: Warp, mask: Mask) -> None:
        issuer = one_lane(mask, instruction.name)
        taddr = int(where(warp)[issuer])
        lane, column = taddr >> 16, taddr & 0xFFFF
        touched = target_cells(lane, column)
        chunks = source_chunks(int(source(warp)[issuer]), warp.cta.shared.granule)
        columns = slice(column, column + plan.columns)
        slot, time = warp.cta.slot(warp.index, PIPE), warp.next_time(PIPE)
        known = pipe_view(warp, mask)
        access = warp.order.async_access(mask)
        ctas = pair(warp, group)
        for cta in ctas:
            cta.tensor_memory().check_columns(columns, instruction.name)
            read_operand(access, cta, chunks, slot, time)
            write_cells(warp, cta, touched, known, slot, time)

        def land() -> None:
            for cta in ctas:
                cells_of_row = tmem_access.copy_words(plan, chunks.gather(cta))
                cta.tensor_memory().words[plan.lanes + lane, columns] = cells_of_row

        submit(warp, ctas[0], Operation(instruction.name, land, warp.program.place(warp, instruction)))

    return run


@lru_cache(maxsize=256)
def _counted_as(name: str) -> str:
    return ".".join(name.split(".")[:2])


def submit(warp: Warp, leader: Cta, operation: Operation) -> None:
    """Puts a tcgen05 operation into the pipe of its CTA or CTA pair."""
    warp.machine.events += 1
    warp.machine.report.count(_counted_as(operation.name))
    warp.machine.engine.submit(("tcgen05", id(leader)), operation)


def read_operand(access: Access, cta: Cta, chunks: Chunks, slot: int, time: int) -> None:
    """Checks and records that a tcgen05 operation reads chunks of shared memory through the async proxy."""
    cta.shared.check(chunks.low, chunks.high, "a matrix operand")
    cta.shared_read(chunks.region, access, slot, time)
