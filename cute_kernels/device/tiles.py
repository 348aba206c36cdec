"""The persistent walk: which tiles of the output this CTA computes, and in what order.

The order itself is cute_kernels/scheduler.py's, the same function on the device as on the host.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Constexpr, Int32, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair
from cute_kernels.scheduler import tile_coordinates

ALL_ONES = 2**32 - 1
LANES = 32


class Order(NamedTuple):
    """Where the tiles of an output lie, or of several of one size.

    outputs: how many, tile after tile of each; None of a single one. tile: rows, columns.
    ctas: that compute a tile together, of which each has as many rows; of 4, two have half the columns each.
    reciprocals: of the tiles of a group of rows, of the tile rows of the last group, and of an output's tiles; see
        `reciprocal`.
    """

    tiles_m: Any
    tiles_n: Any
    outputs: Any
    group_m: int
    tile: tuple[int, int]
    ctas: int
    reciprocals: tuple[Any, Any, Any]

    @property
    def count(self) -> Any:
        """How many tiles there are."""
        tiles = self.tiles_m * self.tiles_n
        return tiles if self.outputs is None else tiles * self.outputs

    def place(self, index: Any) -> list[Any]:
        """Return a tile's first row and column for this CTA, and the output where there are several: Uint32."""
        *of_order, by_output = self.reciprocals
        outputs = []
        if self.outputs is not None:
            output, index = divide(index, self.tiles_m * self.tiles_n, by_output)
            outputs = [output]
        m, n = coordinates(index, self.tiles_m, self.tiles_n, self.group_m, of_order)
        row = m * self.tile[0] + pair.rank(self.ctas) * (self.tile[0] // min(self.ctas, 2))
        column = n * self.tile[1] + pair.which(self.ctas) * (self.tile[1] // 2)
        return [Uint32(value) for value in (row, column, *outputs)]


class Ahead:
    """A CTA's tiles, 32 at a time: each lane finds out what one of them is, and a turn of a role only asks that lane.

    index: of the first tile that no lane has had, of all; every `step`-th is this CTA's. turn: counts up to 0 over the
    lanes that have a tile, which are the last ones; lane turn % 32 has the current one. lanes: Int32 of each lane, what
    it knows of its tile.

    A subclass says in `settle` how the lanes come by the next tiles. By whole warps.
    """

    def __init__(self, index: Any, step: Any, lanes: int) -> None:
        self.index, self.step = Uint32(index), Uint32(step)
        self.turn, self.lanes = Int32(0), [Int32(0)] * lanes

    def __extract_mlir_values__(self) -> list[Any]:
        return [value.ir_value() for value in (self.index, self.turn, *self.lanes)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Any:
        result = copy.copy(self)
        result.index, result.turn = Uint32(values[0]), Int32(values[1])
        result.lanes = [Int32(value) for value in values[2:]]
        return result

    @property
    def left(self) -> Any:
        """Whether there is a tile at the current place."""
        return self.turn != 0

    @cute.jit
    def advance(self) -> None:
        """Go to this CTA's next tile."""
        self.turn += 1
        if self.turn == 0:
            self.turn = Int32(0)  # as it is: the tracer sees by this that the branch changes the walk
            self.settle()

    def settle(self) -> None:
        """Give the next tiles to the lanes, if there are any."""
        raise NotImplementedError

    def own_index(self) -> Any:
        """Return which tile is this lane's next one, there or not, and go beyond those of all lanes."""
        own = self.index + Uint32(cute.arch.lane_idx()) * self.step
        self.index += self.step * LANES
        return own

    def have(self, kept: Any, lanes: Sequence[Any], gaps: bool = False) -> None:
        """Have the tiles of these lanes as far as they are `kept`: those of the first lanes, or of any.

        lanes: what each knows of its tile. gaps: whether tiles between may be passed over.
        """
        ballot = cute.arch.vote_ballot_sync(Boolean(kept))
        count = Int32(cute.arch.popc(ballot))
        source = cute.arch.lane_idx() - (LANES - count)
        if gaps:
            up_to_own = (Uint32(2) << Uint32(cute.arch.lane_idx())) - 1
            source = not_above(Int32(cute.arch.popc(Uint32(ballot) & up_to_own)), source)
        self.turn, self.lanes = -count, [cute.arch.shuffle_sync(Int32(value), source) for value in lanes]

    def known(self, which: int) -> Any:
        """Return one of the values of `lanes` for the current tile."""
        return cute.arch.shuffle_sync(self.lanes[which], self.turn)

    def place(self) -> tuple[Any, Any]:
        """Return the first two of them, the first row and column: Uint32, since they are divided further on."""
        return Uint32(self.known(0)), Uint32(self.known(1))


class Walk(Ahead):
    """A static walk over all tiles of an Order."""

    def __init__(self, index: Any, step: Any, order: Order) -> None:
        super().__init__(index, step, 2 + (order.outputs is not None))
        self.order = order

    def places(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """First row of A and D for this CTA, and first row of B; behind each the batch, where there are several."""
        row, column = self.place()
        batch = () if self.order.outputs is None else (self.known(2),)
        return (row, *batch), (column, *batch)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The current tile's first K tile, and the one behind its last, of so many that there are."""
        return 0, k_tiles

    @cute.jit
    def settle(self) -> None:
        """Give the next tiles to the lanes, if there are any."""
        own = self.own_index()
        self.have(own < self.order.count, self.order.place(own))


def ceil_div(a: Any, b: int) -> Any:
    """Return a / b rounded up, for a >= 0 of up to 2**31 - b."""
    return (Uint32(a) + (b - 1)) // b


def order(m: Any, n: Any, tile: tuple[int, int], group_m: int, batches: Any = None, ctas: int = 1) -> Order:
    """Return the order of the tiles of an [m, n] output, or of several."""
    tiles_m, tiles_n = ceil_div(m, tile[0]), ceil_div(n, tile[1])
    batches = None if batches is None else Uint32(batches)
    by_output = None if batches is None else reciprocal(tiles_m * tiles_n)
    reciprocals = *reciprocals_of_order(tiles_m, tiles_n, group_m), by_output
    return Order(tiles_m, tiles_n, batches, group_m, tile, ctas, reciprocals)


def own_tiles(ctas: int = 1) -> tuple[Any, Any]:
    """Return the first of this CTA's tiles, and the distance to the next, in a one-dimensional grid.

    ctas: 2 where CTA pairs compute a tile each, and each CTA half its rows; 4 where clusters of two pairs do, and each
        pair half its columns. The grid is then of whole clusters.
    """
    return Uint32(cute.arch.block_idx()[0]) // ctas, Uint32(cute.arch.grid_dim()[0]) // ctas


@cute.jit
def walk(of: Constexpr) -> Walk:
    """Return this CTA's walk over the tiles of an Order; the grid is one-dimensional."""
    result = Walk(*own_tiles(of.ctas), of)
    result.settle()
    return result


def reciprocals_of_order(tiles_m: Any, tiles_n: Any, group_m: int) -> tuple[Any, Any]:
    """Return what `coordinates` takes: of the tiles of a group of rows, and of the tile rows of the last group."""
    last = tiles_m - (cutlass.max(tiles_m, Uint32(1)) - 1) // group_m * group_m
    return reciprocal(group_m * tiles_n), reciprocal(last)


def coordinates(
    index: Any, tiles_m: Any, tiles_n: Any, group_m: int, reciprocals: Sequence[Any]
) -> tuple[Any, Any]:
    """Return the (m, n) tile of an index of one output; reciprocals: `reciprocals_of_order`."""
    by_group, by_last = reciprocals

    def divide_by_rows(index: Any, rows: Any) -> tuple[Any, Any]:
        whole = Uint32(ALL_ONES // group_m)
        return divide_by_few(index, rows, cutlass.select_(rows == group_m, whole, by_last))

    division = partial(divide, inverse=by_group), divide_by_rows
    return tile_coordinates(index, tiles_m, tiles_n, group_m, cutlass.min, division)


def reciprocal(divisor: Any) -> Any:
    """Return what `divide` takes: 2**32 - 1 over a divisor, Uint32, rounded down; anything for 0."""
    return Uint32(ALL_ONES) // cutlass.max(Uint32(divisor), Uint32(1))


def divide(dividend: Any, divisor: Any, inverse: Any) -> tuple[Any, Any]:
    """Return quotient and remainder of Uint32; inverse: the divisor's `reciprocal`.

    dividend / divisor - dividend * inverse / 2**32 is not negative and less than 1, so the upper half of the product
    is the quotient, or one less.
    """
    low = upper_half(dividend, inverse)
    quotient, rest = prims.inline_ptx(
        # As arithmetic, the compiler would make the remainder a minimum, which uniform registers do not have.
        "{ .reg .pred more; setp.ge.u32 more, {$r1}, {$r2}; mov.b32 {$w0}, {$r0}; mov.b32 {$w1}, {$r1}; "
        "@more add.s32 {$w0}, {$r0}, 1; @more sub.s32 {$w1}, {$r1}, {$r2}; }",
        write_only_types=[Uint32, Uint32],
        read_only_args=[low, dividend - low * divisor, Uint32(divisor)],
    )
    return Uint32(quotient), Uint32(rest)


def divide_by_few(dividend: Any, divisor: Any, inverse: Any) -> tuple[Any, Any]:
    """Do as `divide` does, where (dividend + 1) * divisor is less than 2**32: by tile rows, whose tiles are no more.

    (dividend + 1) / divisor - (dividend + 1) * inverse / 2**32 is positive and at most (dividend + 1) / 2**32, so at
    most 1 / divisor: the upper half is the quotient.
    """
    quotient = upper_half(dividend + 1, inverse)
    return quotient, dividend - quotient * divisor


def upper_half(a: Any, b: Any) -> Any:
    """Return the upper half of the product of two Uint32."""
    product = prims.inline_ptx(
        "mul.hi.u32 {$w0}, {$r0}, {$r1};", write_only_types=[Uint32], read_only_args=[Uint32(a), b]
    )
    return Uint32(product)


def not_above(values: Any, limit: Any) -> Any:
    """Return how many lanes' values are at most this lane's limit, but not more than 31; by a whole warp.

    The values do not fall from lane to lane.
    """
    count = Int32(0)
    for step in (16, 8, 4, 2, 1):
        value = cute.arch.shuffle_sync(values, count + (step - 1))
        count = cutlass.select_(value <= limit, count + step, count)
    return count


@cute.jit
def inclusive_sum(value: Any) -> Any:
    """Return the sum of an Int32 over this lane and all below it; by a whole warp."""
    lane = cute.arch.lane_idx()
    for distance in cutlass.range_constexpr(5):
        below = cute.arch.shuffle_sync_up(value, 1 << distance)
        if lane >= 1 << distance:
            value += below
    return value
