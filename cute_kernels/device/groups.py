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
from cutlass import BFloat16, Boolean, Float32, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair, tma
from cute_kernels.device.store import store_row
from cute_kernels.device.tiles import ceil_div, divide, divide_by_few, inclusive_sum, reciprocal
from cute_kernels.scheduler import tile_coordinates

LANES = 32
D_TYPES = {"bf16": BFloat16, "f32": Float32, "mxf8": Int32}  # as D is staged


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


class Walk:
    """The tiles of a CTA: tile `index`, then every `step`-th one; the place of tile `index`, and where its rows end.

    s, m, n: the Shape; rows of D or of each of its matrices, and columns. matrix: of D, and of A, or of B where
    operands are swapped: below, A is what has D's rows. row: the first of this CTA's, of which a pair has two.
    By sizes, a lane has the run of group `base` + lane, `first` and `rows`, and where its tiles `end`, and all lanes
    where those of 32 groups do, `last`.
    reciprocals: see tiles.reciprocal; of the tiles of `group_m` tile rows, of the alignment, and each lane's of its
    own number, and so of every number of tile rows that a division is by.
    """

    def __init__(
        self, s: Any, m: Any, n: Any, groups: Groups, reciprocals: tuple[Any, Any, Any], values: list[Any]
    ) -> None:
        self.s, self.m, self.n, self.groups, self.reciprocals = s, m, n, groups, reciprocals
        self.index, self.group, self.row, self.column, self.matrix, self.row_end, *state = map(Int32, values)
        self.base, self.first, self.rows, self.end, self.last = state

    def __extract_mlir_values__(self) -> list[Any]:
        place = self.index, self.group, self.row, self.column, self.matrix, self.row_end
        state = self.base, self.first, self.rows, self.end, self.last
        return [value.ir_value() for value in (*place, *state)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        return Walk(self.s, self.m, self.n, self.groups, self.reciprocals, values)

    @property
    def left(self) -> Any:
        """Whether there is a tile at the current place."""
        return self.index < self.last

    @property
    def step(self) -> Any:
        """Tiles that are under way at once: one a CTA, or a pair."""
        return Int32(cute.arch.grid_dim()[0]) // self.s.cta_group

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of D that a tile has."""
        return (self.s.tile_n, self.s.tile_m) if self.s.swap_ab else (self.s.tile_m, self.s.tile_n)

    @property
    def places(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """First row of the kernel's A, and of its B; behind that of D's rows the matrix, where there may be several."""
        row = (self.row, *self._matrix)
        return ((self.column,), row) if self.s.swap_ab else (row, (self.column,))

    @property
    def matrices(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Which matrix of the kernel's A, where there may be several, and which of its B."""
        return ((self.group,), self._matrix) if self.s.swap_ab else (self._matrix, (self.group,))

    @property
    def _matrix(self) -> tuple[Any, ...]:
        return (self.matrix,) if self.s.grouping == "sizes" else ()

    @cute.jit
    def kept(self, row: Any) -> Kept:
        """Return which of 32 rows of the current tile, from this one on, are its group's."""
        first = Int32(row)
        row = first + cute.arch.lane_idx()
        own = row < self.row_end
        if cutlass.const_expr(self.s.grouping == "indices"):
            own = (row < self.m) & ((self.groups.layout + cutlass.min(row, self.m - 1)).load() >= 0)
        whole = cute.arch.vote_all_sync(own)
        return Kept(first, own, whole, cutlass.select_(whole, first, Int32(self.m)))

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The current tile's first K tile, and the one behind its last, of so many that there are."""
        return 0, k_tiles

    def factor(self, of: tuple[Pointer, Pointer]) -> Any:
        """Return the product of the group's global scales of A and B."""
        a, b = (
            (scales + self.group * step).load() for scales, step in zip(of, self.groups.steps, strict=True)
        )
        return a * b

    @cute.jit
    def advance(self) -> None:
        """Go to this CTA's next tile."""
        self.index += self.step
        self.settle()

    @cute.jit
    def settle(self) -> None:
        """Find out what tile `index` is, or the next one that has rows of a group."""
        if cutlass.const_expr(self.s.grouping == "sizes"):
            self._settle_by_size()
        else:
            self._settle_by_index()
            while self.left & (self.group < 0):
                self.index += self.step
                self._settle_by_index()
        self.row += Int32(pair.rank(self.s.cta_group)) * (self.tile[0] // self.s.cta_group)

    def _settle_by_index(self) -> None:
        self._place(self.index, ceil_div(self.m, self.tile[0]))
        self.group = (self.groups.layout + cutlass.min(self.row, self.m - 1)).load()

    @cute.jit
    def _settle_by_size(self) -> None:
        lane, tiles_n = cute.arch.lane_idx(), Int32(ceil_div(self.n, self.tile[1]))
        while (self.last <= self.index) & (self.base + LANES < self.groups.count):
            self.base += LANES
            self.first, self.rows = self._run(self.base + lane)
            self.end = self.last + inclusive_sum(Int32(ceil_div(self.rows, self.tile[0])) * tiles_n)
            self.last = cute.arch.shuffle_sync(self.end, LANES - 1)
        behind = cute.arch.popc(cute.arch.vote_ballot_sync(Boolean(self.end <= self.index)))
        at = cutlass.min(behind, LANES - 1)  # which no tile is in where none is left
        self.group = self.base + at
        first, rows = (cute.arch.shuffle_sync(of_lane, at) for of_lane in (self.first, self.rows))
        tiles_m = cutlass.max(Int32(ceil_div(rows, self.tile[0])), Int32(1))
        start = cute.arch.shuffle_sync(self.end, at) - tiles_m * tiles_n
        self._place(self.index - start, tiles_m)
        self.row, self.row_end = self.row + first, first + rows
        self.matrix = self.group if self.groups.alignment == 0 else Int32(0)

    def _place(self, index: Any, tiles_m: Any) -> None:
        by_group, _, by_lane = self.reciprocals

        def divide_by_rows(index: Any, rows: Any) -> tuple[Any, Any]:
            return divide_by_few(index, rows, cute.arch.shuffle_sync(by_lane, Int32(rows)))

        sizes = Uint32(tiles_m), ceil_div(self.n, self.tile[1]), self.s.group_m
        division = partial(divide, inverse=by_group), divide_by_rows
        m, n = tile_coordinates(Uint32(index), *sizes, cutlass.min, division)
        self.row, self.column = Int32(m) * self.tile[0], Int32(n) * self.tile[1]

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
    first = Int32(cute.arch.block_idx()[0]) // s.cta_group
    count = Int32(ceil_div(m, s.tile_m) * ceil_div(n, s.tile_n)) if s.grouping == "indices" else Int32(0)
    rows, columns = (n, m) if s.swap_ab else (m, n)
    tiles_n = ceil_div(columns, s.tile_m if s.swap_ab else s.tile_n)
    divisors = s.group_m * tiles_n, groups.alignment, Uint32(cute.arch.lane_idx())
    reciprocals = tuple(reciprocal(divisor) for divisor in divisors)
    state = [Int32(-LANES), *[Int32(0)] * 3, count]
    result = Walk(s, rows, columns, groups, reciprocals, [first, *[Int32(0)] * 5, *state])
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
            groups.d + Int64(walk.matrix) * groups.matrix_stride + Int64(row) * groups.row_stride + column
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
