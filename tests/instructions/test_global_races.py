"""Races in global memory: what orders CTAs of a launch and warps; what does not is reported.

The patterns are those of kernels that work together through memory: a split-K reduction behind a counter, a stream-K
fix-up behind a flag.
"""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import SCHEDULES, run
from tests.instructions.workspaces import SETUP, clean, kind_of

COUNTER = "[%d0+1020]"  # the last word of `out`

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
