"""What is left of a launch when it has ended, and of a cluster when others still run: next to nothing."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from cute_kernels.emulator import EmulationError
from cute_kernels.emulator.cta import Cta
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.warp import Warp
from tests.instructions.kernels import SCHEDULES, run

SHARED = 128 << 10  # bytes of a CTA

# Bulk work, a barrier and a wait, so that CTAs, warps, barriers and asynchronous operations name each other.
COPY = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1+512], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+512], 128;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1], 128, [%r1+512];
READY:
    bar.sync 0;
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r1+512], 0;
    @!%p1 bra WAIT;
    shl.b32 %r2, %r0, 2;
    add.u32 %r2, %r2, %r1;
    ld.shared.u32 %r3, [%r2];
    mov.u32 %r4, %ctaid.x;
    mul.wide.u32 %d5, %r4, 128;
    add.s64 %d6, %d3, %d5;
    st.global.u32 [%d6], %r3;
"""
FAULTS = {
    "deadlock": COPY.replace("], 128, [", "], 64, ["),
    "uninitialised": COPY + "add.u32 %r5, %r6, %r6; st.global.u32 [%d6], %r5;",
    "unknown-instruction": COPY + "mul.wide.u32 %r5, %r3, %r3;",
    "misaligned": COPY + "st.global.u32 [%d6+2], %r3;",
    "race": COPY + "@!%p0 st.shared.u32 [%r1+1024], %r3; @%p0 ld.shared.u32 %r5, [%r1+1024];",
}


@pytest.fixture(autouse=True)
def collector() -> None:
    """The garbage collector as programs have it, with nothing left to collect of what other tests made."""
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    gc.collect()


def alive() -> dict[str, int]:
    """How many objects there are of what a launch is made of, garbage included."""
    objects = gc.get_objects()
    return {kind.__name__: sum(type(o) is kind for o in objects) for kind in (Cta, Warp)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_launch_that_ends_leaves_nothing(schedule: str) -> None:
    before = alive()
    for seed in range(3):
        run(COPY, grid=4, num_sms=2, schedule=schedule, seed=seed)
    assert alive() == before


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_is_kept_keeps_no_launch(kind: str) -> None:
    before = alive()
    with pytest.raises(EmulationError) as fault:
        run(FAULTS[kind], grid=4, num_sms=2)
    assert fault.value.kind == kind
    assert len(fault.traceback) > 5  # where in the emulator it was met is told all the same
    assert alive() == before


def test_kernels_that_are_made_ready_no_more_are_given_back() -> None:
    for number in range(100):
        run(f"{COPY} // {number}")
    assert sum(type(o) is Program for o in gc.get_objects()) <= 2 * 32  # kept, and about to go


def test_a_cluster_that_ends_gives_its_memories_back() -> None:
    run(COPY, shared=SHARED)  # what is made once
    tracemalloc.start()
    try:
        run(COPY, shared=SHARED, grid=64, num_sms=2, out_words=4096)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * SHARED
