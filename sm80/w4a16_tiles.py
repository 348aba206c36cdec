"""Which part of D a tile is, where its rows of X lie, and whose weights they meet: for one matrix and for experts;
and which tiles a CTA has.

Layouts of X [M, K] and D [M, N]:

    dense        all rows meet one W
    contiguous   row r meets W[layout[r]], or none where that is -1; rows of a tile meet the same one, or none
    masked       X and D are a matrix for each expert, of which rows below layout[expert] are in use

The layout is read from global memory, by every warp for itself, after griddepcontrol.wait.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Constexpr, Int32, Uint32

from cute_kernels.device import streamk
from cute_kernels.device.tiles import ceil_div, inclusive_sum
from cute_kernels.scheduler import tile_coordinates

LANES = 32


class Size(NamedTuple):
    """The problem. m: rows of X, or of each of its matrices; experts: of W; layout: pointer to Int32, as above."""

    m: Any
    n: Any
    k: Any
    experts: Any
    layout: Any


class Tile(NamedTuple):
    """A tile of D: its first row and column, its matrix of X and D, its expert (none: -1), and where rows end."""

    row: Any
    column: Any
    matrix: Any
    expert: Any
    rows: Any


@cute.jit
def count_tiles(s: Constexpr, size: Size) -> Any:
    """Return how many tiles there are; by whole warps."""
    tiles_n = Int32(ceil_div(size.n, s.tile_n))
    if cutlass.const_expr(s.layout != "masked"):
        return Int32(ceil_div(size.m, s.tile_m)) * tiles_n
    rows = Int32(0)
    for base in cutlass.range(0, size.experts, LANES, unroll=1):
        rows += tile_rows(s, size, base + cute.arch.lane_idx())
    return cute.arch.warp_redux_sync(rows, "add") * tiles_n


@cute.jit
def tile_rows(s: Constexpr, size: Size, expert: Any) -> Any:
    """Return the tile rows of an expert's matrix; of none behind the last."""
    used = (size.layout + cutlass.min(expert, size.experts - 1)).load()
    used = cutlass.max(cutlass.min(used, size.m), Int32(0))
    return Int32(ceil_div(used, s.tile_m)) if expert < size.experts else Int32(0)


@cute.jit
def locate(s: Constexpr, size: Size, index: Any) -> Tile:
    """Return tile `index`; by whole warps."""
    tiles_n, zero = Int32(ceil_div(size.n, s.tile_n)), Int32(0)
    if cutlass.const_expr(s.layout == "masked"):
        lane = cute.arch.lane_idx()
        base, before, end = (
            Int32(-LANES),
            Int32(0),
            Int32(0),
        )  # tiles of experts below base, and of 32 from there on
        ends = Int32(0)  # of the expert base + lane
        while end <= Int32(index):
            base += LANES
            before = end
            ends = before + inclusive_sum(tile_rows(s, size, base + lane) * tiles_n)
            end = cute.arch.shuffle_sync(ends, LANES - 1)
        at = cute.arch.popc(cute.arch.vote_ballot_sync(Boolean(ends <= Int32(index))))
        expert = base + at
        start = cute.arch.shuffle_sync(ends, at) - tile_rows(s, size, expert) * tiles_n
        m, n = place(s, Int32(index) - start, tile_rows(s, size, expert), tiles_n)
        rows = cutlass.min((size.layout + expert).load(), size.m)
        return Tile(m, n, expert, expert, rows)
    m, n = place(s, index, ceil_div(size.m, s.tile_m), tiles_n)
    expert = zero
    if cutlass.const_expr(s.layout == "contiguous"):
        expert = (size.layout + m).load()
    return Tile(m, n, zero, expert, size.m)


def place(s: Any, index: Any, tiles_m: Any, tiles_n: Any) -> tuple[Any, Any]:
    """Return the first row and column of a tile of a matrix."""
    m, n = tile_coordinates(Uint32(index), Uint32(tiles_m), Uint32(tiles_n), s.group_m, cutlass.min)
    return Int32(m) * s.tile_m, Int32(n) * s.tile_n


@cute.jit
def keeps(s: Constexpr, size: Size, tile: Tile, row: Any) -> Any:
    """Return whether a row of the tile's matrix is to be stored."""
    inside = Boolean(row < tile.rows)
    if cutlass.const_expr(s.layout == "contiguous"):
        inside = inside & ((size.layout + cutlass.min(row, size.m - 1)).load() >= 0)
    return inside


@cute.jit
def segment(s: Constexpr, size: Any, walk: Any) -> tuple[Any, Any]:
    """Return the current segment's first K step and how many it has: none, where the tile's rows are nobody's."""
    count = Int32(walk.count)
    if cutlass.const_expr(s.layout == "contiguous"):
        count = count if locate(s, size, walk.tile).expert >= 0 else Int32(0)
    return Int32(walk.first), count


@cute.jit
def divide(s: Constexpr, size: Any, division: Any) -> Any:
    """Return this CTA's walk. division: tiles that it does whole, and K steps of its share; masked: not read."""
    tiles, k_steps = Uint32(count_tiles(s, size)), ceil_div(size.k, s.tile_k)
    whole, share = division
    if cutlass.const_expr(s.layout == "masked"):
        ctas = Uint32(cute.arch.grid_dim()[0])
        whole = tiles // ctas
        whole -= cutlass.min(whole, Uint32(1))  # a share of at least a tile's K steps, as the host divides
        share = cutlass.max(((tiles - whole * ctas) * k_steps + ctas - 1) // ctas, Uint32(1))
    return streamk.walk(whole, share, k_steps, tiles)
