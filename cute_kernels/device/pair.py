"""CTA pairs: two CTAs of a cluster that compute one tile together, or one CTA alone, in the same code.

`ctas` are those of the cluster: 1 is a CTA alone, 2 a pair, the ISA's cta_group, and 4 two pairs. Of a pair, the first
CTA (an even one of the cluster) issues the tensor core's work, which reads the shared memory and the TMEM of both at
the same addresses. So what is filled in the second CTA is announced on the first one's barriers, and what the tensor
core has done on the barriers of both.

Two pairs of a cluster have tiles side by side, which meet the same rows of A. Each CTA has a counterpart in the other
pair, with just those rows in its stages, and loads one half of them into both: a box leaves L2 once for two CTAs
(`counterparts`). Each copy announces its bytes where it lands, on the barrier of that pair's first CTA. So no pair
needs to know when the other loads; but a stage is filled from outside, so it is empty when the tensor core has done
with that stage in both pairs (`commit_to_all`, and two arrivals at each of those barriers). Both pairs have the same
number of K tiles, since a cluster walks as one; a tile that lies beyond D is computed from zeros, and nothing of it
stored.

Arrivals and waits between the two have the scope of a CTA, as in CUTLASS's ClusterBarrier. Cluster scope would drain
all memory traffic at each arrival and invalidate the L1 cache at each wait, for data that no thread of the other CTA
reads: each half of the tensor core reads what its own CTA wrote, and published to the async proxy.

Sources: PTX ISA, "CTA Pair", "tcgen05.commit", and "cp.async.bulk.tensor" for .multicast::cluster with .cta_group::2.
"""

from __future__ import annotations

from typing import Any

from cutlass import Boolean, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import elect


def group(ctas: int) -> Any:
    """Return the .cta_group of tcgen05 instructions and tensor copies."""
    return prims.CTAGroup.CTA_1 if ctas == 1 else prims.CTAGroup.CTA_2


def rank(ctas: int) -> Any:
    """Return 0 in the first CTA of a pair and in one alone, 1 in the second."""
    if ctas == 1:
        return Uint32(0)
    own = Uint32(prims.cluster_ctarank())
    return own & 1 if ctas == 4 else own


def which(ctas: int) -> Any:
    """Return 1 in the second pair of a cluster; where there is none, 0."""
    return Uint32(prims.cluster_ctarank()) >> 1 if ctas == 4 else 0


def is_first(ctas: int) -> Any:
    """Return whether this CTA issues the tensor core's work."""
    return Boolean(True) if ctas == 1 else rank(ctas) == 0


def in_first(barrier: Any, ctas: int) -> Any:
    """Return this barrier as it lies in the first CTA, for arrivals only: waits are the first CTA's own."""
    return barrier if ctas == 1 else prims.mapa(barrier, which(ctas) * 2)


def counterparts(ctas: int) -> Any:
    """Return the mask of this CTA and its counterpart in the other pair; where there is none, None."""
    return Uint32(0b101) << rank(ctas) if ctas == 4 else None


def sync(ctas: int) -> None:
    """Let all threads of the CTA, or of the cluster, wait for one another, and order their memory accesses."""
    if ctas == 1:
        prims.barrier_cta_sync(0)
    else:
        prims.barrier_cluster_arrive()
        prims.barrier_cluster_wait()


def commit(barrier: Any, ctas: int) -> None:
    """Arrive at this barrier, of both CTAs in a pair, when what `elect.once` issued of tcgen05 before is done."""
    _commit(barrier, ctas, Uint32(0b11) << which(ctas) * 2 if ctas == 4 else 0b11)


def commit_to_all(barrier: Any, ctas: int) -> None:
    """The same of all CTAs in the cluster."""
    _commit(barrier, ctas, (1 << ctas) - 1)


def _commit(barrier: Any, ctas: int, mask: Any) -> None:
    to = None if ctas == 1 else mask
    elect.once(lambda: prims.tcgen05_commit(barrier, multicast_mask=to, group=group(ctas)))
