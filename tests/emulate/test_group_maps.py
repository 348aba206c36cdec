"""Tensor maps that a kernel makes, on the emulator: those of groups along K, right and with the mistakes one makes."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from typing import Any

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
import numpy as np
import pytest
from cutlass import Constexpr, GridConstant, Int32, Int64
from cutlass.experimental import primitives as prims
from numpy.typing import NDArray

from cute_kernels.device import group_maps, ring, tiles, tma
from cute_kernels.emulator import Device, EmulationError
from tests.emulate.direct import SCHEDULES, aligned

ROWS, LINE = 8, 128  # of a box: a tile of A, or of B
BOX = ROWS * LINE
CTAS, STAGES = 2, 2
M, N = 6, 8
# Rounds of the ring and of the slots; groups of one K tile, of a part of one, of none, which walks pass over, and one
# beyond the end.
LENGTHS = (16, 0, 48, 272, 128, 16, 144, 0, 0, 32, 16, 256, 64, 4096)
K = 1024
TILES = tuple(-(-length // LINE) for length in LENGTHS)


@cute.kernel
def relay(
    map_a: GridConstant[cuda.TensorMap],
    map_b: GridConstant[cuda.TensorMap],
    a: cutlass.Pointer,
    b: cutlass.Pointer,
    room: cutlass.Pointer,
    ks: cutlass.Pointer,
    out: cutlass.Pointer,
    slots: Constexpr[int],
) -> None:
    """Bring each K tile of A_g and B_g to `out`, Int32 [CTAs, K tiles, 2, BOX / 4], through a ring of stages.

    ks: Int32, the elements of each group along K, which are bytes.
    """
    warp, lane, leader = cute.arch.warp_idx(), cute.arch.lane_idx(), prims.elect_sync()
    stages = cutlass.Array(Int32, STAGES * 2 * BOX // 4, space=cutlass.AddressSpace.smem, alignment=128)
    patterns = cutlass.Array(
        Int64, 2 * group_maps.WORDS, space=cutlass.AddressSpace.smem, alignment=group_maps.MAP_BYTES
    )
    full, empty = (cutlass.Array(Int64, STAGES, space=cutlass.AddressSpace.smem, alignment=8) for _ in "fe")
    if leader & (warp == 0):
        ring.init(full, STAGES, 1)
        ring.init(empty, STAGES, 1)
        prims.fence_mbarrier_init()
    prims.barrier_cta_sync(0)
    if warp == 0:
        place = ring.filler(STAGES)
        matrices = group_maps.Matrices(a, b, room)
        maps = group_maps.begin(
            patterns, (map_a, map_b), matrices, (Int32(M), Int32(N), Int32(K)), slots, 8, 16, leader
        )
        before = Int32(0)
        for group in cutlass.range(len(LENGTHS), unroll=1):
            length = (ks + group).load()
            if length > 0:
                rows = maps.enter(group, before, length, (0, 0), leader)
                for tile in cutlass.range(tiles.ceil_div(length, LINE), unroll=1):
                    ring.wait(empty.subview(place.stage), place.parity)
                    if leader:
                        barrier = full.subview(place.stage)
                        target = stages.subview(place.stage * (2 * BOX // 4))
                        prims.mbarrier_arrive_expect_tx(barrier, 2 * BOX)
                        for i, of in enumerate(maps.both()):
                            tma.load(target.subview(i * (BOX // 4)), of, (tile * LINE, rows[i]), barrier)
                    place.advance()
            before += length
        ring.drain(empty, place, STAGES)
    else:
        place = ring.reader(STAGES)
        to = out + Int32(cute.arch.block_idx()[0]) * (sum(TILES) * 2 * BOX // 4)
        for item in cutlass.range(sum(TILES), unroll=1):
            ring.wait(full.subview(place.stage), place.parity)
            for i in cutlass.range(2 * BOX // 4 // 32, unroll=1):
                word = i * 32 + lane
                (to + item * (2 * BOX // 4) + word).store(stages[place.stage * (2 * BOX // 4) + word])
            tma.publish()
            cute.arch.sync_warp()
            ring.arrive(empty.subview(place.stage), leader)
            place.advance()


@cute.jit
def entry(
    a: cutlass.Pointer,
    b: cutlass.Pointer,
    room: cutlass.Pointer,
    ks: cutlass.Pointer,
    out: cutlass.Pointer,
    slots: Constexpr[int],
) -> None:
    any_map = tma.placeholder_map()
    relay(any_map, any_map, a, b, room, ks, out, slots).launch(grid=(CTAS, 1, 1), block=(64, 1, 1))


def arguments(slots: int) -> tuple[object, ...]:
    """What `entry` is traced with."""

    def pointer(dtype: type, alignment: int = 16) -> object:
        return cute.runtime.make_ptr(dtype, 1024, cute.AddressSpace.gmem, assumed_align=alignment)

    matrices = pointer(cutlass.Int8), pointer(cutlass.Int8), pointer(Int64, 128)
    return *matrices, pointer(Int32), pointer(Int32), slots


SHARED = STAGES * 2 * BOX + 2 * group_maps.MAP_BYTES + 2 * 8 * STAGES


def room_bytes(slots: int) -> int:
    """Bytes of the slots of all CTAs."""
    return CTAS * slots * 2 * group_maps.MAP_BYTES


def operands() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A and B as they lie in memory, and what is to come out: [K tiles, 2, ROWS, LINE]."""
    rng = np.random.default_rng(0)
    flat = [rng.integers(1, 256, rows * K, dtype=np.uint8) for rows in (M, N)]
    expected = np.zeros((sum(TILES), 2, ROWS, LINE), np.uint8)
    tile = 0
    start = 0
    for length, count in zip(LENGTHS, TILES, strict=True):
        for i, (rows, memory) in enumerate(zip((M, N), flat, strict=True)):
            if start + length > K:
                continue
            lines = memory[start * rows : (start + length) * rows].reshape(rows, length)
            for k in range(0, length, LINE):
                part = lines[:, k : k + LINE]
                expected[tile + k // LINE, i, :rows, : part.shape[1]] = part
        tile += count
        start += length
    return flat[0], flat[1], expected


@cache
def compiled(slots: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_90a --keep-ptx --generate-line-info --dump-dir={folder}"
        text: str = cute.compile(entry, *arguments(slots), options=options).__ptx__
    return text


def run(ptx: str, slots: int, schedule: str, seed: int) -> None:
    a, b, expected = operands()
    in_memory = [aligned(len(memory)) for memory in (a, b)]
    for place, memory in zip(in_memory, (a, b), strict=True):
        place[:] = memory
    room = aligned(room_bytes(slots) + 64)
    room = room[-room.ctypes.data % 128 :][: room_bytes(slots)]
    ks, out = np.array(LENGTHS, np.int32), aligned(CTAS * expected.nbytes)
    device = Device("sm_90a", num_sms=CTAS, schedule=schedule, seed=seed)
    held: dict[str, NDArray[Any]] = {
        "A": in_memory[0],
        "B": in_memory[1],
        "slots": room,
        "ks": ks,
        "out": out,
    }
    for name, memory in held.items():
        device.register(memory.ctypes.data, memory.nbytes, name)
    maps = [
        Device.encode_tensor_map("u8", memory.ctypes.data, (K, rows), (K,), (LINE, ROWS))
        for memory, rows in zip(in_memory, (M, N), strict=True)
    ]
    params = [*maps, *(memory.ctypes.data.to_bytes(8, "little") for memory in held.values())]
    report = device.launch(ptx, None, (CTAS, 1, 1), (64, 1, 1), (1, 1, 1), SHARED, params)
    assert report.warnings == []
    assert np.array_equal(out.reshape(CTAS, *expected.shape), np.stack([expected] * CTAS))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_group_is_loaded_by_maps_of_its_own(schedule: str, seed: int) -> None:
    run(compiled(STAGES + 1), STAGES + 1, schedule, seed)


_ACQUIRE = r"fence\.proxy\.tensormap::generic\.acquire\.gpu [^;]*;"
_REPLACE = r"tensormap\.replace\.tile\.{}\.[^;]*;"
_SYNC = r"bar\.warp\.sync\s+-1;(?=((?!bar\.warp)[\s\S])*tensormap\.cp_fenceproxy)"  # the last before it
MISTAKES = {
    "no acquire": (_ACQUIRE, "missing-proxy-fence"),
    "no copy": (r"tensormap\.cp_fenceproxy[^;]*;", "descriptor"),
    "fields replaced when others copy": (_SYNC, "race"),
    "another address": (_REPLACE.format("global_address"), "wrong"),
    "another extent": (_REPLACE.format("global_dim"), "wrong"),
    "another stride": (_REPLACE.format("global_stride"), "out-of-range"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(mistake: str) -> None:
    pattern, kind = MISTAKES[mistake]
    text = re.sub(pattern, "", compiled(STAGES + 1), count=1)
    assert text != compiled(STAGES + 1)
    for schedule in SCHEDULES:
        assert _fault(text, STAGES + 1, schedule) == kind


@pytest.mark.parametrize("slots", range(1, STAGES + 1))
def test_a_map_that_a_copy_reads_is_not_changed(slots: int) -> None:
    assert {_fault(compiled(slots), slots, schedule) for schedule in SCHEDULES} == {"missing-wait"}


def _fault(ptx: str, slots: int, schedule: str) -> str:
    try:
        run(ptx, slots, schedule, 0)
    except EmulationError as fault:
        return fault.kind
    except AssertionError:
        return "wrong"
    return "none"
