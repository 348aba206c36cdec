"""The tile order: every tile once, groups that stay together, and the same walk from every CTA's point of view."""

from __future__ import annotations

import itertools

import pytest

from cute_kernels.scheduler import cta_indices, cta_tiles, tile_coordinates

SIZES = (1, 2, 3, 5, 8, 13)


def reference_order(tiles_m: int, tiles_n: int, group_m: int) -> list[tuple[int, int]]:
    """The same order as three nested loops, without any division."""
    return [
        (m, n)
        for first in range(0, tiles_m, group_m)
        for n in range(tiles_n)
        for m in range(first, min(first + group_m, tiles_m))
    ]


@pytest.mark.parametrize("group_m", [1, 2, 3, 4, 7, 8, 16])
def test_order_equals_nested_loops(group_m: int) -> None:
    for tiles_m, tiles_n in itertools.product(SIZES, SIZES):
        walked = [tile_coordinates(i, tiles_m, tiles_n, group_m) for i in range(tiles_m * tiles_n)]
        assert walked == reference_order(tiles_m, tiles_n, group_m), (tiles_m, tiles_n)


def test_order_written_out() -> None:
    """Five tile rows in groups of two: two full groups, then one row."""
    assert cta_tiles(0, 1, 5, 2, 2) == [
        *[(0, 0), (1, 0), (0, 1), (1, 1)],
        *[(2, 0), (3, 0), (2, 1), (3, 1)],
        *[(4, 0), (4, 1)],
    ]


@pytest.mark.parametrize("num_ctas", [1, 2, 7, 132])
def test_ctas_share_every_tile_once(num_ctas: int) -> None:
    for tiles_m, tiles_n in itertools.product(SIZES, SIZES):
        walks = [cta_tiles(cta, num_ctas, tiles_m, tiles_n, 4) for cta in range(num_ctas)]
        visited = sorted(itertools.chain.from_iterable(walks))
        assert visited == list(itertools.product(range(tiles_m), range(tiles_n)))
        lengths = {len(walk) for walk in walks}
        assert max(lengths) - min(lengths) <= 1, "no CTA has two tiles more than another"


def test_ctas_in_flight_together_stay_in_a_group() -> None:
    """A wave of 16 CTAs over groups of 4 tile rows touches 4 rows of A and 4 columns of B, not 16 of either."""
    wave = [cta_tiles(cta, 16, 32, 32, 4)[0] for cta in range(16)]
    assert {m for m, _ in wave} == set(range(4))
    assert {n for _, n in wave} == set(range(4))


def test_no_tiles() -> None:
    assert cta_tiles(0, 4, 0, 9, 8) == []
    assert cta_tiles(3, 4, 9, 0, 8) == []
    assert list(cta_indices(5, 8, 3)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 4, 2, 2, 1), r"cta is -1; with num_ctas 4 it must lie in 0 \.\. 3"),
        ((4, 4, 2, 2, 1), "cta is 4"),
        ((0, 0, 2, 2, 1), "num_ctas 0"),
        ((0, 4, -1, 2, 1), "tiles_m is -1"),
        ((0, 4, 1, -2, 1), "tiles_n is -2"),
        ((0, 4, 1, 2, 0), "group_m is 0; it must be at least 1"),
    ],
)
def test_refusals(arguments: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cta_tiles(*arguments)


def test_negative_count_refused() -> None:
    with pytest.raises(ValueError, match="count is -1"):
        cta_indices(0, 1, -1)
