"""The ring of stages: a warp that fills and two that read, on the emulator, right and with the mistakes one makes."""

from __future__ import annotations

import tempfile
from functools import cache

import cutlass
import cutlass.cute as cute
import numpy as np
import pytest
from cutlass import Constexpr, Int32, Int64
from cutlass.experimental import primitives as prims

from cute_kernels.device import ring
from cute_kernels.emulator import Device, EmulationError

READERS = 2
ITEMS = 11  # several times round, and not a whole number of times


def shared(dtype: type, count: int) -> cutlass.Array:
    return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=8)


@cute.kernel
def relay(
    source: cutlass.Pointer, target: cutlass.Pointer, stages: Constexpr[int], mistake: Constexpr[str]
) -> None:
    """target[r, i] = source[i] + r for each reader r; items of 32 Int32 go through a ring of shared memory.

    The reader's lane takes another lane's word, so that it is the barrier that must order the two.
    """
    warp, lane, leader = cute.arch.warp_idx(), cute.arch.lane_idx(), prims.elect_sync()
    data, full, empty = shared(Int32, stages * 32), shared(Int64, stages), shared(Int64, stages)
    if leader & (warp == 0):
        ring.init(full, stages, 1)
        ring.init(empty, stages, 1 if mistake == "one arrival" else READERS)
        prims.fence_mbarrier_init()
    prims.barrier_cta_sync(0)
    if warp == 0:
        place = ring.reader(stages) if mistake == "wait for a phase too many" else ring.filler(stages)
        for i in cutlass.range(ITEMS, unroll=1):
            if cutlass.const_expr(mistake != "no wait for empty"):
                ring.wait(empty.subview(place.stage), place.parity)
            data[place.stage * 32 + lane] = (source + i * 32 + lane).load()
            cute.arch.sync_warp()
            ring.arrive(full.subview(place.stage), leader)
            place.advance()
        ring.drain(empty, place, stages)
    else:
        place = ring.reader(stages)
        for i in cutlass.range(ITEMS, unroll=1):
            if cutlass.const_expr(mistake != "no wait for full"):
                ring.wait(full.subview(place.stage), place.parity)
            value = data[place.stage * 32 + (lane ^ 31)]
            (target + ((warp - 1) * ITEMS + i) * 32 + (lane ^ 31)).store(value + warp - 1)
            cute.arch.sync_warp()
            if cutlass.const_expr(mistake != "no arrival"):
                ring.arrive(empty.subview(place.stage), leader)
            place.advance()


@cute.jit
def entry(
    source: cutlass.Pointer, target: cutlass.Pointer, stages: Constexpr[int], mistake: Constexpr[str]
) -> None:
    relay(source, target, stages, mistake).launch(grid=(1, 1, 1), block=(32 + 32 * READERS, 1, 1))


@cache
def compiled(stages: int, mistake: str) -> str:
    pointer = cute.runtime.make_ptr(Int32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_90a --keep-ptx --dump-dir={folder}"
        text: str = cute.compile(entry, pointer, pointer, stages, mistake, options=options).__ptx__
    return text


def run(stages: int, mistake: str, schedule: str, seed: int) -> bool:
    """Whether the readers got what was sent; faults are raised."""
    source = np.arange(ITEMS * 32, dtype=np.int32) * 3 + 1
    target = np.full((READERS, ITEMS * 32), -1, np.int32)
    device = Device("sm_90a", num_sms=1, schedule=schedule, seed=seed)
    device.register(source.ctypes.data, source.nbytes, "source")
    device.register(target.ctypes.data, target.nbytes, "target")
    params = [array.ctypes.data.to_bytes(8, "little") for array in (source, target)]
    shared_bytes = stages * (32 * 4 + 2 * 8)
    block = (32 + 32 * READERS, 1, 1)
    device.launch(compiled(stages, mistake), None, (1, 1, 1), block, (1, 1, 1), shared_bytes, params)
    return bool((target == source + np.arange(READERS)[:, None]).all())


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_every_item_arrives(stages: int, schedule: str) -> None:
    assert all(run(stages, "", schedule, seed) for seed in range(3))


@pytest.mark.parametrize(
    "mistake",
    ["no wait for full", "no wait for empty", "wait for a phase too many", "no arrival", "one arrival"],
)
def test_a_mistake_shows(mistake: str) -> None:
    def shows(seed: int) -> bool:
        try:
            return not run(2, mistake, "random", seed)
        except EmulationError:
            return True

    assert any(shows(seed) for seed in range(8))
