"""One lane of a warp that does what the warp does once."""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import Constexpr
from cutlass.experimental import primitives as prims


@cute.jit
def once(issue: Constexpr) -> None:
    """Call `issue`, which issues one tcgen05 instruction, in the elected lane of a whole warp: always the same lane.

    An election of its own for each: a warp issues such an instruction once in any case, so the assembler drops the
    election. It would keep one around more than a few instructions, as a branch with all that meeting behind it takes.
    """
    if prims.elect_sync():
        issue()
