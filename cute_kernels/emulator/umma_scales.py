"""Where tcgen05.mma reads the scale factors of A and B in tensor memory.

Row r of A (or of B) has its scale factors in one 32-bit word at lane r % 32, column r // 32 of the address
that the instruction names; the scale factors of one instruction are consecutive bytes of that word, from byte
`scale id`: 1 byte with 1X, 2 with 2X (id 0 or 2), 4 with 4X (PTX ISA 9.7.16.10.7.2 and .3). 128 rows take 4
columns; B with N > 128 goes on in the next 4. The same words stand in all four 32-lane quarters, since each
quarter of the tensor core reads its own copy. With cta_group::2 each CTA holds the factors of its m / 2 rows
of A (its own row r at lane r % 32) and those of all N rows of B.

M = 128 with cta_group::2 (layout B) is the exception: quarters 0 and 1 compute the lower half of N, 2 and 3
the upper half, so the factors of rows n < N / 2 of B stand in quarters 0 and 1 and those of n >= N / 2 in 2
and 3, at lane n % 32, column n % (N / 2) // 32.

Agrees with CUTLASS' tmem_sf_frg (cute/atom/mma_traits_sm100_frag.hpp) and its example
2cta_mma_blockscale_m128.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import DescriptorError, InstructionDescriptor, UnsupportedForm

QUARTERS = 4
QUARTER_LANES = 32
# CUTLASS' scale pointers carry the scale id in bits 30-31, where hardware sees no part of a lane or column.
ADDRESS_MASK = 0x3FFFFFFF

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScaleWords:
    """Tensor memory words that hold the scale factors of one operand, in one CTA.

    lanes: int64 [replicas, rows]. columns: int64 [rows], relative to the operand's column. The factors are
    bytes [first, first + count) of each word.
    """

    lanes: Indices
    columns: Indices
    first: int
    count: int


@lru_cache(maxsize=256)
def scale_words(d: InstructionDescriptor, operand: str, lane: int = 0) -> ScaleWords:
    """The words to read for operand "a" or "b" of a block-scaled instruction, in each CTA.

    lane: the lane field of the scale address, which must be 0: the factors fill every quarter from its lane
    0.
    """
    if lane:
        raise DescriptorError(
            f"scale factors of {operand.upper()} at tensor memory lane {lane}; it must be 0"
        )
    rows = d.m // d.cta_group if operand == "a" else d.n
    row = np.arange(rows)
    quarters = np.arange(QUARTERS)[:, None]
    if d.cta_group == 2 and d.m == 128 and operand == "b":
        if d.n % 128:
            # CUTLASS rounds N up to 128 here, against the halves of N in layout B; nothing settles it.
            raise UnsupportedForm(f"kind::{d.kind} with cta_group::2, M = 128 and N = {d.n}, not 128 or 256")
        quarters = quarters[:2] + 2 * (row // (d.n // 2))
        row = row % (d.n // 2)
    lanes = QUARTER_LANES * quarters + row % QUARTER_LANES
    columns = row // QUARTER_LANES
    lanes.flags.writeable = columns.flags.writeable = False
    first = d.scale_id_a if operand == "a" else d.scale_id_b
    return ScaleWords(lanes=lanes, columns=columns, first=first, count=d.scales_per_row)


def scales_of_words(words: npt.NDArray[np.uint32], at: ScaleWords) -> npt.NDArray[np.uint8]:
    """Scale factors from gathered words: uint32 [replicas, rows] -> uint8 [rows, count].

    Raises EmulationError when the replicas of a row differ: a part of D would be wrong.
    """
    if words.tobytes() == words[0].tobytes() * len(words):
        words = words[:1]
    bytes_ = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    factors = bytes_[..., at.first : at.first + at.count]
    if len(words) == 1:
        return factors[0]
    different = (factors != factors[:1]).any(axis=-1)
    if different.any():
        replica, row = (int(i) for i in np.argwhere(different)[0])
        first, other = (int(at.lanes[i, row]) for i in (0, replica))
        raise EmulationError(
            "tensor-memory",
            f"scale factors of row {row} differ between lane quarters: lane {first} holds "
            f"{factors[0, row].tolist()}, lane {other} holds {factors[replica, row].tolist()}; every quarter "
            "reads its own copy (tcgen05.cp.32x128b.warpx4 writes all four)",
        )
    return factors[0]
