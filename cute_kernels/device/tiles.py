"""The persistent walk: which tiles of the output this CTA computes, and in what order.

The order itself is cute_kernels/scheduler.py's, the same function on the device as on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair
from cute_kernels.scheduler import tile_coordinates

ALL_ONES = 2**32 - 1


class Walk:
    """A static walk: tile `index`, then every `step`-th one below `count`.

    tile: rows, columns. batched: whether there are several outputs of one size, tile after tile of each.
    ctas: that compute a tile together, of which each has as many rows; of 4, two have half the columns each.
    reciprocals: of the tiles of a group of rows, of the tile rows of the last group, and of an output's tiles; see
        `reciprocal`.
    """

    def __init__(
        self,
        index: Any,
        step: Any,
        tiles_m: Any,
        tiles_n: Any,
        count: Any,
        group_m: int,
        tile: tuple[int, int],
        batched: bool,
        ctas: int,
        reciprocals: tuple[Any, Any, Any],
    ) -> None:
        self.index, self.step, self.tiles_m, self.tiles_n = index, step, tiles_m, tiles_n
        self.count, self.group_m, self.tile, self.batched = count, group_m, tile, batched
        self.ctas, self.reciprocals = ctas, reciprocals

    def __extract_mlir_values__(self) -> list[Any]:
        return [v.ir_value() for v in (self.index, self.step, self.tiles_m, self.tiles_n, self.count)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        index, step, tiles_m, tiles_n, count = map(Uint32, values)
        fixed = self.group_m, self.tile, self.batched, self.ctas, self.reciprocals
        return Walk(index, step, tiles_m, tiles_n, count, *fixed)

    @property
    def left(self) -> Any:
        """Whether there is a tile at the current place."""
        return self.index < self.count

    @property
    def places(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """First row of A and D for this CTA, and first row of B; behind each the batch, where there are several."""
        *of_order, by_output = self.reciprocals
        index = self.index
        batch: tuple[Any, ...] = ()
        if self.batched:
            output, index = divide(self.index, self.tiles_m * self.tiles_n, by_output)
            batch = (output,)
        m, n = coordinates(index, self.tiles_m, self.tiles_n, self.group_m, of_order)
        row = m * self.tile[0] + pair.rank(self.ctas) * (self.tile[0] // min(self.ctas, 2))
        column = n * self.tile[1] + pair.which(self.ctas) * (self.tile[1] // 2)
        return (row, *batch), (column, *batch)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The current tile's first K tile, and the one behind its last, of so many that there are."""
        return 0, k_tiles

    def advance(self) -> None:
        """Go to this CTA's next tile."""
        self.index += self.step


def ceil_div(a: Any, b: int) -> Any:
    """Return a / b rounded up, for a >= 0 of up to 2**31 - b."""
    return (Uint32(a) + (b - 1)) // b


def walk(m: Any, n: Any, tile: tuple[int, int], group_m: int, batches: Any = None, ctas: int = 1) -> Walk:
    """Return this CTA's walk over the tiles of an [m, n] output, or of several; the grid is one-dimensional.

    ctas: 2 where CTA pairs compute a tile each, and each CTA half its rows; 4 where clusters of two pairs do, and each
        pair half its columns. The grid is then of whole clusters.
    """
    tiles_m, tiles_n = ceil_div(m, tile[0]), ceil_div(n, tile[1])
    first, step = Uint32(cute.arch.block_idx()[0]), Uint32(cute.arch.grid_dim()[0])
    count = tiles_m * tiles_n
    batched = batches is not None
    count = count * Uint32(batches) if batched else count
    by_output = reciprocal(tiles_m * tiles_n) if batched else None
    reciprocals = *reciprocals_of_order(tiles_m, tiles_n, group_m), by_output
    return Walk(
        first // ctas, step // ctas, tiles_m, tiles_n, count, group_m, tile, batched, ctas, reciprocals
    )


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
    rest = dividend - low * divisor
    more = Uint32(rest >= divisor)
    return low + more, rest - more * divisor


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


@cute.jit
def inclusive_sum(value: Any) -> Any:
    """Return the sum of an Int32 over this lane and all below it; by a whole warp."""
    lane = cute.arch.lane_idx()
    for distance in cutlass.range_constexpr(5):
        below = cute.arch.shuffle_sync_up(value, 1 << distance)
        if lane >= 1 << distance:
            value += below
    return value
