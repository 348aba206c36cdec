"""Order between the lanes of a warp: what all of them know, what some know beyond that, and what some have released.

A warp has one clock for what all its lanes know. Lanes that learn something alone (an elected lane that waits on an
mbarrier, or for its own bulk copies) have it in a clock of their set, until bar.warp.sync or a wider barrier tells
the others. A lane is always ordered after its own accesses, and after those of other lanes of its warp from the last
such barrier on. An arrival by a part of the warp releases what these lanes know and did themselves: the warp's SOME
slot stands for that, and a log says which lanes each of its times covers. The log and the sets are consulted only
where the plain clocks find a conflict.

Instructions that are .sync.aligned but no barriers (shfl, vote, elect, ldmatrix, tcgen05.ld) order no memory by the
ISA. Hardware executes some of them as one, and kernels rely on that; to raise no alarm there, an ldmatrix counts as
read by whichever lane arrives later, and tcgen05.ld and .st are ordered after what any lane of their warp knows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.clocks import (
    ASYNC,
    COPY,
    GENERIC,
    READY,
    SLOTS_A_WARP,
    SOME,
    TENSOR_READY,
    WAITED,
    Clock,
    SlotTable,
    async_view,
)
from cute_kernels.emulator.registers import ALL_LANES, LANES
from cute_kernels.emulator.shadow import COLLECTIVE, SEVERAL

Lanes = NDArray[np.bool_]
ONE_LANE = np.eye(LANES, dtype=bool)
LANE_CODES = np.arange(LANES, dtype=np.int8)
_MOST_SETS = LANES


def bits_of(lanes: Lanes) -> int:
    """A set of lanes as a number."""
    return int(np.packbits(lanes, bitorder="little").view(np.uint32)[0])


class LaneOrder:
    """The clocks of one warp and its lanes. `mask` is the executing lanes everywhere, None for all 32."""

    def __init__(self, slots: SlotTable, warp: int, warn: Callable[[str], None]) -> None:
        self.slots = slots
        self.warn = warn
        self.generic = slots.of_warp(warp, GENERIC)
        self.copy = slots.of_warp(warp, COPY)
        self.some = slots.of_warp(warp, SOME)
        self.waits = slots.of_warp(warp, WAITED)
        self.log = slots.releases[self.generic] = []
        self.alive: Lanes = np.ones(LANES, dtype=bool)
        self.clock = (
            slots.new_clock()
        )  # what all lanes know; its own GENERIC: up to the last barrier among them
        self.epoch = 1  # the time of generic accesses now
        self.waited_together: dict[
            int, int
        ] = {}  # by slot of another warp's wgmma: tolerated to be waited for here
        self.copied = 0  # the last of the warp's cp.async copies that their own lanes have waited for
        self._sets: list[tuple[Lanes, Clock]] = []  # what some lanes know beyond that
        self._fenced = np.zeros(LANES, dtype=np.int64)  # own accesses that a lane has proxy-fenced
        self._all_fenced = 0
        self._whole = Access(self, self.clock, SEVERAL, False)
        self._known_by: dict[bytes, Clock] = {}  # by lanes: `known`, until some of them learn more
        self._async_by: dict[bytes, Access] = {}  # likewise `async_access`
        self._async_by_lane: dict[int, Access] = {}

    def whole(self, mask: Lanes | None) -> bool:
        """Whether the lanes are all that have not exited."""
        return mask is None or not (self.alive & ~mask).any()

    # --- what lanes know ----------------------------------------------------------------------------------------

    def known(self, mask: Lanes | None) -> Clock:
        """What each of the lanes knows, or less where they learned the same thing apart. Not to be changed."""
        if not self._sets:
            return self.clock
        lanes = self.alive if mask is None else mask
        key = lanes.tobytes()
        found = self._known_by.get(key)
        if found is None:
            sets = [clock for known, clock in self._sets if not (lanes & ~known).any()]
            found = self._known_by[key] = self._joined(sets)
        return found

    def changed(self) -> None:
        """Something is written to a clock: to be called by all who do so."""
        self._known_by.clear()
        self._async_by.clear()
        self._async_by_lane.clear()

    def known_by_any(self, mask: Lanes | None) -> Clock:
        """What at least one of the lanes knows. Not to be changed."""
        if not self._sets:
            return self.clock
        lanes = self.alive if mask is None else mask
        return self._joined([clock for known, clock in self._sets if (lanes & known).any()])

    def _joined(self, more: list[Clock]) -> Clock:
        clock = self.clock
        for other in more:
            clock = np.maximum(clock, other)
        return clock

    def access(self, mask: Lanes | None) -> Access:
        """Generic accesses of lanes, as the shadow state checks them."""
        return self._whole if not self._sets else Access(self, self.known(mask), SEVERAL, False)

    def async_access(self, mask: Lanes | None) -> Access:
        """An asynchronous operation that lanes issue."""
        lanes = ALL_LANES if mask is None else mask
        key = lanes.tobytes()
        found = self._async_by.get(key)
        if found is None:
            lane = key.index(1) if key.count(1) == 1 else SEVERAL
            found = self._async_by[key] = Access(self, self.known(mask), lane, True)
        return found

    def async_access_of(self, lane: int) -> Access:
        """An asynchronous operation that one lane issues."""
        found = self._async_by_lane.get(lane)
        if found is None:
            found = self._async_by_lane[lane] = self.async_access(ONE_LANE[lane])
        return found

    def covered_fence(self, lane: int) -> int:
        """The time up to which a lane has proxy-fenced its own accesses."""
        return int(self._fenced[lane]) if lane < LANES else self._all_fenced

    # --- what lanes learn ---------------------------------------------------------------------------------------

    def acquire(self, known: Clock, mask: Lanes | None) -> None:
        """Lanes learn what a synchronisation object knows (rows READY and ASYNC)."""
        self.changed()
        whole = self.whole(mask)
        clock = self.clock if whole or mask is None else self._of_set(mask)
        np.maximum(clock[: ASYNC + 1], known[: ASYNC + 1], out=clock[: ASYNC + 1])
        if whole and self._sets:
            self._sets = [(lanes, more) for lanes, more in self._sets if (more > self.clock).any()]

    def learn(self, slot: int, time: int, mask: Lanes | None, row: int | None = None) -> None:
        """Lanes learn that an asynchronous operation is done. row: of the clock, all by default."""
        self.changed()
        clock = self.clock if self.whole(mask) or mask is None else self._of_set(mask)
        rows = clock if row is None else clock[row : row + 1]
        rows[:, slot] = np.maximum(rows[:, slot], time)

    def waited(self) -> int:
        """Counts a wait on an mbarrier, by whichever lanes: the time of it in the WAITED slot."""
        self.changed()
        self.clock[READY, self.waits] += 1
        return int(self.clock[READY, self.waits])

    def _of_set(self, lanes: Lanes) -> Clock:
        key = lanes.tobytes()
        for known, clock in self._sets:
            if known.tobytes() == key:
                return clock
        if len(self._sets) >= _MOST_SETS:
            self._split()
        clock = np.zeros_like(self.clock)
        self._sets.append((lanes.copy(), clock))
        return clock

    def _split(self) -> None:
        """Rewrites many overlapping sets as one for each lane; what each lane knows stays the same."""
        self._sets = [
            (ONE_LANE[lane], self.known_by_any(ONE_LANE[lane]).copy()) for lane in np.flatnonzero(self.alive)
        ]

    def sync(self, mask: Lanes | None = None) -> None:
        """A barrier among lanes: each knows afterwards what any of them knew and did."""
        self.changed()
        if not self.whole(mask) and mask is not None:
            released, clock = self.release(mask), self._of_set(mask)
            np.maximum(clock, released, out=clock)
            return
        for _, more in self._sets:
            np.maximum(self.clock, more, out=self.clock)
        self._sets.clear()
        self._tell_own(self.clock)
        self.epoch += 1

    # --- what lanes release -------------------------------------------------------------------------------------

    def release(self, mask: Lanes | None) -> Clock:
        """A clock to hand to a synchronisation object; what the lanes do from now on is not covered by it."""
        clock = self.known_by_any(mask)
        clock = clock.copy() if clock is self.clock else clock
        if self.whole(mask) or mask is None:
            self._tell_own(clock)
        else:
            bits = bits_of(mask)
            insort(self.log, (self.epoch, bits))
            clock[READY, self.some] = self.epoch
            fenced = int(self._fenced[mask].max())
            if fenced > clock[ASYNC, self.generic]:
                insort(self.log, (fenced, bits))
                clock[ASYNC, self.some] = max(fenced, int(clock[ASYNC, self.some]))
            clock[:, self.copy] = max(self.copied, int(clock[READY, self.copy]))
        self.epoch += 1
        return clock

    def _tell_own(self, clock: Clock) -> None:
        """Adds what all lanes did themselves."""
        clock[READY, self.generic] = self.epoch
        clock[ASYNC, self.generic] = max(self._all_fenced, int(clock[ASYNC, self.generic]))
        if self.log:
            clock[ASYNC, self.some] = max(int(self._fenced.max()), int(clock[ASYNC, self.some]))
        if self.copied:
            clock[:, self.copy] = self.copied

    # --- fences -------------------------------------------------------------------------------------------------

    def proxy_fence(self, mask: Lanes | None) -> None:
        """fence.proxy.async: generic accesses that the lanes know of, and their own, are passed on to that proxy."""
        if self.whole(mask) or mask is None:
            np.maximum(self.clock[ASYNC], self.clock[READY], out=self.clock[ASYNC])
            for _, more in self._sets:
                np.maximum(more[ASYNC], more[READY], out=more[ASYNC])
            self._fenced[:] = self._all_fenced = self.epoch
        else:
            known = self.known(mask)[READY]
            more = self._of_set(mask)
            np.maximum(more[ASYNC], known, out=more[ASYNC])
            self._fenced[mask] = self.epoch
            insort(self.log, (self.epoch, bits_of(mask)))
        self.epoch += 1
        self.changed()

    def tensor_fence(self, mask: Lanes | None) -> None:
        """tcgen05.fence::after_thread_sync: what the lanes know counts for tcgen05 operations from now on."""
        if self.whole(mask) or mask is None:
            for clock in (self.clock, *(more for _, more in self._sets)):
                np.maximum(clock[TENSOR_READY], clock[READY], out=clock[TENSOR_READY])
        elif self._sets:
            known = self.known(mask)[READY]
            more = self._of_set(mask)
            np.maximum(more[TENSOR_READY], known, out=more[TENSOR_READY])
        else:
            np.maximum(self.clock[TENSOR_READY], self.clock[READY], out=self.clock[TENSOR_READY])
        self.changed()

    # --- the slow path ------------------------------------------------------------------------------------------

    def knows(self, lane: int, slot: int, time: int, code: int, asynchronous: bool = False) -> bool:
        """Whether one lane is ordered after an access at `time` of `slot`, made by the lane (or so) of `code`.

        asynchronous: by way of the async proxy, which generic writes reach by a proxy fence.
        """
        clock = self.known(ONE_LANE[lane] if lane < LANES else None)
        generic = slot < self.slots.grid_dependency and slot % SLOTS_A_WARP == GENERIC
        row = clock[ASYNC if asynchronous and generic else READY]
        if time <= row[slot]:
            return True
        if slot == self.copy:
            return code == lane and time <= self.copied
        if not generic:
            return False
        if slot == self.generic:
            if code == lane:
                return not asynchronous or time <= self.covered_fence(lane)
            if code == COLLECTIVE:
                return True
        return covers(self.slots.releases[slot], time, int(row[slot + SOME]), code)

    def tolerates(self, lane: int, slot: int, time: int) -> bool:
        """Whether an access goes well behind a read that it is not ordered after by the ISA; so a warning.

        NVIDIA's own examples do so where a lane of another warp arrives for its whole warp, which has read a stage, and
        behind a wgmma.wait_group, where it is tolerated to stand for the warpgroup.
        """
        if time <= self.waited_together.get(slot, 0):
            self.warn(
                f"shared memory that the wgmma of {self.slots.describe(slot)} reads is overwritten by another warp of "
                "its warpgroup behind its own wgmma.wait_group (tolerated); put bar.sync of the warpgroup between"
            )
            return True
        if slot not in self.slots.releases or slot == self.generic:
            return False
        until = int(self.known(ONE_LANE[lane] if lane < LANES else None)[READY, slot + SOME])
        if not covers(self.slots.releases[slot], time, until, COLLECTIVE):
            return False
        self.warn(
            f"a lane of {self.slots.describe(slot)} arrives on a barrier for reads of shared memory by other lanes "
            "that it has not met since; put bar.warp.sync (__syncwarp) before the arrival"
        )
        return True


def covers(log: list[tuple[int, int]], time: int, until: int, code: int) -> bool:
    """Whether lanes that released an access at `time` are among the log's entries up to `until`."""
    at = bisect_left(log, (time, 0))
    while at < len(log) and log[at][0] <= until:
        if code == COLLECTIVE or (code < LANES and log[at][1] >> code & 1):
            return True
        at += 1
    return False


class Access:
    """Who makes an access: the rows of a clock that count, and a closer look where they find a conflict."""

    def __init__(self, order: LaneOrder, clock: Clock, lane: int, asynchronous: bool) -> None:
        self.order = order
        self.clock = clock
        self.lane = lane
        self.asynchronous = asynchronous
        self.known = async_view(clock, order.slots.generic) if asynchronous else clock[READY]

    def ordered(self, kind: str, slot: int, time: int, code: int, lane: int) -> bool:
        """Whether the access is ordered after an earlier one after all; lane: the one that makes it, -1 the issuer."""
        lane = self.lane if lane < 0 else lane
        if self.order.knows(lane, slot, time, code, self.asynchronous and kind == "write"):
            return True
        return kind == "read" and self.order.tolerates(lane, slot, time)

    def fenced(self, kind: str, slot: int, time: int, code: int, lane: int) -> bool:
        """Whether a proxy fence stands behind an earlier access through the generic proxy; arguments as above."""
        if slot == self.order.generic:
            return time <= self.order.covered_fence(code if code == self.lane else SEVERAL)
        return self.order.knows(self.lane, slot, time, code, asynchronous=True)
