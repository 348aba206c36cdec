"""CTA pairs: two CTAs of a cluster that compute one tile together, or one CTA alone, in the same code.

`ctas` is 1 or 2, the ISA's cta_group. Of a pair, the first CTA (the even one of the cluster) issues the tensor core's
work, which reads the shared memory and the TMEM of both at the same addresses. So what is filled in the second CTA is
announced on the first one's barriers, and what the tensor core has done on the barriers of both.

Arrivals and waits between the two have the scope of a CTA, as in CUTLASS's ClusterBarrier. Cluster scope would drain
all memory traffic at each arrival and invalidate the L1 cache at each wait, for data that no thread of the other CTA
reads: each half of the tensor core reads what its own CTA wrote, and published to the async proxy.

Sources: PTX ISA, "CTA Pair" and "tcgen05.commit".
"""

from __future__ import annotations

from typing import Any

from cutlass import Boolean, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import elect


def group(ctas: int) -> Any:
    """Return the .cta_group of tcgen05 instructions and tensor copies."""
    return prims.CTAGroup.CTA_2 if ctas == 2 else prims.CTAGroup.CTA_1


def rank(ctas: int) -> Any:
    """Return 0 in the first CTA of a pair and in one alone, 1 in the second."""
    return Uint32(prims.cluster_ctarank() if ctas == 2 else 0)


def is_first(ctas: int) -> Any:
    """Return whether this CTA issues the tensor core's work."""
    return rank(ctas) == 0 if ctas == 2 else Boolean(True)


def in_first(barrier: Any, ctas: int) -> Any:
    """Return this barrier as it lies in the first CTA, for arrivals only: waits are the first CTA's own."""
    return prims.mapa(barrier, 0) if ctas == 2 else barrier


def sync(ctas: int) -> None:
    """Let all threads of the CTA, or of both, wait for one another, and order their memory accesses."""
    if ctas == 2:
        prims.barrier_cluster_arrive()
        prims.barrier_cluster_wait()
    else:
        prims.barrier_cta_sync(0)


def commit(barrier: Any, ctas: int) -> None:
    """Arrive at this barrier, of both CTAs in a pair, when what `elect.once` issued of tcgen05 before is done."""
    both = 0b11 if ctas == 2 else None
    elect.once(lambda: prims.tcgen05_commit(barrier, multicast_mask=both, group=group(ctas)))
