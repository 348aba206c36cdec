"""A launch in the Chrome trace format, for chrome://tracing or Perfetto.

A process is a CTA, a row a warp or a kind of asynchronous work. Time is scheduler steps: in a round every warp has a
turn, drawn from the round's start and as long as the instructions it executed; the next round starts behind the
longest. Asynchronous work is drawn from its issue to its completion. It shows order and overlap, not hardware's time.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cute_kernels.emulator.engine import Operation
    from cute_kernels.emulator.warp import Warp

_UNITS = 1000  # row numbers of asynchronous work begin here


class Trace:
    """What happened so far. Written by `write`; nothing is left out, so keep the launch small."""

    def __init__(self) -> None:
        self.now = 0
        self._longest = 0
        self._events: list[dict[str, Any]] = []
        self._rows: dict[tuple[str, int], str] = {}
        self._units: dict[str, int] = {}
        self._issued: dict[int, int] = {}

    def next_round(self) -> None:
        self.now += self._longest
        self._longest = 0

    def turn(self, warp: Warp, instructions: int) -> None:
        """A warp's turn is over; the slice is named after where the warp stands now."""
        if not instructions:
            return
        self._longest = max(self._longest, instructions)
        name, why = "exit", ""
        if warp.groups:
            group = warp.groups[0]
            at = warp.program.kernel.instructions[group.pc]
            name, why = f"to {warp.program.source(at)}", group.why
        process = f"CTA {warp.cta.index}"
        self._rows[process, warp.index] = f"warp {warp.index}"
        arguments = {"instructions": instructions, "waits for": why}
        self._slice(name, process, warp.index, self.now, instructions, arguments)

    def issued(self, operation: Operation) -> None:
        self._issued[id(operation)] = self.now

    def landed(self, operation: Operation) -> None:
        """An asynchronous operation has taken effect."""
        start = self._issued.pop(id(operation), self.now)
        unit = operation.name.split(".mbarrier")[0].split(".shared")[0].split(".global")[0]
        row = self._units.setdefault(unit, _UNITS + len(self._units))
        process = f"CTA {operation.place.cta}"
        self._rows[process, row] = unit
        arguments = {"issued at": operation.place.source}
        self._slice(operation.name, process, row, start, max(self.now - start, 1), arguments)

    def _slice(
        self, name: str, process: str, row: int, start: int, duration: int, arguments: dict[str, Any]
    ) -> None:
        event = {"ph": "X", "name": name, "pid": process, "tid": row, "ts": start, "dur": duration}
        self._events.append({**event, "args": arguments})

    def write(self, path: str | os.PathLike[str]) -> None:
        names = [
            {"ph": "M", "name": "thread_name", "pid": process, "tid": row, "args": {"name": name}}
            for (process, row), name in sorted(self._rows.items())
        ]
        with open(path, "w") as file:
            json.dump({"traceEvents": names + self._events}, file)
