"""Where D, and A when it comes from tensor memory, lie in the tensor memory of one CTA or of a CTA pair.

PTX ISA 9.7.16.10.5, names of its layouts in brackets; CUTLASS states the same in tmem_frg
(cute/atom/mma_traits_sm100_frag.hpp):

    M   cta_group   rows a CTA   lanes of row r                      columns
    128 1  [D]      128          r                                   D: n
    64  1  [F]      64           32 * (r // 16) + r % 16 (+ 16)      D: n
    256 2  [A]      128          r                                   D: n
    128 2  [B]      64           D: r, and r + 64 for n >= N / 2     D: n % (N / 2)
                                 A: r and r + 64, both copies

Every element of D takes one 32-bit word, 16-bit results in its low half. A takes K * container bits / 32 = 8
columns for every kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cute_kernels.emulator.umma_descriptors import DescriptorError, InstructionDescriptor

OPERAND_COLUMNS = 8  # of A in tensor memory


@dataclass(frozen=True)
class Block:
    """A rectangle of a matrix and where it lies: matrix[rows, columns] = memory[lanes, column:...].

    rows, columns: of the part of the matrix that one CTA holds (its own row 0 first). lanes: in that CTA's
    tensor memory. column: relative to the address of the matrix.
    """

    rows: slice
    columns: slice
    lanes: slice
    column: int


@lru_cache(maxsize=256)
def accumulator_blocks(d: InstructionDescriptor, lane: int) -> tuple[Block, ...]:
    """Where one CTA's part of D lies: its m / cta_group rows x n columns.

    lane: the lane field of D's address; 0, or 0 or 16 with M = 64.
    """
    rows = d.m // d.cta_group
    if rows == 128:
        _check_lane(d, lane, (0,))
        return (Block(slice(0, 128), slice(0, d.n), slice(0, 128), 0),)
    if d.cta_group == 1:
        _check_lane(d, lane, (0, 16))
        return tuple(
            Block(slice(r, r + 16), slice(0, d.n), slice(2 * r + lane, 2 * r + lane + 16), 0)
            for r in range(0, 64, 16)
        )
    _check_lane(d, lane, (0,))
    half = d.n // 2
    return (
        Block(slice(0, 64), slice(0, half), slice(0, 64), 0),
        Block(slice(0, 64), slice(half, d.n), slice(64, 128), 0),
    )


@lru_cache(maxsize=256)
def operand_blocks(d: InstructionDescriptor, lane: int) -> tuple[Block, ...]:
    """Where one CTA's rows of A lie when A comes from tensor memory, in columns of 32 bits (8 of them).

    With M = 128 and cta_group 2 the two blocks are copies, which must hold the same words.
    """
    rows = d.m // d.cta_group
    columns = slice(0, OPERAND_COLUMNS)
    if rows == 64 and d.cta_group == 2:
        _check_lane(d, lane, (0,))
        return tuple(Block(slice(0, 64), columns, slice(low, low + 64), 0) for low in (0, 64))
    return tuple(Block(b.rows, columns, b.lanes, 0) for b in accumulator_blocks(d, lane))


def _check_lane(d: InstructionDescriptor, lane: int, allowed: tuple[int, ...]) -> None:
    if lane not in allowed:
        raise DescriptorError(
            f"tensor memory lane {lane} for M = {d.m} with cta_group::{d.cta_group}; allowed: {allowed}"
        )
