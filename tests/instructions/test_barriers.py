"""mbarriers, named barriers, cluster barriers: what they order, count and refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import SCHEDULES, run

# Two warps: warp 1 hands a word of shared memory to warp 0 through an mbarrier of one arrival.
HAND_OVER = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra SETUP_DONE;
    mbarrier.init.shared.b64 [%r1], {count};
SETUP_DONE:
    {setup}
    setp.lt.u32 %p1, %r0, 32;
    @%p1 bra CONSUME;
    setp.ne.u32 %p2, %r0, 32;
    @%p2 bra DONE;
    mov.u32 %r2, 77;
    st.shared.u32 [%r1+64], %r2;
    mbarrier.arrive{release}.shared.b64 %d10, [%r1];
    bra DONE;
CONSUME:
    {wait}
    ld.shared.u32 %r3, [%r1+64];
    st.global.u32 [%d3], %r3;
DONE:
"""
WAIT = """
AGAIN:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r1], {parity};
    @!%p3 bra AGAIN;
"""


def hand_over(
    count: int = 1, setup: str = "bar.sync 0;", release: str = "", wait: str = WAIT.format(parity=0)
) -> str:
    return HAND_OVER.format(count=count, setup=setup, release=release, wait=wait)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_mbarrier_hands_over_shared_memory(schedule: str) -> None:
    out, _ = run(hand_over(), threads=64, schedule=schedule)
    assert (out[:32] == 77).all()
    assert (out[32:] == 0xFBFBFBFB).all()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"wait": ""}, "race|uninitialised"),
        ({"count": 2}, "deadlock"),
        ({"wait": WAIT.format(parity=1)}, "race|uninitialised|deadlock"),
        ({"setup": ""}, "race|barrier"),
        ({"release": ".relaxed.cta"}, "race"),
        ({"wait": WAIT.format(parity=2)}, "barrier"),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_broken_hand_over_is_called(change: dict[str, Any], kind: str, schedule: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(hand_over(**change), threads=64, schedule=schedule)
    assert caught.value.kind in kind.split("|")


def test_a_deadlock_names_warps_and_barriers() -> None:
    with pytest.raises(
        EmulationError, match=r"warp 0.*waiting for phase 0 of mbarrier 0x400.*1 of 2 arrivals"
    ):
        run(hand_over(count=2), threads=64)


def test_arrivals_are_counted_by_lane() -> None:
    body = """
    setp.eq.u32 %p0, %r0, 0;
    @%p0 mbarrier.init.shared.b64 [%r1], 40;
    bar.warp.sync -1;
    mbarrier.arrive.shared.b64 %d10, [%r1];
    setp.lt.u32 %p1, %r0, 4;
    @%p1 mbarrier.arrive.shared.b64 %d11, [%r1], 2;
    mbarrier.test_wait.parity.shared.b64 %p2, [%r1], 0;
    selp.u32 %r2, 1, 0, %p2;
    st.global.u32 [%d3], %r2;
    """
    out, _ = run(body)
    assert (out[:32] == 1).all()


def test_one_arrival_too_many_is_refused() -> None:
    body = """
    setp.eq.u32 %p0, %r0, 0;
    @%p0 mbarrier.init.shared.b64 [%r1], 33;
    bar.warp.sync -1;
    mbarrier.arrive.shared.b64 %d10, [%r1];
    mbarrier.arrive.shared.b64 %d10, [%r1];
    """
    with pytest.raises(EmulationError, match="more threads arrive"):
        run(body)


def test_transaction_bytes_hold_a_phase_open() -> None:
    body = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    mbarrier.init.shared.b64 [%r1], 1;
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], 48;
    mbarrier.test_wait.shared.b64 %p1, [%r1], %d10;
    selp.u32 %r2, 1, 0, %p1;
    mbarrier.complete_tx.shared.b64 [%r1], 48;
    mbarrier.test_wait.shared.b64 %p1, [%r1], %d10;
    selp.u32 %r3, 1, 0, %p1;
    st.global.v2.u32 [%d0], {%r2, %r3};
DONE:
    """
    out, _ = run(body)
    assert out[:2].tolist() == [0, 1]


def test_bytes_that_never_arrive_are_told() -> None:
    body = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    mbarrier.init.shared.b64 [%r1], 1;
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1], 48;
DONE:
    """
    with pytest.raises(EmulationError) as caught:
        run(body)
    assert caught.value.kind == "transaction-count"


@pytest.mark.parametrize("instruction", ["ld.shared.u32 %r2, [%r1+4];", "st.shared.u32 [%r1+4], %r0;"])
def test_a_live_mbarrier_is_no_data(instruction: str) -> None:
    body = f"""
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    mbarrier.init.shared.b64 [%r1], 1;
    {instruction}
DONE:
    """
    with pytest.raises(EmulationError) as caught:
        run(body)
    assert caught.value.kind == "barrier"


def test_an_invalidated_mbarrier_is_memory_again() -> None:
    body = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    mbarrier.init.shared.b64 [%r1], 1;
    mbarrier.inval.shared.b64 [%r1];
    st.shared.u32 [%r1+4], 5;
    ld.shared.u32 %r2, [%r1+4];
    st.global.u32 [%d0], %r2;
DONE:
    """
    out, _ = run(body)
    assert out[0] == 5


EXCHANGE = """
    st.shared.u32 [%r2], %r0;      // each thread its own word
    {barrier}
    xor.b32 %r3, %r0, 32;          // the other warp's
    shl.b32 %r3, %r3, 2;
    add.u32 %r3, %r3, %r1;
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%d3], %r4;
"""
OWN_WORD = "shl.b32 %r2, %r0, 2; add.u32 %r2, %r2, %r1;"


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.sync 3, 64;", "barrier.cta.sync.aligned 0;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cta_barrier_orders_shared_memory(barrier: str, schedule: str) -> None:
    out, _ = run(OWN_WORD + EXCHANGE.format(barrier=barrier), threads=64, schedule=schedule)
    assert (out[:64] == np.arange(64) ^ 32).all()


@pytest.mark.parametrize("barrier", ["", "bar.warp.sync -1;", "membar.cta;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_orders_no_other_warp_is_a_race(barrier: str, schedule: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(OWN_WORD + EXCHANGE.format(barrier=barrier), threads=64, schedule=schedule)
    assert caught.value.kind in ("race", "uninitialised")


def test_a_barrier_that_part_of_the_cta_skips_is_a_deadlock() -> None:
    with pytest.raises(EmulationError) as caught:
        run("setp.lt.u32 %p0, %r0, 32; @%p0 bar.sync 1, 64;", threads=64)
    assert caught.value.kind == "deadlock"


def test_threads_must_agree_on_a_barriers_count() -> None:
    body = "setp.lt.u32 %p0, %r0, 32; @%p0 bar.arrive 1, 64; @!%p0 bar.arrive 1, 96;"
    with pytest.raises(EmulationError, match="expects"):
        run(body, threads=64)


def test_a_barrier_reduction() -> None:
    body = """
    setp.lt.u32 %p0, %r0, 40;
    bar.red.popc.u32 %r2, 0, %p0;
    bar.red.and.pred %p1, 0, %p0;
    bar.red.or.pred %p2, 0, %p0;
    selp.u32 %r3, 256, 0, %p1;
    selp.u32 %r4, 512, 0, %p2;
    add.u32 %r2, %r2, %r3;
    add.u32 %r2, %r2, %r4;
    st.global.u32 [%d3], %r2;
    """
    out, _ = run(body, threads=64)
    assert (out[:64] == 40 + 512).all()


CLUSTER = """
    mov.u32 %r10, %cluster_ctarank;
    shl.b32 %r2, %r0, 2;
    add.u32 %r2, %r2, %r1;
    shl.b32 %r3, %r10, 8;
    add.u32 %r3, %r3, %r0;
    st.shared.u32 [%r2], %r3;
    barrier.cluster.arrive{semantics}.aligned;
    {wait}
    xor.b32 %r4, %r10, 1;
    mapa.shared::cluster.u32 %r5, %r2, %r4;
    ld.shared::cluster.u32 %r6, [%r5];
    mad.lo.u32 %r7, %r10, 32, %r0;
    mul.wide.u32 %d5, %r7, 4;
    add.s64 %d5, %d5, %d0;
    st.global.u32 [%d5], %r6;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cluster_barrier_orders_distributed_shared_memory(schedule: str) -> None:
    body = CLUSTER.format(semantics="", wait="barrier.cluster.wait.aligned;")
    out, _ = run(body, grid=2, cluster=2, schedule=schedule)
    assert (out[:64] == np.concatenate([256 + np.arange(32), np.arange(32)])).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_relaxed_cluster_arrive_orders_nothing(schedule: str) -> None:
    body = CLUSTER.format(semantics=".relaxed", wait="barrier.cluster.wait.aligned;")
    with pytest.raises(EmulationError) as caught:
        run(body, grid=2, cluster=2, schedule=schedule)
    assert caught.value.kind == "race"


def test_a_remote_arrival_completes_a_phase() -> None:
    body = """
    mov.u32 %r10, %cluster_ctarank;
    setp.eq.u32 %p0, %r0, 0;
    @%p0 mbarrier.init.shared.b64 [%r1], 1;
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    setp.eq.u32 %p1, %r10, 0;
    @%p1 bra WAIT;
    mapa.shared::cluster.u32 %r5, %r1, 0;
    @%p0 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];
    bra DONE;
WAIT:
    mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p3, [%r1], 0;
    @!%p3 bra WAIT;
    st.global.u32 [%d3], %r0;
DONE:
    barrier.cluster.arrive.aligned;
    barrier.cluster.wait.aligned;
    """
    out, _ = run(body, grid=2, cluster=2)
    assert (out[:32] == np.arange(32)).all()


def test_an_arrival_at_a_barrier_never_initialised() -> None:
    with pytest.raises(EmulationError, match="where no mbarrier is"):
        run("mbarrier.arrive.shared.b64 %d10, [%r1+8];")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_memory_fence_makes_a_relaxed_cluster_arrive_release(schedule: str) -> None:
    body = CLUSTER.format(semantics=".relaxed", wait="barrier.cluster.wait.aligned;")
    body = body.replace(
        "barrier.cluster.arrive.relaxed", "fence.acq_rel.cluster; barrier.cluster.arrive.relaxed", 1
    )
    out, _ = run(body, grid=2, cluster=2, schedule=schedule)
    assert (out[:64] == np.concatenate([256 + np.arange(32), np.arange(32)])).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fence", ["fence.mbarrier_init.release.cluster;", ""])
def test_a_relaxed_cluster_arrive_announces_fenced_mbarriers(schedule: str, fence: str) -> None:
    body = f"""
    setp.eq.u32 %p0, %r0, 0;
    @%p0 mbarrier.init.shared.b64 [%r1], 64;
    {fence}
    barrier.cluster.arrive.relaxed.aligned;
    barrier.cluster.wait.aligned;
    mbarrier.arrive.shared.b64 %d10, [%r1];
    st.global.u32 [%d3], %r0;
    """
    if fence:
        out, _ = run(body, threads=64, schedule=schedule)
        assert (out[:64] == np.arange(64)).all()
    else:
        with pytest.raises(EmulationError) as caught:
            run(body, threads=64, schedule=schedule)
        assert caught.value.kind in ("race", "barrier")


def test_an_address_outside_the_cluster_is_a_fault_where_it_is_used() -> None:
    """Kernels compute one in every lane and use those of a few."""
    body = "st.shared.u32 [%r1], 0; bar.warp.sync -1; setp.lt.u32 %p0, %r0, {lanes};"
    body += "mapa.shared::cluster.u32 %r5, %r1, %r0;"
    use = "@%p0 mapa.shared::cluster.u32 %r6, %r1, %r0; @%p0 ld.shared::cluster.u32 %r7, [%r5];"
    run(body.format(lanes=1) + use)
    with pytest.raises(EmulationError, match="of a cluster of 1"):
        run(body.format(lanes=2) + use)
