"""cp.async: copies of 4, 8 or 16 bytes by each thread, in groups (PTX ISA, "cp.async")."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import COPY, READY
from cute_kernels.emulator.engine import Operation
from cute_kernels.emulator.global_cells import Lanes
from cute_kernels.emulator.global_shadow import By
from cute_kernels.emulator.handlers.loads import check_alignment, check_shared, lane_codes
from cute_kernels.emulator.handlers.mbarriers import find
from cute_kernels.emulator.handlers.registry import active, address, handles, read, steps, uniform
from cute_kernels.emulator.memory import OFFSET_MASK, poison
from cute_kernels.emulator.ptx import Immediate, Instruction, Negated, PtxError, Register
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.sleep import Sleepers, sleep_until, wake
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program, Step


@dataclass
class Copy:
    """One warp's copy, under way until `done`."""

    time: int
    done: bool = False
    sleepers: Sleepers = field(default_factory=list)  # until it is done


@handles("cp.async")
def _cp_async(instruction: Instruction, program: Program) -> Handler:
    if "shared" not in "".join(instruction.modifiers) or "global" not in instruction.modifiers:
        raise PtxError(f"the instruction {instruction.name} is not modelled")
    target, source = address(instruction.operands[0]), address(instruction.operands[1])
    operands = list(instruction.operands[2:])
    nbytes = Immediate.integer(operands[0]) if isinstance(operands[0], Immediate) else 0
    if nbytes not in (4, 8, 16):
        raise PtxError(f"cp.async of {nbytes} bytes; 4, 8 or 16 are allowed")
    rest = [o for o in operands[1:] if not _is_policy(o, instruction)]
    ignore = next((o for o in rest if _is_predicate(o)), None)
    sizes = next((o for o in rest if not _is_predicate(o)), None)
    size = read(sizes) if sizes is not None else None
    skip = (
        read(ignore.value if isinstance(ignore, Negated) else ignore, "pred") if ignore is not None else None
    )
    negated = isinstance(ignore, Negated)

    def run(warp: Warp, mask: Mask) -> None:
        warp.touch_global(instruction)
        to = active(target(warp), mask)
        offsets = (to & np.uint64(OFFSET_MASK)).astype(np.int64)
        addresses = active(source(warp), mask)
        check_alignment(to, nbytes, "cp.async to shared memory")
        check_alignment(addresses, nbytes, "cp.async from global memory")
        check_shared(warp.cta, offsets, nbytes, "cp.async")
        lengths = np.full(len(offsets), nbytes) if size is None else active(size(warp), mask).astype(np.int64)
        if int(lengths.max()) > nbytes:
            raise warp.fail(
                "out-of-range", f"cp.async of {nbytes} bytes with a source size of {int(lengths.max())}"
            )
        if skip is not None:
            skipped = active(skip(warp), mask)
            lengths = np.where(~skipped if negated else skipped, 0, lengths)
        _issue(warp, mask, instruction, offsets, addresses, lengths, nbytes)

    return run


def _is_policy(operand: object, instruction: Instruction) -> bool:
    return (
        "L2::cache_hint" in instruction.modifiers
        and isinstance(operand, Register)
        and operand.type.endswith("64")
    )


def _is_predicate(operand: object) -> bool:
    return isinstance(operand, Negated) or (isinstance(operand, Register) and operand.type == "pred")


def _issue(
    warp: Warp,
    mask: Mask,
    instruction: Instruction,
    offsets: NDArray[np.int64],
    addresses: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    nbytes: int,
) -> None:
    cta = warp.cta
    slot = cta.slot(warp.index, COPY)
    time = warp.next_time(COPY)
    where = cta.shared.granules_at(offsets, nbytes)
    cta.shared_write(
        where, warp.order.access(mask), slot, time, lane_codes(mask, nbytes // cta.shared.granule)
    )
    cells = offsets[:, None] + np.arange(nbytes)
    cta.shared.bytes[cells] = poison(1)[0]
    shadow = warp.machine.global_shadow
    for length in np.unique(lengths[lengths > 0]).tolist():
        here = lengths == length
        shadow.read(
            By(warp, warp.order.access(mask), slot, time),
            Lanes(addresses[here], length, lane_codes(mask, 1)[here]),
        )
    copy = Copy(time)
    warp.copy_groups[-1].append(copy)

    def land() -> None:
        data = np.zeros((len(offsets), nbytes), dtype=np.uint8)
        for i, (at, length) in enumerate(zip(addresses.tolist(), lengths.tolist(), strict=True)):
            if length:
                data[i, :length] = warp.machine.memory.read_bytes(at, length)
        cta.shared.bytes[cells] = data
        copy.done = True
        wake(copy.sleepers)

    warp.machine.events += 1
    warp.machine.report.count("cp.async")
    warp.machine.engine.submit(
        copy_lane(warp), Operation("cp.async", land, warp.program.place(warp, instruction))
    )


def copy_lane(warp: Warp) -> object:
    """cp.async operations of a warp land in order."""
    return ("cp.async", id(warp))


@handles("cp.async.commit_group")
def _commit(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        warp.copy_groups.append([])

    return run


@steps("cp.async.wait_group", "cp.async.wait_all")
def _wait(instruction: Instruction, program: Program) -> Step:
    everything = instruction.modifiers[-1] == "wait_all"
    allowed = 0 if everything else read(instruction.operands[0])

    def run(warp: Warp, group: Group) -> Status:
        if everything:
            awaited = warp.copy_groups
        else:
            assert callable(allowed)
            left = uniform(allowed(warp), group.mask, "the number of groups")
            awaited = warp.copy_groups[: max(0, len(warp.copy_groups) - 1 - left)]
        copies = [copy for one in awaited for copy in one]
        if not all(copy.done for copy in copies):
            group.why = "its cp.async copies"
            sleep_until(warp, group, *(copy.sleepers for copy in copies if not copy.done))
            return Status.WAIT
        if copies:
            warp.order.copied = max(warp.order.copied, *(copy.time for copy in copies))
        for one in awaited:
            one.clear()
        return Status.NEXT

    return run


@handles("cp.async.mbarrier.arrive")
def _arrive(instruction: Instruction, program: Program) -> Handler:
    """Arrives on a barrier once the lane's copies so far have landed."""
    where = address(instruction.operands[0])
    counted = "noinc" in instruction.modifiers

    def run(warp: Warp, mask: Mask) -> None:
        lanes = active(where(warp), mask)
        executing = np.arange(LANES) if mask is None else np.flatnonzero(mask)
        slot = warp.cta.slot(warp.index, COPY)
        clock = np.zeros_like(warp.clock)
        clock[:, slot] = warp.times[COPY]
        waits = warp.order.slots.waits
        clock[READY, waits] = warp.order.known_by_any(mask)[READY, waits]  # no memory is ordered by these
        for at in np.unique(lanes).tolist():
            count = int((lanes == at).sum())
            barrier = find(warp, at, instruction.name, executing)
            if not counted:
                barrier.pending += count
            operation = Operation(
                "cp.async.mbarrier.arrive",
                partial(_land_arrival, warp, barrier, count, clock),
                warp.program.place(warp, instruction),
            )
            warp.machine.engine.submit(copy_lane(warp), operation)

    return run


def _land_arrival(warp: Warp, barrier: MBarrier, count: int, clock: NDArray[np.int64]) -> None:
    barrier.arrive(count, clock)
    warp.machine.events += 1
