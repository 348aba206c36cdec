"""A warp: registers, groups of lanes that share a program counter, and its clock.

Lanes that stand at the same instruction form a group. The group at the lowest PC runs first, so groups that branched
apart meet again where their paths join. A group that waits lets the others of its warp go on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import ASYNC, READY, SLOTS_A_WARP
from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.global_order import WordOrder
from cute_kernels.emulator.lanes import LaneOrder
from cute_kernels.emulator.memory import RANK_SHIFT, SHARED_WINDOW
from cute_kernels.emulator.registers import ALL_BYTES, LANES, NO_BYTES, UNDEFINED
from cute_kernels.emulator.sleep import MEETING, Meeting, Sleep
from cute_kernels.emulator.special_registers import SpecialRegisters

if TYPE_CHECKING:
    from cute_kernels.emulator.machine import Machine
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.program import Program
    from cute_kernels.emulator.ptx import Instruction

Mask = NDArray[np.bool_] | None  # None: all 32 lanes


class Status(enum.Enum):
    """What executing a stepping instruction came to."""

    NEXT = 0  # done, go on
    YIELD = 1  # done, but the turn ends here (a failed wait)
    WAIT = 2  # not done: execute it again at the next turn


@dataclass(eq=False)
class Group:
    """Lanes at one PC. `sleep`: what it waits for before it goes on; `token`: what a half-done instruction remembers
    between turns."""

    pc: int
    mask: NDArray[np.bool_]
    full: bool
    stalled: bool = False
    sleep: Sleep | Meeting | None = None
    why: str = ""
    token: Any = None
    barrier: MBarrier | None = None  # the mbarrier that its last wait was for, as long as that fails


class Warp:
    """One warp of a CTA."""

    def __init__(self, machine: Machine, program: Program, cta: Cta, index: int, threads: int) -> None:
        self.machine = machine
        self.program = program
        self.cta = cta
        self.index = index
        self.order = LaneOrder(cta.cluster.slots, cta.rank * cta.cluster.warps_a_cta + index, machine.warn)
        self.generic_slot = self.order.generic
        self.clock = self.order.clock  # what all its lanes know
        cta.cluster.slots.names[self.generic_slot] = f"warp {index}" + (
            f" of CTA {cta.rank}" if cta.cluster.size > 1 else ""
        )
        self.fenced: NDArray[np.int64] | None = None  # the clock at the last memory fence
        self.times = np.zeros(SLOTS_A_WARP, dtype=np.int64)  # issued so far, by kind of slot
        self.registers: list[Any] = [UNDEFINED] * len(program.kernel.registers)
        lanes = np.arange(LANES)
        alive = lanes + index * LANES < threads
        self.alive = self.order.alive = alive
        self.launched = alive  # lanes that the launch has; a member mask may name the others as well
        self.groups = [Group(0, alive, bool(alive.all()))]
        self.asleep = False  # whether all its groups are
        self.special = SpecialRegisters(machine.setting, cta, index)
        self.local = machine.local_memory(program)
        self.bulk_groups: dict[
            int, list[list[Any]]
        ] = {}  # bulk stores by lane and committed group; the last is open
        self.bulk_read: dict[
            int, int
        ] = {}  # by lane: how many of these groups at their start it has waited for the reads of
        self.copy_groups: list[list[Any]] = [[]]
        self.cluster_arrived: int | None = (
            None  # the generation of a cluster barrier arrived at, not waited for
        )
        self.tensor_loads: set[int] = set()  # registers that results of tcgen05.ld may be on their way to
        self.tensor_stores: list[Callable[[], None]] = []  # tcgen05.st under way
        self.products: Any = None  # wgmma under way (handlers/wgmma.py)
        self.instructions = 0
        self.running = cta.cluster.running
        self.words = WordOrder(self, machine.global_shadow.order)
        self._grids_awaited = not program.waits_for_grids
        self.places: dict[int, Place] = {}  # by identity of the instruction: see Program.place
        self._symbols: dict[tuple[str, int], NDArray[np.uint64]] = {}

    @property
    def done(self) -> bool:
        return not self.groups

    def turn(self, blocks: int, forced: bool = False) -> None:
        """Runs until every group waits or `blocks` basic blocks are done. forced: groups that sleep try again, too."""
        groups = self.groups
        self.running.warp = self
        self.asleep = False
        for group in groups:
            group.stalled = False
            if group.sleep is MEETING:
                group.sleep = None
        self._run(groups, blocks, forced)
        for group in groups:
            if group.sleep is None:
                return
        self.asleep = bool(groups)

    def _run(self, groups: list[Group], blocks: int, forced: bool) -> None:
        advance = self.program.advance
        while groups and blocks > 0:
            current = _lowest(groups)
            if current is None:
                return
            if current.sleep is not None:
                if not forced:
                    current.stalled = True
                    continue
                current.sleep = None
            count = len(groups)
            meeting = min(other.pc for other in groups if other is not current) if count > 1 else 0
            while blocks > 0:
                blocks -= 1
                advance(self, current)
                if current.stalled or len(groups) != count or (count > 1 and current.pc >= meeting):
                    break
            if len(groups) > 1:
                self._reconverge()

    def branch(self, group: Group, taken: NDArray[np.bool_], target: int, otherwise: int) -> None:
        """Sends the lanes of `taken` to `target` and the rest of the group on."""
        jump = taken & group.mask
        pattern = jump.tobytes()
        if pattern == NO_BYTES:
            group.pc = otherwise
        elif pattern == group.mask.tobytes():
            group.pc = target
        else:
            self.split(group, jump, target, otherwise)

    def split(self, group: Group, jump: NDArray[np.bool_], target: int, otherwise: int) -> None:
        """Sends some lanes of a group to `target` and the others on."""
        stay = group.mask & ~jump
        group.pc, group.mask, group.full = otherwise, stay, False
        self.groups.append(Group(target, jump, False))

    def exit(self, group: Group, leaving: NDArray[np.bool_]) -> None:
        """Ends the lanes of `leaving`; the rest of the group goes on behind the instruction."""
        self.alive = self.order.alive = self.alive & ~leaving
        rest = group.mask & ~leaving
        self.machine.events += 1
        if rest.any():
            group.mask, group.full = rest, False
        else:
            self.groups.remove(group)
            if not self.groups:
                self.machine.warp_done(self)

    def _reconverge(self) -> None:
        by_pc: dict[int, Group] = {}
        for group in list(self.groups):
            if group.token is not None:
                continue
            first = by_pc.setdefault(group.pc, group)
            if first is not group:
                first.mask = first.mask | group.mask
                first.full = first.mask.tobytes() == ALL_BYTES
                first.stalled = first.stalled and group.stalled
                first.sleep = None
                self.groups.remove(group)

    # --- ordering -----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The time of generic accesses made now."""
        return self.order.epoch

    def released(self, mask: Mask = None) -> NDArray[np.int64]:
        """A clock for lanes to hand to a synchronisation object; what follows is not covered by it."""
        return self.order.release(mask)

    def memory_fence(self, mask: Mask = None) -> NDArray[np.int64]:
        """fence.acq_rel or .sc: relaxed arrivals from now on release what is known by now, which is given."""
        self.fenced = self.order.release(mask)
        return self.fenced

    def acquire(self, known: NDArray[np.int64], mask: Mask = None) -> None:
        """Lanes learn what a synchronisation object knows."""
        self.order.acquire(known, mask)

    def wait_for_grids(self) -> None:
        """griddepcontrol.wait: what earlier grids wrote is there."""
        self.order.changed()
        self.clock[: ASYNC + 1, self.cta.cluster.slots.grid_dependency] = 1

    def touch_global(self, instruction: Instruction) -> None:
        """Notes an access to global memory that is not ordered after griddepcontrol.wait, in a kernel that has one.

        Legal for memory that no earlier grid writes (weights); so a warning, not a fault.
        """
        if self._grids_awaited:
            return
        if self.clock[READY, self.cta.cluster.slots.grid_dependency]:
            self._grids_awaited = True
            return
        self.machine.warn(
            f"{self.program.source(instruction)}: {instruction.name} is not ordered after griddepcontrol.wait; it may "
            "meet what an earlier grid has not finished"
        )

    def divide_by_zero(self, divisor: NDArray[Any], mask: Mask, pc: int) -> None:
        """Notes lanes that divide by 0: whatever comes of that is legal as long as nobody uses it; so a warning."""
        if mask is None or (divisor == 0)[mask].any():
            instruction = self.program.kernel.instructions[pc]
            self.machine.warn(
                f"{self.program.source(instruction)}: {instruction.name} divides by 0; the result is unspecified"
            )

    def next_time(self, what: int) -> int:
        """The time of a new asynchronous operation of this kind."""
        self.times[what] += 1
        return int(self.times[what])

    # --- addresses ----------------------------------------------------------------------------------------------

    def symbol(self, name: str, offset: int = 0) -> np.uint64:
        """The address of a variable in its own state space, as mov gives it."""
        space, at = self.program.symbols[name]
        if space == "shared":
            at |= self.cta.rank << RANK_SHIFT
        elif space in ("global", "const"):
            at = self.machine.module_address(name)
        return np.uint64(at + offset)

    def symbol_lanes(self, name: str, offset: int = 0) -> NDArray[np.uint64]:
        """The address in all lanes. Not to be changed."""
        lanes = self._symbols.get((name, offset))
        if lanes is None:
            lanes = self._symbols[name, offset] = np.full(LANES, self.symbol(name, offset), dtype=np.uint64)
        return lanes

    def shared_address(self, address: int) -> int:
        """The shared-window address of an address in either the shared window or generic form."""
        return address - SHARED_WINDOW if address >= SHARED_WINDOW else address

    def fail(self, kind: str, message: str, address: int | None = None) -> EmulationError:
        return EmulationError(kind, message, address=address)

    def describe(self) -> str:
        lines = []
        for group in self.groups:
            instruction = self.program.kernel.instructions[group.pc]
            lanes = "all lanes" if group.full else f"lanes {np.flatnonzero(group.mask).tolist()}"
            why = f", waiting for {group.why}" if group.why else ""
            lines.append(
                f"CTA {self.cta.index} warp {self.index} ({lanes}) at {self.program.source(instruction)}: "
                f"{instruction.text.strip()}{why}"
            )
            if text := self.program.place(self, instruction).text:
                lines.append(f"  > {text}")
        return "\n    ".join(lines)


def _lowest(groups: list[Group]) -> Group | None:
    """The group at the lowest PC of those that can go on; the first of several."""
    found: Group | None = None
    for group in groups:
        if not group.stalled and (found is None or group.pc < found.pc):
            found = group
    return found
