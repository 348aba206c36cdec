"""Which phase of an mbarrier a wait is for: it names a parity alone, so the order of events must leave no choice."""

from __future__ import annotations

import pytest

from cute_kernels.emulator import EmulationError
from tests.instructions.kernels import SCHEDULES, run

# One lane of each of two warps, which then meet. The barrier at 8 leads back, so that either can wait for the other.
TWO_WARPS = """
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1], {count};
    mbarrier.init.shared.b64 [%r1+8], 1;
    fence.mbarrier_init.release.cluster;
READY:
    bar.sync 0;
    and.b32 %r2, %r0, 31;
    setp.ne.u32 %p1, %r2, 0;
    setp.lt.u32 %p2, %r0, 32;
    @%p1 bra MET;
    @%p2 bra FIRST;
    {second}
    bra MET;
FIRST:
    {first}
MET:
    barrier.sync 0;
    {met}
"""
MISSED, EARLY = "it would have missed its phase", "it would have passed too early"
NEVER = "every warp waits"  # how a wait that missed its phase ends, unless the phase after the next completes


def wait(parity: int, at: int = 0) -> str:
    test = f"mbarrier.try_wait.parity.shared.b64 %p, [%r1+{at}], {parity};"
    return f"{{ .reg .pred %p; AGAIN: {test} @!%p bra AGAIN; }}"


def arrive(at: int = 0, semantics: str = "") -> str:
    return f"mbarrier.arrive{semantics}.shared.b64 _, [%r1+{at}];"


COPY = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1+128], [%d1], 16, [%r1];"
OWN_COPIES = (
    "cp.async.ca.shared.global [%r1+128], [%d1], 16; cp.async.mbarrier.arrive.noinc.shared.b64 [%r1];"
)
EXPECT = "mbarrier.arrive.expect_tx.shared.b64 _, [%r1], 16;"


def findings(first: list[str], second: list[str], met: str, schedule: str, seed: int, count: int = 1) -> str:
    """What is said of two warps."""
    body = TWO_WARPS.format(first="\n".join(first), second="\n".join(second), met=met, count=count)
    return said_of(body, schedule, seed)


def said_of(body: str, schedule: str, seed: int) -> str:
    try:
        _, report = run(body, threads=64, schedule=schedule, seed=seed)
    except EmulationError as fault:
        return str(fault)
    return "\n".join(report.warnings)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("first", "second", "called"),
    [
        ([wait(0)], [arrive(), arrive()], (MISSED, NEVER)),
        ([wait(0)], [arrive(), arrive(), arrive()], (MISSED, EARLY)),
        ([arrive(8), wait(0)], [arrive(), wait(0, 8), arrive()], (MISSED, NEVER)),
        ([wait(1)], [arrive()], (MISSED, NEVER)),  # a fresh barrier: as if a phase of parity 1 had completed
        ([wait(0), arrive(8), wait(0)], [arrive(), wait(0, 8), arrive(), arrive()], (MISSED, EARLY)),
        ([wait(0), arrive(8)], [EXPECT, COPY, wait(0), EXPECT, COPY, wait(1)], (MISSED, NEVER)),
    ],
)
def test_waits_that_another_timing_sends_to_another_phase(
    first: list[str], second: list[str], called: tuple[str, ...], schedule: str
) -> None:
    for seed in range(4):
        said = findings(first, second, "", schedule, seed)
        assert any(name in said for name in called), said


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("first", "second", "met"),
    [
        # There and back, the second warp beginning with a wait that a fresh barrier passes.
        (
            [wait(0), arrive(8), wait(1), arrive(8), wait(0)],
            [wait(1, 8), arrive(), wait(0, 8), arrive(), wait(1, 8), arrive()],
            "",
        ),
        # A warp that skips a phase knows of it from a barrier, from who waited, or from all that arrived.
        ([wait(0), arrive(8)], [arrive(), wait(0, 8), arrive()], wait(1)),
        (
            [wait(0), arrive(8), wait(1, 8), wait(0)],
            [arrive(), wait(0, 8), arrive(), wait(1), arrive(8), arrive()],
            "",
        ),
        ([arrive(), wait(0, 8), wait(1)], [arrive(8), wait(0), arrive()], ""),
        ([arrive(), arrive(8)], [wait(0, 8), arrive()], wait(1)),
        # Cause and effect without memory order: relaxed arrivals, copies, cp.async.
        (
            [wait(0), arrive(8, ".relaxed.cta")],
            [arrive(), wait(0, 8), arrive(0, ".relaxed.cta")],
            wait(1),
        ),
        ([wait(0), arrive(8)], [EXPECT, COPY, wait(0), EXPECT, wait(0, 8), COPY], wait(1)),
        ([wait(0), arrive(8)], [OWN_COPIES, wait(0, 8), OWN_COPIES], wait(1)),
        # The last phase that completes is waited for by whom it may concern.
        ([wait(0), wait(0)], [arrive(), wait(0)], wait(0)),
    ],
)
def test_waits_that_can_be_for_one_phase_alone(
    first: list[str], second: list[str], met: str, schedule: str
) -> None:
    for seed in range(4):
        assert findings(first, second, met, schedule, seed) == ""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("met", ["barrier.cluster.arrive.relaxed; barrier.cluster.wait;", ""])
def test_a_relaxed_cluster_barrier_puts_a_phase_behind_waits(met: str, schedule: str) -> None:
    body = f"""
    setp.eq.u32 %p0, %r0, 0;
    setp.lt.u32 %p1, %r0, 32;
    setp.eq.u32 %p2, %r0, 32;
    @%p0 mbarrier.init.shared.b64 [%r1], 1;
    bar.sync 0;
    @%p2 {arrive()}
    @!%p1 bra MEET;
    {wait(0)}
MEET:
    {met}
    @!%p2 bra END;
    {wait(0)}
    {arrive()}
END:
    """
    for seed in range(4):
        said = said_of(body, schedule, seed)
        assert said == "" if met else MISSED in said or NEVER in said
