"""Where tcgen05.mma reads the scale factors of A and B in tensor memory.

Row r of A (or of B) has its scale factors in one 32-bit word at lane r % 32, column r // 32 of the address
that the instruction names; the scale factors of one instruction are consecutive bytes of that word, from byte
`scale id`: 1 byte with 1X, 2 with 2X (id 0 or 2), 4 with 4X (PTX ISA 9.7.16.10.7.2 and .3). 128 rows take 4
columns; B with N > 128 goes on in the next 4. The same words stand in all four 32-lane quarters, since each
quarter of the tensor core reads its own copy; with M = 256 each CTA holds the factors of its 128 rows of A
and those of all N rows of B. Agrees with CUTLASS' tmem_sf_frg (cute/atom/mma_traits_sm100_frag.hpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import InstructionDescriptor, UnsupportedForm

QUARTERS = 4
QUARTER_LANES = 32
# CUTLASS' scale pointers carry the scale id in bits 30-31, where hardware sees no part of a lane or column.
ADDRESS_MASK = 0x3FFFFFFF

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScaleWords:
    """Tensor memory words that hold the scale factors of one operand, in one CTA.

    lanes: int64 [4, rows], the four replicas. columns: int64 [rows], relative to the operand's column. The
    factors are bytes [first, first + count) of each word.
    """

    lanes: Indices
    columns: Indices
    first: int
    count: int


@lru_cache(maxsize=256)
def scale_words(d: InstructionDescriptor, operand: str) -> ScaleWords:
    """The words to read for operand "a" or "b" of a block-scaled instruction.

    The lane field of the scale address must be 0 (the factors fill the lanes from 0 of every quarter).
    """
    if d.cta_group == 2 and d.m == 128:
        # The factors of B are split over the lane halves there (CUTLASS: ScaleFactorDuplicated2by2), those
        # of A are described nowhere.
        raise UnsupportedForm(f"kind::{d.kind} with cta_group::2 and M = 128")
    rows = d.m // d.cta_group if operand == "a" else d.n
    row = np.arange(rows)
    lanes = QUARTER_LANES * np.arange(QUARTERS)[:, None] + row % QUARTER_LANES
    columns = row // QUARTER_LANES
    lanes.flags.writeable = columns.flags.writeable = False
    first = d.scale_id_a if operand == "a" else d.scale_id_b
    return ScaleWords(lanes=lanes, columns=columns, first=first, count=d.scales_per_row)


def scales_of_words(words: npt.NDArray[np.uint32], at: ScaleWords) -> npt.NDArray[np.uint8]:
    """Scale factors from gathered words: uint32 [4, rows] -> uint8 [rows, count].

    Raises EmulationError when a quarter holds other factors than the first: its part of D would be wrong.
    """
    bytes_ = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    factors = bytes_[..., at.first : at.first + at.count]
    different = (factors != factors[:1]).any(axis=-1)
    if different.any():
        quarter, row = (int(i) for i in np.argwhere(different)[0])
        raise EmulationError(
            "tensor-memory",
            f"scale factors of row {row} differ between lane quarters: quarter 0 holds "
            f"{factors[0, row].tolist()}, quarter {quarter} holds {factors[quarter, row].tolist()}; every "
            "quarter reads its own copy (tcgen05.cp.32x128b.warpx4 writes all four)",
        )
    return factors[0]
