"""Forked processes that run clusters for this one, launch after launch.

A helper has what this process had when it was forked: the kernels, made ready. Of a launch it is sent the rest, the
bytes of the registered memory by way of a file in memory; it sends back what its clusters did. It ends when nothing
has been asked of it for a while, or this process is gone.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import time
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn
from weakref import WeakValueDictionary

from cute_kernels.emulator.errors import EmulationError, Report
from cute_kernels.emulator.global_footprint import Footprint
from cute_kernels.emulator.global_order import GlobalOrder
from cute_kernels.emulator.global_shadow import GlobalShadow
from cute_kernels.emulator.grid import Grid, Waiting, run_apart
from cute_kernels.emulator.memory import GlobalMemory, Saved
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.setting import Setting

IDLE_SECONDS = 10.0  # after which a helper ends: it keeps alive what this process has freed since


class Outcome(NamedTuple):
    """What some clusters of a launch did that no other cluster has to meet."""

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


class _Task(NamedTuple):
    """Clusters of a launch: the number of its program, where its memory was saved, what else there is to a Setting."""

    program: int
    memory: list[Saved]
    told: dict[str, Any]
    clusters: list[Waiting]


_NOT_TOLD = ("program", "memory", "global_shadow", "trace")

_ready: WeakValueDictionary[int, Program] = WeakValueDictionary()  # that have run, by number
_idle: list[Helper] = []
_ending: set[int] = set()  # processes that have been ended, and may not be gone yet
_file: list[int] = []  # the file in memory, once there is one


def make_known(program: Program) -> None:
    """Has helpers know a program that are forked from now on."""
    _ready[program.number] = program


def start(setting: Setting, shares: Sequence[list[Waiting]]) -> list[Helper]:
    """Helpers that have begun with the clusters of a launch, one for each share; to be handed to `finish`.

    None where the system has no room for another process, or for a copy of the memory.
    """
    helpers: list[Helper] = []
    try:
        if not _file:
            _file.append(os.memfd_create("emulated global memory"))
        for _ in shares:
            helpers.append(_take(setting.program.number))
        memory = setting.memory.save(_file[0])
        told = {f.name: getattr(setting, f.name) for f in fields(setting) if f.name not in _NOT_TOLD}
        for helper, clusters in zip(helpers, shares, strict=True):
            helper.send(_Task(setting.program.number, memory, told, clusters))
    except OSError:
        finish(helpers)
        return []
    return helpers


def finish(helpers: Sequence[Helper]) -> None:
    """Keeps helpers for the next launch; those whose outcome was not asked for are ended, whatever they are doing."""
    for helper in helpers:
        if helper.busy:
            helper.end()
        else:
            _idle.append(helper)
    if _file:
        os.ftruncate(_file[0], 0)


def seconds() -> float:
    """What helpers have taken of the CPU, those that are gone included."""
    forget_ended(wait=True)
    gone = os.times()
    return gone.children_user + gone.children_system + sum(helper.seconds() for helper in _idle)


def forget_ended(wait: bool = False) -> None:
    """Takes note of forked processes that are gone; wait: until all are, and their CPU time counts."""
    for process in [*_ending]:
        try:
            gone, _ = os.waitpid(process, 0 if wait else os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            gone = process
        if gone:
            _ending.discard(process)


def end_idle() -> None:
    """Ends the helpers that have nothing to do."""
    while _idle:
        _idle.pop().end()


def _take(program: int) -> Helper:
    """An idle helper that knows the program, or a new one."""
    while _idle:
        helper = _idle.pop()
        if program in helper.programs:
            return helper
        helper.end()
    return Helper()


def _forget_all() -> None:
    """In a process that somebody else has forked: the helpers are not its own."""
    _idle.clear()
    _ending.clear()
    while _file:
        os.close(_file.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class Helper:
    """A forked process. `programs`: numbers of those that it knows; `busy`: its outcome has not been asked for."""

    def __init__(self) -> None:
        forget_ended()
        self.programs, self.busy = frozenset(_ready), False
        file = os.dup(_file[0])
        tasks, to_tasks = os.pipe()
        results, to_results = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries' threads, which stay idle
            try:
                self._process = os.fork()
            except OSError:
                for end in (file, tasks, to_tasks, results, to_results):
                    os.close(end)
                raise
        if not self._process:
            _close_all_but(file, tasks, to_results)
            _serve(file, tasks, to_results)
        for end in (file, tasks, to_results):
            os.close(end)
        self._tasks, self._results = os.fdopen(to_tasks, "wb"), os.fdopen(results, "rb")

    def send(self, task: _Task) -> None:
        """Has it begin."""
        self.busy = True
        with suppress(BrokenPipeError):  # it has just ended: there will be no outcome
            pickle.dump(task, self._tasks, protocol=pickle.HIGHEST_PROTOCOL)
            self._tasks.flush()

    def outcome(self) -> Outcome | None:
        """What it did, once it has; None where its clusters have to run here."""
        with suppress(EOFError, pickle.UnpicklingError):  # it was killed
            outcome: Outcome | None = pickle.load(self._results)
            self.busy = False
            return outcome
        return None

    def seconds(self) -> float:
        """What it has taken of the CPU."""
        with suppress(OSError):
            return time.clock_gettime(~self._process << 3 | 2)  # clock_getcpuclockid(3)
        return 0.0

    def end(self) -> None:
        """Ends it, whatever it is doing; that its memory is given back is not waited for."""
        with suppress(BrokenPipeError):
            self._tasks.close()
        self._results.close()
        with suppress(ProcessLookupError):  # where this process ignores SIGCHLD
            os.kill(self._process, signal.SIGKILL)
        _ending.add(self._process)


# --- in the helper --------------------------------------------------------------------------------------------------


def _close_all_but(*kept: int) -> None:
    """Lets go of the files of this process but for the standard ones: who waits for their ends waits for no helper."""
    low = 3
    for file in sorted(kept):
        os.closerange(low, file)
        low = file + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _serve(file: int, tasks: int, results: int) -> NoReturn:
    """Runs clusters until nobody asks for more."""
    try:
        with os.fdopen(tasks, "rb") as source, os.fdopen(results, "wb") as target:
            while select.select([source], [], [], IDLE_SECONDS)[0]:
                task: _Task = pickle.load(source)
                pickle.dump(_run(task, file), target, protocol=pickle.HIGHEST_PROTOCOL)
                target.flush()
                gc.collect()
    finally:
        os._exit(0)


def _run(task: _Task, file: int) -> Outcome | None:
    """Runs clusters; None where one met a fault, or other clusters."""
    program, memory = _ready[task.program], GlobalMemory.of_copy(file, task.memory)
    shadow = GlobalShadow(memory, GlobalOrder(), program.global_granule)
    grid = Grid(
        Setting(program=program, memory=memory, global_shadow=shadow, trace=None, **task.told), alone=True
    )
    grid.waiting = deque(task.clusters)
    try:
        if not run_apart(grid):
            return None
    except EmulationError:
        return None
    report = grid.report
    return Outcome(report.instructions, grid.steps, report.operations, report.warnings, shadow.footprints())
