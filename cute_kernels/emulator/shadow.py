"""Shadow state of a memory: for every granule who wrote it last, who read it since, and whether it holds anything.

A granule is 4 bytes, or less where a kernel stores narrower units. Accesses are checked when they are issued,
against the clock (see clocks.py) of the one who issues them, so a race is found whatever the values and the timing
happen to be.

Granules are grouped into pages, each with the last time that a slot wrote any of its granules, and read any. Nearly
all accesses are ordered after whatever these tell of; the granules themselves are looked at for the others alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.diagnosis import REMEMBERED, Event, Events, Running


class Cells(NamedTuple):
    """A rectangle of a memory that has rows."""

    rows: slice
    columns: slice


Where = slice | NDArray[np.int64] | Cells
Codes = NDArray[np.int8]  # of lanes: 0 to 31, or
SEVERAL, COLLECTIVE = 32, 33  # several lanes; all of them in one read of the whole warp (ldmatrix)
Ordered = Callable[[str, int, int, int, int], bool]
_PAGE = 256  # granules
_PAGE_COLUMNS = 32  # of a page of a memory that has rows, which spans all of them

Page = dict[int, int]  # by slot: the last time


class Region(NamedTuple):
    """Granules, and the pages [first, last) that they lie in."""

    where: Where
    first: int
    last: int


def region_of(where: Where, row: int = 0) -> Region:
    """Granules with their pages; row: as Shadow has it."""
    if isinstance(where, slice):
        first, last = where.start, where.stop - 1
    elif isinstance(where, Cells):
        first, last = where.columns.start, where.columns.stop - 1
    elif where.size:
        at = where % row if row else where
        first, last = int(at.min()), int(at.max())
    else:
        first, last = 0, -1
    page = _PAGE_COLUMNS if row else _PAGE
    return Region(where, first // page, last // page + 1)


class Conflict(NamedTuple):
    """An earlier access that the present one is not ordered after."""

    kind: str  # "write" or "read": what the earlier access did
    slot: int  # the clock slot of its agent
    time: int
    granule: int
    lane: int = SEVERAL  # the code of the lane that made it


class Shadow:
    """Last write, later reads and initialisation of `granules` units of memory; its last `remembered` accesses.

    row: granules of a row, if the memory has rows and accesses are to be given as Cells.
    """

    def __init__(self, granules: int, remembered: int = REMEMBERED, row: int = 0) -> None:
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
        self.row = row
        self._page = _PAGE_COLUMNS if row else _PAGE
        pages = -(-(row or granules) // self._page)
        self._written: list[Page] = [{} for _ in range(pages)]
        self._read: list[Page] = [{} for _ in range(pages)]
        self._full = [False] * pages  # whether all of it is known to hold something

    def region(self, where: Where | Region) -> Region:
        """Granules with their pages."""
        return where if isinstance(where, Region) else region_of(where, self.row)

    def read(
        self,
        where: Where | Region,
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
        region = where if type(where) is Region else self.region(where)
        conflict = self._after_writes(region, known, slot, lanes, ordered)
        if conflict is None:
            self.events.append(Event("read", region.where, slot, self.running.warp, self.running.pc))
        row = self._reads_of(slot)
        if lanes is not None:
            self._note_readers(self.read_lane[slot], row, self._flat(region.where), int(known[slot]), lanes)
        self._note_read(region, row, slot, time)
        return conflict

    def settled(self, region: Region, known: NDArray[np.int64], slot: int, lanes: Codes) -> bool:
        """Whether a read is ordered after all writes by `known` alone, and finds something everywhere."""
        late = self._after_writes(region, known, slot, lanes, None)
        return late is None and self.first_invalid(region) is None

    def note_read(self, region: Region, known: NDArray[np.int64], slot: int, time: int, lanes: Codes) -> None:
        """Records a read that is `settled`. lanes: the same for all mentions of a granule, or else SEVERAL."""
        row, noted = self._reads_of(slot), self.read_lane[slot]
        where, before = self._flat(region.where), int(known[slot])
        if self.read_last.get(slot, 0) > before:
            old = noted[where]
            lanes = np.where((row[where] > before) & (old != lanes), np.int8(SEVERAL), lanes)
        noted[where] = lanes
        self._note_read(region, row, slot, time)

    def _reads_of(self, slot: int) -> NDArray[np.int32]:
        row = self.reads.get(slot)
        if row is None:
            row = self.reads[slot] = np.zeros(self.granules, dtype=np.int32)
            self.read_lane[slot] = np.zeros(self.granules, dtype=np.int8)
        return row

    def _note_read(self, region: Region, row: NDArray[np.int32], slot: int, time: int) -> None:
        self._put(row, region.where, time)
        self.read_last[slot] = time
        for page in self._read[region.first : region.last]:
            page[slot] = time

    @staticmethod
    def _note_readers(
        noted: Codes, row: NDArray[np.int32], where: slice | NDArray[np.int64], settled: int, lanes: Codes
    ) -> None:
        """Notes which lane reads each granule, or that several do after the time when all lanes were last in order."""
        old = noted[where]
        new = np.where((row[where] > settled) & (old != lanes), np.int8(SEVERAL), lanes)
        noted[where] = new
        lost = noted[where] != new  # lanes of this very access that share a granule
        if lost.any() and not isinstance(where, slice):
            noted[where[lost]] = SEVERAL

    def write(
        self,
        where: Where | Region,
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
        region = where if type(where) is Region else self.region(where)
        conflict = self._after_writes(region, known, slot, lanes, ordered) or self._after_reads(
            region, known_reads, lanes, ordered
        )
        if conflict is None:
            self.events.append(Event("write", region.where, slot, self.running.warp, self.running.pc))
        self.note_write(region, slot, time, lanes)
        return conflict

    def overwritable(
        self,
        region: Region,
        known: NDArray[np.int64],
        slot: int,
        known_reads: NDArray[np.int64],
        lanes: Codes,
    ) -> bool:
        """Whether a write is ordered after all writes and reads by the rows of its clock alone."""
        late = self._after_writes(region, known, slot, lanes, None)
        return late is None and self._after_reads(region, known_reads, lanes, None) is None

    def note_write(self, region: Region, slot: int, time: int, lanes: Codes | None) -> None:
        """Records a write that is checked."""
        where = region.where
        self._put(self.write_slot, where, slot)
        self._put(self.write_time, where, time)
        if lanes is not None:
            self.write_lane[self._flat(where)] = lanes
        for page in self._written[region.first : region.last]:
            page[slot] = time
        full = self._full
        if not all(full[region.first : region.last]):
            self._put(self.valid, where, True)
            if isinstance(where, slice):  # the pages that it fills
                first, last = -(-where.start // self._page), where.stop // self._page
                full[first:last] = [True] * max(0, last - first)

    def unfenced_read(
        self, where: Where | Region, known: NDArray[np.int64], fenced: Ordered
    ) -> Conflict | None:
        """A read of `where` that a write through the async proxy is not ordered after by `known`, its own row."""
        return self._after_reads(self.region(where), known, None, fenced)

    def first_invalid(self, where: Where | Region) -> int | None:
        """The first granule of `where` that nothing wrote, or None."""
        region = where if type(where) is Region else self.region(where)
        if all(self._full[region.first : region.last]):
            return None
        valid = self._take(self.valid, region.where)
        if not valid.all():
            return self._granule(self._flat(region.where), int(np.argmin(valid.ravel())))
        for page in range(region.first, region.last):
            self._full[page] = self._full[page] or self._is_full(page)
        return None

    def forget(self, where: Where | Region) -> None:
        """The granules hold nothing any more (tensor memory given back)."""
        region = where if type(where) is Region else self.region(where)
        self._put(self.valid, region.where, False)
        self._full[region.first : region.last] = [False] * (region.last - region.first)

    def _after_writes(
        self,
        region: Region,
        known: NDArray[np.int64],
        slot: int,
        lanes: Codes | None,
        ordered: Ordered | None,
    ) -> Conflict | None:
        if not _late(self._written, region, known):
            return None
        where = self._flat(region.where)
        slots, times = self.write_slot[where], self.write_time[where]
        late = times > known[slots]
        if not late.any():
            return None
        if lanes is not None:  # a lane is ordered after itself
            late &= (slots != slot) | (self.write_lane[where] != lanes)
        return self._first("write", late, slots, times, self.write_lane, where, lanes, ordered)

    def _after_reads(
        self, region: Region, known: NDArray[np.int64], lanes: Codes | None, ordered: Ordered | None
    ) -> Conflict | None:
        if not _late(self._read, region, known):
            return None
        where = self._flat(region.where)
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
        where: slice | NDArray[np.int64],
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

    # --- granules -----------------------------------------------------------------------------------------------

    def _flat(self, where: Where) -> slice | NDArray[np.int64]:
        """The granules, those of a rectangle row by row."""
        if not isinstance(where, Cells):
            return where
        rows, columns = (np.arange(of.start, of.stop, dtype=np.int64) for of in where)
        return (rows[:, None] * self.row + columns).ravel()

    def _put(self, values: NDArray[np.generic], where: Where, new: int) -> None:
        if isinstance(where, Cells):
            values.reshape(-1, self.row)[where.rows, where.columns] = new
        else:
            values[where] = new

    def _take(self, values: NDArray[np.bool_], where: Where) -> NDArray[np.bool_]:
        if isinstance(where, Cells):
            return values.reshape(-1, self.row)[where.rows, where.columns]
        return values[where]

    def _is_full(self, page: int) -> bool:
        here = slice(page * self._page, (page + 1) * self._page)
        values = self.valid.reshape(-1, self.row)[:, here] if self.row else self.valid[here]
        return bool(values[0].all() and values.all()) if self.row else bool(values.all())

    @staticmethod
    def _granule(where: slice | NDArray[np.int64], at: int) -> int:
        if isinstance(where, slice):
            return int(where.start) + at * int(where.step or 1)
        return int(where.ravel()[at])


def _late(pages: list[Page], region: Region, known: NDArray[np.int64]) -> bool:
    """Whether the region's pages tell of an access that `known` does not cover."""
    seen: Page = {}
    for page in pages[region.first : region.last]:
        if page != seen:  # neighbours are mostly accessed together
            for slot, time in page.items():
                if time > known[slot]:
                    return True
            seen = page
    return False
