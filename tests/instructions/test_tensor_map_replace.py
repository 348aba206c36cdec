"""Tensor maps that a kernel changes: each field by the ISA's table, and the fences that its copies need."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError, TensorMapError
from cute_kernels.emulator.tensor_map import TensorMap, decode, encode
from cute_kernels.emulator.tensor_map_replace import replaced
from tests.instructions.kernels import SCHEDULES, run

START = TensorMap("f16", 1 << 20, (64, 32, 8), (128, 4096), (16, 8, 4), (1, 1, 1))


def changed(**fields: Any) -> TensorMap:
    return dataclasses.replace(START, **fields)


@pytest.mark.parametrize(
    ("field", "ordinal", "value", "expected"),
    [
        ("global_address", 0, 1 << 33, changed(address=1 << 33)),
        ("global_dim", 1, 30, changed(dims=(64, 30, 8))),
        ("global_dim", 0, 56, changed(dims=(56, 32, 8))),
        ("global_stride", 0, 256, changed(strides=(256, 4096))),
        ("global_stride", 1, 1 << 38, changed(strides=(128, 1 << 38))),
        ("box_dim", 2, 3, changed(box=(16, 8, 3))),
        ("element_stride", 1, 2, changed(element_strides=(1, 2, 1))),
        ("rank", 0, 1, changed(dims=(64, 32), strides=(128,), box=(16, 8), element_strides=(1, 1))),
        ("elemtype", 0, 10, changed(dtype="bf16")),
        ("elemtype", 0, 1, changed(dtype="u16")),
        ("swizzle_mode", 0, 1, changed(swizzle="32B")),
        ("fill_mode", 0, 1, changed(oob_fill="nan")),
    ],
)
def test_each_field_is_the_one_that_the_driver_writes(
    field: str, ordinal: int, value: int, expected: TensorMap
) -> None:
    given = encode(*[getattr(START, f.name) for f in dataclasses.fields(START)])
    wanted = encode(*[getattr(expected, f.name) for f in dataclasses.fields(expected)])
    after = replaced(given, field, ordinal, value)
    used = 64  # bytes that the hardware reads
    if field != "rank":  # what dimensions beyond the rank say counts for nothing
        assert after[:used] == wanted[:used]
        assert decode(after) == expected
    assert int.from_bytes(after, "little") >> 68 & 7 == expected.rank - 1


@pytest.mark.parametrize(
    ("field", "ordinal", "value"),
    [("global_stride", 0, 24), ("box_dim", 0, 300), ("elemtype", 0, 16), ("box_dim", 5, 1)],
)
def test_values_that_a_field_cannot_hold_are_refused(field: str, ordinal: int, value: int) -> None:
    given = encode(*[getattr(START, f.name) for f in dataclasses.fields(START)])
    with pytest.raises(TensorMapError):
        replaced(given, field, ordinal, value)


# The map of the parameters goes to shared memory, is turned to another tensor, goes to global memory (`in` holds room
# for it) and a copy reads through it there.
RETARGET = """
    mov.b64 %d5, p_map;
    mul.wide.u32 %d6, %r0, 8;
    add.s64 %d7, %d5, %d6;
    shl.b32 %r2, %r0, 3;
    add.u32 %r2, %r2, %r1;
    setp.lt.u32 %p0, %r0, 16;
    setp.ne.u32 %p1, %r0, 0;
    @%p0 ld.param.b64 %d8, [%d7];
    @%p0 st.shared.b64 [%r2], %d8;
    bar.warp.sync -1;
    add.s64 %d9, %d1, 512;
    @!%p1 tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r1], %d9;
    @!%p1 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r1], 1, 3;
    {sync}
    {publish}
    {acquire}
    @%p1 bra DONE;
    add.u32 %r9, %r1, 2048;
    mbarrier.init.shared.b64 [%r9], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r9], 128;
    add.u32 %r8, %r1, 1024;
    mov.u32 %r7, 0;
    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r8], [%d1, {{%r7, %r7}}], [%r9];
    {early}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r9], 0;
    @!%p3 bra WAIT;
    {late}
    ld.shared.u32 %r6, [%r8+36];
    st.global.u32 [%d0], %r6;
    ld.shared.u32 %r6, [%r8+100];
    st.global.u32 [%d0+4], %r6;
DONE:
"""
SYNC = "bar.warp.sync -1;"
PUBLISH = "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%d1], [%r1], 128;"
ACQUIRE = "fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;"


def retarget(
    sync: str = SYNC,
    publish: str = PUBLISH,
    acquire: str = ACQUIRE,
    early: str = "",
    late: str = "",
    schedule: str = "random",
) -> list[int]:
    """early, late: what the lane that copies does before and after it waits for the copy."""
    room = np.zeros(512, np.uint32)
    source = room[-room.ctypes.data % 128 // 4 :][:384]
    source[128:] = np.arange(256)
    elsewhere = np.zeros(64, np.uint32)
    tensor_map = Device.encode_tensor_map(
        "u32", elsewhere[-elsewhere.ctypes.data % 16 // 4 :].ctypes.data, (8, 4), (32,), (8, 4)
    )
    body = RETARGET.format(sync=sync, publish=publish, acquire=acquire, early=early, late=late)
    out, _ = run(body, source, schedule=schedule, tensor_map=tensor_map)
    return [int(word) for word in out[:2]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_copy_reads_through_the_changed_map(schedule: str) -> None:
    """Row 1 of the new tensor; row 3, which its new extent leaves out, is filled with zeros."""
    assert retarget(schedule=schedule) == [9, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [({"acquire": ""}, "missing-proxy-fence"), ({"sync": ""}, "race")],
    ids=["no fence", "another lane's change"],
)
def test_a_changed_map_without_its_order_is_found(wrong: dict[str, str], kind: str, schedule: str) -> None:
    with pytest.raises(EmulationError) as caught:
        retarget(**wrong, schedule=schedule)
    assert caught.value.kind == kind


def test_a_map_changed_in_global_memory_is_fenced() -> None:
    direct = (
        SYNC + PUBLISH + ACQUIRE + "@!%p1 tensormap.replace.tile.global_dim.global.b1024.b32 [%d1], 1, 2;"
    )
    release = "fence.proxy.tensormap::generic.release.gpu; bar.warp.sync -1;"
    assert retarget(publish=direct + release) == [9, 0]
    with pytest.raises(EmulationError) as caught:
        retarget(publish=direct + release, acquire="")
    assert caught.value.kind == "missing-proxy-fence"


CHANGE = "tensormap.replace.tile.global_dim.global.b1024.b32 [%d1], 1, 2;"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_map_is_read_until_the_copy_is_complete(schedule: str) -> None:
    assert retarget(late=CHANGE, schedule=schedule) == [9, 0]
    with pytest.raises(EmulationError) as caught:
        retarget(early=CHANGE, schedule=schedule)
    assert caught.value.kind == "missing-wait"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_map_is_read_until_the_read_of_a_bulk_group(schedule: str) -> None:
    store = """
    fence.proxy.async;
    cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d1, {%r7, %r7}], [%r8];
    cp.async.bulk.commit_group;
    """
    wait = "cp.async.bulk.wait_group.read 0;"
    assert retarget(late=store + wait + CHANGE, schedule=schedule) == [9, 0]
    with pytest.raises(EmulationError) as caught:
        retarget(late=store + CHANGE, schedule=schedule)
    assert caught.value.kind == "missing-wait"


def test_a_lane_needs_no_barrier_behind_its_own_change() -> None:
    publish = (
        SYNC + PUBLISH + ACQUIRE + f"@%p1 bra DONE; {CHANGE}" + "fence.proxy.tensormap::generic.release.gpu;"
    )
    assert retarget(publish=publish) == [9, 0]
