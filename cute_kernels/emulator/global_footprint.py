"""What a process did to global memory, as another one can take it over: the granules touched and the bytes written."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.global_cells import RangeShadow
from cute_kernels.emulator.memory import Range

Granules = NDArray[np.bool_]
_NONE = np.zeros(0, bool)


class Footprint(NamedTuple):
    """The touched part of the registered range that begins at address `start`.

    first: the granule of the range that `written` and `read` (of one length) begin with; read: not the granules that
    were written afterwards. somewhere: granules were read, and it is not known which. data: the bytes of the granules
    written, from the lowest address on.
    """

    start: int
    first: int
    written: Granules
    read: Granules
    somewhere: bool
    data: NDArray[np.uint8]


def footprint(found: RangeShadow) -> Footprint | None:
    """What was done to a range; None if nothing."""
    start = found.memory.start
    if found.written is None:
        somewhere = bool(found.aside)
        return Footprint(start, 0, _NONE, _NONE, True, np.zeros(0, np.uint8)) if somewhere else None
    written = found.written != 0
    read = np.zeros_like(written) if found.reads is None else found.reads.last != 0
    touched = np.flatnonzero(written | read)
    if not touched.size:
        return None
    first, last = int(touched[0]), int(touched[-1]) + 1
    written, read = written[first:last].copy(), read[first:last].copy()
    window, chosen = _bytes_of(found, first, written)
    return Footprint(start, first, written, read, False, found.memory.bytes[window][chosen])


def take_over(found: RangeShadow, done: Footprint) -> None:
    """Writes what another process wrote."""
    window, chosen = _bytes_of(found, done.first, done.written)
    found.memory.bytes[window][chosen] = done.data


def disjoint(one: list[Footprint], other: list[Footprint]) -> bool:
    """Whether neither of two processes touched what the other wrote, as far as is known."""
    by_start = {done.start: done for done in one}
    for done in other:
        before = by_start.get(done.start)
        if before is not None and not (_apart(before, done) and _apart(done, before)):
            return False
    return True


def _apart(writer: Footprint, other: Footprint) -> bool:
    if other.somewhere:
        return not writer.written.any()
    first = max(writer.first, other.first)
    last = min(writer.first + len(writer.written), other.first + len(other.written))
    if first >= last:
        return True
    theirs = slice(first - other.first, last - other.first)
    touched = other.written[theirs] | other.read[theirs]
    return not (writer.written[first - writer.first : last - writer.first] & touched).any()


def _bytes_of(found: RangeShadow, first: int, granules: Granules) -> tuple[slice, Granules]:
    """Bytes of a range from granule `first` on, and which of them lie in the chosen granules.

    A granule at an end of the range may stick out of it."""
    memory: Range = found.memory
    low = (found.base + first) * found.granule - memory.start
    high = low + len(granules) * found.granule
    chosen = np.repeat(granules, found.granule)
    inside = slice(max(low, 0), min(high, memory.end - memory.start))
    return inside, chosen[inside.start - low : inside.stop - low]
