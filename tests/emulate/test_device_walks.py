"""Walks over tiles of groups and over segments, run on the emulator alone, against plain Python.

With few CTAs, so that each has more tiles than a warp has lanes, and with more groups than that.
"""

from __future__ import annotations

import tempfile
from functools import cache
from typing import Any

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Constexpr, Int32

from cute_kernels.device import groups, k_groups, splitk, tiles
from cute_kernels.emulator import Device
from cute_kernels.scheduler import cta_tiles, tile_coordinates
from sm100.shape import Shape

TILE_M, TILE_N = 128, 64
UNWRITTEN = -7
SHAPES = {
    "indices": Shape(tile_n=TILE_N, stages=2, d_dtype="bf16", accumulate=False, grouping="indices"),
    "sizes": Shape(tile_n=TILE_N, stages=2, d_dtype="bf16", accumulate=False, grouping="sizes"),
}


@cute.jit
def write(out: cutlass.Pointer, at: Any, values: Constexpr) -> None:
    for i, value in enumerate(values):
        if cute.arch.thread_idx()[0] == 0:
            (out + at + i).store(Int32(value))


@cute.kernel
def record(
    out: cutlass.Pointer, capacity: Int32, m: Int32, n: Int32, of: Any, k_tiles: Int32, s: Constexpr
) -> None:
    """Write what a CTA's walk says of its tiles to its row of `out`, Int32 [grid, capacity, 5].

    of: groups.Groups; or the lengths and number of groups along K; or a share, whose K tiles are k_tiles a tile.
    """
    if cutlass.const_expr(isinstance(of, groups.Groups)):
        walk = groups.walk(s, m, n, of)
    elif cutlass.const_expr(isinstance(of, tuple)):
        walk = k_groups.walk(s, m, n, of[1], cutlass.Pointer(of[0], dtype=Int32))
    else:
        walk = splitk.walk(tiles.order(m, n, (TILE_M, TILE_N), s.group_m), k_tiles, of)
    place = cute.arch.block_idx()[0] * capacity * 5
    while walk.left:
        (row, *behind), (column, *_) = walk.places()
        more: Any = behind
        if cutlass.const_expr(isinstance(of, groups.Groups)):
            more = (walk.known(groups.GROUP), walk.known(groups.ROW_END), *behind)
        elif cutlass.const_expr(not isinstance(of, tuple)):
            more = (*walk.steps(k_tiles), walk.known(splitk.OTHERS))
        write(out, place, [row, column, *more])
        place += 5
        walk.advance()


@cute.jit
def entry(
    out: cutlass.Pointer, capacity: Int32, m: Int32, n: Int32, of: Any, k_tiles: Int32, s: Constexpr
) -> None:
    record(out, capacity, m, n, of, k_tiles, s).launch(grid=(1, 1, 1), block=(32, 1, 1))


@cache
def compiled(kind: str) -> str:
    zero, s = Int32(0), SHAPES.get(kind, SHAPES["sizes"])
    numbers = cute.runtime.make_ptr(Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    of: Any = {"k": (numbers, zero), "split": zero}[kind] if kind not in SHAPES else groups.placeholder(s)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        text: str = cute.compile(entry, numbers, zero, zero, zero, of, zero, s, options=options).__ptx__
    return text


def walked(kind: str, grid: int, m: int, n: int, of: list[bytes], k_tiles: int = 0) -> list[list[list[int]]]:
    """What each CTA of a grid writes, without what it leaves alone."""
    out = np.full((grid, 400, 5), UNWRITTEN, np.int32)
    device = Device("sm_100a", num_sms=4, schedule="random", seed=1)
    device.register(out.ctypes.data, out.nbytes, "out")
    if len(of) > 1:
        device.register(LAYOUT.ctypes.data, LAYOUT.nbytes, "layout")
    params = [int(out.ctypes.data).to_bytes(8, "little"), *map(word, (400, m, n)), *of, word(k_tiles)]
    device.launch(compiled(kind), None, (grid, 1, 1), (32, 1, 1), (1, 1, 1), params=params)
    return [[row.tolist() for row in rows if row[0] != UNWRITTEN] for rows in out]


LAYOUT = np.zeros(4096, np.int32)


def layout(values: list[int]) -> bytes:
    LAYOUT[: len(values)] = values
    return int(LAYOUT.ctypes.data).to_bytes(8, "little")


def word(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def grouped(values: list[int], count: int, alignment: int) -> list[bytes]:
    nothing = bytes(8)
    return [layout(values), word(count), word(alignment), nothing, word(0), nothing]


def in_turn(found: list[Any], grid: int) -> list[list[Any]]:
    return [found[cta::grid] for cta in range(grid)]


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("gaps", [0.0, 0.3, 0.95, 1.0])
def test_by_indices(grid: int, gaps: float) -> None:
    """Tiles of no group are passed over, be they some, 32 in a row, or all."""
    random, m, n = np.random.default_rng(5), 20 * TILE_M - 7, 6 * TILE_N
    of_tile = np.where(random.random(20) < gaps, -1, random.integers(0, 9, 20))
    rows = np.repeat(of_tile, TILE_M)[:m].tolist()
    expected = [
        [[m * TILE_M, n * TILE_N, of_tile[m]] for m, n in cta_tiles(cta, grid, 20, 6, 8) if of_tile[m] >= 0]
        for cta in range(grid)
    ]
    result = walked("indices", grid, m, n, grouped(rows, 9, 0))
    assert [[tile[:3] for tile in of_cta] for of_cta in result] == expected


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("alignment", [0, 48])
def test_by_sizes(grid: int, alignment: int) -> None:
    """More than 32 groups, thin, thick and empty; of a matrix each, or of one for all."""
    random, n = np.random.default_rng(6), 3 * TILE_N
    sizes = np.where(random.random(80) < 0.4, 0, random.integers(1, 400, 80))
    sizes[:3], sizes[40] = 0, 1500
    first, found, ends = 0, [], []
    for group, size in enumerate(sizes.tolist()):
        ends.append(first + size if alignment else size)
        tiles_m, end = -(-size // TILE_M), first + size
        for m, n_tile in (tile_coordinates(i, tiles_m, 3, 8) for i in range(3 * tiles_m)):
            of_group = group, end, 0 if alignment else group
            found.append([first + m * TILE_M, n_tile * TILE_N, *of_group])
        first = -(-end // alignment) * alignment if alignment else 0
    result = walked("sizes", grid, 1 << 20, n, grouped(ends, 80, alignment))
    assert result == in_turn(found, grid)


@pytest.mark.parametrize("grid", [1, 3])
def test_groups_along_k(grid: int) -> None:
    """All tiles of groups without rows are passed over."""
    lengths = [0, 5, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0]
    result = walked("k", grid, 3 * TILE_M, 4 * TILE_N, [layout(lengths), word(len(lengths))])
    inside = [tile_coordinates(i, 3, 4, 8) for i in range(12)]
    found = [[m * TILE_M, n * TILE_N, group] for group in range(len(lengths)) for m, n in inside]
    expected = [[tile for tile in of_cta if lengths[tile[2]]] for of_cta in in_turn(found, grid)]
    assert [[tile[:3] for tile in of_cta] for of_cta in result] == expected


@pytest.mark.parametrize(("share", "k_tiles"), [(7, 5), (3, 11), (250, 5), (10, 5), (1, 1)])
def test_segments_of_shares(share: int, k_tiles: int) -> None:
    """Each K tile is somebody's, and whoever begins a tile knows how many others have some of it."""
    count = 4 * 15
    grid = -(-count * k_tiles // share)
    result = walked("split", grid, 4 * TILE_M, 15 * TILE_N, [word(share)], k_tiles)
    for cta, segments in enumerate(result):
        at, expected = (grid - 1 - cta) * share, []
        end = min(at + share, count * k_tiles)
        while at < end:
            tile, first = divmod(at, k_tiles)
            behind = min(k_tiles, first + end - at)
            m, n = tile_coordinates(tile, 4, 15, 8)
            expected.append([m * TILE_M, n * TILE_N, first, behind, -(-(k_tiles - behind) // share)])
            at += behind - first
        assert segments == expected
