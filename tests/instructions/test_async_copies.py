"""cp.async, bulk copies and their groups, tensor copies: what they move, when it counts, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.kernels import SCHEDULES, run

# --- cp.async -----------------------------------------------------------------------------------------------------

CP_ASYNC = """
    shl.b32 %r2, %r0, 4;
    add.u32 %r3, %r2, %r1;             // 16 bytes a thread
    cvt.u64.u32 %d5, %r2;
    add.s64 %d5, %d5, %d1;
    cp.async.cg.shared.global [%r3], [%d5], 16{size};
    cp.async.commit_group;
    {wait}
    ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3];
    cvt.u64.u32 %d6, %r2;
    add.s64 %d6, %d6, %d0;
    st.global.v4.u32 [%d6], {{%r4, %r5, %r6, %r7}};
"""


@pytest.mark.parametrize("wait", ["cp.async.wait_group 0;", "cp.async.wait_all;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async_copies(schedule: str, wait: str) -> None:
    out, _ = run(CP_ASYNC.format(size="", wait=wait), schedule=schedule)
    assert (out[:128] == np.arange(128)).all()


def test_cp_async_fills_with_zeros_past_its_size() -> None:
    out, _ = run(CP_ASYNC.format(size=", 8", wait="cp.async.wait_all;"))
    expected = np.arange(128).reshape(32, 4) * np.array([1, 1, 0, 0])
    assert (out[:128].reshape(32, 4) == expected).all()


@pytest.mark.parametrize("wait", ["", "cp.async.wait_group 1;", "bar.sync 0;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async_without_its_wait_is_found(schedule: str, wait: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(CP_ASYNC.format(size="", wait=wait), schedule=schedule)
    assert caught.value.kind in ("race", "missing-wait")


def test_cp_async_takes_aligned_addresses() -> None:
    with pytest.raises(EmulationError) as caught:
        run("add.u32 %r2, %r1, 8; cp.async.cg.shared.global [%r2], [%d1], 16; cp.async.wait_all;")
    assert caught.value.kind == "misaligned"


# --- bulk copies ----------------------------------------------------------------------------------------------------

BULK = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1], 1;
    {fence}
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], {expected};
    add.u32 %r2, %r1, 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%d1], 128, [%r1];
READY:
    bar.sync 0;
    {wait}
    shl.b32 %r3, %r0, 2;
    add.u32 %r3, %r3, %r1;
    ld.shared.u32 %r4, [%r3+128];
    st.global.u32 [%d3], %r4;
"""
FENCE = "fence.mbarrier_init.release.cluster;"
WAIT = "AGAIN: mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0; @!%p1 bra AGAIN;"


@pytest.mark.parametrize("fence", [FENCE, "fence.proxy.async.shared::cta;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_bulk_load_signals_its_barrier(schedule: str, fence: str) -> None:
    out, _ = run(BULK.format(fence=fence, expected=128, wait=WAIT), schedule=schedule)
    assert (out[:32] == np.arange(32)).all()


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"wait": ""}, "missing-wait"),
        ({"fence": ""}, "missing-proxy-fence"),
        ({"expected": 112}, "deadlock|transaction-count"),
        ({"expected": 144}, "deadlock"),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_broken_bulk_load_is_called(schedule: str, change: dict[str, object], kinds: str) -> None:
    parts: dict[str, object] = {"fence": FENCE, "expected": 128, "wait": WAIT} | change
    with pytest.raises(EmulationError) as caught:
        run(BULK.format(**parts), schedule=schedule)
    assert caught.value.kind in kinds.split("|")


REFILL = (
    BULK
    + """
    {refence}
    bar.sync 0;
    @%p0 bra DONE;
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%d1], 128, [%r1];
    MORE: mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 1;
    @!%p1 bra MORE;
DONE:
"""
)


@pytest.mark.parametrize("refence", ["fence.proxy.async.shared::cta;", ""])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_refill_of_what_was_read_wants_a_proxy_fence(schedule: str, refence: str) -> None:
    """A barrier alone is warned of: an H200 was seen to refill under reads that had yet to come back."""
    out, report = run(REFILL.format(fence=FENCE, expected=128, wait=WAIT, refence=refence), schedule=schedule)
    assert (out[:32] == np.arange(32)).all()
    assert [w for w in report.warnings if "no fence.proxy.async" in w] == report.warnings
    assert bool(report.warnings) == (not refence)


STORE = """
    shl.b32 %r2, %r0, 2;
    add.u32 %r2, %r2, %r1;
    st.shared.u32 [%r2], %r0;
    {fence}
    bar.sync 0;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    {copy}
    {commit}
    {wait}
    st.shared.u32 [%r1], 99;
DONE:
"""
STORE_PARTS = {
    "fence": "fence.proxy.async.shared::cta;",
    "copy": "cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 128;",
    "commit": "cp.async.bulk.commit_group;",
    "wait": "cp.async.bulk.wait_group.read 0;",
}


@pytest.mark.parametrize("wait", ["cp.async.bulk.wait_group.read 0;", "cp.async.bulk.wait_group 0;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_bulk_store(schedule: str, wait: str) -> None:
    out, _ = run(STORE.format(**STORE_PARTS | {"wait": wait}), schedule=schedule)
    assert (out[:32] == np.arange(32)).all()


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"fence": ""}, "missing-proxy-fence"),
        ({"wait": ""}, "race"),
        ({"commit": ""}, "race"),
        ({"wait": "cp.async.bulk.wait_group.read 1;"}, "race"),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_broken_bulk_store_is_called(schedule: str, change: dict[str, str], kinds: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(STORE.format(**STORE_PARTS | change), schedule=schedule)
    assert caught.value.kind in kinds.split("|")


def test_a_cta_waits_for_the_stores_it_issued() -> None:
    body = STORE.format(**STORE_PARTS | {"wait": "bra DONE;"})
    for schedule in SCHEDULES:
        with pytest.raises(EmulationError) as caught:
            run(body, schedule=schedule)
        assert caught.value.kind == "unfinished"


def test_a_bulk_reduction_adds() -> None:
    body = STORE.format(
        **STORE_PARTS
        | {
            "copy": "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d1], [%r1], 128;",
            "wait": "cp.async.bulk.wait_group 0; ld.global.u32 %r5, [%d1+124]; st.global.u32 [%d0], %r5;",
        }
    )
    source = np.full(1024, 1000, np.uint32)
    out, _ = run(body, source)
    assert (source[:32] == 1000 + np.arange(32)).all()
    assert (source[32:] == 1000).all()
    assert out[0] == 1031


# --- tensor copies ----------------------------------------------------------------------------------------------------

TENSOR = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1], 1;
    fence.mbarrier_init.release.cluster;
    mov.b64 %d12, p_map;
    cvta.param.u64 %d12, %d12;
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], 1024;
    add.u32 %r2, %r1, 1024;
    cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%r2], [%d12, {{{x}, {y}}}], [%r1];
READY:
    bar.sync 0;
    AGAIN: mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0;
    @!%p1 bra AGAIN;
    shl.b32 %r3, %r0, 2;
    add.u32 %r3, %r3, %r1;
    ld.shared.u32 %r4, [%r3+1024];
    st.global.u32 [%d3], %r4;
"""


@pytest.mark.parametrize(("x", "y"), [(0, 0), (4, 3), (-4, -2), (28, 30)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_tensor_load_swizzles_and_fills(schedule: str, x: int, y: int) -> None:
    """A box of 32 x 8 words out of 32 x 32, swizzled by 128 bytes: chunk c of row r lies at c ^ r."""
    source = np.arange(1024, dtype=np.uint32)
    tensor_map = Device.encode_tensor_map(
        "u32", source.ctypes.data, (32, 32), (128,), (32, 8), swizzle="128B"
    )
    out, _ = run(TENSOR.format(x=x, y=y), source, threads=256, tensor_map=tensor_map, schedule=schedule)
    expected = np.zeros((8, 32), np.uint32)
    for r in range(8):
        for c in range(32):
            if 0 <= y + r < 32 and 0 <= x + c < 32:
                expected[r, (c // 4 ^ r) * 4 + c % 4] = (y + r) * 32 + x + c
    assert (out.reshape(8, 32) == expected).all()


def test_a_tensor_load_takes_an_aligned_destination() -> None:
    source = np.arange(1024, dtype=np.uint32)
    tensor_map = Device.encode_tensor_map("u32", source.ctypes.data, (32, 32), (128,), (32, 8))
    body = TENSOR.format(x=0, y=0).replace("add.u32 %r2, %r1, 1024;", "add.u32 %r2, %r1, 1040;")
    with pytest.raises(EmulationError) as caught:
        run(body, source, threads=256, tensor_map=tensor_map)
    assert caught.value.kind == "misaligned"


def test_a_tensor_map_out_of_registered_memory() -> None:
    source = np.arange(1024, dtype=np.uint32)
    tensor_map = Device.encode_tensor_map("u32", source.ctypes.data, (32, 64), (128,), (32, 8))
    with pytest.raises(EmulationError) as caught:
        run(TENSOR.format(x=0, y=28), source, threads=256, tensor_map=tensor_map)
    assert caught.value.kind == "out-of-range"


def test_bytes_that_are_no_tensor_map() -> None:
    with pytest.raises(EmulationError) as caught:
        run(TENSOR.format(x=0, y=0), threads=256, tensor_map=bytes(range(128)))
    assert caught.value.kind == "descriptor"
