"""Memories of the emulated device: global memory (this process's own), shared memory windows, parameters.

Generic addresses: global memory is addressed as the host addresses it. Shared memory, local memory and the parameter
space have windows of their own above anything a host hands out, so that a generic address tells its space by itself.
In the 32-bit shared window, bits 24 and up hold the CTA's rank in its cluster, as on hardware.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.errors import EmulationError

SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
PARAM_WINDOW = 1 << 58
WINDOW_MASK = (1 << 56) - 1
RANK_SHIFT = 24
OFFSET_MASK = (1 << RANK_SHIFT) - 1

_ALIGNMENT = 64  # bytes, of copies as of the memory that they are of
_POISON_BYTE = 0xFB  # read as floating point it is a NaN or absurdly large in every format that kernels use

UNSIGNED: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def poison(nbytes: int) -> NDArray[np.uint8]:
    """Bytes that no kernel produces by accident."""
    return np.full(nbytes, _POISON_BYTE, dtype=np.uint8)


class Saved(NamedTuple):
    """Where in a file the bytes of a range lie."""

    start: int
    nbytes: int
    name: str
    offset: int


class Range:
    """A registered range; its bytes lie in this process's memory at `start`, or are given."""

    def __init__(self, start: int, nbytes: int, name: str, given: NDArray[np.uint8] | None = None) -> None:
        self.start, self.end, self.name = start, start + nbytes, name
        if given is None:
            given = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))
        self.bytes: NDArray[np.uint8] = given
        self._views: dict[int, NDArray[np.unsignedinteger]] = {1: self.bytes}

    def view(self, width: int) -> tuple[NDArray[np.unsignedinteger], int]:
        """The range as elements of `width` bytes on absolute addresses, and the address of element 0."""
        first = -self.start % width
        if width not in self._views:
            count = (self.end - self.start - first) // width
            self._views[width] = self.bytes[first : first + count * width].view(UNSIGNED[width])
        return self._views[width], self.start + first


class GlobalMemory:
    """The registered ranges of this process's memory. Everything outside them is out of range."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[Range] = []

    def register(self, address: int, nbytes: int, name: str) -> None:
        """Makes [address, address + nbytes) accessible. Ranges may not overlap."""
        if address <= 0 or nbytes < 0:
            raise ValueError(
                f"cannot register {nbytes} bytes at {address:#x}: give a real address and a size >= 0"
            )
        if nbytes == 0:
            return
        at = bisect.bisect_left(self._starts, address)
        for other in self._ranges[max(0, at - 1) : at + 1]:
            if address < other.end and other.start < address + nbytes:
                raise ValueError(
                    f"{name or 'range'} [{address:#x}, {address + nbytes:#x}) overlaps {other.name or 'a range'} "
                    f"[{other.start:#x}, {other.end:#x}); unregister that one first"
                )
        self._starts.insert(at, address)
        self._ranges.insert(at, Range(address, nbytes, name))

    def copy(self) -> GlobalMemory:
        """The same ranges, to register more beside."""
        other = GlobalMemory()
        other._starts, other._ranges = list(self._starts), list(self._ranges)
        return other

    @property
    def nbytes(self) -> int:
        """How much is registered."""
        return sum(one.end - one.start for one in self._ranges)

    def save(self, file: int) -> list[Saved]:
        """Writes the bytes of all ranges to a file, each as its address is to a multiple of _ALIGNMENT."""
        saved, end = [], 0
        for one in self._ranges:
            offset = end + (one.start - end) % _ALIGNMENT
            end = offset + len(one.bytes)
            saved.append(Saved(one.start, len(one.bytes), one.name, offset))
            left = one.bytes.data
            while left:  # a call writes 2 GiB at most
                left = left[os.pwrite(file, left, end - len(left)) :]
        return saved

    @staticmethod
    def of_copy(file: int, saved: list[Saved]) -> GlobalMemory:
        """The ranges that another process has saved; what is written to them stays in this one."""
        memory = GlobalMemory()
        if saved:
            nbytes = saved[-1].offset + saved[-1].nbytes
            mapped = mmap.mmap(file, nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            everything = np.frombuffer(mapped, np.uint8)
            for one in saved:
                given = everything[one.offset : one.offset + one.nbytes]
                memory._starts.append(one.start)
                memory._ranges.append(Range(one.start, one.nbytes, one.name, given))
        return memory

    def unregister(self, address: int) -> None:
        """Takes the range that starts at `address` out again."""
        at = bisect.bisect_left(self._starts, address)
        if at == len(self._starts) or self._starts[at] != address:
            raise ValueError(f"no registered range starts at {address:#x}")
        del self._starts[at], self._ranges[at]

    def find(self, address: int, nbytes: int) -> Range:
        """The range that holds [address, address + nbytes), or an out-of-range fault."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0:
            found = self._ranges[at]
            if address + nbytes <= found.end:
                return found
            near = f"; it starts inside {found.name or 'a range'} [{found.start:#x}, {found.end:#x})"
        else:
            near = ""
        if at >= 0 and address >= self._ranges[at].end:
            found = self._ranges[at]
            near = f"; the nearest range below is {found.name or 'unnamed'}, which ends at {found.end:#x}"
        raise EmulationError(
            "out-of-range",
            f"{nbytes} bytes at global address {address:#x} lie outside every registered range{near}",
            address=address,
        )

    def holding(self, address: int) -> Range | None:
        """The range that an address lies in."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._ranges[at] if at >= 0 and address < self._ranges[at].end else None

    def load(
        self, addresses: NDArray[np.uint64], width: int, count: int
    ) -> list[NDArray[np.unsignedinteger]]:
        """`count` consecutive elements of `width` bytes at each address: count arrays of len(addresses)."""
        found = self._common(addresses, width * count)
        if found is None:
            parts = [self.load(addresses[i : i + 1], width, count) for i in range(len(addresses))]
            return [np.concatenate([part[j] for part in parts]) for j in range(count)]
        view, base = found.view(width)
        index = ((addresses - np.uint64(base)) // np.uint64(width)).astype(np.int64)
        return [view[index + j] for j in range(count)]

    def store(
        self, addresses: NDArray[np.uint64], width: int, values: list[NDArray[np.unsignedinteger]]
    ) -> None:
        """Writes values[j][i] at addresses[i] + j * width; with equal addresses the highest lane wins."""
        found = self._common(addresses, width * len(values))
        if found is None:
            for i in range(len(addresses)):
                self.store(addresses[i : i + 1], width, [value[i : i + 1] for value in values])
            return
        view, base = found.view(width)
        index = ((addresses - np.uint64(base)) // np.uint64(width)).astype(np.int64)
        for j, value in enumerate(values):
            view[index + j] = value

    def read_bytes(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A view, not a copy, of `nbytes` bytes."""
        found = self.find(address, nbytes)
        return found.bytes[address - found.start : address - found.start + nbytes]

    def gather(self, addresses: NDArray[np.uint64], run: int) -> NDArray[np.uint8]:
        """uint8 [len(addresses), run]: `run` bytes from each address."""
        if len(addresses) == 0:
            return np.zeros((0, run), dtype=np.uint8)
        found = self._common(addresses, run)
        if found is None:
            return np.stack([self.read_bytes(int(address), run) for address in addresses])
        index = (addresses - np.uint64(found.start)).astype(np.int64)
        return np.lib.stride_tricks.sliding_window_view(found.bytes, run)[index]

    def scatter(self, addresses: NDArray[np.uint64], data: NDArray[np.uint8]) -> None:
        """Writes data[i] (uint8 [n, run]) at addresses[i]."""
        for address, row in zip(addresses.tolist(), data, strict=True):
            self.read_bytes(address, len(row))[:] = row

    def _common(self, addresses: NDArray[np.uint64], nbytes: int) -> Range | None:
        """The one range that holds all accesses; None when they are spread over several."""
        low, high = int(addresses.min()), int(addresses.max())
        found = self.find(low, nbytes)
        if high + nbytes <= found.end:
            return found
        self.find(high, nbytes)
        return None
