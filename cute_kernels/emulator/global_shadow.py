"""Shadow state of global memory during a launch: who wrote a granule last, who read it since, which atomics touched it.

Only ranges that the launch writes have a shadow. Reads of a range are put aside until its first write, so what a kernel
only reads costs next to nothing. An access is checked when it is issued, against the clock of who issues it: within a
cluster as for shared memory (lanes.py), between clusters by what words of global memory told (global_order.py).

Strong accesses (atomics, reductions, relaxed and volatile ones) do not race with each other. A plain write is not
checked against earlier strong reads: those that poll a flag would fill the memory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import BULK, READY, SLOTS_A_WARP, WRITTEN
from cute_kernels.emulator.diagnosis import REMEMBERED, SHOWN, position
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.global_cells import (
    AGENT,
    CODE_MASK,
    MOST_READS,
    TIME,
    TIME_MASK,
    Lanes,
    Noted,
    RangeShadow,
    Run,
    Stamps,
    Touched,
    Where,
    codes_of,
    granules_of,
    put,
    stamps_of,
    take,
)
from cute_kernels.emulator.global_footprint import Footprint, footprint, take_over
from cute_kernels.emulator.lanes import LANE_CODES, Access
from cute_kernels.emulator.shadow import SEVERAL

if TYPE_CHECKING:
    from cute_kernels.emulator.global_order import GlobalOrder
    from cute_kernels.emulator.memory import GlobalMemory
    from cute_kernels.emulator.warp import Mask, Warp


class OverwriteError(EmulationError):
    """A plain store that is not ordered after an earlier write of the same bytes."""


class By(NamedTuple):
    """Who accesses: `slot` of the warp's cluster at its `time`."""

    warp: Warp
    access: Access
    slot: int
    time: int
    strong: bool = False  # with `write`: an atomic or a strong store
    observes: bool = False  # an atomic of lanes: what it overwrites is ordered before it


class GlobalShadow:
    """The shadows of all ranges that a launch, or several side by side, may touch."""

    def __init__(self, memory: GlobalMemory, order: GlobalOrder, granule: int) -> None:
        self.order = order
        self._memory = memory
        self._granule = granule
        self._ranges: dict[int, RangeShadow] = {}
        self._events: deque[tuple[str, RangeShadow, Where, Warp, int]] = deque(maxlen=REMEMBERED)

    # --- what warps and their asynchronous units do -------------------------------------------------------------

    def lanes(self, addresses: NDArray[np.uint64], nbytes: int, mask: Mask) -> Lanes:
        """The accesses of the lanes of `mask`, all of `nbytes`."""
        return Lanes(addresses, nbytes, LANE_CODES if mask is None else LANE_CODES[mask])

    def generic(self, warp: Warp, mask: Mask, strong: bool = False, observes: bool = False) -> By:
        """Loads, stores and atomics of lanes."""
        return By(warp, warp.order.access(mask), warp.generic_slot, warp.order.epoch, strong, observes)

    def asynchronous(self, warp: Warp, lane: int, slot: int, time: int, strong: bool = False) -> By:
        """What a bulk or tensor copy does that a lane issues."""
        return By(warp, warp.order.async_access_of(lane), slot, time, strong)

    def read(self, by: By, touched: Touched) -> None:
        """Checks and records a read that is issued now."""
        if by.strong:
            self.order.communicates = True
        found = self._range(touched)
        if found is None:
            return
        stamp = self._stamp(by)
        if found.written is None:
            if not by.strong and len(found.aside) < MOST_READS:
                found.aside.append((touched, stamp))
            return
        if not found.holds(touched):
            self._apart(self.read, by, touched)
            return
        where = found.where(touched)
        self._check_writes(found, touched, where, by, "a read of")
        if not by.strong:
            self._check_strong(found, touched, where, by, "a read of")
            found.note_read(touched, where, stamp)
        elif found.strong is not None:
            by.warp.words.observe(found.base, granules_of(where), take(found.strong.last, where))
        self._remember("read", found, where, by)

    def note_read(self, by: By, touched: Touched) -> None:
        """Records a read, by a way of its own into memory: what it is ordered after is not this shadow's to check."""
        found = self._range(touched)
        if found is None or not found.holds(touched):
            return
        if found.written is None:
            if len(found.aside) < MOST_READS:
                found.aside.append((touched, self._stamp(by)))
            return
        where = found.where(touched)
        found.note_read(touched, where, self._stamp(by))
        self._remember("read", found, where, by)

    def write(self, by: By, touched: Touched) -> None:
        """Checks and records a write, or an atomic or reduction (strong), that is issued now."""
        if by.strong:
            self.order.communicates = True
        found = self._range(touched)
        if found is None:
            return
        if not found.holds(touched):
            self._apart(self.write, by, touched)
            return
        written, where = found.begin(), found.where(touched)
        self._check_writes(found, touched, where, by, "a write to")
        if found.reads is not None:
            self._check(found.reads.before(where), "read", found, touched, where, by, "a write to")
        stamps = stamps_of(touched, where, self._stamp(by))
        if by.strong:
            if found.strong is None:
                found.strong = Noted(found.granules)
            if by.observes:
                put(found.strong.last, where, stamps)
            else:
                found.strong.note(where, stamps)
        else:
            if found.strong is not None:
                self._check_strong(found, touched, where, by, "a write to")
                found.strong.clear(where)
            if found.reads is not None:
                found.reads.clear(where)
            put(written, where, stamps)
        self._remember("write", found, where, by)

    # --- what several processes did -----------------------------------------------------------------------------

    def footprints(self) -> list[Footprint]:
        """What has been done to the ranges that were touched."""
        found = (footprint(one) for one in self._ranges.values())
        return [one for one in found if one is not None]

    def take_over(self, done: list[Footprint]) -> None:
        """Writes to global memory what another process wrote."""
        for one in done:
            memory = self._memory.holding(one.start)
            if memory is not None:
                take_over(RangeShadow(memory, self._granule), one)

    # --- looking up ---------------------------------------------------------------------------------------------

    def _range(self, touched: Touched) -> RangeShadow | None:
        """The range that the access begins in; None outside all, where the access itself is the fault."""
        if isinstance(touched, Lanes):
            at = int(touched.addresses[0])
        elif isinstance(touched, Run):
            at = touched.address
        elif touched.empty:
            return None
        else:
            at = touched.start
        memory = self._memory.holding(at)
        if memory is None:
            return None
        found = self._ranges.get(memory.start)
        if found is None:
            found = self._ranges[memory.start] = RangeShadow(memory, self._granule)
        return found

    def _apart(self, again: object, by: By, touched: Touched) -> None:
        """Lanes whose addresses lie in several ranges, one by one."""
        if isinstance(touched, Lanes) and len(touched.addresses) > 1 and callable(again):
            for i in range(len(touched.addresses)):
                again(by, Lanes(touched.addresses[i : i + 1], touched.nbytes, touched.codes[i : i + 1]))

    def _stamp(self, by: By) -> int:
        return self.order.agent(by.warp.cta.cluster.number, by.slot) << AGENT | by.time << TIME

    def _remember(self, kind: str, found: RangeShadow, where: Where, by: By) -> None:
        self._events.append((kind, found, where, by.warp, by.warp.running.pc))

    # --- checking -----------------------------------------------------------------------------------------------

    def _check_writes(self, found: RangeShadow, touched: Touched, where: Where, by: By, doing: str) -> None:
        assert found.written is not None
        stamps = take(found.written, where)
        if stamps.any():
            self._check([(stamps, where)], "write", found, touched, where, by, doing)

    def _check_strong(self, found: RangeShadow, touched: Touched, where: Where, by: By, doing: str) -> None:
        """Checks against atomics and strong stores. Those that the warp has seen the value of come before."""
        if found.strong is None:
            return
        before = found.strong.before(where)
        seen = by.warp.words.observed
        if before and seen and not by.access.asynchronous:
            now = take(found.strong.last, where).ravel().tolist()
            at = granules_of(where)
            left = np.array(
                [seen.get(found.base + g) != stamp for g, stamp in zip(at.tolist(), now, strict=True)]
            )
            if not left.all():
                before = found.strong.before(at[left]) if left.any() else []
        self._check(before, "write", found, touched, where, by, doing)

    def _check(
        self,
        before: list[tuple[Stamps, Where]],
        kind: str,
        found: RangeShadow,
        touched: Touched,
        where: Where,
        by: By,
        doing: str,
    ) -> None:
        """Raises a fault unless the access is ordered after all earlier ones that the stamps tell of."""
        for stamps, at in before:
            flat = stamps.ravel()
            own = None
            if at is where and isinstance(touched, Lanes) and isinstance(where, np.ndarray):
                own = codes_of(touched, where)
            late = self._late(flat, own, kind, by)
            if late is not None:
                raise self._fault(found, int(granules_of(at)[late]), int(flat[late]), kind, by, doing)

    def _late(self, stamps: Stamps, codes: NDArray[np.int8] | None, kind: str, by: By) -> int | None:
        """The first stamp that the access is not ordered after."""
        known = by.access.known if kind == "write" else by.access.clock[READY]
        through_proxy = by.access.asynchronous and kind == "write"
        own = by.warp.cta.cluster.number
        agents = stamps >> AGENT
        for agent in np.unique(agents).tolist() if agents.min() != agents.max() else [int(agents[0])]:
            if not agent:
                continue
            cluster, slot = self.order.who(agent)
            at = np.flatnonzero(agents == agent)
            newest = int(stamps[at].max()) >> TIME & TIME_MASK
            if cluster == own and newest <= known[slot]:
                continue
            if cluster != own and self.order.knows(
                by.access, own, by.access.lane, agent, newest, SEVERAL, through_proxy
            ):
                continue
            mine = np.full(len(at), -1) if codes is None else codes[at].astype(np.int64)
            if cluster == own and slot == by.access.order.generic and not by.access.asynchronous:
                keep = (stamps[at] & CODE_MASK) != mine  # a lane is ordered after itself
                at, mine = at[keep], mine[keep]
            distinct = (stamps[at] & (1 << AGENT) - 1) << TIME | mine + 1
            for i in np.sort(np.unique(distinct, return_index=True)[1]).tolist():
                stamp, lane = int(stamps[at[i]]), int(mine[i])
                time, code = stamp >> TIME & TIME_MASK, stamp & CODE_MASK
                if cluster == own:
                    fine = by.access.ordered(kind, slot, time, code, lane)
                else:
                    lane = by.access.lane if lane < 0 else lane
                    fine = self.order.knows(by.access, own, lane, agent, time, code, through_proxy)
                if not fine:
                    return int(at[i])
        return None

    # --- reporting ----------------------------------------------------------------------------------------------

    def _fault(
        self, found: RangeShadow, granule: int, stamp: int, kind: str, by: By, doing: str
    ) -> EmulationError:
        agent, time, code = stamp >> AGENT, stamp >> TIME & TIME_MASK, stamp & CODE_MASK
        cluster, slot = self.order.who(agent)
        address = max((granule + found.base) * found.granule, found.memory.start)
        name = f" ({found.memory.name} + {address - found.memory.start:#x})" if found.memory.name else ""
        what = f"{doing} global memory {address:#x}{name}"
        who = self.order.describe(agent)
        plain = kind == "write" and doing == "a write to" and not by.strong
        diagnosis = self._diagnosis(what, who, cluster, slot, time, code, kind, by)
        fault = (OverwriteError if plain else EmulationError)(*diagnosis, address=address)
        events = [event for event in self._events if event[1] is found]
        touching = [event for event in events if (granules_of(event[2]) == granule).any()][-SHOWN:]
        fault.events = [f"{what} by {position(warp, pc)}" for what, _, _, warp, pc in touching]
        return fault

    def _diagnosis(
        self, what: str, who: str, cluster: int, slot: int, time: int, code: int, kind: str, by: By
    ) -> tuple[str, str]:
        """The kind of the fault and its message."""
        own, table = by.warp.cta.cluster.number, self.order.tables[cluster]
        lane, access = by.access.lane, by.access
        if access.asynchronous and kind == "write":
            generic = (
                access.order.knows(lane, slot, time, code)
                if cluster == own
                else self.order.knows(access, own, lane, self.order.agent(cluster, slot), time, code, False)
            )
            if generic:
                return "missing-proxy-fence", (
                    f"{what} through the async proxy; {who} wrote it through the generic proxy with no "
                    "fence.proxy.async between; put one after the writes, before they are released"
                )
        told = f"{what} is not ordered after the {kind} of it by {who}"
        if cluster != own:
            scope = "sys" if self.order.apart(own, cluster) else "gpu"
            return "race", (
                f"{told}; behind the {kind}, release at {scope} scope (red.release.{scope}, or a fence and an atomic), "
                f"once bar.sync has gathered the CTA's threads, and acquire (ld.acquire.{scope}) before this access"
            )
        if slot > table.grid_dependency:
            return "missing-wait", f"{told}; wait for phase {time - 1} of it first"
        if slot == access.order.generic:
            return "race", f"{told}, by another lane; put bar.warp.sync (__syncwarp) between"
        if slot < table.grid_dependency and slot % SLOTS_A_WARP in (BULK, WRITTEN):
            return "missing-wait", (
                f"{told}; have the thread that issued it wait (cp.async.bulk.wait_group 0, without .read), and tell "
                "the others by a barrier"
            )
        return "race", f"{told}; order them with a barrier"
