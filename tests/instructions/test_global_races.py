"""Races in global memory: what orders CTAs of a launch, warps, and asynchronous copies; what does not is reported.

The patterns are those of kernels that work together through memory: a split-K reduction behind a counter, a stream-K
fix-up behind a flag, tiles that a tensor copy writes and another reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.kernels import SCHEDULES, run

COUNTER = "[%d0+1020]"  # the last word of `out`

SETUP = """
    mov.u32 %r2, %ctaid.x;
    setp.eq.u32 %p0, %r2, 0;           // the producer's CTA
    setp.ne.u32 %p1, %r0, 0;           // not the thread that speaks for its CTA
"""


def kind_of(body: str, schedule: str = "random", seed: int = 0, **launch: Any) -> str:
    """The kind of the fault that a body raises, or ""; `out` is cleared, which a kernel's workspace would be."""
    try:
        clean(SETUP + body, schedule=schedule, seed=seed, **launch)
    except EmulationError as fault:
        return fault.kind
    return ""


def clean(body: str, schedule: str = "random", seed: int = 0, **launch: Any) -> np.ndarray:
    """Runs a body with `in` all zeros as its workspace."""
    source = np.zeros(1024, np.uint32)
    return run(
        body.replace("%d0", "%d1").replace("%d3", "%d4"), source, schedule=schedule, seed=seed, **launch
    )[0]


# A producer CTA writes, thread by thread, and raises a flag; a consumer CTA spins on the flag and reads what other
# threads of the producer wrote.
FIX_UP = """
    @!%p0 bra CONSUME;
    st.global.u32 [%d3], %r0;
    {gather}
    @%p1 bra DONE;
    {release}
    bra DONE;
CONSUME:
    @%p1 bra MEET;
SPIN:
    {acquire}
    setp.eq.u32 %p2, %r5, 0;
    @%p2 bra SPIN;
MEET:
    {spread}
    xor.b32 %r6, %r0, 33;
    mul.wide.u32 %d5, %r6, 4;
    add.s64 %d5, %d5, %d0;
    ld.global.u32 %r7, [%d5];
    st.global.u32 [%d3+256], %r7;
DONE:
"""
BAR = "bar.sync 0;"
RELEASES = {
    "red.release": "red.release.gpu.global.add.u32 {0}, 1;",
    "st.release": "mov.u32 %r4, 1; st.release.gpu.global.u32 {0}, %r4;",
    "threadfence, atomic": "membar.gl; atom.global.add.u32 %r4, {0}, 1;",
    "fence, relaxed store": "mov.u32 %r4, 1; fence.acq_rel.gpu; st.relaxed.gpu.global.u32 {0}, %r4;",
    "volatile store": "mov.u32 %r4, 1; fence.sc.gpu; st.volatile.global.u32 {0}, %r4;",
}
ACQUIRES = {
    "ld.acquire": "ld.acquire.gpu.global.u32 %r5, {0};",
    "relaxed load, fence": "ld.relaxed.gpu.global.u32 %r5, {0}; fence.acq_rel.gpu;",
    "volatile load, threadfence": "ld.volatile.global.u32 %r5, {0}; membar.gl;",
    "atomic": "atom.acquire.gpu.global.add.u32 %r5, {0}, 0;",
}


def fix_up(release: str, acquire: str, gather: str = BAR, spread: str = BAR) -> str:
    return FIX_UP.format(
        gather=gather, spread=spread, release=release.format(COUNTER), acquire=acquire.format(COUNTER)
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("acquire", ACQUIRES.values(), ids=list(ACQUIRES))
@pytest.mark.parametrize("release", RELEASES.values(), ids=list(RELEASES))
def test_a_flag_orders_ctas(release: str, acquire: str, schedule: str) -> None:
    source = np.zeros(1024, np.uint32)
    body = SETUP + fix_up(release, acquire)
    run(body.replace("%d0", "%d1").replace("%d3", "%d4"), source, threads=64, grid=2, schedule=schedule)
    assert (source[64:128] == np.arange(64) ^ 33).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "wrong",
    [
        fix_up("red.relaxed.gpu.global.add.u32 {0}, 1;", ACQUIRES["ld.acquire"]),
        fix_up(RELEASES["red.release"], "ld.relaxed.gpu.global.u32 %r5, {0};"),
        fix_up("red.release.cta.global.add.u32 {0}, 1;", ACQUIRES["ld.acquire"]),
        fix_up(RELEASES["red.release"], "ld.acquire.cta.global.u32 %r5, {0};"),
        fix_up("membar.cta; red.global.add.u32 {0}, 1;", ACQUIRES["ld.acquire"]),
        fix_up(RELEASES["red.release"], "ld.volatile.global.u32 %r5, {0}; membar.cta;"),
        fix_up(RELEASES["red.release"], ACQUIRES["ld.acquire"], gather=""),
        fix_up(RELEASES["red.release"], ACQUIRES["ld.acquire"], gather="membar.gl;"),
        fix_up(RELEASES["red.release"], ACQUIRES["ld.acquire"], gather="bar.warp.sync -1;"),
        fix_up(RELEASES["red.release"], ACQUIRES["ld.acquire"], spread="bar.warp.sync -1;"),
        fix_up("red.global.add.u32 {0}, 1; membar.gl;", ACQUIRES["ld.acquire"]),
    ],
    ids=[
        "no release", "no acquire", "release at cta scope", "acquire at cta scope", "fence at cta scope",
        "acquiring fence at cta scope", "no barrier before", "a fence for a barrier before", "one warp before",
        "no barrier behind", "fence behind the flag",
    ],
)  # fmt: skip
def test_a_flag_without_its_order_is_found(wrong: str, schedule: str) -> None:
    assert kind_of(wrong, schedule, threads=64, grid=2) == "race"


def test_a_flag_read_by_plain_loads_is_found() -> None:
    wrong = fix_up(RELEASES["st.release"], "ld.global.u32 %r5, {0};")
    assert kind_of(wrong, "eager", threads=64, grid=2) == "race"


def test_the_report_tells_both_sides() -> None:
    with pytest.raises(EmulationError) as caught:
        clean(
            SETUP + fix_up(RELEASES["red.release"], "ld.relaxed.gpu.global.u32 %r5, {0};"), threads=64, grid=2
        )
    text = str(caught.value)
    assert "warp 1 (CTA (0, 0, 0))" in text or "warp 0 (CTA (0, 0, 0))" in text
    assert "ld.acquire.gpu" in text and "(in + 0x" in text
    assert "st.global.u32 [%d4], %r0" in text and caught.value.place.cta == (1, 0, 0)


# Every CTA adds its partial sums to its own slice, counts itself, and the last one to come adds all slices up.
SPLIT_K = """
    mul.lo.u32 %r3, %r2, 256;
    cvt.u64.u32 %d5, %r3;
    add.s64 %d6, %d3, %d5;
    st.global.u32 [%d6], %r0;
    {release}
    bar.sync 0;
    @%p1 bra MEET;
    {count}
    st.shared.u32 [%r1], %r4;
MEET:
    bar.sync 0;
    ld.shared.u32 %r5, [%r1];
    setp.ne.u32 %p3, %r5, 2;
    @%p3 bra DONE;
    {acquire}
    xor.b32 %r6, %r0, 5;
    mul.wide.u32 %d7, %r6, 4;
    add.s64 %d7, %d7, %d0;
    ld.global.u32 %r7, [%d7];
    ld.global.u32 %r8, [%d7+256];
    ld.global.u32 %r9, [%d7+512];
    st.global.u32 [%d3+1024], %r9;
DONE:
"""


def split_k(count: str, release: str = "", acquire: str = "") -> str:
    return SPLIT_K.format(count=count.format(COUNTER), release=release, acquire=acquire)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(3))
def test_a_counter_orders_all_that_were_counted(seed: int, schedule: str) -> None:
    """An atomic keeps what earlier ones released: the last CTA is ordered after all, not the last but one alone."""
    right = split_k("atom.acq_rel.gpu.global.add.u32 %r4, {0}, 1;")
    assert kind_of(right, schedule, seed, threads=64, grid=3) == ""
    fenced = split_k("membar.gl; atom.global.add.u32 %r4, {0}, 1; membar.gl;")
    assert kind_of(fenced, schedule, seed, threads=64, grid=3) == ""


@pytest.mark.parametrize("order", ["acquire", "release", "relaxed"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_counter_without_its_order_is_found(order: str, schedule: str) -> None:
    wrong = split_k(f"atom.{order}.gpu.global.add.u32 %r4, {{0}}, 1;")
    assert kind_of(wrong, schedule, threads=64, grid=3) == "race"


def test_a_plain_store_to_a_counter_ends_what_it_told() -> None:
    body = fix_up("red.release.gpu.global.add.u32 {0}, 1; mov.u32 %r4, 2; st.relaxed.gpu.global.u32 {0}, %r4;",
                  ACQUIRES["ld.acquire"])  # fmt: skip
    assert kind_of(body, "eager", threads=64, grid=2) == "race"


def test_who_reads_a_flag_may_clear_it() -> None:
    """What an atomic or a strong load sees is ordered before what its thread does next, whatever it acquires."""
    clear = """
        @%p1 bra DONE;
        atom.global.add.u32 %r4, [%d0], 1;
        setp.eq.u32 %p4, %r4, 2;
        @{0}%p4 st.global.u32 [%d0], 0;
    DONE:
    """
    assert kind_of(clear.format(""), grid=3) == ""
    assert kind_of(clear.format("!"), grid=3) == "race"
    relaxed = fix_up(
        RELEASES["fence, relaxed store"],
        ACQUIRES["relaxed load, fence"],
        spread=f"@!%p1 st.global.u32 {COUNTER}, 0; bar.sync 0;",
    )
    assert kind_of(relaxed, threads=64, grid=2) == ""


def test_news_go_from_cta_to_cta() -> None:
    """CTA 0 tells CTA 1, which tells CTA 2: CTA 2 is ordered after CTA 0."""
    body = """
        setp.eq.u32 %p4, %r2, 1;
        @%p1 bra DONE;
        @!%p0 bra MIDDLE;
        st.global.u32 [%d0], 7;
        red.release.gpu.global.add.u32 [%d0+512], 1;
        bra DONE;
    MIDDLE:
        @!%p4 bra LAST;
    SPIN1:
        ld.acquire.gpu.global.u32 %r5, [%d0+512];
        setp.eq.u32 %p2, %r5, 0;
        @%p2 bra SPIN1;
        red.{order}.gpu.global.add.u32 [%d0+516], 1;
        bra DONE;
    LAST:
        ld.acquire.gpu.global.u32 %r5, [%d0+516];
        setp.eq.u32 %p2, %r5, 0;
        @%p2 bra LAST;
        ld.global.u32 %r6, [%d0];
    DONE:
    """
    assert kind_of(body.replace("{order}", "release"), grid=3) == ""
    assert kind_of(body.replace("{order}", "relaxed"), grid=3) == "race"


# --- within a CTA and a cluster -----------------------------------------------------------------------------------

NEIGHBOUR = """
    st.global.u32 [%d3], %r0;
    {order}
    xor.b32 %r6, %r0, {other};
    mul.wide.u32 %d5, %r6, 4;
    add.s64 %d5, %d5, %d0;
    {access};
"""
READ, WRITE = "ld.global.u32 %r7, [%d5]", "st.global.u32 [%d5], %r0"


@pytest.mark.parametrize("access", [READ, WRITE])
def test_warps_are_ordered_by_barriers(access: str) -> None:
    between_warps = NEIGHBOUR.replace("{other}", "33").replace("{access}", access)
    for order, kind in ((BAR, ""), ("", "race"), ("membar.gl;", "race"), ("bar.warp.sync -1;", "race")):
        assert kind_of(between_warps.replace("{order}", order), threads=64) == kind
    between_lanes = NEIGHBOUR.replace("{other}", "1").replace("{access}", access)
    for order, kind in ((BAR, ""), ("", "race"), ("bar.warp.sync -1;", "")):
        assert kind_of(between_lanes.replace("{order}", order)) == kind
    assert kind_of(NEIGHBOUR.format(order="", other="0", access=access)) == ""  # a lane after itself


def test_a_write_waits_for_reads() -> None:
    body = "ld.global.u32 %r7, [%d3]; {order} xor.b32 %r6, %r0, 33; mul.wide.u32 %d5, %r6, 4; add.s64 %d5, %d5, %d0;"
    assert kind_of(body.replace("{order}", BAR) + WRITE + ";", threads=64) == ""
    assert kind_of(body.replace("{order}", "") + WRITE + ";", threads=64) == "race"


def test_ctas_of_a_cluster_are_ordered_by_its_barrier() -> None:
    body = """
        @%p0 st.global.u32 [%d3], %r0;
        {order}
        @!%p0 ld.global.u32 %r7, [%d3];
    """
    barrier = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
    assert kind_of(body.replace("{order}", barrier), grid=2, cluster=2) == ""
    assert kind_of(body.replace("{order}", BAR), grid=2, cluster=2) == "race"


def test_two_ctas_may_not_write_one_word() -> None:
    assert kind_of("st.global.u32 [%d3], %r2;", grid=2) == "race"
    assert kind_of("red.global.add.u32 [%d3], 1;", grid=2) == ""
    assert kind_of("@%p0 st.global.u32 [%d3], 1; @!%p0 red.global.add.u32 [%d3], 1;", grid=2) == "race"


def test_writing_what_is_there_already_is_a_warning() -> None:
    report = run("st.global.u32 [%d0], 7;", threads=64)[1]
    assert any("all write the same value" in warning for warning in report.warnings)


def test_halves_of_a_word_are_apart() -> None:
    body = "mul.wide.u32 %d5, %r2, 2; add.s64 %d5, %d5, %d0; mov.b16 %h0, 1; @!%p1 st.global.u16 [%d5], %h0;"
    assert kind_of(body, grid=2) == ""


# --- asynchronous copies ------------------------------------------------------------------------------------------

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
