"""The clusters of a launch over several processes.

This process runs the first clusters; forked ones run the others on their copies of its memory, and send back what they
wrote and which granules they touched. Where no cluster communicated and no process touched what another wrote, that is
what the clusters do one after another: results and reports do not depend on the number of processes. In all other cases
(a fault, a race, a deadlock, an atomic) what the forked processes did is dropped, and this process runs their clusters.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from itertools import combinations
from typing import NamedTuple, NoReturn

import numpy as np

from cute_kernels.emulator.errors import Report
from cute_kernels.emulator.global_footprint import Footprint, disjoint
from cute_kernels.emulator.grid import Grid, Waiting, run_apart, run_together

# CPU seconds that other processes must save: to fork a process that holds torch, and to copy the pages that both write
# to afterwards, takes some 0.03.
_WORTH_FORKING = 0.05


class _Outcome(NamedTuple):
    """What the clusters of a forked process did."""

    instructions: int
    steps: int
    operations: dict[str, int]
    warnings: list[str]
    footprints: list[Footprint]

    def add_to(self, report: Report) -> None:
        report.instructions += self.instructions
        for name, count in self.operations.items():
            report.operations[name] = report.operations.get(name, 0) + count
        report.warnings += [warning for warning in self.warnings if warning not in report.warnings]


def most_processes() -> int:
    """The CPUs of this process, where forking is known to be safe: on Linux, with one thread, and OpenBLAS in NumPy."""
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    built = getattr(np.__config__, "CONFIG", {}).get("Build Dependencies", {})
    blas = built.get("blas", {}).get("name", "")
    return len(os.sched_getaffinity(0)) if "openblas" in blas else 1


def run(grid: Grid, processes: int) -> None:
    """Runs one launch to its end, or raises its first fault."""
    if processes > 1 and grid.setting.trace is None:
        if (
            grid.setting.program.cluster_seconds is None
        ):  # the very first cluster makes the kernel's code ready
            _run_first(grid, 1)
            _run_first(grid, 1)
        if not grid.meeting:
            _run_forked(grid, processes)
    run_together([grid])


def _run_first(grid: Grid, count: int) -> bool:
    """Runs the first clusters that wait, one after another, until they have to meet; whether to their ends."""
    if grid.meeting or not grid.waiting:
        return False
    clusters = list(grid.waiting)
    grid.waiting, grid.held_back = deque(clusters[:count]), deque(clusters[count:])
    start = time.thread_time()
    done = run_apart(grid)
    if done:
        grid.setting.program.cluster_seconds = (time.thread_time() - start) / count
        grid.waiting, grid.held_back = grid.held_back, grid.waiting
    else:
        grid.gather()
    return done


def _run_forked(grid: Grid, processes: int) -> None:
    """Runs the clusters that wait over several processes, if that pays; those whose work is dropped wait afterwards."""
    count, seconds = len(grid.waiting), grid.setting.program.cluster_seconds or 0.0
    processes = min(processes, count, int(count * seconds / _WORTH_FORKING))
    if processes < 2 or grid.setting.memory.shared():
        return
    shares = np.array_split(np.arange(count), processes)
    clusters, since = list(grid.waiting), grid.setting.global_shadow.order.next_agent
    helpers: list[_Helper] = []
    try:
        for share in shares[1:]:
            helpers.append(_Helper(grid, [clusters[i] for i in share]))
        if _run_first(grid, len(shares[0])) and _take_over(grid, helpers, since):
            grid.waiting.clear()
    finally:
        for helper in helpers:
            helper.end()


def _take_over(grid: Grid, helpers: list[_Helper], since: int) -> bool:
    """Adds what other processes did to what this one did, if that may be; since: the first agent after the fork."""
    outcomes: list[_Outcome] = []
    for helper in helpers:
        outcome = helper.outcome()
        if outcome is None:
            return False
        outcomes.append(outcome)
    shadow = grid.setting.global_shadow
    touched = [shadow.footprints(since), *(outcome.footprints for outcome in outcomes)]
    steps = grid.steps + sum(outcome.steps for outcome in outcomes)
    if steps > grid.setting.step_limit or not all(
        disjoint(one, other) for one, other in combinations(touched, 2)
    ):
        return False
    grid.steps = steps
    for outcome in outcomes:
        outcome.add_to(grid.report)
        shadow.take_over(outcome.footprints)
    return True


_ending: set[int] = set()  # processes that have been ended, and may not be gone yet


def forget_ended(wait: bool = False) -> None:
    """Takes note of forked processes that are gone; wait: until all are, and their CPU time counts."""
    for process in [*_ending]:
        try:
            gone, _ = os.waitpid(process, 0 if wait else os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            gone = process
        if gone:
            _ending.discard(process)


class _Helper:
    """A forked process that runs clusters of a launch, and ends."""

    def __init__(self, grid: Grid, clusters: list[Waiting]) -> None:
        forget_ended()
        source, target = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries' threads, which stay idle
            self._process = os.fork()
        if not self._process:
            _serve(grid, clusters, target)
        os.close(target)
        self._results = os.fdopen(source, "rb")

    def outcome(self) -> _Outcome | None:
        """What it did, once it has; None where its clusters have to run again."""
        outcome: _Outcome | None = None
        with suppress(EOFError, pickle.UnpicklingError):  # it sent nothing, or was killed
            outcome = pickle.load(self._results)
        return outcome

    def end(self) -> None:
        """Ends it, whatever it is doing; that its memory is given back is not waited for."""
        self._results.close()
        with suppress(ProcessLookupError):  # where this process ignores SIGCHLD
            os.kill(self._process, signal.SIGKILL)
        _ending.add(self._process)


def _serve(grid: Grid, clusters: list[Waiting], target: int) -> NoReturn:
    """Runs clusters in a forked process, and sends what they did, or nothing where they should run again."""
    try:
        report, shadow = grid.report, grid.setting.global_shadow
        grid.waiting = deque(clusters)
        steps, since, warned = grid.steps, shadow.order.next_agent, len(report.warnings)
        report.instructions, report.operations = 0, {}
        if run_apart(grid):
            outcome = _Outcome(
                report.instructions,
                grid.steps - steps,
                report.operations,
                report.warnings[warned:],
                shadow.footprints(since),
            )
            with os.fdopen(target, "wb") as results:
                pickle.dump(outcome, results, protocol=pickle.HIGHEST_PROTOCOL)
    finally:
        os._exit(0)
