"""What Device(tolerate=...) turns from a fault into a warning, and that it changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError, Report
from tests.instructions.kernels import SCHEDULES, module, run

# Every warp writes its lanes of tensor memory, reads them back with no wait, stores them; warp 0 gives the memory back.
BODY = """
    shr.u32 %r2, %r0, 5;
    setp.ne.u32 %p0, %r2, 0;
    @%p0 bra ALLOCATED;
    tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32;
ALLOCATED:
    bar.sync 0;
    ld.shared.u32 %r3, [%r1];
    shl.b32 %r4, %r2, 21;
    add.u32 %r4, %r4, %r3;
    tcgen05.st.sync.aligned.32x32b.x1.b32 [%r4], {%r0};
    tcgen05.wait::st.sync.aligned;
    tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r5}, [%r4];
    {use}
    bar.sync 0;
    @%p0 bra DONE;
    tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r3, 32;
DONE:
"""
USE = "add.u32 %r6, %r5, 1; st.global.u32 [%d3], %r6;"


def launch(use: str, schedule: str, tolerate: tuple[str, ...]) -> tuple[np.ndarray, Report]:
    out = np.zeros(64, np.uint32)
    device = Device("sm_100a", schedule=schedule, tolerate=tolerate)
    device.register(out.ctypes.data, out.nbytes)
    params = [out.ctypes.data.to_bytes(8, "little"), bytes(8), bytes(128)]
    text = module(BODY.replace("{use}", use))
    return out, device.launch(text, None, (1, 1, 1), (64, 1, 1), dynamic_shared=64, params=params)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_load_that_is_not_awaited(schedule: str) -> None:
    with pytest.raises(EmulationError) as caught:
        launch(USE, schedule, ())
    assert caught.value.kind == "missing-wait"
    out, report = launch(USE, schedule, ("tcgen05.ld",))
    assert (out == np.arange(64) + 1).all()
    assert any("with no tcgen05.wait::ld (tolerated)" in warning for warning in report.warnings)


# Moves of what is under way, with an instruction between that is held back for others of its kind.
MOVED = """
    mov.b32 %r11, 0;
    mov.b32 %r14, 0x3210;
    tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r6}, [%r4];
    mov.b64 %d10, {%r5, %r6};
    mov.b64 {%r7, %r8}, %d10;
    prmt.b32 %r13, %r7, %r8, %r14;
    mov.b64 {%r12, %r9}, %d10;
    add.u32 %r11, %r11, 1000;
    add.u32 %r10, %r13, %r9;
    add.u32 %r10, %r10, %r11;
    st.global.u32 [%d3], %r10;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_follows_a_load_that_is_not_awaited_is_executed_once(schedule: str) -> None:
    out, _ = launch(MOVED, schedule, ("tcgen05.ld",))
    assert (out == 1000 + 2 * np.arange(64)).all()


def test_a_load_that_is_neither_awaited_nor_used_is_a_race_still() -> None:
    with pytest.raises(EmulationError) as caught:
        launch("", "lazy", ("tcgen05.ld",))
    assert caught.value.kind == "race"


def test_what_cannot_be_tolerated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"supported are tcgen05\.ld"):
        Device("sm_100a", tolerate=("race",))


# Thread 0 sends 128 bytes to global memory and exits.
LEFT_BEHIND = """
    mad.lo.u32 %r2, %r0, 4, %r1;
    st.shared.u32 [%r2], %r0;
    fence.proxy.async.shared::cta;
    bar.sync 0;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra DONE;
    cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 128;
    cp.async.bulk.commit_group;
DONE:
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_bulk_store_that_its_cta_does_not_outlive(schedule: str) -> None:
    with pytest.raises(EmulationError) as caught:
        run(LEFT_BEHIND, schedule=schedule)
    assert caught.value.kind == "unfinished"
    out, report = run(LEFT_BEHIND, schedule=schedule, tolerate=("cp.async.bulk",))
    assert (out[:32] == np.arange(32)).all()
    assert any("may still read its shared memory" in warning for warning in report.warnings)


# 64 threads initialise one mbarrier, and thread 0 arrives on it.
INITIALISED_BY_ALL = """
    add.u32 %r2, %r1, 64;
    {first}
    mbarrier.init.shared.b64 [%r2], {count};
    bar.sync 0;
    setp.ne.u32 %p0, %r0, 0;
    @!%p0 mbarrier.arrive.shared.b64 _, [%r2];
    {late}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r2], 0;
    @!%p3 bra WAIT;
    st.global.u32 [%d3], %r0;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_mbarrier_that_every_thread_initialises(schedule: str) -> None:
    parts = {"first": "", "count": "1", "late": ""}
    with pytest.raises(EmulationError) as caught:
        run(INITIALISED_BY_ALL.format(**parts), threads=64, schedule=schedule)
    assert caught.value.kind == "barrier"
    text = INITIALISED_BY_ALL.format(**parts)
    out, report = run(text, threads=64, schedule=schedule, tolerate=("mbarrier.init",))
    assert (out[:64] == np.arange(64)).all()
    assert any("nobody has used (tolerated)" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "change",
    [
        {"late": "bar.sync 0; mbarrier.init.shared.b64 [%r2], 1;"},
        {"first": "mbarrier.init.shared.b64 [%r2], 2;"},
    ],
    ids=["used since", "another count"],
)
def test_an_mbarrier_that_is_initialised_otherwise(change: dict[str, str]) -> None:
    parts = {"first": "", "count": "1", "late": ""} | change
    with pytest.raises(EmulationError, match="where a live mbarrier is"):
        run(INITIALISED_BY_ALL.format(**parts), threads=64, tolerate=("mbarrier.init",))
