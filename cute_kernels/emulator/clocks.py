"""Vector clocks of a cluster: who knows of which events.

Every agent that can touch memory has a slot. A warp owns GENERIC (its ordinary loads and stores), TENSOR (its
tcgen05.ld and tcgen05.st), PIPE (tcgen05 operations and wgmma that it issued), BULK (bulk copies that it issued and
that complete by bulk groups), COPY (its cp.async copies), SOME (ordinary accesses that a part of its lanes has
released; see lanes.py), WRITTEN (what its bulk copies write to global memory), HEARD (what it has learned from
other clusters; see global_order.py) and WAITED (its waits on mbarriers, no accesses; see phases.py). An mbarrier owns
one slot, whose time is the number of the phase in which a transfer that signals it completes; so "I observed phase p"
orders everything that the phase tracked. One slot stands for the grids that this one depends on
(griddepcontrol.wait).

A clock is an int64 array [3, slots]:
    row READY    events ordered before this agent's next generic access,
    row ASYNC    the same, but of generic writes only those a proxy fence has passed on to the async proxy,
    row TENSOR_READY  what its next tcgen05 operation on tensor memory is ordered after (tcgen05 fences move it).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

READY, ASYNC, TENSOR_READY = 0, 1, 2
GENERIC, TENSOR, PIPE, BULK, COPY, SOME, WRITTEN, HEARD, WAITED = range(9)
SLOTS_A_WARP = 9
_KINDS = (
    "",
    " (tcgen05.ld/st)",
    " (tcgen05 pipe or wgmma)",
    " (bulk copy)",
    " (cp.async)",
    " (some lanes)",
    " (bulk copy to global memory)",
    " (what it acquired)",
    " (waits)",
)
FOREVER = np.int64(2**62)

Clock = NDArray[np.int64]


class SlotTable:
    """Hands out slots of a cluster's clocks and names them for reports."""

    def __init__(self, warps: int, mbarriers: int) -> None:
        self.warps = warps
        self.grid_dependency = warps * SLOTS_A_WARP
        self.size = warps * SLOTS_A_WARP + 1 + mbarriers
        self._free = self.grid_dependency + 1
        self.names: list[str] = ["?"] * self.size
        self.generic = np.zeros(self.size, dtype=bool)
        self.generic[0 : warps * SLOTS_A_WARP : SLOTS_A_WARP] = True
        self.waits = slice(WAITED, self.grid_dependency, SLOTS_A_WARP)  # the WAITED slots
        self.releases: dict[
            int, list[tuple[int, int]]
        ] = {}  # by GENERIC slot: time and lanes of partial releases
        self.heard: dict[
            int, list[dict[int, Clock]]
        ] = {}  # by HEARD slot: news of other clusters, cumulative

    def of_warp(self, cluster_warp: int, what: int) -> int:
        return cluster_warp * SLOTS_A_WARP + what

    def new_mbarrier(self, name: str) -> int:
        if self._free == self.size:
            raise OverflowError(f"more than {self.size - self.grid_dependency - 1} mbarriers in one cluster")
        slot = self._free
        self._free += 1
        self.names[slot] = name
        return slot

    def new_clock(self, rows: int = 3) -> Clock:
        return np.zeros((rows, self.size), dtype=np.int64)

    def describe(self, slot: int) -> str:
        if slot >= self.grid_dependency:
            return self.names[slot]
        warp, what = divmod(slot, SLOTS_A_WARP)
        return f"{self.names[warp * SLOTS_A_WARP]}{_KINDS[what]}"


def async_view(clock: Clock, generic: NDArray[np.bool_]) -> NDArray[np.int64]:
    """What an asynchronous operation issued now is ordered after: generic events only if proxy-fenced."""
    return np.where(generic, clock[ASYNC], clock[READY])
