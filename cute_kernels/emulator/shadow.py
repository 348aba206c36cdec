"""Shadow state of a memory: for every granule who wrote it last, who read it since, and whether it holds anything.

A granule is 4 bytes, or less where a kernel stores narrower units. Accesses are checked when they are issued,
against the clock (see clocks.py) of the one who issues them, so a race is found whatever the values and the timing
happen to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.diagnosis import REMEMBERED, Event, Events, Running

Where = slice | NDArray[np.int64]
Codes = NDArray[np.int8]  # of lanes: 0 to 31, or
SEVERAL, COLLECTIVE = 32, 33  # several lanes; all of them in one read of the whole warp (ldmatrix)
Ordered = Callable[[str, int, int, int, int], bool]


class Conflict(NamedTuple):
    """An earlier access that the present one is not ordered after."""

    kind: str  # "write" or "read": what the earlier access did
    slot: int  # the clock slot of its agent
    time: int
    granule: int
    lane: int = SEVERAL  # the code of the lane that made it


class Shadow:
    """Last write, later reads and initialisation of `granules` units of memory; its last `remembered` accesses."""

    def __init__(self, granules: int, remembered: int = REMEMBERED) -> None:
        self.granules = granules
        self.write_slot = np.zeros(granules, dtype=np.int16)
        self.write_time = np.zeros(granules, dtype=np.int32)
        self.write_lane = np.zeros(granules, dtype=np.int8)
        self.valid = np.zeros(granules, dtype=bool)
        self.reads: dict[int, NDArray[np.int32]] = {}
        self.read_lane: dict[int, Codes] = {}
        self.read_last: dict[int, int] = {}
        self.running = Running()  # who accesses; its cluster's, once the memory belongs to one
        self.events: Events = deque(maxlen=remembered)

    def read(
        self,
        where: Where,
        known: NDArray[np.int64],
        slot: int,
        time: int,
        lanes: Codes | None = None,
        ordered: Ordered | None = None,
    ) -> Conflict | None:
        """Records a read by `slot` at its `time`; `known` is the row of its clock that counts.

        lanes: for accesses by the lanes of a warp, the lane of each granule of `where`. ordered: asked about each
        conflict that `known` shows (kind, slot, time and lane of the earlier access, lane of this one, -1 if not
        given): whether the two are ordered after all.
        """
        conflict = self._after_writes(where, known, slot, lanes, ordered)
        if conflict is None:
            self.events.append(Event("read", where, slot, self.running.warp, self.running.pc))
        row = self.reads.get(slot)
        if row is None:
            row = self.reads[slot] = np.zeros(self.granules, dtype=np.int32)
            self.read_lane[slot] = np.zeros(self.granules, dtype=np.int8)
        if lanes is not None:
            self._note_readers(self.read_lane[slot], row, where, int(known[slot]), lanes)
        row[where] = time
        self.read_last[slot] = time
        return conflict

    @staticmethod
    def _note_readers(noted: Codes, row: NDArray[np.int32], where: Where, settled: int, lanes: Codes) -> None:
        """Notes which lane reads each granule, or that several do after the time when all lanes were last in order."""
        old = noted[where]
        new = np.where((row[where] > settled) & (old != lanes), np.int8(SEVERAL), lanes)
        noted[where] = new
        lost = noted[where] != new  # lanes of this very access that share a granule
        if lost.any() and not isinstance(where, slice):
            noted[where[lost]] = SEVERAL

    def write(
        self,
        where: Where,
        known: NDArray[np.int64],
        slot: int,
        time: int,
        known_reads: NDArray[np.int64],
        lanes: Codes | None = None,
        ordered: Ordered | None = None,
    ) -> Conflict | None:
        """Records a write and marks the granules as holding something.

        `known_reads` is the row that counts against earlier reads: a write through the async proxy that is ordered
        after generic reads with no proxy fence is no fault (see `unfenced_read`).
        """
        conflict = self._after_writes(where, known, slot, lanes, ordered) or self._after_reads(
            where, known_reads, lanes, ordered
        )
        if conflict is None:
            self.events.append(Event("write", where, slot, self.running.warp, self.running.pc))
        self.write_slot[where] = slot
        self.write_time[where] = time
        if lanes is not None:
            self.write_lane[where] = lanes
        self.valid[where] = True
        return conflict

    def unfenced_read(self, where: Where, known: NDArray[np.int64]) -> Conflict | None:
        """A read of `where` that a write through the async proxy is not ordered after by `known`, its own row."""
        return self._after_reads(where, known, None, None)

    def first_invalid(self, where: Where) -> int | None:
        """The first granule of `where` that nothing wrote, or None."""
        valid = self.valid[where]
        if valid.all():
            return None
        return self._granule(where, int(np.argmin(valid.ravel())))

    def forget(self, where: Where) -> None:
        """The granules hold nothing any more (tensor memory given back)."""
        self.valid[where] = False

    def _after_writes(
        self,
        where: Where,
        known: NDArray[np.int64],
        slot: int,
        lanes: Codes | None,
        ordered: Ordered | None,
    ) -> Conflict | None:
        slots, times = self.write_slot[where], self.write_time[where]
        late = times > known[slots]
        if not late.any():
            return None
        if lanes is not None:  # a lane is ordered after itself
            late &= (slots != slot) | (self.write_lane[where] != lanes)
        return self._first("write", late, slots, times, self.write_lane, where, lanes, ordered)

    def _after_reads(
        self, where: Where, known: NDArray[np.int64], lanes: Codes | None, ordered: Ordered | None
    ) -> Conflict | None:
        for slot, row in self.reads.items():
            if self.read_last[slot] <= known[slot]:
                continue
            times = row[where]
            late = times > known[slot]
            if late.any():
                slots = np.full(times.shape, slot)
                found = self._first("read", late, slots, times, self.read_lane[slot], where, lanes, ordered)
                if found is not None:
                    return found
        return None

    def _first(
        self,
        kind: str,
        late: NDArray[np.bool_],
        slots: NDArray[np.signedinteger],
        times: NDArray[np.int32],
        lane_of: Codes,
        where: Where,
        lanes: Codes | None,
        ordered: Ordered | None,
    ) -> Conflict | None:
        """The first of the late accesses that `ordered` does not clear; each distinct one is asked about once."""
        at = np.flatnonzero(late)
        if not len(at):
            return None
        codes = lane_of[where].ravel()[at].astype(np.int64)
        mine = np.full(len(at), -1) if lanes is None else lanes.ravel()[at].astype(np.int64)
        slot_at, time_at = slots.ravel()[at].astype(np.int64), times.ravel()[at].astype(np.int64)
        key = (((slot_at << 6 | codes) << 7 | (mine + 1)) << 32) | time_at
        for i in np.sort(np.unique(key, return_index=True)[1]).tolist():
            slot, time, code = int(slot_at[i]), int(time_at[i]), int(codes[i])
            if ordered is None or not ordered(kind, slot, time, code, int(mine[i])):
                return Conflict(kind, slot, time, self._granule(where, int(at[i])), code)
        return None

    @staticmethod
    def _granule(where: Where, at: int) -> int:
        if isinstance(where, slice):
            return int(where.start) + at * int(where.step or 1)
        return int(where.ravel()[at])
