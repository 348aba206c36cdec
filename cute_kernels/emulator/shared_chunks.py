"""16-byte chunks of shared memory, in which tensor copies write it and tcgen05 operations read it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import tma_box
from cute_kernels.emulator.memory import poison
from cute_kernels.emulator.shadow import Region, region_of

if TYPE_CHECKING:
    from cute_kernels.emulator.cta import Cta

NBYTES = 16
_POISON = poison(NBYTES).view(np.complex128)


class Chunks(NamedTuple):
    """Some chunks. They lie in bytes [low, high) and touch the granules of `region`.

    numbers: int64, in the order and the shape in which they are gathered. whole: whether they are all of these bytes.
    """

    numbers: NDArray[np.int64]
    low: int
    high: int
    region: Region
    whole: bool

    def gather(self, cta: Cta) -> NDArray[np.uint8]:
        """Their bytes, uint8 [..., n * 16] of numbers [..., n]."""
        return cta.shared.chunks[self.numbers].view(np.uint8)

    def scatter(self, cta: Cta, data: NDArray[np.uint8], defined: int = NBYTES) -> None:
        """Writes their bytes, uint8 [n, 16]; defined: as many at the start of each."""
        if defined == NBYTES:
            cta.shared.chunks[self.numbers] = data.view(np.complex128)[:, 0]
        else:
            cta.shared.bytes.reshape(-1, NBYTES)[self.numbers, :defined] = data[:, :defined]

    def poison(self, cta: Cta) -> None:
        where = slice(self.low // NBYTES, self.high // NBYTES) if self.whole else self.numbers
        cta.shared.chunks[where] = _POISON

    def hold_barrier(self, cta: Cta) -> bool:
        """Whether a live mbarrier lies in one of them."""
        low, high = cta.shared.barriers
        if high <= self.low or self.high <= low:
            return False
        eighths = 2 * self.numbers
        return bool(cta.shared.barrier_bytes[np.concatenate([eighths, eighths + 1])].any())


def chunks_at(addresses: NDArray[np.int64], granule: int) -> Chunks:
    """Chunks at shared addresses; granule: of the memory's shadow."""
    low, high = int(addresses.min()), int(addresses.max()) + NBYTES
    whole = high - low == NBYTES * addresses.size
    if whole:
        region = region_of(slice(low // granule, high // granule))
    else:
        region = region_of((addresses.reshape(-1, 1) // granule + np.arange(NBYTES // granule)).ravel())
    return Chunks(addresses // NBYTES, low, high, region, whole)


@lru_cache(maxsize=4096)
def chunks_of_run(offset: int, nbytes: int, granule: int) -> Chunks:
    """The chunks of adjacent bytes, in order."""
    return chunks_at(np.arange(offset, offset + nbytes, NBYTES, dtype=np.int64), granule)


@lru_cache(maxsize=4096)
def chunks_of_box(descriptor: bytes, offset: int, granule: int) -> Chunks:
    """The chunks of a tensor copy's image, in its order. Raises TensorCopyError as tma_box.smem_offsets does."""
    return chunks_at(tma_box.smem_offsets(descriptor, offset) + offset, granule)
