"""Shadow state of a memory: for every granule who wrote it last, who read it since, and whether it holds anything.

A granule is 4 bytes, or less where a kernel stores narrower units. Accesses are checked when they are issued,
against the clock (see clocks.py) of the one who issues them, so a race is found whatever the values and the timing
happen to be.

Granules are grouped into pages, each with the last time that a slot wrote any of its granules, and read any. Nearly
all accesses are ordered after whatever these tell of; the granules themselves are looked at for the others alone. So
what is to be noted of granules is put aside until then: of the accesses of one region (a stage of a ring), the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import pages
from cute_kernels.emulator.diagnosis import REMEMBERED, Events, Running


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
_MOST_ASIDE = 256  # accesses that are put aside, of all writers and of each reader

Page = dict[
    int, int
]  # by slot: the last time; pages that are accessed together share one, so it never changes


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


Write = tuple[Region, int, int, Codes | None]  # granules, slot, time, lanes
Readers = tuple[
    Codes, int, bool
]  # lanes, the time when all were last in order, whether each granule has one of them


class _Writes(NamedTuple):
    """The last write of every granule."""

    slot: NDArray[np.int16]
    time: NDArray[np.int32]
    lane: Codes


class _Reads:
    """The reads of one slot: the time of the last, those put aside, and time and lane of the last of each granule."""

    def __init__(self) -> None:
        self.last = 0
        self.aside: dict[
            int, tuple[Region, int, Readers | None]
        ] = {}  # by identity of the region, the oldest first
        self.by_lanes = False  # whether those are
        self.granules: tuple[NDArray[np.int32], Codes] | None = None


class Shadow:
    """Last write, later reads and initialisation of `granules` units of memory; its last `remembered` accesses.

    row: granules of a row, if the memory has rows and accesses are to be given as Cells.
    """

    def __init__(self, granules: int, remembered: int = REMEMBERED, row: int = 0) -> None:
        self.granules = granules
        self.valid = np.zeros(granules, dtype=bool)
        self._last_writes: _Writes | None = None
        self._reads: dict[int, _Reads] = {}  # by slot
        self._writes_aside: dict[int, Write] = {}  # by identity of the region, the oldest first
        self.running = Running()  # who accesses; its cluster's, once the memory belongs to one
        self.events: Events = deque(maxlen=remembered)
        self.row = row
        self._page = _PAGE_COLUMNS if row else _PAGE
        count = -(-(row or granules) // self._page)
        self._written: list[pages.Page] = [{}] * count
        self._read: list[pages.Page] = [{}] * count
        self._full = [False] * count  # whether all of it is known to hold something

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
            self.events.append(("read", region.where, slot, self.running.warp, self.running.pc))
        self._note_read(region, slot, time, None if lanes is None else (lanes, int(known[slot]), False))
        return conflict

    def settled(self, region: Region, known: NDArray[np.int64], slot: int, lanes: Codes) -> bool:
        """Whether a read is ordered after all writes by `known` alone, and finds something everywhere."""
        late = self._after_writes(region, known, slot, lanes, None)
        return late is None and self.first_invalid(region) is None

    def note_read(self, region: Region, known: NDArray[np.int64], slot: int, time: int, lanes: Codes) -> None:
        """Records a read that is `settled`. lanes: the same for all mentions of a granule, or else SEVERAL."""
        self._note_read(region, slot, time, (lanes, int(known[slot]), True))

    def _note_read(self, region: Region, slot: int, time: int, by: Readers | None) -> None:
        reads = self._reads.get(slot)
        if reads is None:
            reads = self._reads[slot] = _Reads()
        if len(reads.aside) >= _MOST_ASIDE or (by is None and reads.by_lanes):
            self._settle_reads(reads)
        aside, key = reads.aside, id(region)
        if by is not None:
            reads.by_lanes, key = (
                True,
                -1 - len(aside),
            )  # which lanes read before is of interest: all are kept
        elif key in aside:
            del aside[key]
        aside[key] = region, time, by
        reads.last = time
        pages.note(self._read, region.first, region.last, slot, time)

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
            self.events.append(("write", region.where, slot, self.running.warp, self.running.pc))
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
        where, aside, key = region.where, self._writes_aside, id(region)
        if key in aside:
            del aside[key]
        elif len(aside) >= _MOST_ASIDE:
            self._settle_writes()
        aside[key] = region, slot, time, lanes
        pages.note(self._written, region.first, region.last, slot, time)
        full = self._full
        if not all(full[region.first : region.last]):
            self._shaped(self.valid, where)[where] = True
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
        if False not in self._full[region.first : region.last]:
            return None
        valid = self._shaped(self.valid, region.where)[region.where]
        if not valid.all():
            return self._granule(self._flat(region.where), int(np.argmin(valid.ravel())))
        for page in range(region.first, region.last):
            self._full[page] = self._full[page] or self._is_full(page)
        return None

    def forget(self, where: Where | Region) -> None:
        """The granules hold nothing any more (tensor memory given back)."""
        region = where if type(where) is Region else self.region(where)
        self._shaped(self.valid, region.where)[region.where] = False
        self._full[region.first : region.last] = [False] * (region.last - region.first)

    def _after_writes(
        self,
        region: Region,
        known: NDArray[np.int64],
        slot: int,
        lanes: Codes | None,
        ordered: Ordered | None,
    ) -> Conflict | None:
        if not pages.late(self._written, region.first, region.last, known):
            return None
        writes, where = self._settle_writes(), self._flat(region.where)
        slots, times = writes.slot[where], writes.time[where]
        late = times > known[slots]
        if not late.any():
            return None
        if lanes is not None:  # a lane is ordered after itself
            late &= (slots != slot) | (writes.lane[where] != lanes)
        return self._first("write", late, slots, times, writes.lane, where, lanes, ordered)

    def _after_reads(
        self, region: Region, known: NDArray[np.int64], lanes: Codes | None, ordered: Ordered | None
    ) -> Conflict | None:
        if not pages.late(self._read, region.first, region.last, known):
            return None
        where = self._flat(region.where)
        for slot, reads in self._reads.items():
            if reads.last <= known[slot]:
                continue
            row, codes = self._settle_reads(reads)
            times = row[where]
            late = times > known[slot]
            if late.any():
                slots = np.full(times.shape, slot)
                found = self._first("read", late, slots, times, codes, where, lanes, ordered)
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

    # --- what was put aside -------------------------------------------------------------------------------------

    def _settle_writes(self) -> _Writes:
        """Notes the writes that were put aside, the oldest first."""
        writes = self._last_writes
        if writes is None:
            writes = self._last_writes = _Writes(
                np.zeros(self.granules, np.int16),
                np.zeros(self.granules, np.int32),
                np.zeros(self.granules, np.int8),
            )
        for region, slot, time, lanes in self._writes_aside.values():
            self._shaped(writes.slot, region.where)[region.where] = slot
            self._shaped(writes.time, region.where)[region.where] = time
            writes.lane[self._flat(region.where)] = SEVERAL if lanes is None else lanes
        self._writes_aside.clear()
        return writes

    def _settle_reads(self, reads: _Reads) -> tuple[NDArray[np.int32], Codes]:
        """Notes the reads of a slot that were put aside, the oldest first; the time and the lane of each granule's."""
        if reads.granules is None:
            reads.granules = np.zeros(self.granules, np.int32), np.zeros(self.granules, np.int8)
        times, codes = reads.granules
        for region, time, by in reads.aside.values():
            if by is not None:
                self._note_readers(codes, times, self._flat(region.where), *by)
            self._shaped(times, region.where)[region.where] = time
        reads.aside.clear()
        reads.by_lanes = False
        return times, codes

    @staticmethod
    def _note_readers(
        noted: Codes,
        times: NDArray[np.int32],
        where: slice | NDArray[np.int64],
        lanes: Codes,
        settled: int,
        alike: bool,
    ) -> None:
        """Notes which lane reads each granule, or that several do after the time when all lanes were last in order."""
        new = np.where((times[where] > settled) & (noted[where] != lanes), np.int8(SEVERAL), lanes)
        noted[where] = new
        if alike or isinstance(where, slice):
            return
        lost = noted[where] != new  # lanes of this very access that share a granule
        if lost.any():
            noted[where[lost]] = SEVERAL

    # --- granules -----------------------------------------------------------------------------------------------

    def _flat(self, where: Where) -> slice | NDArray[np.int64]:
        """The granules, those of a rectangle row by row."""
        if not isinstance(where, Cells):
            return where
        rows, columns = (np.arange(of.start, of.stop, dtype=np.int64) for of in where)
        return (rows[:, None] * self.row + columns).ravel()

    def _shaped(self, values: NDArray[Any], where: Where) -> NDArray[Any]:
        """The values of all granules, to be indexed by `where`."""
        return values.reshape(-1, self.row) if isinstance(where, Cells) else values

    def _is_full(self, page: int) -> bool:
        here = slice(page * self._page, (page + 1) * self._page)
        values = self.valid.reshape(-1, self.row)[:, here] if self.row else self.valid[here]
        return bool(values[0].all() and values.all()) if self.row else bool(values.all())

    @staticmethod
    def _granule(where: slice | NDArray[np.int64], at: int) -> int:
        if isinstance(where, slice):
            return int(where.start) + at * int(where.step or 1)
        return int(where.ravel()[at])
