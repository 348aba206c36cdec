"""Tensor memory: allocation and addresses.

An address is (lane << 16) | column, of 32-bit cells. Allocation is by columns, over all 128 lanes.
"""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from cutlass import Int32
from cutlass.experimental import primitives as prims


def allocate(slot: Any, columns: int) -> None:
    """Allocate columns, by one whole warp; the address goes to `slot`, an Int32 of shared memory.

    The CTA allocates nothing more, so it says so at once. `base` reads the slot, on the other side of a CTA barrier.
    """
    prims.tcgen05_alloc(slot, columns)
    prims.tcgen05_relinquish_alloc_permit()
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)


@cute.jit
def base(slot: Any) -> Any:
    """Return the address that `allocate` wrote."""
    return slot[0]


def free(address: Any, columns: int) -> None:
    """Give the columns back, by the warp that allocated them, when every access by anyone is done and ordered."""
    prims.tcgen05_dealloc(prims.make_tmem_ptr(address, Int32), columns)
