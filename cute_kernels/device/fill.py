"""What the warps that load fill a stage with: a K tile's operands, or its packed scale words, A's and then B's."""

from __future__ import annotations

from typing import Any

import cutlass.cute as cute
from cutlass import Constexpr
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair, ring, tma


@cute.jit
def fill(
    s: Constexpr,
    mem: Any,
    place: Any,
    maps: Any,
    k: Any,
    at_a: Any,
    at_b: Any,
    leader: Any,
    boxes: Any = (None, None),
) -> None:
    """Fill a stage, once that is empty, with the operands of a K tile; `k` is in elements of the maps."""
    ring.wait(mem.empty.subview(place.stage), place.parity)
    if leader:
        ctas = s.cluster
        target, barrier = mem.stages.subview(place.stage * s.stage_bytes), mem.full.subview(place.stage)
        prims.mbarrier_arrive_expect_tx(pair.in_first(barrier, ctas), s.ab_load_bytes)
        own_a = target.subview(pair.which(ctas) * s.a_load.nbytes) if s.multicast else target
        k_a, k_b = (k * (tile.k_step // s.k_step) for tile in s.operand_tiles)
        tma.load_tile(s.a_load, own_a, maps[0], boxes[0], at_a, k_a, barrier, ctas, pair.counterparts(ctas))
        tma.load_tile(s.b_tile, target.subview(s.a_bytes), maps[1], boxes[1], at_b, k_b, barrier, ctas)


@cute.jit
def fill_scales(
    s: Constexpr, mem: Any, place: Any, maps: Any, k: Any, start: Any, at_a: Any, at_b: Any, leader: Any
) -> None:
    """Fill a stage, once that is empty, with the packed scale words of K tile `k`, `start` being those of tile 0."""
    ring.wait(mem.empty.subview(place.stage), place.parity)
    if leader:
        target = mem.stages.subview(place.stage * s.stage_bytes + s.sf_offset)
        barrier = mem.scales.subview(place.stage)
        prims.mbarrier_arrive_expect_tx(barrier, s.sfa_bytes + s.sfb_bytes)
        word_a, word_b = (of.first_word(k) + start for of in (s.format.a, s.format.b))
        tma.load(target, maps[0], (at_a[0], word_a, *at_a[1:]), barrier)
        tma.load(target.subview(s.sfa_bytes), maps[1], (at_b[0], word_b, *at_b[1:]), barrier)
