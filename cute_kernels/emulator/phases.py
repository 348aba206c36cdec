"""Which phase of an mbarrier a wait is for.

A wait names a parity, and passes once the last complete phase has it. So it is a wait for phase p alone only where it
cannot come before phase p - 1 is complete (it would pass at once, by phase p - 2) nor after phase p + 1 is (it would
wait for phase p + 2, for ever if that needs this warp). Neither shows in a run in which it comes in between. So the
order of events is looked at, whatever the timing happens to be:

- when phase p + 1 completes, its arrivals and copies were issued after each wait that saw phase p;
- when a wait sees phase p, its warp knows that phase p - 1 is complete: from a wait of its own, from one whose
  release it has acquired, or from all that arrived in that phase.

A barrier begins as if phase -1 had completed. Order is that of cause and effect here, which relaxed arrivals and
copies carry on as well: they join the WAITED slots of the clocks, which order no memory. It is that of warps, not of
their lanes. What is found is a warning: the ISA leaves no such wait undefined, and relaxed accesses of memory by which
warps may know of each other are not seen here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cute_kernels.emulator.clocks import READY, SOME, Clock

if TYPE_CHECKING:
    from cute_kernels.emulator.warp import Warp

Arrivals = list[tuple[int, int]]


class Phases:
    """The waits that saw the last complete phase of one mbarrier, and who arrived in the last phases."""

    def __init__(self) -> None:
        self._waits: dict[int, tuple[int, Warp, int]] = {}  # by WAITED slot: its time, and the instruction
        self._seen: dict[Warp, int] = {}  # how many phases a warp has seen complete
        # Arrivals in this phase, the last one and the one before it; None where others took part that no clock tells.
        self._now: Arrivals | None = []
        self._last: Arrivals | None = []
        self._older: Arrivals | None = []

    def arrives(self, by: tuple[int, int] | None) -> None:
        """by: a GENERIC slot and the time that is released; None: a copy, or what releases nothing."""
        if by is None:
            self._now = None
        elif self._now is not None:
            self._now.append(by)

    def completes(self, name: str, known: Clock) -> None:
        """Before the current phase ends: looks for waits that its completion does not follow. known: what it tells."""
        times = known[READY]
        for slot, (time, warp, pc) in self._waits.items():
            if times[slot] < time:
                _warn(
                    f"{name} completes a phase that nothing orders behind this warp's wait for the phase before; had "
                    "the warp been slower, it would have missed its phase",
                    warp,
                    pc,
                )
        self._waits.clear()
        self._older, self._last, self._now = self._last, self._now, []

    def passes(self, name: str, slot: int, phase: int, warp: Warp, exact: bool) -> None:
        """Before a warp acquires what its wait tells: that `phase` phases are complete.

        slot: the barrier's. exact: the wait names its phase by a state.
        """
        pc = warp.running.pc
        if not (exact or phase < 2 or self._knows(warp, slot, phase - 1)):
            _warn(
                f"a wait on {name} passes, and the warp does not know that the phase before is complete; had the warp "
                "been quicker, it would have passed too early",
                warp,
                pc,
            )
        self._seen[warp] = phase
        self._waits[warp.order.waits] = (warp.order.waited(), warp, pc)

    def _knows(self, warp: Warp, slot: int, phase: int) -> bool:
        """Whether a warp knows that `phase` phases are complete; one more is."""
        if self._seen.get(warp, 0) >= phase:
            return True
        times = warp.order.known_by_any(None)[READY]
        if times[slot] >= phase:
            return True
        own = warp.generic_slot
        return self._older is not None and all(
            by == own or times[by] >= time or times[by + SOME] >= time for by, time in self._older
        )


def _warn(what: str, warp: Warp, pc: int) -> None:
    place = warp.program.place(warp, warp.program.kernel.instructions[pc])
    warp.machine.warn(f"{', called at '.join((place.source, *place.callers))}: {what}")
