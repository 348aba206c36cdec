"""Races of asynchronous copies in global memory: what orders them after accesses of warps, and before; what does not is
reported."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.kernels import SCHEDULES, run
from tests.instructions.workspaces import SETUP, kind_of

STORE = """
    @%p1 bra DONE;
    st.shared.u32 [%r1], 5; st.shared.u32 [%r1+4], 5; st.shared.u32 [%r1+8], 5; st.shared.u32 [%r1+12], 5;
    fence.proxy.async;
    cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 16;
    cp.async.bulk.commit_group;
    {wait}
    {access}
DONE:
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("access", ["ld.global.u32 %r7, [%d0];", "st.global.u32 [%d0+4], 1;"])
def test_a_bulk_store_is_waited_for(access: str, schedule: str) -> None:
    done, read = "cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 0;"
    assert kind_of(STORE.format(wait=done, access=access), schedule) == ""
    assert kind_of(STORE.format(wait=read, access=access), schedule) == "missing-wait"


def test_warps_that_repeat_one_bulk_store_are_told() -> None:
    body = """
        @!%p0 bra DONE;
        mov.u32 %r3, %laneid;
        setp.ne.u32 %p4, %r3, 0;
        st.shared.u32 [%r1], 5; st.shared.u32 [%r1+4], 5; st.shared.u32 [%r1+8], 5; st.shared.u32 [%r1+12], 5;
        st.shared.u32 [%r1+16], 6; st.shared.u32 [%r1+20], 5; st.shared.u32 [%r1+24], 5; st.shared.u32 [%r1+28], 5;
        fence.proxy.async;
        bar.sync 0;
        @%p4 bra DONE;
        shr.u32 %r4, %r0, {shift};
        shl.b32 %r4, %r4, 4;
        add.u32 %r4, %r4, %r1;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r4], 16;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
    DONE:
    """.replace("st.shared", "@!%p1 st.shared")
    report = run(SETUP + body.replace("{shift}", "6"), threads=64)[1]
    assert any("several warps issue the same cp.async.bulk" in warning for warning in report.warnings)
    assert kind_of(body.replace("{shift}", "5"), threads=64) == "missing-wait"  # other data


LOAD = """
    @%p1 bra DONE;
    mbarrier.init.shared.b64 [%r1], 1;
    fence.mbarrier_init.release.cluster;
    st.global.u32 [%d0], 3;
    {fence}
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 16;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+128], [%d0], 16, [%r1];
    {early}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0;
    @!%p3 bra WAIT;
    st.global.u32 [%d0], 4;
DONE:
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_async_proxy_reads_behind_a_proxy_fence(schedule: str) -> None:
    assert kind_of(LOAD.format(fence="fence.proxy.async;", early=""), schedule) == ""
    assert kind_of(LOAD.format(fence="fence.proxy.async.global;", early=""), schedule) == ""
    assert kind_of(LOAD.format(fence="", early=""), schedule) == "missing-proxy-fence"
    early = "st.global.u32 [%d0], 9;"
    assert kind_of(LOAD.format(fence="fence.proxy.async;", early=early), schedule) == "missing-wait"


def test_a_proxy_fence_between_ctas() -> None:
    """A tile that one CTA writes and another loads by a bulk copy: the fence may stand on either side of the flag."""
    load = """
        mbarrier.init.shared.b64 [%r1], 1;
        fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 16;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+128], [%d0], 16, [%r1];
    WAIT:
        mbarrier.try_wait.parity.shared.b64 %p3, [%r1], 0;
        @!%p3 bra WAIT;
    """
    body = """
        @%p1 bra DONE;
        @!%p0 bra SPIN;
        st.global.u32 [%d0], 3;
        {before}
        red.release.gpu.global.add.u32 [%d0+512], 1;
        bra DONE;
    SPIN:
        ld.acquire.gpu.global.u32 %r5, [%d0+512];
        setp.eq.u32 %p2, %r5, 0;
        @%p2 bra SPIN;
        {behind}
        LOAD
    DONE:
    """.replace("LOAD", load)
    fence = "fence.proxy.async.global;"
    assert kind_of(body.format(before=fence, behind=""), grid=2) == ""
    assert kind_of(body.format(before="", behind=fence), grid=2) == ""
    assert kind_of(body.format(before="", behind=""), grid=2) == "missing-proxy-fence"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async_reads_are_waited_for_before_a_write(schedule: str) -> None:
    body = """
        shl.b32 %r3, %r0, 2;
        add.u32 %r3, %r3, %r1;
        cp.async.ca.shared.global [%r3], [%d3], 4;
        {wait}
        st.global.u32 [%d3], %r0;
    """
    assert kind_of(body.replace("{wait}", "cp.async.wait_all;"), schedule) == ""
    assert kind_of(body.replace("{wait}", ""), schedule) == "race"


def test_tensor_copies_write_boxes() -> None:
    """Two CTAs store boxes that overlap in one row, or lie next to each other."""
    data = np.zeros((16, 32), np.uint32)
    tensor_map = Device.encode_tensor_map("u32", data.ctypes.data, (32, 16), (128,), (8, 4))
    body = """
        mov.u32 %r2, %ctaid.x;
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra DONE;
        mul.lo.u32 %r3, %r2, {rows};
        mov.b64 %d9, p_map;
        mov.u32 %r9, 0;
    FILL:
        add.u32 %r8, %r1, %r9;
        st.shared.u32 [%r8], %r2;
        add.u32 %r9, %r9, 4;
        setp.lt.u32 %p2, %r9, 128;
        @%p2 bra FILL;
        fence.proxy.async.shared::cta;
        cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d9, {{8, %r3}}], [%r1];
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
    DONE:
    """

    def launch(rows: int) -> None:
        run(body.format(rows=rows), data, grid=2, tensor_map=tensor_map)

    launch(4)
    assert (data[4:8, 8:16] == 1).all()
    with pytest.raises(EmulationError, match="a write to global memory"):
        launch(3)
