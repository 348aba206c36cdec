"""mbarrier instructions (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier")."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.handlers.registry import active, address, alike, handles, read, steps, write
from cute_kernels.emulator.mbarrier import MAX_COUNT, STATE_PENDING
from cute_kernels.emulator.memory import OFFSET_MASK
from cute_kernels.emulator.ptx import Immediate, Instruction, Sink
from cute_kernels.emulator.registers import ALL_LANES, LANES
from cute_kernels.emulator.sleep import sleep_until
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Handler, Program, Step

_ONE = Immediate("1")
_ALL = np.arange(LANES)
_NONE = np.zeros(LANES, dtype=bool)
_ALL.flags.writeable = _NONE.flags.writeable = False


def find(warp: Warp, where: int, what: str, lanes: NDArray[np.int64]) -> MBarrier:
    """The barrier at a shared address (window or generic form), its initialisation known to the lanes (in order)."""
    return _find(warp, where, what, int(lanes[0]), int(lanes[-1]))


def _find(warp: Warp, where: int, what: str, first: int, last: int) -> MBarrier:
    cta, offset = warp.cta.cluster.at_address(warp.shared_address(where))
    barrier = cta.mbarrier(offset, what)
    barrier.check_ordered(warp.order, first, last)
    if "wait" not in what:
        barrier.uses.append((what, warp, warp.running.pc))
    return barrier


def _by_barrier(addresses: NDArray[np.uint64], mask: Mask) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each address that executing lanes name, with those lanes."""
    lanes = _ALL if mask is None else np.flatnonzero(mask)
    if len(lanes) == 1:
        yield int(addresses[lanes[0]]), lanes
        return
    here = addresses if mask is None else addresses[lanes]
    if alike(here):
        yield int(here[0]), lanes
        return
    for value in np.unique(here):
        yield int(value), lanes[here == value]


def _ends(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The first and the last lane of a mask."""
    lanes = mask.tobytes()
    return lanes.index(1), lanes.rindex(1)


def _set(lanes: NDArray[np.int64]) -> Mask:
    """Numbers of lanes as a mask."""
    if len(lanes) == LANES:
        return None
    mask = np.zeros(LANES, dtype=bool)
    mask[lanes] = True
    return mask


@handles("mbarrier.init")
def _init(instruction: Instruction, program: Program) -> Handler:
    where, count = address(instruction.operands[0]), read(instruction.operands[1])

    def run(warp: Warp, mask: Mask) -> None:
        counts = count(warp)
        for at, lanes in _by_barrier(where(warp), mask):
            cta, offset = warp.cta.cluster.at_address(warp.shared_address(at))
            for lane in lanes.tolist():
                cta.shared.check(offset, offset + 8, "mbarrier.init")
                cta.new_mbarrier(offset, int(counts[lane]), warp, lane)
        warp.machine.events += 1

    return run


@handles("mbarrier.inval")
def _inval(instruction: Instruction, program: Program) -> Handler:
    where = address(instruction.operands[0])

    def run(warp: Warp, mask: Mask) -> None:
        for at, _ in _by_barrier(where(warp), mask):
            cta, offset = warp.cta.cluster.at_address(warp.shared_address(at))
            cta.invalidate_mbarrier(offset)

    return run


@handles("mbarrier.arrive", "mbarrier.arrive_drop")
def _arrive(instruction: Instruction, program: Program) -> Handler:
    """arrive[.noComplete][.expect_tx] and arrive_drop: the operand behind the address is a count or bytes."""
    operands = list(instruction.operands)
    destination = operands.pop(0) if len(operands) > 1 and not _is_address(operands[0]) else Sink()
    put, returns = write(destination), not isinstance(destination, Sink)
    where = address(operands[0])
    expects = "expect_tx" in instruction.modifiers
    amount = read(operands[1] if len(operands) > 1 else _ONE)
    drops = instruction.modifiers[0] == "arrive_drop"
    relaxed = "relaxed" in instruction.modifiers
    keeps_open = "noComplete" in instruction.modifiers

    def run(warp: Warp, mask: Mask) -> None:
        amounts = amount(warp)
        states = np.zeros(LANES, dtype=np.uint64) if returns else None
        time = warp.epoch
        clock = warp.fenced if relaxed else warp.released(mask)
        for at, lanes in _by_barrier(where(warp), mask):
            barrier = find(warp, at, instruction.name, lanes)
            given = amounts[lanes].tolist()
            counts = [1] * len(given) if expects else given
            arrivals = sum(counts)
            if keeps_open and arrivals == barrier.pending:
                raise warp.fail("barrier", f"{instruction.name} completes a phase of {barrier.describe()}")
            if drops:
                barrier.drop(arrivals)
            if expects:
                barrier.expect(sum(given))
            if states is not None:
                states[lanes] = [barrier.state(n) for n in [0, *accumulate(counts)][:-1]]
            if relaxed:
                barrier.follow(warp.order.known_by_any(mask), warp.order)
            barrier.arrive(arrivals, clock, None if relaxed else (warp.generic_slot, time))
        if states is not None:
            put(warp, states, mask)
        warp.machine.events += 1

    return run


def _is_address(operand: Any) -> bool:
    return type(operand).__name__ == "Address"


@handles("mbarrier.expect_tx", "mbarrier.complete_tx")
def _transact(instruction: Instruction, program: Program) -> Handler:
    where, amount = address(instruction.operands[0]), read(instruction.operands[1])
    completes = instruction.modifiers[0] == "complete_tx"

    def run(warp: Warp, mask: Mask) -> None:
        amounts = amount(warp)
        for at, lanes in _by_barrier(where(warp), mask):
            barrier = find(warp, at, instruction.name, lanes)
            total = int(amounts[lanes].astype(np.int64).sum())
            barrier.follow(warp.order.known_by_any(mask), warp.order)
            barrier.complete(total) if completes else barrier.expect(total)
        warp.machine.events += 1

    return run


@handles("mbarrier.pending_count")
def _pending_count(instruction: Instruction, program: Program) -> Handler:
    put, state = write(instruction.operands[0]), read(instruction.operands[1], "b64")

    def run(warp: Warp, mask: Mask) -> None:
        pending = -(state(warp) >> np.uint64(STATE_PENDING)).astype(np.int64) & MAX_COUNT
        put(warp, pending.astype(np.uint32), mask)

    return run


@steps("mbarrier.try_wait", "mbarrier.test_wait")
def _wait(instruction: Instruction, program: Program) -> Step:
    put = write(instruction.operands[0])
    where = address(instruction.operands[1])
    by_parity = "parity" in instruction.modifiers
    expected = read(instruction.operands[2], "b32" if by_parity else "b64")
    relaxed = "relaxed" in instruction.modifiers

    def run(warp: Warp, group: Group) -> Status:
        mask = None if group.full else group.mask
        wanted, addresses = expected(warp), where(warp)
        if by_parity and not relaxed and alike(active(wanted, mask)) and alike(active(addresses, mask)):
            return _alike(warp, group, mask, wanted, addresses)
        results = np.zeros(LANES, dtype=bool)
        open_barriers: list[MBarrier] = []
        for at, lanes in _by_barrier(addresses, mask):
            barrier = find(warp, at, instruction.name, lanes)
            values = wanted[lanes]
            if by_parity:
                if (values > 1).any():
                    raise warp.fail(
                        "barrier",
                        f"{instruction.name} with the parity {int(values.max())}; 0 or 1 is allowed",
                    )
                passed = (values & np.uint32(1)) != np.uint32(barrier.phase & 1)
            else:
                passed = np.array([barrier.passed_state(value) for value in values.tolist()])
            results[lanes] = passed
            if passed.any():
                barrier.observe(warp, exact=not by_parity)
            if passed.any() and not relaxed:
                warp.acquire(barrier.known, _set(lanes[passed]))
            if not passed.all():
                open_barriers.append(barrier)
        put(warp, results, mask)
        group.barrier = open_barriers[0] if open_barriers else None
        if active(results, mask).all():
            return Status.NEXT
        barrier = open_barriers[0]
        group.why = f"phase {barrier.phase} of {barrier.describe()}"
        if len(open_barriers) == 1 and not active(results, mask).any():
            sleep_until(warp, group, barrier.sleepers)
        return Status.YIELD

    def _alike(
        warp: Warp, group: Group, mask: Mask, wanted: NDArray[Any], addresses: NDArray[np.uint64]
    ) -> Status:
        """Lanes that all wait for the same."""
        first, last = (0, LANES - 1) if mask is None else _ends(mask)
        parity = int(wanted[first])
        barrier = _find(warp, int(addresses[first]), instruction.name, first, last)
        if parity > 1:
            raise warp.fail("barrier", f"{instruction.name} with the parity {parity}; 0 or 1 is allowed")
        passed = barrier.passed(parity)
        put(warp, ALL_LANES if passed else _NONE, mask)
        if passed:
            barrier.observe(warp)
            warp.acquire(barrier.known, mask)
            group.barrier = None
            return Status.NEXT
        group.barrier = barrier
        group.why = f"phase {barrier.phase} of {barrier.describe()}"
        sleep_until(warp, group, barrier.sleepers)
        return Status.YIELD

    return run


def own_offset(where: int) -> int:
    """The offset within its CTA of a shared address."""
    return where & OFFSET_MASK
