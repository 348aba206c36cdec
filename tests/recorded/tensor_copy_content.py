"""Bytes for global and shared memory that any machine makes alike, so that the recordings need not hold them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MEMORY = 1 << 20  # bytes of global memory that the recorded tensors lie in
MEMORY_SEED, REGION_SEED = 0, 1 << 24  # of global memory, and of the shared memory that stores read
POISON = 0xA5  # what shared memory holds before a load

# float32 patterns whose rounding, flushing or comparison is special: zeros, subnormals, ties of tf32 both ways,
# numbers that round up into the next binade or to infinity, infinities and NaN with various payloads.
_SPECIAL = np.array(
    [
        *(0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00400000, 0x00001000),
        *(0x00000FFF, 0x00001001, 0x00003000, 0x00800000, 0x80800000, 0x00800001, 0x00801000, 0x00FFFFFF),
        *(0x3F800000, 0xBF800000, 0x3F801000, 0x3F803000, 0x3F800FFF, 0x3F801001, 0x3F802FFF, 0x3F803001),
        *(0xBF801000, 0xBF803000, 0x3FFFF000, 0x3FFFEFFF, 0x3FFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F7FE000),
        *(0x7F7FEFFF, 0x7F7FF000, 0x7F000000, 0xFF000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001),
        *(0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FA01234, 0xFFA01234, 0x7F801000, 0x7FC01000),
    ],
    np.uint32,
)


def _hashed(count: int, seed: int) -> NDArray[np.uint32]:
    """uint32 [count]: an integer hash of seed, seed + 1, ..."""
    x = np.arange(count, dtype=np.uint32) + np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    return x ^ (x >> np.uint32(16))


@lru_cache(maxsize=8)
def content(kind: str, nbytes: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [nbytes]. kind: "bytes", any; "floats", a quarter of the words special, the others within 2**-4 .. 2**4."""
    words = _hashed(nbytes // 4, seed)
    if kind == "floats":
        exponent = 123 + (words >> np.uint32(8)) % np.uint32(8)
        near = words & np.uint32(0x807FFFFF) | exponent << np.uint32(23)
        special = _SPECIAL[(words >> np.uint32(4)) % np.uint32(len(_SPECIAL))]
        words = np.where(words % np.uint32(4) == 0, special, near).astype(np.uint32)
    words.setflags(write=False)
    return words.view(np.uint8)
