"""Asynchronous work: what has been issued and when it takes effect.

An operation is submitted to a lane. Operations of one lane run in order (the tcgen05 pipe of a CTA); a lane of its own
lets an operation run whenever the schedule likes (each bulk copy). Schedules: "eager" runs an operation when it is
submitted, "lazy" when no warp can go on without it, "random" anywhere between, from a seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cute_kernels.emulator.errors import EmulationError, Place
from cute_kernels.emulator.trace import Trace

SCHEDULES = ("eager", "lazy", "random")


@dataclass
class Operation:
    """One piece of asynchronous work: what to do, and who issued it."""

    name: str
    run: Callable[[], None]
    place: Place


class Engine:
    """The operations in flight of all resident clusters."""

    def __init__(self, schedule: str, rng: np.random.Generator) -> None:
        self.schedule = schedule
        self._rng = rng
        self._lanes: dict[object, deque[Operation]] = {}
        self._running = False
        self._count = 0
        self.trace: Trace | None = None

    def __len__(self) -> int:
        return self._count

    def submit(self, lane: object, operation: Operation) -> None:
        """Issues an operation behind those of the same lane."""
        self._lanes.setdefault(lane, deque()).append(operation)
        self._count += 1
        if self.trace is not None:
            self.trace.issued(operation)
        if self.schedule == "eager" and not self._running:
            self._running = True  # what an operation submits runs after it, not inside it
            try:
                while self._lanes:
                    self._run_from(next(iter(self._lanes)))
            finally:
                self._running = False

    def run_one(self) -> None:
        """Completes one operation: the oldest lane's, or under "random" any lane's first."""
        if self.schedule == "random":
            self._run_from(list(self._lanes)[int(self._rng.integers(len(self._lanes)))])
        else:
            self._run_from(next(iter(self._lanes)))

    def run_some(self) -> None:
        """Under "random": lets some of what is in flight complete."""
        if self.schedule == "random" and self._count:
            for _ in range(int(self._rng.integers(0, min(self._count, 8) + 1))):
                if not self._lanes:
                    break
                self.run_one()

    def pending(self) -> list[Operation]:
        return [operation for lane in self._lanes.values() for operation in lane]

    def _run_from(self, lane: object) -> None:
        queue = self._lanes[lane]
        operation = queue.popleft()
        self._count -= 1
        if not queue:
            del self._lanes[lane]
        try:
            operation.run()
        except EmulationError as fault:
            raise fault.located(operation.place) from None
        if self.trace is not None:
            self.trace.landed(operation)
