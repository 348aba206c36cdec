"""The device's walk over tiles, run on the emulator, is the one that scheduler.py tells the host."""

from __future__ import annotations

import tempfile
from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Constexpr, Int32, Uint32

from cute_kernels.device import tiles
from cute_kernels.emulator import Device
from cute_kernels.scheduler import cta_tiles

UNWRITTEN = -7


@cute.kernel
def record(
    out: cutlass.Pointer,
    capacity: Int32,
    m: Int32,
    n: Int32,
    tile_m: Constexpr[int],
    tile_n: Constexpr[int],
    group_m: Constexpr[int],
    ctas: Constexpr[int],
) -> None:
    """Write the first row and column of a CTA's tiles to its row of `out`, Int32 [grid, capacity, 2]."""
    walk = tiles.walk(tiles.order(m, n, (tile_m, tile_n), group_m, ctas=ctas))
    place = cute.arch.block_idx()[0] * capacity * 2
    while walk.left:
        (row,), (column,) = walk.places()
        if cute.arch.thread_idx()[0] == 0:
            (out + place).store(Int32(row))
            (out + place + 1).store(Int32(column))
        place += 2
        walk.advance()


@cute.jit
def entry(
    out: cutlass.Pointer,
    capacity: Int32,
    m: Int32,
    n: Int32,
    tile_m: Constexpr[int],
    tile_n: Constexpr[int],
    group_m: Constexpr[int],
    ctas: Constexpr[int],
) -> None:
    record(out, capacity, m, n, tile_m, tile_n, group_m, ctas).launch(grid=(1, 1, 1), block=(32, 1, 1))


@cache
def compiled(tile_m: int, tile_n: int, group_m: int, ctas: int) -> str:
    out = cute.runtime.make_ptr(Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    numbers = [Int32(0)] * 3
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_90a --keep-ptx --dump-dir={folder}"
        text: str = cute.compile(entry, out, *numbers, tile_m, tile_n, group_m, ctas, options=options).__ptx__
    return text


@pytest.mark.parametrize("ctas", [1, 2])
@pytest.mark.parametrize(("tile_m", "tile_n", "group_m"), [(128, 192, 8), (128, 32, 3), (64, 128, 1)])
@pytest.mark.parametrize(
    ("m", "n", "grid"),
    [
        (1, 1, 1),
        (1, 1, 3),  # two CTAs have nothing to do
        (128, 768, 4),
        (1000, 1000, 7),  # the last group is thinner
        (3000, 130, 5),
        (100, 4000, 148),  # one thin group
        (2000, 1000, 2),  # a CTA has more tiles than a warp has lanes
    ],
)
def test_every_cta_walks_as_the_host_says(
    tile_m: int, tile_n: int, group_m: int, m: int, n: int, grid: int, ctas: int
) -> None:
    """Of a pair, both walk over the same tiles, the second CTA's rows half a tile on."""
    tiles_m, tiles_n = -(-m // tile_m), -(-n // tile_n)
    capacity = -(-tiles_m * tiles_n // grid) + 1
    out = np.full((grid * ctas, capacity, 2), UNWRITTEN, np.int32)
    device = Device("sm_90a", num_sms=4, schedule="random", seed=1)
    device.register(out.ctypes.data, out.nbytes, "out")
    params = [
        out.ctypes.data.to_bytes(8, "little"),
        *(v.to_bytes(4, "little") for v in (capacity, m, n)),
    ]
    ptx = compiled(tile_m, tile_n, group_m, ctas)
    device.launch(ptx, None, (grid * ctas, 1, 1), (32, 1, 1), (ctas, 1, 1), params=params)
    for cta in range(grid * ctas):
        expected = cta_tiles(cta // ctas, grid, tiles_m, tiles_n, group_m)
        half = cta % ctas * tile_m // ctas
        places = [[m * tile_m + half, n * tile_n] for m, n in expected]
        assert out[cta, : len(expected)].tolist() == places
        assert (out[cta, len(expected) :] == UNWRITTEN).all()
    visited = out[out[:, :, 0] != UNWRITTEN]
    assert len(np.unique(visited, axis=0)) == len(visited) == tiles_m * tiles_n * ctas


@cute.kernel
def divided(numbers: cutlass.Pointer, out: cutlass.Pointer, few: cutlass.Constexpr[bool]) -> None:
    """Write quotients and remainders of pairs of Uint32, a pair a thread; few: by tiles.divide_by_few."""
    at = 2 * (cute.arch.block_idx()[0] * 32 + cute.arch.thread_idx()[0])
    divisor = Uint32((numbers + at + 1).load())
    divide = tiles.divide_by_few if few else tiles.divide
    quotient, rest = divide(Uint32((numbers + at).load()), divisor, tiles.reciprocal(divisor))
    (out + at).store(Int32(quotient))
    (out + at + 1).store(Int32(rest))


@cute.jit
def divisions(numbers: cutlass.Pointer, out: cutlass.Pointer, few: cutlass.Constexpr[bool]) -> None:
    divided(numbers, out, few).launch(grid=(1, 1, 1), block=(32, 1, 1))


def check_divisions(dividends: np.ndarray, divisors: np.ndarray, few: bool) -> None:
    """Divide on the device, by as many threads as there are pairs."""
    numbers = np.ascontiguousarray(np.stack([dividends, divisors], 1))
    out = np.zeros_like(numbers)
    pointer = cute.runtime.make_ptr(Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_90a --keep-ptx --dump-dir={folder}"
        ptx = cute.compile(divisions, pointer, pointer, few, options=options).__ptx__
    device = Device("sm_90a", num_sms=4)
    for array, name in ((numbers, "numbers"), (out, "out")):
        device.register(array.ctypes.data, array.nbytes, name)
    params = [array.ctypes.data.to_bytes(8, "little") for array in (numbers, out)]
    device.launch(ptx, None, (len(numbers) // 32, 1, 1), (32, 1, 1), (1, 1, 1), params=params)
    quotients, rests = np.divmod(numbers[:, 0], numbers[:, 1])
    assert (out[:, 0] == quotients).all() and (out[:, 1] == rests).all()


def test_division_by_reciprocals() -> None:
    """Of the largest and the least, of multiples and their neighbours, and of any."""
    random = np.random.default_rng(2)
    divisors = np.concatenate([np.arange(1, 65), 2 ** random.uniform(0, 32, 448)]).astype(np.uint32)
    multiples = divisors * (0xFFFFFFFF // divisors // random.integers(1, 9, 512)).astype(np.uint32)
    shifted = [multiples - 1, multiples, np.minimum(multiples, 0xFFFFFFFE) + 1]
    edges = [np.zeros(512), np.full(512, 0xFFFFFFFF), random.integers(0, 1 << 32, 512)]
    dividends = np.concatenate([x.astype(np.uint32) for x in (*shifted, *edges)])
    check_divisions(dividends, np.tile(divisors, 6), few=False)


def test_division_of_few() -> None:
    """Of the largest dividend that a divisor allows, of those next to multiples, and of any."""
    random = np.random.default_rng(3)
    divisors = np.concatenate([np.arange(1, 65), 2 ** random.uniform(0, 31, 448)]).astype(np.uint64)
    largest = ((1 << 32) - 1) // divisors - 1
    multiples = divisors * (random.random(512) * (largest // divisors)).astype(np.uint64)
    shifted = [np.maximum(multiples, 1) - 1, multiples, np.minimum(multiples + 1, largest)]
    edges = [np.zeros(512), largest, (random.random(512) * largest).astype(np.uint64)]
    dividends = np.concatenate([x.astype(np.uint32) for x in (*shifted, *edges)])
    check_divisions(dividends, np.tile(divisors.astype(np.uint32), 6), few=True)
