"""Shadow state of a memory: for every granule who wrote it last, who read it since, and whether it holds anything.

A granule is 4 bytes, or less where a kernel stores narrower units. Accesses are checked when they are issued,
against the clock (see clocks.py) of the one who issues them, so a race is found whatever the values and the timing
happen to be.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Where = slice | NDArray[np.int64]


class Conflict(NamedTuple):
    """An earlier access that the present one is not ordered after."""

    kind: str  # "write" or "read": what the earlier access did
    slot: int  # the clock slot of its agent
    time: int
    granule: int


class Shadow:
    """Last write, later reads and initialisation of `granules` units of memory."""

    def __init__(self, granules: int) -> None:
        self.granules = granules
        self.write_slot = np.zeros(granules, dtype=np.int16)
        self.write_time = np.zeros(granules, dtype=np.int32)
        self.valid = np.zeros(granules, dtype=bool)
        self.reads: dict[int, NDArray[np.int32]] = {}
        self.read_last: dict[int, int] = {}

    def read(self, where: Where, known: NDArray[np.int64], slot: int, time: int) -> Conflict | None:
        """Records a read by `slot` at its `time`; `known` is the row of its clock that counts."""
        conflict = self._after_writes(where, known)
        row = self.reads.get(slot)
        if row is None:
            row = self.reads[slot] = np.zeros(self.granules, dtype=np.int32)
        row[where] = time
        self.read_last[slot] = time
        return conflict

    def write(
        self, where: Where, known: NDArray[np.int64], slot: int, time: int, known_reads: NDArray[np.int64]
    ) -> Conflict | None:
        """Records a write and marks the granules as holding something.

        `known_reads` is the row that counts against earlier reads: a write through the async proxy after generic
        reads needs order alone, no proxy fence.
        """
        conflict = self._after_writes(where, known) or self._after_reads(where, known_reads)
        self.write_slot[where] = slot
        self.write_time[where] = time
        self.valid[where] = True
        return conflict

    def first_invalid(self, where: Where) -> int | None:
        """The first granule of `where` that nothing wrote, or None."""
        valid = self.valid[where]
        if valid.all():
            return None
        return self._granule(where, int(np.argmin(valid.ravel())))

    def forget(self, where: Where) -> None:
        """The granules hold nothing any more (tensor memory given back)."""
        self.valid[where] = False

    def _after_writes(self, where: Where, known: NDArray[np.int64]) -> Conflict | None:
        slots, times = self.write_slot[where], self.write_time[where]
        late = times > known[slots]
        if not late.any():
            return None
        at = int(np.argmax(late.ravel()))
        return Conflict("write", int(slots.ravel()[at]), int(times.ravel()[at]), self._granule(where, at))

    def _after_reads(self, where: Where, known: NDArray[np.int64]) -> Conflict | None:
        for slot, row in self.reads.items():
            if self.read_last[slot] <= known[slot]:
                continue
            times = row[where]
            late = times > known[slot]
            if late.any():
                at = int(np.argmax(late.ravel()))
                return Conflict("read", slot, int(times.ravel()[at]), self._granule(where, at))
        return None

    @staticmethod
    def _granule(where: Where, at: int) -> int:
        if isinstance(where, slice):
            return int(where.start) + at * int(where.step or 1)
        return int(where.ravel()[at])
