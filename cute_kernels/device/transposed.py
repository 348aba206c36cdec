"""The way out of a product whose operands are swapped: a TMEM lane is a column n of D, a TMEM column a row m.

An epilogue warp has 32 columns of D, a lane each, and puts rows of D into its staging buffer: boxes of 32 columns.

Float32: a lane writes its column, 32 lanes side by side; no bank is met twice, and so nothing is swizzled.

BF16: the warp takes 8 x 8 fragments, which stmatrix transposes, and ldmatrix where C lies in the buffer. A fragment
(PTX ISA, "tcgen05.ld", .16x256b) gives lane t the column t / 4 of eight, and of eight rows 2 * (t % 4) and the next.
Its values are in this order: half of the columns, then eight rows after another, and in these (column, row), (column,
row + 1), (column + 8, row) and (column + 8, row + 1). The buffer has rows of 64 bytes under TMA's 64-byte swizzle:
chunk c of row r lies at c ^ (r // 2 % 4).
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass.experimental import primitives as prims

from cute_kernels.device.store import CHUNK_BYTES, COLUMNS, add_bf16, read

SIDE = 8  # of a fragment: rows and columns
HALF = 16  # columns of D, which are TMEM lanes, that one tcgen05.ld of fragments reads
PER_SIDE = 4  # values that a lane has of eight rows and a half of the columns


def read_transposed(address: Any, rows: int, element_bytes: int) -> list[Any]:
    """Start reading `rows` TMEM columns of this warp's lanes; `store.wait_for_read` gives as many values."""
    if element_bytes == 4:
        return read(address, rows)
    halves = [
        prims.tcgen05_ld("16x256b", prims.make_tmem_ptr(address + (lane << 16), Int32), num=rows // SIDE)
        for lane in (0, HALF)
    ]
    return [half[i] for half in halves for i in range(rows // SIDE * PER_SIDE)]


def read_box(s: Any, i: int, address: Any) -> list[Any]:
    """Start read `i` of the accumulator at a TMEM address, swapped or not."""
    if s.swap_ab:
        return read_transposed(address + i * s.read_columns, s.read_columns, s.staged_bytes)
    return read(address + i * COLUMNS)


def own_place(element_bytes: int) -> Any:
    """Return this lane's place in the first rows of a staging buffer, in elements.

    Float32: its column of the first row. BF16: the start of the row of a fragment that it gives to stmatrix.x4, which
    is row t % 8, and of it the columns from 8 * (t / 8) on.
    """
    lane = cute.arch.lane_idx()
    if element_bytes == 4:
        return lane
    row, chunk = lane % SIDE, lane // SIDE
    return row * COLUMNS + (chunk ^ (row // 2)) * (CHUNK_BYTES // element_bytes)


def stage_transposed(buffer: Any, start: Any, own: Any, values: list[Any]) -> None:
    """Write a lane's values to a staging buffer, rounded to its type.

    buffer: array of BFloat16 or Float32; start: first element of the staging buffer; own: `own_place`.
    """
    rows = len(values)
    if buffer.dtype is Float32:
        for row, value in enumerate(values):
            buffer[start + own + row * COLUMNS] = value
        return
    for target, part in zip(targets(buffer, start, own, rows), by_sides(values), strict=True):
        fragments = cutlass.Vector.from_elements(part, Float32).to(buffer.dtype)
        prims.stmatrix(target, fragments.bitcast(Int32), prims.MMALayout.COL)


def add_transposed(buffer: Any, start: Any, own: Any, values: list[Any]) -> list[Any]:
    """Return a lane's values plus what a staging buffer of BFloat16 holds for it, in Float32.

    The arguments are those of `stage_transposed`.
    """
    rows = len(values)
    held = [
        prims.ldmatrix(target.data_ptr(), 4, prims.MMALayout.COL)
        for target in targets(buffer, start, own, rows)
    ]
    cute.arch.sync_warp()  # lanes have read what others are to write
    sums = [
        [x for i in range(4) for x in add_bf16(words[i], part[2 * i : 2 * i + 2])]
        for words, part in zip(held, by_sides(values), strict=True)
    ]
    return [x for half in (slice(0, PER_SIDE), slice(PER_SIDE, None)) for part in sums for x in part[half]]


def targets(buffer: Any, start: Any, own: Any, rows: int) -> list[Any]:
    """Return where in a buffer of BFloat16 this lane points its fragments of eight rows each to."""
    return [buffer.subview(start + own + row * COLUMNS) for row in range(0, rows, SIDE)]


def by_sides(values: list[Any]) -> list[list[Any]]:
    """Return a lane's values of eight rows, of both halves of the columns, after those of the eight before."""
    half = len(values) // 2
    return [
        values[i : i + PER_SIDE] + values[half + i : half + i + PER_SIDE] for i in range(0, half, PER_SIDE)
    ]
