"""Grouped products: which rows a tile has, and which group of B they meet, by sizes that the device alone knows.

What the `grouping` of a Shape says of them:

    indices  rows of all groups in one A and one D: row r meets B[layout[r]], or none where that is negative. The rows
             of a tile meet the same group or none, and a tile whose first row meets none has no other that does
    sizes    a run of rows for each group: the first layout[g] of a matrix of its own, A[g] and D[g]; or, where there
             is an alignment, of one A and D for all, up to row layout[g], from where the run before ends, rounded up

Every warp walks for itself, in step with the others of its CTA, and as a whole: lanes share out what is to be read.
They read `layout` in global memory, after griddepcontrol.wait and anew in each launch, so a captured launch serves
whatever sizes it holds by then.

A tile of a CTA pair has a matrix of B for both halves of its rows, and both CTAs walk alike: they ask what the tile is,
each then adds the rows before its own. By sizes no tile reaches beyond its group, whatever it begins with; by indices a
tile is one of 256 rows, and the host takes pairs only where groups begin at multiples of that.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair, tma
from cute_kernels.device.store import store_row
from cute_kernels.device.tiles import (
    LANES,
    Ahead,
    ceil_div,
    divide,
    divide_by_few,
    inclusive_sum,
    not_above,
    own_tiles,
    reciprocal,
)
from cute_kernels.scheduler import tile_coordinates

D_TYPES = {"bf16": BFloat16, "f32": Float32, "mxf8": Int32}  # as D is staged
MATRIX, GROUP, ROW_END = range(2, 5)  # what a lane knows of a tile, beside where it is


class Groups(NamedTuple):
    """What a grouped launch has beside that of one product.

    layout: Int32, as above. count: of groups. alignment: of runs in one matrix; 0 for a matrix each (sizes).
    d: of the type that D is staged in; row_stride and matrix_stride: of these, from a row, and a matrix, to the next.
    steps: elements from a group's global scale to the next one's, of A and of B; 0 where all have the same.
    """

    layout: Pointer
    count: Any
    alignment: Any
    d: Pointer
    row_stride: Any
    matrix_stride: Any
    steps: tuple[Any, ...]


class Kept(NamedTuple):
    """Which of a warp's 32 rows of D, from `first` on, are stored, being of the tile's group.

    own_row: whether this lane's is. all_rows: whether all are. box: their first row for TMA; where not all are, one
    behind the last row of D, so that TMA stores nothing.
    """

    first: Any
    own_row: Any
    all_rows: Any
    box: Any


class Walk(Ahead):
    """The tiles of a CTA; each lane knows first row and column of one, its matrix and group, and where its rows end.

    s, m, n: the Shape; rows of D or of each of its matrices, and columns. matrix: of D, and of A, or of B where
    operands are swapped: below, A is what has D's rows. row: the first of this CTA's, of which a pair has two.
    window: by sizes, groups are searched 32 at a time. A lane has the run of group `base` + lane, `first` and `rows`,
    and where its tiles `end`, and all lanes where those of the 32 groups do, `last`.
    reciprocals: see tiles.reciprocal; of the tiles of `group_m` tile rows, of the alignment, and each lane's of its
    own number, and so of every number of tile rows that a division is by.
    """

    def __init__(self, s: Any, m: Any, n: Any, groups: Groups, reciprocals: tuple[Any, Any, Any]) -> None:
        super().__init__(*own_tiles(s.cta_group), lanes=1 + ROW_END)
        self.s, self.m, self.n, self.groups, self.reciprocals = s, m, n, groups, reciprocals
        self.base, self.first, self.rows, self.end, self.last = map(Int32, (-LANES, 0, 0, 0, 0))

    def __extract_mlir_values__(self) -> list[Any]:
        window = self.base, self.first, self.rows, self.end, self.last
        return [*(value.ir_value() for value in window), *super().__extract_mlir_values__()]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        result: Walk = super().__new_from_mlir_values__(values[5:])
        result.base, result.first, result.rows, result.end, result.last = map(Int32, values[:5])
        return result

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of D that a tile has."""
        return (self.s.tile_n, self.s.tile_m) if self.s.swap_ab else (self.s.tile_m, self.s.tile_n)

    def places(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """First row of the kernel's A, and of its B; behind that of D's rows the matrix, where there may be several."""
        row, column = self.place()
        rows, columns = (row, *self._matrix()), (column,)
        return (columns, rows) if self.s.swap_ab else (rows, columns)

    def matrices(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Which matrix of the kernel's A, where there may be several, and which of its B."""
        group = (self.known(GROUP),)
        return (group, self._matrix()) if self.s.swap_ab else (self._matrix(), group)

    def _matrix(self) -> tuple[Any, ...]:
        return (self.known(MATRIX),) if self.s.grouping == "sizes" else ()

    @cute.jit
    def kept(self, row: Any) -> Kept:
        """Return which of 32 rows of the current tile, from this one on, are its group's."""
        first = Int32(row)
        row = first + cute.arch.lane_idx()
        if cutlass.const_expr(self.s.grouping == "indices"):
            own = (row < self.m) & ((self.groups.layout + cutlass.min(row, self.m - 1)).load() >= 0)
        else:
            own = row < self.known(ROW_END)
        whole = cute.arch.vote_all_sync(own)
        return Kept(first, own, whole, cutlass.select_(whole, first, Int32(self.m)))

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The current tile's first K tile, and the one behind its last, of so many that there are."""
        return 0, k_tiles

    def factor(self, of: tuple[Pointer, Pointer]) -> Any:
        """Return the product of the group's global scales of A and B."""
        a, b = (
            (scales + self.known(GROUP) * step).load()
            for scales, step in zip(of, self.groups.steps, strict=True)
        )
        return a * b

    @cute.jit
    def settle(self) -> None:
        """Give the next tiles that have rows of a group to the lanes, if there are any."""
        if cutlass.const_expr(self.s.grouping == "sizes"):
            self._take_by_size()
        else:
            tiles_m = ceil_div(self.m, self.tile[0])
            count = tiles_m * ceil_div(self.n, self.tile[1])
            self._take_by_index(tiles_m, count)
            while (self.turn == 0) & (self.index < count):
                self.turn = Int32(0)  # as it is: see Ahead.advance
                self._take_by_index(tiles_m, count)

    def _take_by_index(self, tiles_m: Any, count: Any) -> None:
        own = self.own_index()
        row, column = self._place(own, tiles_m)
        group = (self.groups.layout + cutlass.min(row, self.m - 1)).load()
        lanes = self._own_half(row), column, Int32(0), group, Int32(0)
        self.have((own < count) & (group >= 0), lanes, gaps=True)

    @cute.jit
    def _take_by_size(self) -> None:
        own = Int32(self.own_index())
        furthest = cute.arch.shuffle_sync(own, LANES - 1)
        tiles_n = Int32(ceil_div(self.n, self.tile[1]))
        group, first, rows, end = self._find(own)
        while (self.last <= furthest) & (self.base + LANES < self.groups.count):
            before = self.last
            self.base += LANES
            self.first, self.rows = self._run(self.base + cute.arch.lane_idx())
            self.end = before + inclusive_sum(Int32(ceil_div(self.rows, self.tile[0])) * tiles_n)
            self.last = cute.arch.shuffle_sync(self.end, LANES - 1)
            found = self._find(own)
            if own >= before:
                group, first, rows, end = found
        tiles_m = cutlass.max(Int32(ceil_div(rows, self.tile[0])), Int32(1))
        row, column = self._place(own - (end - tiles_m * tiles_n), tiles_m)
        matrix = group if self.groups.alignment == 0 else Int32(0)
        self.have(own < self.last, (self._own_half(first + row), column, matrix, group, first + rows))

    def _find(self, index: Any) -> tuple[Any, Any, Any, Any]:
        """Return the group of the window that this lane's tile is of; first row and rows of its run; its tiles' end."""
        at = not_above(self.end, index)
        return self.base + at, *(cute.arch.shuffle_sync(of, at) for of in (self.first, self.rows, self.end))

    def _own_half(self, row: Any) -> Any:
        return row + Int32(pair.rank(self.s.cta_group)) * (self.tile[0] // self.s.cta_group)

    def _place(self, index: Any, tiles_m: Any) -> tuple[Any, Any]:
        """Return first row and column of a tile, each lane of its own, in an output of so many tile rows."""
        by_group, _, by_lane = self.reciprocals

        def divide_by_rows(index: Any, rows: Any) -> tuple[Any, Any]:
            return divide_by_few(index, rows, cute.arch.shuffle_sync(by_lane, Int32(rows)))

        sizes = Uint32(tiles_m), ceil_div(self.n, self.tile[1]), self.s.group_m
        division = partial(divide, inverse=by_group), divide_by_rows
        m, n = tile_coordinates(Uint32(index), *sizes, cutlass.min, division)
        return Int32(m) * self.tile[0], Int32(n) * self.tile[1]

    @cute.jit
    def _run(self, group: Any) -> Any:
        """Return the first row of a group's run and the number of its rows: none behind the last group."""
        layout, alignment = self.groups.layout, self.groups.alignment
        inside = cutlass.min(group, self.groups.count - 1)
        first, end = Int32(0), (layout + inside).load()
        if (alignment > 0) & (inside > 0):
            before = Uint32((layout + inside - 1).load() + alignment - 1)
            _, over = divide(before, Uint32(alignment), self.reciprocals[1])
            first = Int32(before - over)
        rows = cutlass.max(cutlass.min(end, self.m) - first, Int32(0))
        if group >= self.groups.count:
            rows = Int32(0)
        return first, rows


@cute.jit
def walk(s: Any, m: Any, n: Any, groups: Groups) -> Walk:
    """Return this CTA's walk over the tiles of grouped products; the grid is one-dimensional, `groups` not empty.

    By whole warps, after griddepcontrol.wait.
    """
    # Inside a tuple, parameters are pointers of another kind, which do not store vectors.
    layout, d = Pointer(groups.layout, dtype=Int32), Pointer(groups.d, dtype=D_TYPES[s.d_dtype])
    groups = groups._replace(layout=layout, d=d)
    rows, columns = (n, m) if s.swap_ab else (m, n)
    tiles_n = ceil_div(columns, s.tile_m if s.swap_ab else s.tile_n)
    divisors = s.group_m * tiles_n, groups.alignment, Uint32(cute.arch.lane_idx())
    reciprocals = tuple(reciprocal(divisor) for divisor in divisors)
    result = Walk(s, rows, columns, groups, reciprocals)
    result.settle()
    return result


@cute.jit
def store(
    walk: Walk, map_d: Any, place: tuple[Any, ...], staged: tuple[Any, Any, Any], kept: Kept, leader: Any
) -> None:
    """Store what a warp has staged of 32 rows of D: by TMA if all are kept, else those that are, a lane each.

    place: column, row and, if there are several, matrix of the first element; of rows that count from `kept.box`.
    staged: array, first element of the staging buffer, and chunk_offsets; published, as for TMA.
    """
    array, start, chunks = staged
    if leader:
        tma.store(map_d, array.subview(start), place)
    if not kept.all_rows:
        groups, of_d = walk.groups, walk.s.staged_elements
        column = Int32(place[0]) // of_d
        row = apart(kept.first + cute.arch.lane_idx()) + (Int32(place[1]) - kept.box)
        target = (
            groups.d
            + Int64(walk.known(MATRIX)) * groups.matrix_stride
            + Int64(row) * groups.row_stride
            + column
        )
        store_row(target, walk.n // of_d - column, array, start, chunks, kept.own_row)


def apart(value: Any) -> Any:
    """Return an Int32 such that what is made of it is computed where it stands: not for all stores of a tile at once.

    Few tiles need it, and all others would compute it too.
    """
    result = prims.inline_ptx("mov.b32 {$w0}, {$r0};", write_only_types=[Int32], read_only_args=[value])
    return Int32(result)


def placeholder(s: Any) -> Groups | None:
    """Return parameters of a Shape's groups for tracing an entry, which types the kernel's."""
    if not s.grouping:
        return None
    layout, d = (
        make_ptr(t, 16, cute.AddressSpace.gmem, assumed_align=16) for t in (Int32, D_TYPES[s.d_dtype])
    )
    zero = Int32(0)
    return Groups(layout, zero, zero, d, zero, Int64(0), (zero, zero) if s.global_scales else ())
