"""The persistent walk: which tiles of the output this CTA computes, and in what order.

The order itself is cute_kernels/scheduler.py's, the same function on the device as on the host.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Uint32

from cute_kernels.scheduler import tile_coordinates


class Walk:
    """A static walk: tile `index`, then every `step`-th one below `count`."""

    def __init__(self, index: Any, step: Any, tiles_m: Any, tiles_n: Any, count: Any, group_m: int) -> None:
        self.index, self.step, self.tiles_m, self.tiles_n = index, step, tiles_m, tiles_n
        self.count, self.group_m = count, group_m

    def __extract_mlir_values__(self) -> list[Any]:
        return [v.ir_value() for v in (self.index, self.step, self.tiles_m, self.tiles_n, self.count)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        index, step, tiles_m, tiles_n, count = map(Uint32, values)
        return Walk(index, step, tiles_m, tiles_n, count, self.group_m)

    @property
    def left(self) -> Any:
        """Whether there is a tile at the current place."""
        return self.index < self.count

    @property
    def coordinates(self) -> tuple[Any, Any]:
        """Tile row and tile column of the current place."""
        return tile_coordinates(self.index, self.tiles_m, self.tiles_n, self.group_m, cutlass.min)

    def advance(self) -> None:
        """Go to this CTA's next tile."""
        self.index += self.step


def ceil_div(a: Any, b: int) -> Any:
    """Return a / b rounded up, for a >= 0 of up to 2**31 - b."""
    return (Uint32(a) + (b - 1)) // b


def walk(m: Any, n: Any, tile_m: int, tile_n: int, group_m: int) -> Walk:
    """Return this CTA's walk over the tiles of an [m, n] output; the grid is one-dimensional."""
    tiles_m, tiles_n = ceil_div(m, tile_m), ceil_div(n, tile_n)
    first, step = Uint32(cute.arch.block_idx()[0]), Uint32(cute.arch.grid_dim()[0])
    return Walk(first, step, tiles_m, tiles_n, tiles_m * tiles_n, group_m)
