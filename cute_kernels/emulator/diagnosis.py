"""What a report adds to a fault: the source text, the barriers, the last events at the address, a likely cause."""

from __future__ import annotations

import linecache
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cute_kernels.emulator.cta import Cluster, Cta
    from cute_kernels.emulator.mbarrier import MBarrier
    from cute_kernels.emulator.shadow import Shadow, Where
    from cute_kernels.emulator.warp import Group, Warp

REMEMBERED = 512  # accesses of shared memory
REMEMBERED_TENSOR = 32  # of tensor memory, where an access may touch every cell
SHOWN = 6  # of them at one address
BARRIERS_SHOWN = 32

HINTS = {
    "uninitialised": "whatever should have filled it was not waited for, or wrote to another stage, offset or swizzle",
    "unfinished": "wait for everything that was issued before the CTA ends",
    "divergence": "make the whole warp reach it, or name in its member mask the lanes that do",
    "misaligned": "check the base address, and that strides and offsets are multiples of the access",
    "step-limit": "a loop that never ends shows as one source line in the report of a run with a lower limit",
}


class Running:
    """Who executes now, and which of the kernel's instructions: shared by the warps of a cluster."""

    def __init__(self) -> None:
        self.warp: Warp | None = None
        self.pc = 0

    def __str__(self) -> str:
        return "?" if self.warp is None else position(self.warp, self.pc)


class Event(NamedTuple):
    """An access of shared or tensor memory, as it was issued."""

    kind: str  # "read" or "write"
    where: Where
    slot: int  # whose it counts as: a warp, or an mbarrier that its completion signals
    warp: Warp | None
    pc: int

    def touches(self, granule: int, row: int = 0) -> bool:
        """row: granules of a row, if the memory has rows."""
        if isinstance(self.where, tuple):
            at, column = divmod(granule, row)
            rows, columns = self.where
            return rows.start <= at < rows.stop and columns.start <= column < columns.stop
        if isinstance(self.where, slice):
            return granule in range(int(self.where.start), int(self.where.stop), int(self.where.step or 1))
        return bool((self.where == granule).any())


# The fields of Events, which are made for reports alone.
Events: TypeAlias = "deque[tuple[str, Where, int, Warp | None, int]]"


def source_text(file: str, line: int) -> str:
    """The text of a source line, "" where the file cannot be found (relative paths: from here or from sys.path)."""
    return linecache.getline(file, line).strip()


def position(warp: Warp, pc: int) -> str:
    """A warp and one of its instructions, as reports name them."""
    instruction = warp.program.kernel.instructions[pc]
    where = f"warp {warp.index} of CTA {warp.cta.index} at {warp.program.source(instruction)}"
    return f"{where}: {instruction.text.strip()}"


def last_events(cta: Cta, shadow: Shadow, granule: int) -> list[str]:
    """The last accesses of a granule, oldest first."""
    events = (Event(*fields) for fields in shadow.events)
    found = [event for event in events if event.touches(granule, shadow.row)][-SHOWN:]
    lines = []
    for event in found:
        agent = cta.cluster.slots.describe(event.slot)
        by = (
            ""
            if event.warp is not None and agent.split(" of")[0] == f"warp {event.warp.index}"
            else f", as {agent}"
        )
        place = "?" if event.warp is None else position(event.warp, event.pc)
        lines.append(f"{event.kind} by {place}{by}")
    return lines


def barrier_table(clusters: Iterable[Cluster]) -> list[str]:
    """A line for each mbarrier, and one for each named barrier that threads wait at."""
    lines = []
    for cluster in clusters:
        for cta in cluster.ctas:
            for barrier in cta.mbarriers.values():
                lines.append(f"CTA {cta.index} {barrier.describe()}")
                lines += [f"    {what} by {position(warp, pc)}" for what, warp, pc in barrier.uses]
            lines += [f"CTA {cta.index} {b.describe()}" for b in cta.named.values() if b.arrived]
        if cluster.barrier.arrived:
            lines.append(cluster.barrier.describe())
    more = len(lines) - BARRIERS_SHOWN
    return lines[:BARRIERS_SHOWN] + ([f"({more} lines more)"] if more > 0 else [])


def why_closed(barrier: MBarrier) -> str:
    """The likely reason that a phase which somebody waits for does not complete."""
    name = barrier.name
    if barrier.tx_bytes > 0 and not barrier.pending:
        return (
            f"{name}: {barrier.tx_bytes} bytes more are expected than copies have brought: compare expect_tx with the "
            "bytes of the boxes (out-of-bounds parts count), and see that each copy is issued"
        )
    if barrier.tx_bytes < 0:
        return f"{name}: copies brought {-barrier.tx_bytes} bytes that no expect_tx announced in this phase"
    if barrier.pending == barrier.count:
        return (
            f"{name}: nobody has arrived in phase {barrier.phase}: the arrival or commit is missing or goes to another "
            f"stage, or the wait has the wrong parity (a slot that starts empty is waited for with parity 1 at first)"
        )
    return (
        f"{name}: {barrier.count - barrier.pending} of {barrier.count} arrivals came in phase {barrier.phase}: "
        "initialise it for the arrivals that are made, or make those that are missing"
    )


def why_stuck(groups: Iterable[Group]) -> list[str]:
    """Likely causes of a deadlock, from the mbarriers that groups of lanes wait for."""
    return list(dict.fromkeys(why_closed(group.barrier) for group in groups if group.barrier is not None))
