"""The clusters of a launch over several processes.

This process runs the first clusters; forked ones (helpers.py) run the others on copies of its memory, and send back
what they wrote and which granules they touched. Where no cluster communicated and no process touched what another
wrote, that is what the clusters do one after another: results and reports do not depend on the number of processes.
In all other cases (a fault, a race, a deadlock, an atomic) what the forked processes did is dropped, and this process
runs their clusters.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from cute_kernels.emulator import helpers
from cute_kernels.emulator.global_footprint import disjoint
from cute_kernels.emulator.grid import Grid, run_apart, run_together
from cute_kernels.emulator.helpers import Helper, Outcome

# What another process must save, in seconds of the CPU: to fork one that holds torch takes some 0.03, with the copies
# of pages that both write to afterwards.
_WORTH_FORKING = 0.05
_COPIED = 1e9  # bytes of registered memory a second, roughly


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
            helpers.make_known(grid.setting.program)
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
    worth = _WORTH_FORKING + grid.setting.memory.nbytes / _COPIED
    processes = min(processes, count, int(count * seconds / worth))
    if processes < 2:
        return
    clusters = list(grid.waiting)
    own, *shares = ([clusters[i] for i in share] for share in np.array_split(np.arange(count), processes))
    others = helpers.start(grid.setting, shares)
    try:
        if others and _run_first(grid, len(own)) and _take_over(grid, others):
            grid.waiting.clear()
    finally:
        helpers.finish(others)


def _take_over(grid: Grid, others: Sequence[Helper]) -> bool:
    """Adds what other processes did to what this one did, if that may be."""
    outcomes: list[Outcome] = []
    for helper in others:
        outcome = helper.outcome()
        if outcome is None:
            return False
        outcomes.append(outcome)
    shadow = grid.setting.global_shadow
    touched = [shadow.footprints(), *(outcome.footprints for outcome in outcomes)]
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
