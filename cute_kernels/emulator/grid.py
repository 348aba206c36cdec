"""One launch: its clusters take their places on the SMs.

Clusters run one after another while nothing makes them meet. As soon as one executes what CTAs communicate by (a strong
access of global memory, a change of a tensor map there, the cancelling of a cluster), or waits for what does not come,
as many as the SMs hold are resident and take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from cute_kernels.emulator.diagnosis import barrier_table, why_stuck
from cute_kernels.emulator.errors import EmulationError, Report
from cute_kernels.emulator.machine import Machine
from cute_kernels.emulator.setting import Dim3, Setting

# Faults whose report shows the barriers of the cluster.
_ABOUT_ORDER = (
    "race",
    "missing-wait",
    "barrier",
    "transaction-count",
    "deadlock",
    "unfinished",
    "uninitialised",
)
QUIET_ROUNDS = 64  # rounds of polling with no event after which waiting is called a deadlock

Waiting = tuple[int, Dim3]  # a cluster that has not started: its number, and its first CTA


class Grid:
    """The clusters of one launch. alone: no other launch runs beside it."""

    def __init__(self, setting: Setting, alone: bool) -> None:
        self.setting = setting
        shape = setting.shape
        name = setting.program.kernel.name
        self.report = Report(name, shape.grid, shape.block, shape.cluster, setting.schedule, setting.seed)
        self.steps = 0  # instructions that its warps have executed
        self.waiting = deque(self._clusters())
        self.held_back: deque[Waiting] = (
            deque()
        )  # clusters that wait as well, and do not start before some meet
        self._resident = max(1, setting.num_sms // shape.cluster_size)  # clusters
        self._together = not alone  # whether that many run at a time
        self._rng = np.random.default_rng(setting.seed)
        self._requests = 0  # that a cluster be cancelled
        self._running: list[Machine] = []

    @property
    def unfinished(self) -> bool:
        """Whether some cluster has not ended, or asynchronous work is in flight."""
        return bool(self.waiting or self._running)

    @property
    def meeting(self) -> bool:
        """Whether clusters run side by side from now on."""
        return self._together or self.setting.global_shadow.order.communicates

    def advance(self) -> bool:
        """Gives every warp of the clusters that run a turn; whether anything happened that one might wait for.

        Raises the first fault.
        """
        self._together = self.meeting
        happened = self._admit()
        if self.setting.trace is not None:
            self.setting.trace.next_round()
        order = [*self._running]
        if self.setting.schedule == "random" and len(order) > 1:
            order = [order[i] for i in self._rng.permutation(len(order))]
        try:
            for machine in order:
                happened |= machine.advance()
        except EmulationError as fault:
            self._explain(fault)
            raise
        for machine in order:
            if not machine.unfinished:
                machine.end()
                self._running.remove(machine)
        return happened

    def gather(self) -> bool:
        """From now on, as many clusters run as the SMs hold; whether any start now."""
        self._together = True
        return self._admit()

    def cancel(self) -> Dim3 | None:
        """The first CTA of a cluster that from now on will not start; None where the request fails.

        Which cluster it is, and whether a request fails while one waits (as it may for the sake of another grid), is
        open. "eager" grants whatever can be, "lazy" every other request, "random" three of four, of any cluster.
        """
        self.setting.global_shadow.order.communicates = True
        self.gather()
        self._requests += 1
        schedule = self.setting.schedule
        refused = {"eager": False, "lazy": self._requests % 2 == 0, "random": self._rng.random() < 0.25}
        if not self.waiting or refused[schedule]:
            return None
        at = int(self._rng.integers(len(self.waiting))) if schedule == "random" else 0
        _, origin = self.waiting[at]
        del self.waiting[at]
        return origin

    def check_steps(self) -> None:
        """Gives up a launch that has executed too much."""
        limit = self.setting.step_limit
        if self.steps > limit:
            raise EmulationError(
                "step-limit",
                f"more than {limit} warp instructions; raise Device(step_limit=...) if that is right",
            )

    def deadlock(self) -> EmulationError:
        """The fault when nothing happens any more."""
        stuck = [warp for machine in self._running for warp in machine.warps]
        lines = ["every warp waits and nothing is in flight.", "warps:"]
        lines += [f"    {warp.describe()}" for warp in stuck[:64]]
        program, first = self.setting.program, stuck[0]
        instruction = program.kernel.instructions[first.groups[0].pc]
        fault = EmulationError("deadlock", "\n  ".join(lines), program.place(first, instruction))
        self._explain(fault)
        return fault

    def _admit(self) -> bool:
        """Starts clusters where there is place; whether any."""
        most, admitted = 1, False
        if self._together:
            most = self._resident
            self.waiting.extend(self.held_back)
            self.held_back.clear()
        while self.waiting and len(self._running) < most:
            index, origin = self.waiting.popleft()
            self._running.append(Machine(self, self.setting, index, origin))
            admitted = True
        return admitted

    def _explain(self, fault: EmulationError) -> None:
        """Adds to a fault what the state of this launch tells."""
        clusters = [machine.cluster for machine in self._running]
        stuck = [group for machine in self._running for warp in machine.warps for group in warp.groups]
        short = [line for cluster in clusters for cta in cluster.ctas for line in cta.registers.shortage()]
        at_fault = [c for c in clusters if any(cta.index == fault.place.cta for cta in c.ctas)]
        fault.explain(
            [*dict.fromkeys(short), *why_stuck(stuck)] if fault.kind == "deadlock" else [],
            barrier_table(at_fault) if fault.kind in _ABOUT_ORDER else [],
        )

    def _clusters(self) -> Iterator[Waiting]:
        (gx, gy, gz), (cx, cy, cz) = self.setting.shape.grid, self.setting.shape.cluster
        index = 0
        for z in range(0, gz, cz):
            for y in range(0, gy, cy):
                for x in range(0, gx, cx):
                    yield index, (x, y, z)
                    index += 1


def run_apart(grid: Grid) -> bool:
    """Runs the clusters that wait one after another; False as soon as one has to meet others that are not among them.

    Raises the first fault.
    """
    quiet = 0
    while grid.unfinished and not grid.meeting and quiet <= QUIET_ROUNDS:
        quiet = 0 if grid.advance() else quiet + 1
    return not grid.unfinished and not grid.meeting


def run_together(grids: Sequence[Grid]) -> None:
    """Runs launches side by side to their ends, or raises the first fault of one."""
    quiet = 0
    while unfinished := [grid for grid in grids if grid.unfinished]:
        happened = [grid.advance() for grid in unfinished]
        quiet = 0 if any(happened) else quiet + 1
        if quiet > QUIET_ROUNDS:
            started = [grid.gather() for grid in unfinished]
            if not any(started):
                raise unfinished[0].deadlock()
            quiet = 0
