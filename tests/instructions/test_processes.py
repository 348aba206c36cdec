"""The clusters of a launch over several processes: results, reports and faults are those of one process."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import signal
import time
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError, Report, helpers, processes
from cute_kernels.emulator.helpers import Outcome
from tests.instructions import test_launch_control as launch_control
from tests.instructions.kernels import SCHEDULES, module

CTAS = 7
WORDS = 64  # of `out` and of `in` that belong to a CTA

# Thread 0 has 256 bytes of `in` copied to shared memory; every thread writes twice a word of them to `out`.
COPY = """
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %d5, %r2, 256;
    add.s64 %d6, %d1, %d5;             // the CTA's part of `in`
    add.s64 %d7, %d3, %d5;             // the thread's word of `out`
    setp.ne.u32 %p0, %r0, 0;
    setp.eq.u32 %p3, %r2, 6;           // the last CTA
    setp.eq.u32 %p4, %r2, 0;           // the first
    @%p0 bra READY;
    mbarrier.init.shared.b64 [%r1+512], 1;
    fence.mbarrier_init.release.cluster;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r1+512], 256;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d6], 256, [%r1+512];
READY:
    bar.sync 0;
    {before}
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p1, [%r1+512], 0;
    @!%p1 bra WAIT;
    mul.lo.u32 %r3, %r0, 4;
    add.u32 %r3, %r3, %r1;
    ld.shared.u32 %r4, [%r3];
    add.u32 %r4, %r4, %r4;
    {store}
    {after}
"""
STORE = "st.global.u32 [%d7], %r4;"
# CTAs 0 to 3 end at once; the others request that CTAs be cancelled.
REQUESTS = "setp.lt.u32 %p3, %r2, 4;\n@%p3 exit;" + launch_control.WORK + launch_control.request()
REQUESTS += launch_control.WAIT + launch_control.query()


class Forks:
    """How often this process was forked."""

    def __init__(self) -> None:
        self.count = 0
        self._fork = os.fork

    def __call__(self) -> int:
        self.count += 1
        return self._fork()


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    """Has every launch forked, however short, and begins with no helpers."""
    helpers.end_idle()
    counting = Forks()
    monkeypatch.setattr(os, "fork", counting)
    monkeypatch.setattr(processes, "_WORTH_FORKING", 1e-9)
    yield counting
    helpers.end_idle()


class Work:
    """Arrays at fixed addresses, so that texts of faults can be compared, and launches of COPY with some parts."""

    def __init__(self, **parts: str) -> None:
        self.text = module(COPY.format(**{"before": "", "store": STORE, "after": ""} | parts), "sm_90a")
        self.source = np.zeros(CTAS * WORDS + 1, np.uint32)  # behind the data a counter
        self.out = np.zeros(CTAS * WORDS, np.uint32)

    def launch(self, number: int, schedule: str, seed: int = 0, step_limit: int = 100_000) -> Report:
        """Runs over a number of processes."""
        self.out[:], self.source[:] = 0xFBFBFBFB, [*range(CTAS * WORDS), 0]
        device = Device("sm_90a", 2, schedule, seed, step_limit, processes=number)
        device.register(self.out.ctypes.data, self.out.nbytes, "out")
        device.register(self.source.ctypes.data, self.source.nbytes, "in")
        params = [array.ctypes.data.to_bytes(8, "little") for array in (self.out, self.source)]
        grid, block = (CTAS, 1, 1), (WORDS, 1, 1)
        return device.launch(self.text, None, grid, block, (1, 1, 1), 1024, [*params, bytes(128)])

    def fault(self, number: int, schedule: str, step_limit: int = 100_000) -> str:
        """The text of the fault."""
        with pytest.raises(EmulationError) as caught:
            self.launch(number, schedule, step_limit=step_limit)
        return str(caught.value)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(3))
def test_results_and_reports_are_those_of_one_process(schedule: str, seed: int, forks: Forks) -> None:
    work = Work()
    report = work.launch(1, schedule, seed)
    assert not forks.count
    assert report.operations == {"cp.async.bulk": CTAS}
    for number in (2, 3, CTAS + 2, 2):
        assert work.launch(number, schedule, seed) == report
        assert (work.out == 2 * work.source[:-1]).all()
        assert forks.count == max(forks.count, min(number, CTAS) - 1)
    assert forks.count == CTAS - 1


FAULTS = {
    "two CTAs write one word": ("race", {"after": "@%p3 st.global.u32 [%d3], %r4;"}),
    "the last CTA writes what the first reads": (
        "race",
        {"before": "@%p4 ld.global.u32 %r5, [%d3+1536];"},
    ),
    "the last CTA reads what the first writes": ("race", {"after": "@%p3 ld.global.u32 %r5, [%d3];"}),
    "the first CTA writes what the last one copies": (
        "race",
        {"after": "@!%p4 bra END;\nst.global.u32 [%d4+1536], %r4;\nEND:"},
    ),
    "the last CTA writes outside": ("out-of-range", {"after": "@%p3 st.global.u32 [%d7+256], %r4;"}),
    "the first CTA writes outside": ("out-of-range", {"after": "@%p4 st.global.u32 [%d7+1792], %r4;"}),
    "the last CTA waits for ever": ("deadlock", {"before": "@!%p3 bra WAIT;\nbar.sync 1, 96;"}),
    "all CTAs wait for ever": ("deadlock", {"before": "bar.sync 1, 96;"}),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_faults_are_those_of_one_process(what: str, schedule: str, forks: Forks) -> None:
    kind, parts = FAULTS[what]
    work = Work(**parts)
    text = work.fault(1, schedule)
    assert f"[{kind}]" in text
    for number in (2, 3):
        assert work.fault(number, schedule) == text
    assert forks.count or what.startswith(("all", "the first CTA writes outside"))


def test_the_limit_of_steps_counts_all_processes(forks: Forks) -> None:
    work = Work()
    steps = work.launch(1, "eager").instructions
    assert work.launch(2, "eager", step_limit=steps).instructions == steps
    assert forks.count == 1
    assert work.fault(2, "eager", steps - 1) == work.fault(1, "eager", steps - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ctas_that_communicate_run_in_one_process(schedule: str, forks: Forks) -> None:
    """Each counts itself, and the last waits until all have."""
    body = f"""
        add.s64 %d8, %d1, {4 * CTAS * WORDS};
        @%p0 bra END;
        atom.global.add.u32 %r5, [%d8], 1;
        @!%p3 bra END;
        SPIN: ld.acquire.gpu.global.u32 %r6, [%d8];
        setp.lt.u32 %p5, %r6, {CTAS};
        @%p5 bra SPIN;
        END:
    """
    work = Work(after=body)
    reports = [work.launch(number, schedule) for number in (1, 2, 3)]
    assert reports[1:] == reports[:1] * 2
    assert work.source[-1] == CTAS


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_clusters_that_other_processes_have_can_be_cancelled(
    schedule: str, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number in (1, 2, 3):
        monkeypatch.setattr(processes, "most_processes", lambda number=number: number)
        for _ in range(2):  # the second launch forks at once
            out, warnings = launch_control.grid(REQUESTS, schedule=schedule)
            found.append((out.tolist(), warnings))
    assert all(one == found[0] for one in found)
    assert forks.count


@pytest.mark.parametrize("sent", [b"", b"half of"])
def test_a_helper_that_is_killed_is_done_without(
    sent: bytes, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(file: int, tasks: int, results: int) -> None:
        os.write(results, pickle.dumps([1, 2, 3])[: len(sent)])
        os.kill(os.getpid(), signal.SIGKILL)

    work = Work()
    report = work.launch(1, "eager")
    monkeypatch.setattr(helpers, "_serve", serve)
    for count in (2, 4):
        assert work.launch(3, "eager") == report
        assert (work.out == 2 * work.source[:-1]).all()
        assert forks.count == count


def test_helpers_that_ended_meanwhile_are_done_without(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "IDLE_SECONDS", 0.0)
    work = Work()
    for _ in range(3):
        assert work.launch(2, "eager").instructions
        assert (work.out == 2 * work.source[:-1]).all()
        time.sleep(0.1)
    assert forks.count >= 2


@pytest.mark.parametrize("call", ["fork", "pwrite", "memfd_create"])
def test_without_room_for_helpers_one_process_does_it(
    call: str, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(errno.EAGAIN, "no room")

    work = Work()
    report = work.launch(1, "eager")
    helpers._forget_all()
    monkeypatch.setattr(os, call, refuse)
    assert work.launch(3, "eager") == report
    assert (work.out == 2 * work.source[:-1]).all()


def test_helpers_see_memory_as_it_is_at_each_launch(forks: Forks) -> None:
    """Arrays that did not exist when the helper was forked, and one whose values change."""
    work = Work()
    work.launch(2, "eager")
    for offset in (0, 1000):
        again = Work()
        again.launch(2, "eager")
        assert (again.out == 2 * again.source[:-1]).all()
        work.out[:] = 0
        device = Device("sm_90a", 2, "eager", processes=2)
        work.source += np.uint32(offset)
        device.register(work.out.ctypes.data, work.out.nbytes, "out")
        device.register(work.source.ctypes.data, work.source.nbytes, "in")
        params = [array.ctypes.data.to_bytes(8, "little") for array in (work.out, work.source)]
        device.launch(work.text, None, (CTAS, 1, 1), (WORDS, 1, 1), (1, 1, 1), 1024, [*params, bytes(128)])
        assert (work.out == 2 * work.source[:-1]).all()
    assert forks.count == 1


def test_a_kernel_that_a_helper_does_not_know_gets_another(
    forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    outcome = helpers.Helper.outcome

    def noted(self: helpers.Helper) -> Outcome | None:
        outcomes.append(outcome(self))
        return outcomes[-1]

    monkeypatch.setattr(helpers.Helper, "outcome", noted)
    one, other = Work(), Work(after="mov.u32 %r6, 5;")
    for _ in range(2):
        for work in (one, other):
            work.launch(2, "eager")
            assert (work.out == 2 * work.source[:-1]).all()
    assert forks.count == 2
    assert len(outcomes) == 4
    assert None not in outcomes


def test_a_process_that_somebody_else_forks_has_helpers_of_its_own(forks: Forks) -> None:
    work = Work()
    report = work.launch(2, "eager")
    process = os.fork()
    if not process:
        right = work.launch(2, "eager") == report and (work.out == 2 * work.source[:-1]).all()
        os._exit(0 if right and forks.count == 3 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert work.launch(2, "eager") == report
    assert forks.count == 2


def test_helpers_keep_no_files_of_this_process(forks: Forks) -> None:
    """Whoever waits for the end of a pipe would wait for them."""
    source, target = os.pipe()
    Work().launch(2, "eager")
    os.close(target)
    os.set_blocking(source, False)
    assert os.read(source, 1) == b""
    os.close(source)
    assert forks.count == 1


def test_memory_may_be_shared_with_other_processes(forks: Forks) -> None:
    work = Work()
    shared = mmap.mmap(-1, 4096)  # MAP_SHARED
    work.out = np.frombuffer(shared, np.uint32)[: CTAS * WORDS]
    for _ in range(2):
        work.launch(2, "eager")
        assert (work.out == 2 * work.source[:-1]).all()
    assert forks.count == 1


def test_stores_of_one_value_are_a_warning_all_the_same(forks: Forks) -> None:
    work = Work(after="mov.u32 %r6, 5;\nst.global.u32 [%d1], %r6;")
    report = work.launch(1, "lazy")
    assert len(report.warnings) == 1
    assert work.launch(2, "lazy") == report


def test_a_number_of_processes_is_positive() -> None:
    with pytest.raises(ValueError, match="processes 0"):
        Device("sm_90a", processes=0)
