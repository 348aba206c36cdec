"""Where a scale factor lies in each layout: plain-integer formulas, each stated once.

They use only `+ - * // %`, so Python ints, the DSL's Int32 and torch index tensors all pass: scale_factors.py
transforms whole tensors with them, and kernels address memory with them. This module imports nothing.

- packed MN-major: int32 words of four scales along K; MN innermost, a column of words every `packed_stride`;
- 128 x 4 blocked: atoms of 128 rows x 4 scales, 512 bytes each, along K first, then along MN;
- UTCCP: a packed column with each 128 rows in the order of a blocked atom.

A packed column of 128 rows in UTCCP order is byte for byte one blocked atom; the layouts differ in the order
of atoms: packed has MN fastest, blocked has K fastest.
"""

from __future__ import annotations

from typing import Any

SCALES_PER_WORD = 4
ATOM_ROWS = 128
ATOM_COLUMNS = 4
ATOM_BYTES = ATOM_ROWS * ATOM_COLUMNS


def ceil_div(a: Any, b: Any) -> Any:
    """Return a / b rounded up, for a >= 0 and b > 0."""
    return (a + b - 1) // b


def packed_stride(mn: Any) -> Any:
    """Return the int32 words from one packed column to the next: mn rounded up to TMA's 16 bytes."""
    return ceil_div(mn, 4) * 4


def packed_offset(row: Any, column: Any, mn: Any) -> Any:
    """Return the byte offset of the scale of (row, K index `column`) in the packed MN-major layout."""
    word = column // SCALES_PER_WORD * packed_stride(mn) + row
    return word * SCALES_PER_WORD + column % SCALES_PER_WORD


def packed_words(columns: Any) -> Any:
    """Return how many int32 words a row of `columns` scales takes."""
    return ceil_div(columns, SCALES_PER_WORD)


def packed_group_starts(ks: list[int], gran_k: int) -> list[int]:
    """Return the first word row of each K group in the K-grouped packed layout, and after them the total.

    Each group of `k` elements has its own ceil(k / gran_k) scales and starts a fresh word. Python ints only.
    """
    starts = [0]
    for k in ks:
        starts.append(starts[-1] + packed_words(ceil_div(k, gran_k)))
    return starts


def blocked_offset(row: Any, column: Any, columns: Any) -> Any:
    """Return the byte offset of the scale of (row, K index `column`) of `columns` in the 128 x 4 blocked
    layout."""
    atom = row // ATOM_ROWS * ceil_div(columns, ATOM_COLUMNS) + column // ATOM_COLUMNS
    return atom * ATOM_BYTES + utccp_position(row % ATOM_ROWS) * ATOM_COLUMNS + column % ATOM_COLUMNS


def blocked_bytes(rows: Any, columns: Any) -> Any:
    """Return the size of the 128 x 4 blocked layout: rows rounded up to 128, columns to 4."""
    return ceil_div(rows, ATOM_ROWS) * ceil_div(columns, ATOM_COLUMNS) * ATOM_BYTES


def utccp_position(row: Any) -> Any:
    """Return where a row's word goes within its packed column for tcgen05.cp 32x128b.warpx4.

    Row 32 * i + j of every 128 moves to 4 * j + i, so that each of 32 lanes gets the four rows of its
    quarters.
    """
    return row // ATOM_ROWS * ATOM_ROWS + row % 32 * 4 + row % ATOM_ROWS // 32


def utccp_row(position: Any) -> Any:
    """Return the row whose word lies at a position of a column in UTCCP order: the inverse of
    `utccp_position`."""
    return position // ATOM_ROWS * ATOM_ROWS + position % 4 * 32 + position % ATOM_ROWS // 4
