"""Control flow and CTA-wide or cluster-wide barriers (PTX ISA, "Control Flow", "barrier", "barrier.cluster")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import READY
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.handlers.registry import active, handles, read, steps, uniform, write
from cute_kernels.emulator.ptx import Immediate, Instruction, Negated, PtxError, Symbol
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.sleep import MEETING, sleep_until
from cute_kernels.emulator.warp import Group, Mask, Status, Warp

if TYPE_CHECKING:
    from cute_kernels.emulator.mbarrier import NamedBarrier
    from cute_kernels.emulator.program import Handler, Program, Step


@steps("exit", "ret")
def _exit(instruction: Instruction, program: Program) -> Step:
    def run(warp: Warp, group: Group) -> Status:
        group.pc += 1
        warp.exit(group, group.mask)
        return Status.NEXT

    return run


@steps("trap")
def _trap(instruction: Instruction, program: Program) -> Step:
    def run(warp: Warp, group: Group) -> Status:
        raise EmulationError("bad-launch", "the kernel executed trap")

    return run


@steps("brx.idx")
def _brx(instruction: Instruction, program: Program) -> Step:
    index, table = instruction.operands
    if not isinstance(table, Symbol):
        raise PtxError("brx.idx without a branch table")
    targets = program.kernel.branch_targets[table.name]
    get = read(index)

    def run(warp: Warp, group: Group) -> Status:
        values = get(warp)
        for value in sorted(set(values[group.mask].tolist())):
            if value >= len(targets):
                raise EmulationError(
                    "out-of-range", f"brx.idx with index {value} into {len(targets)} targets"
                )
        first, *others = sorted(set(values[group.mask].tolist()))
        mask = group.mask
        for value in others:
            warp.groups.append(Group(targets[value], mask & (values == value), False))
        group.mask = mask & (values == first)
        group.full = group.full and not others
        group.pc = targets[first]
        return Status.NEXT

    return run


@handles(
    "nanosleep",
    "pragma",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
)
def _no_effect(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        return None

    return run


@handles("createpolicy")
def _cache_policy(instruction: Instruction, program: Program) -> Handler:
    """A cache policy is opaque, and without effect here."""
    put = write(instruction.operands[0])
    return lambda warp, mask: put(warp, np.zeros(LANES, np.uint64), mask)


@handles("call")
def _call(instruction: Instruction, program: Program) -> Handler:
    """Calls of vprintf, which print nothing here, and of __assertfail. Other functions are refused by name."""
    names = [operand.name for operand in instruction.operands if isinstance(operand, Symbol)]
    if names[:1] == ["__assertfail"]:
        raise EmulationError("bad-launch", "an assert of the kernel failed")
    if names[:1] != ["vprintf"]:
        raise PtxError(f"a call of {', '.join(names) or 'a function'} is not modelled; inline it")

    def run(warp: Warp, mask: Mask) -> None:
        return None

    return run


@handles("griddepcontrol.wait")
def _wait_for_grids(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        warp.wait_for_grids()

    return run


@handles("griddepcontrol.launch_dependents")
def _launch_dependents(instruction: Instruction, program: Program) -> Handler:
    def run(warp: Warp, mask: Mask) -> None:
        warp.cta.launch_dependents = True

    return run


def converged(warp: Warp, group: Group, aligned: bool, name: str) -> bool:
    """Whether all live lanes of the warp stand here; an aligned barrier may not be reached by fewer."""
    if group.full or group.mask.tobytes() == warp.alive.tobytes():
        return True
    if (
        aligned
        and len(warp.groups) > 1
        and all(other.pc != group.pc for other in warp.groups if other is not group)
    ):
        behind = [other for other in warp.groups if other is not group and not other.stalled]
        if not behind:
            raise EmulationError("divergence", f"{name} is aligned, and only some lanes of the warp reach it")
    group.why, group.sleep = "the other lanes of its warp", MEETING
    return False


@steps("bar", "barrier")
def _barrier(instruction: Instruction, program: Program) -> Step:
    modifiers = [m for m in instruction.modifiers if m not in ("cta", "aligned")]
    action = modifiers[0]
    aligned = instruction.opcode == "bar" or "aligned" in instruction.modifiers
    reducing = action == "red"
    operands = list(instruction.operands)
    put = write(operands.pop(0)) if reducing else None
    source = operands.pop() if reducing else None
    negated = isinstance(source, Negated)
    predicate = read(source.value if isinstance(source, Negated) else source, "pred") if reducing else None
    number = read(operands[0])
    threads = read(operands[1]) if len(operands) > 1 else None
    if action not in ("sync", "arrive", "red"):
        raise PtxError(f"the instruction {instruction.name} is not modelled")

    def run(warp: Warp, group: Group) -> Status:
        if group.token is not None:
            return _finish(warp, group)
        if not converged(warp, group, aligned, instruction.name):
            return Status.WAIT
        which = uniform(number(warp), group.mask, "the barrier number")
        size = LANES * sum(not other.done for other in warp.cta.warps)
        expected = uniform(threads(warp), group.mask, "the thread count") if threads else size
        barrier = warp.cta.named_barrier(which)
        if predicate is not None:
            values = predicate(warp)[group.mask]
            barrier.reduction.extend((~values if negated else values).tolist())
        generation = barrier.arrive(LANES, expected, warp.released(), whole_cta=threads is None)
        warp.machine.events += 1
        if action == "arrive":
            return Status.NEXT
        group.token = (barrier, generation)
        return _finish(warp, group)

    def _finish(warp: Warp, group: Group) -> Status:
        barrier, generation = group.token
        if barrier.generation == generation:
            _sleep(warp, group, barrier)
            return Status.WAIT
        warp.acquire(barrier.known)
        warp.order.sync()
        if put is not None:
            put(warp, _reduce(instruction, barrier.result), None if group.full else group.mask)
        return Status.NEXT

    return run


def _sleep(warp: Warp, group: Group, barrier: NamedBarrier) -> None:
    group.why = barrier.describe()
    sleep_until(warp, group, barrier.sleepers)


def _reduce(instruction: Instruction, values: list[bool]) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    if "popc" in instruction.modifiers:
        return np.full(LANES, sum(values), dtype=np.uint32)
    return np.full(LANES, all(values) if "and" in instruction.modifiers else any(values))


@steps("bar.warp.sync")
def _warp_barrier(instruction: Instruction, program: Program) -> Step:
    members = read(instruction.operands[0])

    def run(warp: Warp, group: Group) -> Status:
        if not members_here(warp, group, members(warp)):
            return Status.WAIT
        warp.order.sync(None if group.full else group.mask)
        return Status.NEXT

    return run


def members_here(warp: Warp, group: Group, members: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> bool:
    """Whether the lanes of a member mask stand at this instruction together; they must include the executing ones."""
    if group.full and int(members[0]) == 0xFFFFFFFF:
        return True
    if not (members[group.mask] == members[group.mask][0]).all():
        _split_by_members(warp, group, members)
    wanted = uniform(members, group.mask, "the member mask")
    lanes = ((np.uint32(wanted) >> np.arange(LANES, dtype=np.uint32)) & np.uint32(1) != 0) & warp.launched
    if (group.mask & ~lanes).any():
        lane = int(np.flatnonzero(group.mask & ~lanes)[0])
        raise EmulationError(
            "divergence", f"lane {lane} executes it, and the member mask {wanted:#010x} leaves it out"
        )
    if (lanes & ~warp.alive).any():
        lane = int(np.flatnonzero(lanes & ~warp.alive)[0])
        raise EmulationError(
            "divergence", f"the member mask {wanted:#010x} names lane {lane}, which has exited"
        )
    if (lanes & ~group.mask).any():
        group.why, group.sleep = "the other lanes of its member mask", MEETING
        return False
    return True


def _split_by_members(warp: Warp, group: Group, members: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> None:
    """Lanes that stand here together with several member masks go on as groups of one mask each."""
    first, *others = [group.mask & (members == value) for value in np.unique(members[group.mask])]
    for mask in others:
        warp.groups.append(Group(group.pc, mask, False, token="members"))
    group.mask, group.full = first, False


@steps("barrier.cluster")
def _cluster_barrier(instruction: Instruction, program: Program) -> Step:
    arriving = "arrive" in instruction.modifiers
    aligned = "aligned" in instruction.modifiers
    relaxed = "relaxed" in instruction.modifiers

    def run(warp: Warp, group: Group) -> Status:
        if not converged(warp, group, aligned, instruction.name):
            return Status.WAIT
        barrier = warp.cta.cluster.barrier
        if arriving:
            if warp.cluster_arrived is not None:
                raise EmulationError("barrier", "barrier.cluster.arrive twice with no wait between")
            clock = _relaxed_clock(warp) if relaxed else warp.released()
            expected = LANES * warp.cta.cluster.size * warp.cta.cluster.warps_a_cta
            warp.cluster_arrived = barrier.arrive(LANES, expected, clock)
            warp.machine.events += 1
            return Status.NEXT
        generation = warp.cluster_arrived
        if generation is None:
            raise EmulationError("barrier", "barrier.cluster.wait without an arrive before it")
        if barrier.generation == generation:
            _sleep(warp, group, barrier)
            return Status.WAIT
        warp.acquire(barrier.known)
        warp.cluster_arrived = None
        return Status.NEXT

    return run


def _relaxed_clock(warp: Warp) -> NDArray[np.int64]:
    """What a relaxed arrival releases: what a memory fence before it covered, and mbarriers that
    fence.mbarrier_init made visible. Waits for phases come before it all the same (phases.py)."""
    for barrier in warp.cta.mbarriers.values():
        if barrier.initialised_by == warp.generic_slot and barrier.fenced:
            barrier.announced = True
    clock = np.zeros_like(warp.clock) if warp.fenced is None else warp.fenced.copy()
    waits = warp.order.slots.waits
    clock[READY, waits] = warp.order.known_by_any(None)[READY, waits]
    return clock


@handles("mapa")
def _mapa(instruction: Instruction, program: Program) -> Handler:
    put = write(instruction.operands[0])
    wide = instruction.modifiers[-1] == "u64"
    source = read(instruction.operands[1], instruction.modifiers[-1])
    rank = read(instruction.operands[2])
    generic = "shared::cluster" not in instruction.modifiers

    def run(warp: Warp, mask: Mask) -> None:
        ranks = np.minimum(rank(warp), 0xFF)  # one outside the cluster is a fault where its address is used
        if generic and wide and not (active(source(warp), mask) >> np.uint64(56)).all():
            raise EmulationError("out-of-range", "mapa of a generic address outside shared memory")
        addresses = source(warp).astype(np.uint64)
        moved = (addresses & np.uint64(~(0xFF << 24) & (2**64 - 1))) | (
            ranks.astype(np.uint64) << np.uint64(24)
        )
        put(warp, moved, mask)

    return run


@handles("getctarank")
def _getctarank(instruction: Instruction, program: Program) -> Handler:
    put = write(instruction.operands[0])
    source = read(instruction.operands[1], instruction.modifiers[-1])

    def run(warp: Warp, mask: Mask) -> None:
        put(
            warp,
            ((source(warp) >> source(warp).dtype.type(24)) & source(warp).dtype.type(0xFF)).astype(np.uint32),
            mask,
        )

    return run


@handles("isspacep")
def _isspacep(instruction: Instruction, program: Program) -> Handler:
    put = write(instruction.operands[0])
    source = read(instruction.operands[1], "b64")
    windows = {"shared": 1, "local": 2, "param": 4, "global": 0, "const": 0}
    space = instruction.modifiers[0].split("::")[0]
    if isinstance(instruction.operands[1], Immediate) or space not in windows:
        raise PtxError(f"the instruction {instruction.name} is not modelled")

    def run(warp: Warp, mask: Mask) -> None:
        found = source(warp) >> np.uint64(56) == np.uint64(windows[space])
        if space in ("const", "global"):
            constant = np.zeros(LANES, dtype=bool)
            for variable in program.module.variables.values():
                if variable.space == "const":
                    low = np.uint64(warp.machine.module_address(variable.name))
                    constant |= source(warp) - low < np.uint64(variable.nbytes)
            found = found & (constant if space == "const" else ~constant)
        put(warp, found, mask)

    return run
