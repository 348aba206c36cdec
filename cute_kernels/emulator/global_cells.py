"""Granules of global memory and the stamps of accesses to them (see global_shadow.py)."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.shadow import SEVERAL
from cute_kernels.emulator.tma_box import BoxPlan

if TYPE_CHECKING:
    from cute_kernels.emulator.memory import Range
    from cute_kernels.emulator.ptx import Kernel

Stamps = NDArray[np.int64]  # of accesses: agent, time and lane; 0 for none
AGENT, TIME = 36, 6  # where agent and time begin in a stamp
CODE_MASK, TIME_MASK = (1 << TIME) - 1, (1 << AGENT - TIME) - 1
MOST_READS = 200_000  # of a range that are put aside; later ones are forgotten


class _Box(NamedTuple):
    """Granules of a tensor copy: where they start, their extents, and how many granules apart they are."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Lanes(NamedTuple):
    """What lanes of a warp access: `nbytes` at each address; the code of each lane (shadow.py)."""

    addresses: NDArray[np.uint64]
    nbytes: int
    codes: NDArray[np.int8]


class Run(NamedTuple):
    """Adjacent bytes."""

    address: int
    nbytes: int


Touched = Lanes | Run | BoxPlan
Where = slice | NDArray[np.int64] | _Box


def take(values: Stamps, where: Where) -> Stamps:
    """The values at granules; a view of them where they are no index array."""
    if isinstance(where, _Box):
        strides = tuple(values.itemsize * s for s in where.strides)
        return np.ndarray(where.shape, values.dtype, values, values.itemsize * where.start, strides)
    return values[where]


def put(values: Stamps, where: Where, new: Stamps | int) -> None:
    if isinstance(where, _Box):
        take(values, where)[...] = new
    else:
        values[where] = new


def granules_of(where: Where) -> NDArray[np.int64]:
    """The granules as an index array, in the order that `take` gives values."""
    if isinstance(where, slice):
        return np.arange(where.start, where.stop)
    if isinstance(where, _Box):
        at = np.array(where.start)
        for extent, stride in zip(where.shape, where.strides, strict=True):
            at = at[..., None] + np.arange(extent) * stride
        return at.ravel()
    return where


class Noted:
    """Accesses that may stand side by side: the last of each granule, and those of other agents before it."""

    def __init__(self, granules: int) -> None:
        self.last: Stamps = np.zeros(granules, np.int64)
        self._aside: list[tuple[Where, Stamps]] = []
        self._low, self._high = array("q"), array("q")

    def note(self, where: Where, stamps: Stamps | int) -> None:
        old = take(self.last, where)
        if old.any() and ((old != 0) & (old >> AGENT != np.asarray(stamps) >> AGENT)).any():
            at = granules_of(where)
            self._aside.append((where, old.copy()))
            self._low.append(int(at.min()))
            self._high.append(int(at.max()))
        put(self.last, where, stamps)

    def before(self, where: Where) -> list[tuple[Stamps, Where]]:
        """Stamps at the granules, and the granules that they belong to."""
        found: list[tuple[Stamps, Where]] = []
        last = take(self.last, where)
        if last.any():
            found.append((last, where))
        if self._aside:
            mine = granules_of(where)
            low, high = np.frombuffer(self._low, np.int64), np.frombuffer(self._high, np.int64)
            for i in np.flatnonzero((low <= mine.max()) & (high >= mine.min())).tolist():
                at, stamps = granules_of(self._aside[i][0]), self._aside[i][1].ravel()
                shared = np.isin(at, mine) & (stamps != 0)
                if shared.any():
                    found.append((stamps[shared], at[shared]))
        return found

    def clear(self, where: Where) -> None:
        """A write that is ordered behind them stands for them from now on."""
        if take(self.last, where).any():
            put(self.last, where, 0)


class RangeShadow:
    """The shadow of one registered range."""

    def __init__(self, memory: Range, granule: int) -> None:
        self.memory = memory
        self.base = memory.start // granule
        self.granules = -(-memory.end // granule) - self.base
        self.granule = granule
        self.aside: list[tuple[Touched, int]] = []  # reads before the first write: what, and its stamp
        self.written: Stamps | None = None
        self.reads: Noted | None = None
        self.strong: Noted | None = None

    def holds(self, touched: Touched) -> bool:
        """Whether the range has all of it; where it has not, the access itself is a fault."""
        if isinstance(touched, Lanes):
            low = int(touched.addresses.min())
            high = int(touched.addresses.max()) + touched.nbytes
        else:
            low, high = (
                touched.reach()
                if isinstance(touched, BoxPlan)
                else (touched.address, touched.address + touched.nbytes)
            )
        return self.memory.start <= low and high <= self.memory.end

    def where(self, touched: Touched) -> Where:
        """The granules."""
        g = self.granule
        if isinstance(touched, Lanes):
            first = (touched.addresses // np.uint64(g)).astype(np.int64) - self.base
            count = max(1, touched.nbytes // g)
            return first if count == 1 else (first[:, None] + np.arange(count)).ravel()
        if isinstance(touched, Run):
            return slice(
                touched.address // g - self.base, -(-(touched.address + touched.nbytes) // g) - self.base
            )
        *shape, run = touched.shape
        *strides, _ = touched.strides
        whole = (*shape, -(-(touched.start % g + run) // g))
        return _Box(touched.start // g - self.base, whole, (*(s // g for s in strides), 1))

    def begin(self) -> Stamps:
        """The first write of the launch."""
        if self.written is None:
            self.written = np.zeros(self.granules, np.int64)
            for touched, stamp in self.aside:
                if self.holds(touched):
                    self.note_read(touched, self.where(touched), stamp)
            self.aside.clear()
        return self.written

    def note_read(self, touched: Touched, where: Where, stamp: int) -> None:
        if self.reads is None:
            self.reads = Noted(self.granules)
        self.reads.note(where, stamps_of(touched, where, stamp))


def stamps_of(touched: Touched, where: Where, stamp: int) -> Stamps | int:
    """The stamp with the lane of each granule."""
    if not isinstance(touched, Lanes) or not isinstance(where, np.ndarray):
        return stamp | SEVERAL
    return codes_of(touched, where).astype(np.int64) | stamp


def codes_of(touched: Lanes, where: NDArray[np.int64]) -> NDArray[np.int8]:
    count = len(where) // len(touched.codes)
    return touched.codes if count == 1 else touched.codes.repeat(count)


def narrowest_store(kernel: Kernel) -> int:
    """4 bytes, or the narrowest unit in which a kernel writes what may be global memory."""
    widths = [4]
    for instruction in kernel.instructions:
        if instruction.opcode in ("st", "atom", "red") and not any(
            m.startswith(("shared", "local", "param", "async", "bulk")) for m in instruction.modifiers
        ):
            digits = instruction.modifiers[-1].removesuffix("x2").lstrip("bsuf")
            widths.append(int(digits) // 8 if digits.isdigit() else 4)
    return max(1, min(widths))
