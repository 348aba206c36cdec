"""mbarrier objects: phases, pending arrivals, transaction bytes (PTX ISA, "Parallel Synchronization: mbarrier").

A phase completes when its pending arrivals and its transaction bytes are both zero. Completion makes everything that
the arrivals of the phase released, and every transfer that signalled it, known to whoever observes the phase.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from cute_kernels.emulator.clocks import ASYNC, READY, Clock
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.phases import Phases
from cute_kernels.emulator.sleep import Sleepers, wake

if TYPE_CHECKING:
    from cute_kernels.emulator.lanes import LaneOrder
    from cute_kernels.emulator.warp import Warp

MAX_COUNT = (1 << 20) - 1  # of arrivals and, as a magnitude, of transaction bytes
# Bits of a state: the phase's parity, and above bit 43 the pending count, negated, of 20 bits.
STATE_PARITY, STATE_PENDING = 63, 43
STATE_PHASE = (1 << STATE_PENDING) - 1


class MBarrier:
    """One barrier. `phase` counts completed phases; the parity that a waiter passes is that of a phase number."""

    def __init__(
        self,
        name: str,
        count: int,
        slot: int,
        clocks: Clock,
        initialised_by: int,
        initialised_at: int,
        initialised_lane: int,
    ) -> None:
        if not 1 <= count <= MAX_COUNT:
            raise EmulationError(
                "barrier", f"{name}: an arrival count of {count}; 1 to {MAX_COUNT} is allowed"
            )
        self.name = name
        self.count = count
        self.slot = slot
        self.phase = 0
        self.pending = count
        self.next_count = count
        self.tx_bytes = 0
        self.in_flight = 0  # asynchronous operations under way that will signal this phase
        self.initialised_by = initialised_by  # the generic slot of the warp that initialised it, and its time
        self.initialised_at = initialised_at
        self.initialised_lane = initialised_lane
        self.fenced = False  # whether that warp has made it visible to the async proxy and the cluster
        self.announced = False  # whether that warp has arrived at a cluster barrier, relaxed, since
        self.uses: deque[tuple[str, Warp, int]] = deque(maxlen=3)  # operations other than waits, for reports
        self.awaited = 0  # phases that some wait has seen completed
        self.committed = 0  # phases up to the last that a tcgen05.commit arrived in
        self.committing = 0  # tcgen05.commit under way that will arrive
        self.sleepers: Sleepers = []  # until the current phase is complete
        self.phases = Phases()
        self._released = clocks  # what the arrivals of the current phase release
        self.known = np.zeros_like(clocks)  # what observing the last completed phase tells

    def untouched(self, count: int) -> bool:
        """Whether it is as an initialisation with this count would leave it."""
        return not (self.phase or self.tx_bytes or self.in_flight or self.committing) and (
            self.count == self.pending == self.next_count == count
        )

    def check_ordered(self, order: LaneOrder, *lanes: int) -> None:
        """Refuses a use by lanes that are not ordered after the initialisation."""
        if self.announced or order.clock[READY, self.initialised_by] >= self.initialised_at:
            return
        by, at, lane = self.initialised_by, self.initialised_at, self.initialised_lane
        if not all(order.knows(user, by, at, lane) for user in lanes):
            raise EmulationError(
                "race", f"{self.name} is used before its initialisation is known; put a barrier between"
            )

    def check_visible(self, order: LaneOrder, lane: int) -> None:
        """Refuses a use by an asynchronous operation that may not see the initialisation."""
        self.check_ordered(order, lane)
        if not self.fenced:
            raise EmulationError(
                "missing-proxy-fence",
                f"{self.name} is signalled through the async proxy, and no fence.mbarrier_init or fence.proxy.async "
                "followed its initialisation",
            )

    @property
    def time(self) -> int:
        """The clock time of what completes in the current phase."""
        return self.phase + 1

    def state(self, arrivals: int = 0) -> int:
        """The state word that an arrival behind `arrivals` others of its warp returns.

        Parity and pending count lie where sm_90 has them; below them, where the hardware's bits mean nothing to
        a program, stands the number of the phase.
        """
        pending = -(self.pending - arrivals) & MAX_COUNT
        return (self.phase & 1) << STATE_PARITY | pending << STATE_PENDING | self.phase & STATE_PHASE

    def passed_state(self, state: int) -> bool:
        """Whether the phase that an arrival's state belongs to has completed: test_wait."""
        phase = state & STATE_PHASE
        if not self.phase - 1 <= phase <= self.phase:
            raise EmulationError(
                "barrier",
                f"{self.name}: a wait with a state of phase {phase} in phase {self.phase}; only the current phase and "
                "the one before can be waited for",
            )
        return phase != self.phase

    def arrive(self, count: int, clock: Clock | None, by: tuple[int, int] | None = None) -> None:
        """`count` arrivals; `clock` is what they release (None: relaxed). by: a GENERIC slot and its time now, if who
        knows of that knows of the arrivals."""
        self.phases.arrives(by)
        if clock is not None:
            np.maximum(self._released[: ASYNC + 1], clock[: ASYNC + 1], out=self._released[: ASYNC + 1])
        if count > self.pending:
            raise EmulationError(
                "barrier",
                f"{self.name}: {count} arrivals in phase {self.phase}, of which {self.pending} of {self.count} are "
                "outstanding; more threads arrive than the barrier was initialised for",
            )
        self.pending -= count
        self._maybe_complete()

    def follow(self, known: Clock, order: LaneOrder) -> None:
        """Something in the current phase comes after what lanes know, which release nothing: it orders waits alone."""
        waits = order.slots.waits
        mine = self._released[READY, waits]
        np.maximum(mine, known[READY, waits], out=mine)

    def drop(self, count: int) -> None:
        """arrive_drop's other half: later phases expect `count` fewer arrivals."""
        if count > self.next_count:
            raise EmulationError(
                "barrier", f"{self.name}: drops {count} of {self.next_count} expected arrivals"
            )
        self.next_count -= count

    def expect(self, nbytes: int) -> None:
        """Raises the transaction count of the current phase."""
        self._transact(nbytes)

    def complete(self, nbytes: int) -> None:
        """Lowers it as bytes arrive."""
        self._transact(-nbytes)
        self._maybe_complete()

    def passed(self, parity: int) -> bool:
        """Whether the phase with this parity has completed: test_wait.parity."""
        return (self.phase & 1) != (parity & 1)

    def start_transfer(self, order: LaneOrder, lane: int) -> None:
        """A lane has issued an asynchronous copy that will signal the current phase."""
        self.in_flight += 1
        self.follow(order.async_access_of(lane).clock, order)

    def end_transfer(self, nbytes: int) -> None:
        """An asynchronous copy of `nbytes` has landed."""
        self.in_flight -= 1
        self.complete(nbytes)

    def observe(self, warp: Warp, exact: bool = False) -> None:
        """A wait passes, and is yet to acquire what that tells (phases.py)."""
        self.awaited = self.phase
        self.phases.passes(self.name, self.slot, self.phase, warp, exact)

    def commit(self, clock: Clock) -> None:
        """The arrival of a tcgen05.commit, whose issue raised `committing`."""
        self.committing -= 1
        self.committed = self.phase + 1
        self.arrive(1, clock)

    @property
    def may_outlive(self) -> bool:
        """Whether a tcgen05.commit may still be on its way here, as far as the program can tell."""
        return self.committing > 0 or self.committed > self.awaited

    def _transact(self, nbytes: int) -> None:
        self.tx_bytes += nbytes
        self.phases.arrives(None)
        if abs(self.tx_bytes) > MAX_COUNT:
            raise EmulationError(
                "transaction-count",
                f"{self.name}: a transaction count of {self.tx_bytes} bytes; {MAX_COUNT} is the most a phase can hold",
            )

    def _maybe_complete(self) -> None:
        if self.pending or self.tx_bytes:
            return
        if self.in_flight:
            raise EmulationError(
                "transaction-count",
                f"{self.name}: phase {self.phase} completes while {self.in_flight} transfers that signal it are still "
                "under way; the expected bytes do not cover them",
            )
        np.maximum(self.known, self._released, out=self.known)
        self.phases.completes(self.name, self.known)
        self.phase += 1
        self.known[READY, self.slot] = self.known[ASYNC, self.slot] = self.phase
        self.pending = self.count = self.next_count
        wake(self.sleepers)

    def describe(self) -> str:
        return (
            f"{self.name}: phase {self.phase} (parity {self.phase & 1} is open), {self.pending} of {self.count} "
            f"arrivals outstanding, {self.tx_bytes} transaction bytes outstanding, {self.in_flight} transfers in flight"
        )


class NamedBarrier:
    """barrier.cta (bar): a number of threads, rounded to warps, that meet (PTX ISA, "barrier")."""

    def __init__(self, name: str, clocks: Clock) -> None:
        self.name = name
        self.generation = 0
        self.expected = 0
        self.arrived = 0
        self.whole_cta = False
        self._gathered = np.zeros_like(clocks)
        self.known = np.zeros_like(clocks)
        self.reduction: list[bool] = []
        self.result: list[bool] = []
        self.sleepers: Sleepers = []  # until the current generation has met

    def arrive(self, threads: int, expected: int, clock: Clock, whole_cta: bool = False) -> int:
        """Adds `threads`; gives the generation that a waiter waits to pass.

        whole_cta: `expected` is all threads of the CTA that have not exited, and falls when some exit.
        """
        if self.arrived and expected != self.expected:
            raise EmulationError(
                "barrier",
                f"{self.name}: one thread expects {expected} threads while others that wait expect {self.expected}",
            )
        if expected % 32 or expected <= 0:
            raise EmulationError(
                "barrier", f"{self.name}: a thread count of {expected}; multiples of 32 are allowed"
            )
        self.expected = expected
        self.whole_cta = whole_cta
        self.arrived += threads
        np.maximum(self._gathered[: ASYNC + 1], clock[: ASYNC + 1], out=self._gathered[: ASYNC + 1])
        mine = self.generation
        if self.arrived > expected:
            raise EmulationError(
                "barrier", f"{self.name}: {self.arrived} threads arrive where {expected} are expected"
            )
        self._maybe_complete()
        return mine

    def leave(self, threads: int) -> None:
        """Threads of the CTA have exited: a barrier of the whole CTA waits for them no longer."""
        if self.arrived and self.whole_cta:
            self.expected -= threads
            self._maybe_complete()

    def _maybe_complete(self) -> None:
        if self.arrived == self.expected:
            self.generation += 1
            self.arrived = 0
            np.maximum(self.known, self._gathered, out=self.known)
            self.result, self.reduction = self.reduction, []
            wake(self.sleepers)

    def describe(self) -> str:
        return f"{self.name}: {self.arrived} of {self.expected} threads have arrived"
