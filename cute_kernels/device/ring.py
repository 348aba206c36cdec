"""A ring of stages guarded by mbarriers, and the place that a warp has in it.

A stage has a barrier that says "full" and one that says "empty"; what they guard is the kernel's affair. Each role
keeps a `Place` of its own: two registers, the stage and the parity of the phase to wait for. All roles go round in
step, so nothing is shared but the barriers.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int32
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair


class Place:
    """Where one warp stands in a ring of `stages` (a Python int): a stage, and the parity to wait for there."""

    def __init__(self, stages: int, stage: Any, parity: Any) -> None:
        self.stages, self.stage, self.parity = stages, stage, parity

    def __extract_mlir_values__(self) -> list[Any]:
        return [self.stage.ir_value(), self.parity.ir_value()]

    def __new_from_mlir_values__(self, values: list[Any]) -> Place:
        return Place(self.stages, Int32(values[0]), Int32(values[1]))

    @cute.jit
    def advance(self) -> None:
        """Go to the next stage; the parity flips where the ring closes."""
        if cutlass.const_expr(self.stages == 2):  # two instructions instead of five
            self.parity = self.parity ^ self.stage
            self.stage = self.stage ^ 1
        else:
            self.stage += 1
            if self.stage == self.stages:
                self.stage = Int32(0)
                self.parity = self.parity ^ 1


def filler(stages: int) -> Place:
    """Return the first place of a role that waits for "empty": a fresh barrier lets it pass once round."""
    return Place(stages, Int32(0), Int32(1))


def reader(stages: int) -> Place:
    """Return the first place of a role that waits for "full"."""
    return Place(stages, Int32(0), Int32(0))


def init(barriers: Any, count: int, arrivals: int) -> None:
    """Initialise `count` barriers (an array of Int64) that each complete after `arrivals`; by one thread.

    The thread owes a `fence_mbarrier_init` and the CTA a barrier before anyone uses them.
    """
    for i in range(count):
        prims.mbarrier_init(barriers.subview(i), arrivals)


@cute.jit
def wait(barrier: Any, parity: Any) -> None:
    """Wait until the phase of that parity is complete; what was written before its arrivals is then visible."""
    while not prims.mbarrier_try_wait_parity(barrier, parity):
        pass


@cute.jit
def arrive(barrier: Any, leader: Any, ctas: Constexpr[int] = 1) -> None:
    """Arrive at a barrier, once for the whole warp: `leader` is true in one lane, which sees what the others did.

    ctas: more than 1 to arrive at the barrier as it lies in the first CTA of the pair (device/pair.py).
    """
    if leader:
        prims.mbarrier_arrive(pair.in_first(barrier, ctas), scope=prims.MemScope.CTA)


@cute.jit
def drain(empty: Any, place: Place, stages: Constexpr[int]) -> None:
    """Wait until every stage that was ever filled is empty again, from the filler's next place.

    Arrivals still under way may not outlive the shared memory that they go to.
    """
    for _ in cutlass.range(stages, unroll=1):
        wait(empty.subview(place.stage), place.parity)
        place.advance()
