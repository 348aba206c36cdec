"""Order between the lanes of one warp: what bar.warp.sync orders, and what a lane may do for the others."""

from __future__ import annotations

import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import SCHEDULES, run

WARP_SYNC = "bar.warp.sync -1;"
OWN_AND_NEXT = """
    shl.b32 %r2, %r0, 2;
    add.u32 %r2, %r2, %r1;         // own word
    xor.b32 %r3, %r0, 1;
    shl.b32 %r3, %r3, 2;
    add.u32 %r3, %r3, %r1;         // the neighbour's
    setp.eq.u32 %p0, %r0, 0;
"""
BARRIER = "mbarrier.init.shared.b64 [%r1+256], {count}; fence.mbarrier_init.release.cluster;"
WAIT = "{label}: mbarrier.try_wait.parity.shared.b64 %p3, [%r1+256], 0; @!%p3 bra {label};"


def kind_of(body: str, schedule: str = "random", threads: int = 32) -> str:
    """The kind of the fault that a body raises, or ""."""
    try:
        run(OWN_AND_NEXT + body, schedule=schedule, threads=threads)
    except EmulationError as fault:
        return fault.kind
    return ""


@pytest.mark.parametrize("sync", [WARP_SYNC, "bar.sync 0;", "barrier.cta.sync.aligned 0;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "body",
    [
        "st.shared.u32 [%r2], %r0; {sync} ld.shared.u32 %r4, [%r3];",
        "st.shared.u32 [%r2], %r0; {sync} st.shared.u32 [%r3], %r0;",
        "st.shared.u32 [%r2], %r0; ld.shared.u32 %r4, [%r2]; {sync} st.shared.u32 [%r3], %r0;",
        # Several lanes read the word that one of them writes.
        "@%p0 st.shared.u32 [%r1], 1; bar.warp.sync -1; ld.shared.u32 %r4, [%r1]; {sync} @%p0 st.shared.u32 [%r1], 2;",
        "st.shared.u32 [%r2], 0; bar.warp.sync -1; red.shared.add.u32 [%r1], 1; {sync} @%p0 st.shared.u32 [%r1], 2;",
    ],
)
def test_lanes_are_ordered_by_a_barrier_alone(body: str, sync: str, schedule: str) -> None:
    assert kind_of(body.format(sync=sync), schedule) == ""
    assert kind_of(body.format(sync=""), schedule) == "race"


@pytest.mark.parametrize(
    "order", ["shfl.sync.idx.b32 %r5, %r0, 0, 31, -1;", "vote.sync.ballot.b32 %r5, %p0, -1;", "membar.cta;"]
)
def test_what_orders_no_lanes(order: str) -> None:
    assert kind_of(f"st.shared.u32 [%r2], %r0; {order} ld.shared.u32 %r4, [%r3];") == "race"


def test_a_lane_is_ordered_after_itself() -> None:
    body = "st.shared.u32 [%r2], %r0; ld.shared.u32 %r4, [%r2]; st.shared.u32 [%r2], %r4; st.shared.u32 [%r2], 0;"
    assert kind_of(body) == ""


def test_a_barrier_of_some_lanes_orders_these_alone() -> None:
    halves = "setp.lt.u32 %p1, %r0, 16; st.shared.u32 [%r2], %r0; @%p1 bar.warp.sync 0xffff; "
    assert kind_of(halves + "@%p1 ld.shared.u32 %r4, [%r3];") == ""
    assert kind_of(halves + "@!%p1 ld.shared.u32 %r4, [%r3];") == "race"


# --- one lane releases ------------------------------------------------------------------------------------------------

RELEASE = """
    setp.lt.u32 %p1, %r0, 32;
    @%p0 {barrier}
    bar.sync 0;
    @!%p1 bra CONSUME;
    {write}
    {sync}
    @%p0 mbarrier.arrive.shared.b64 %d10, [%r1+256];
    bra DONE;
CONSUME:
    {wait}
    and.b32 %r5, %r0, 31;
    shl.b32 %r5, %r5, 2;
    add.u32 %r5, %r5, %r1;
    ld.shared.u32 %r6, [%r5];
DONE:
"""


def release(write: str, sync: str) -> str:
    first = BARRIER.format(count=1).split("; ")
    return RELEASE.format(barrier=first[0] + ";", write=write, sync=sync, wait=WAIT.format(label="AGAIN"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_arrival_covers_the_lanes_that_it_has_met(schedule: str) -> None:
    write = "st.shared.u32 [%r2], %r0;"
    assert kind_of(release(write, WARP_SYNC), schedule, threads=64) == ""
    assert kind_of(release(write, ""), schedule, threads=64) == "race"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_arrival_covers_the_lane_that_makes_it(schedule: str) -> None:
    write = "@%p0 st.shared.v4.u32 [%r1], {%r0, %r0, %r0, %r0};"
    body = release(write, "").replace("ld.shared.u32 %r6, [%r5]", "ld.shared.u32 %r6, [%r1+4]")
    assert kind_of(body, schedule, threads=64) == ""


@pytest.mark.parametrize(("sync", "warnings"), [(WARP_SYNC, 0), ("", 1)])
def test_a_lane_that_frees_what_others_have_read_is_told(sync: str, warnings: int) -> None:
    body = release("ld.shared.u32 %r4, [%r2];", sync).replace(
        "bar.sync 0;", "st.shared.u32 [%r2], 0; bar.sync 0;"
    )
    body = body.replace("ld.shared.u32 %r6, [%r5]", "st.shared.u32 [%r5], %r0")
    _, report = run(OWN_AND_NEXT + body, threads=64)
    assert len(report.warnings) == warnings


# --- one lane acquires ------------------------------------------------------------------------------------------------

LOAD = """
    @!%p0 bra LOADED;
    mbarrier.init.shared.b64 [%r1+256], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 %d10, [%r1+256], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1], 128, [%r1+256];
    {leader}
LOADED:
    bar.warp.sync -1;
    {everyone}
    ld.shared.u32 %r4, [%r2];
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_wait_of_one_lane_tells_the_others_by_a_barrier(schedule: str) -> None:
    wait = WAIT.format(label="AGAIN")
    assert kind_of(LOAD.format(leader=wait, everyone=""), schedule) == ""
    assert kind_of(LOAD.format(leader="", everyone=wait), schedule) == ""
    alone = "@!%p0 bra WAITED; " + wait + " WAITED: "
    assert kind_of(LOAD.format(leader="", everyone=alone + WARP_SYNC), schedule) == ""
    assert kind_of(LOAD.format(leader="", everyone=alone), schedule) == "missing-wait"


STORE = """
    st.shared.u32 [%r2], %r0;
    fence.proxy.async.shared::cta;
    {before}
    @!%p0 bra STORED;
    cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 128;
    cp.async.bulk.commit_group;
STORED:
    cp.async.bulk.wait_group.read 0;
    {after}
    st.shared.u32 [%r2], 5;
    cp.async.bulk.wait_group 0;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_bulk_store_by_one_lane(schedule: str) -> None:
    assert kind_of(STORE.format(before=WARP_SYNC, after=WARP_SYNC), schedule) == ""
    assert kind_of(STORE.format(before="", after=WARP_SYNC), schedule) == "race"
    assert kind_of(STORE.format(before=WARP_SYNC, after=""), schedule) == "race"


def test_the_fence_may_stand_on_either_side_of_the_barrier() -> None:
    late = STORE.format(before="", after=WARP_SYNC).replace("fence.proxy.async.shared::cta;", WARP_SYNC)
    assert kind_of(late) == "missing-proxy-fence"
    fenced = late.replace("@!%p0 bra STORED;", "@!%p0 bra STORED; fence.proxy.async.shared::cta;")
    assert kind_of(fenced) == ""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_lane_waits_for_its_own_cp_async_alone(schedule: str) -> None:
    body = (
        "cp.async.ca.shared.global [%r2], [%d4], 4; cp.async.wait_all; {sync} ld.shared.u32 %r4, [{where}];"
    )
    assert kind_of(body.format(sync="", where="%r2"), schedule) == ""
    assert kind_of(body.format(sync=WARP_SYNC, where="%r3"), schedule) == ""
    assert kind_of(body.format(sync="", where="%r3"), schedule) == "race"


# --- a barrier's own initialisation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync", "kind"), [(WARP_SYNC, ""), ("", "race")])
def test_an_mbarrier_is_initialised_for_other_lanes_by_a_barrier(sync: str, kind: str) -> None:
    body = f"@%p0 mbarrier.init.shared.b64 [%r1+256], 32; {sync} mbarrier.arrive.shared.b64 %d10, [%r1+256];"
    assert kind_of(body) == kind


# --- several lanes issue one copy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guard", "lanes"), [("@%p0 ", 0), ("@!%p0 ", 31), ("", 32)])
def test_copies_that_lanes_repeat_are_told(guard: str, lanes: int) -> None:
    body = f"""
    st.shared.u32 [%r2], %r0;
    fence.proxy.async.shared::cta;
    bar.warp.sync -1;
    {guard}cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 128;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    _, report = run(OWN_AND_NEXT + body)
    told = [warning for warning in report.warnings if "elect one" in warning]
    assert len(told) == bool(lanes)
    assert all(f"{lanes} lanes issue the same" in warning for warning in told)


def test_copies_of_one_part_each_are_no_repetition() -> None:
    body = """
    shl.b32 %r4, %r0, 4;
    add.u32 %r4, %r4, %r1;
    st.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0};
    fence.proxy.async.shared::cta;
    mul.wide.u32 %d5, %r0, 16;
    add.s64 %d5, %d5, %d0;
    cp.async.bulk.global.shared::cta.bulk_group [%d5], [%r4], 16;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    """
    out, report = run(OWN_AND_NEXT + body)
    assert out[:128].tolist() == [i // 4 for i in range(128)]
    assert report.warnings == []
