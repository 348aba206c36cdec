"""The order in which a persistent kernel's CTAs visit the tiles of its output: plain integers.

One statement serves the device walk and the host. `tile_coordinates` uses only
`+ - * // %` and a minimum, so its arguments may be Python ints or the DSL's integers alike; kernels import it as it
is, and tests, heuristics and the emulator's checks replay the same order with ints.

An order is a function of a linear index in `0 .. count - 1`, and `cta_indices` says which indices a CTA visits. That
split is where further orders join: each is one more function `index -> coordinates` with its own count, walked by
the same `cta_indices`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Divide = Callable[[Any, Any], tuple[Any, Any]]


def divide(dividend: Any, divisor: Any) -> tuple[Any, Any]:
    """Return quotient and remainder of numbers that are not negative."""
    return dividend // divisor, dividend % divisor


def tile_coordinates(
    index: Any,
    tiles_m: Any,
    tiles_n: Any,
    group_m: Any,
    minimum: Callable[[Any, Any], Any] = min,
    division: tuple[Divide, Divide] = (divide, divide),
) -> tuple[Any, Any]:
    """Return the (m, n) tile of a linear index, in an order that keeps operands in L2.

    Tile rows are taken in groups of `group_m`. Inside a group the order goes down M first, then to the next tile
    column, so tiles in flight together share few rows of A and few columns of B. The last group may be thinner.

    Needs 0 <= index < tiles_m * tiles_n and group_m >= 1; neither is checked, because indices may be device values.
    The first four are ints or unsigned DSL integers, with `minimum` and `division` to match; `group_m` is best a
    compile-time int. division: by the tiles of a group, and by the tile rows of a group.
    """
    group, inside = division[0](index, group_m * tiles_n)
    first = group * group_m
    column, row = division[1](inside, minimum(group_m, tiles_m - first))
    return first + row, column


def cta_indices(cta: int, num_ctas: int, count: int) -> range:
    """Return the linear indices that CTA (or cluster) `cta` of `num_ctas` visits out of `count`, in order.

    Raises ValueError unless 0 <= cta < num_ctas and count >= 0.
    """
    if not 0 <= cta < num_ctas:
        raise ValueError(f"cta is {cta}; with num_ctas {num_ctas} it must lie in 0 .. {num_ctas - 1}")
    if count < 0:
        raise ValueError(f"count is {count}; it must not be negative")
    return range(cta, count, num_ctas)


def cta_tiles(cta: int, num_ctas: int, tiles_m: int, tiles_n: int, group_m: int) -> list[tuple[int, int]]:
    """Return the (m, n) tiles that a CTA of a persistent dense kernel visits, in order: the host's mirror of its walk.

    Raises ValueError for a negative number of tiles, for group_m < 1, or for a cta outside 0 .. num_ctas - 1.
    """
    if tiles_m < 0 or tiles_n < 0:
        raise ValueError(f"tiles_m is {tiles_m} and tiles_n is {tiles_n}; neither may be negative")
    if group_m < 1:
        raise ValueError(f"group_m is {group_m}; it must be at least 1")
    return [
        tile_coordinates(i, tiles_m, tiles_n, group_m) for i in cta_indices(cta, num_ctas, tiles_m * tiles_n)
    ]
