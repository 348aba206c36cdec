"""Tensor memory: allocation and addresses.

An address is (lane << 16) | column, of 32-bit cells. Allocation is by columns, over all 128 lanes.
"""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from cutlass import Int32
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair


def allocate(slot: Any, columns: int, ctas: int = 1) -> None:
    """Allocate columns, by one whole warp; the address goes to `slot`, an Int32 of shared memory.

    The CTA allocates nothing more, so it says so at once. `base` reads the slot, on the other side of a CTA barrier.
    Of a pair of CTAs a warp of each calls this, and both get the same address.
    """
    prims.tcgen05_alloc(slot, columns, group=pair.group(ctas))
    prims.tcgen05_relinquish_alloc_permit(group=pair.group(ctas))
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)


@cute.jit
def base(slot: Any) -> Any:
    """Return the address that `allocate` wrote."""
    return slot[0]


def free(address: Any, columns: int, ctas: int = 1) -> None:
    """Give the columns back, by the warp that allocated them, when every access by anyone is done and ordered."""
    prims.tcgen05_dealloc(prims.make_tmem_ptr(address, Int32), columns, group=pair.group(ctas))
