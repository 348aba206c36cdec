"""Tiles in a dynamic order: by cluster launch control, CTAs do the tiles of others that have not started.

The grid has a CTA, or a pair, for each tile. Each starts with the tile of its own index, and a warp of it asks ahead
for the tiles of CTAs that wait for a multiprocessor, which then never start. So all tiles are done by as many CTAs as
fit, whoever is free first taking the next, also where other kernels hold some of the multiprocessors.

    barrier      one for each  completes with                                           and then
    tile_full    response      the asking warp, with RESPONSE_BYTES by try_cancel       a response is there
    tile_empty*  response      all other warps; of a second CTA, its asking warp too    all have read it

Responses go round in a ring, since the roles of a CTA are tiles apart. Of a pair, the first CTA asks for both, and all
arrive at its barriers where there is a *. A request that failed is the last one: to ask again would be undefined.

Sources: PTX ISA, "clusterlaunchcontrol.try_cancel" and "clusterlaunchcontrol.query_cancel".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int32, Int64, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair, ring, tiles, tma

RESPONSE_BYTES = 16
# What a response says: the number of a cancelled CTA, or -1. The query for it stands behind a predicate, and in one
# text with it, because the compiler would move it ahead of a branch, where a failed request leaves it undefined.
_QUERY = """{
    .reg .b128 response;
    .reg .pred canceled;
    ld.shared.b128 response, [{$r0}];
    clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 canceled, response;
    mov.b32 {$w0}, -1;
    @canceled clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 {$w0}, response;
}"""


class Responses(NamedTuple):
    """The ring in shared memory."""

    words: Any  # Int32, four a response
    tile_full: Any  # from here on barriers
    tile_empty: Any


def allocate(s: Any) -> Responses:
    """Lay out the ring, from a multiple of 16 on: for each response itself and its barriers, as a Shape counts."""
    space = cutlass.AddressSpace.smem
    words = cutlass.Array(Int32, s.clc_stages * RESPONSE_BYTES // 4, space=space, alignment=RESPONSE_BYTES)
    full, empty = (cutlass.Array(Int64, s.clc_stages, space=space, alignment=8) for _ in range(2))
    return Responses(words, full, empty)


def initialize(s: Any, responses: Responses) -> None:
    """Initialise the barriers with the arrivals of the table above; by one thread."""
    ring.init(responses.tile_full, s.clc_stages, 1)
    ring.init(responses.tile_empty, s.clc_stages, (s.warps - 1) * s.cta_group)


class Walk:
    """The tiles of this CTA as one of its warps comes by them; it answers as tiles.Walk does. index: of the current."""

    def __init__(
        self, index: Any, order: tiles.Order, place: ring.Place, responses: Responses, leader: Any
    ) -> None:
        self.index, self.order, self.place = index, order, place
        self.responses, self.leader = responses, leader

    def __extract_mlir_values__(self) -> list[Any]:
        return [self.index.ir_value(), *self.place.__extract_mlir_values__()]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        place = self.place.__new_from_mlir_values__(values[1:])
        return Walk(Uint32(values[0]), self.order, place, self.responses, self.leader)

    @property
    def left(self) -> Any:
        """Whether there is a tile at the current place."""
        return self.index < self.order.count

    def places(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """As tiles.Walk's."""
        row, column, *batch = self.order.place(self.index)
        return (row, *batch), (column, *batch)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """As tiles.Walk's."""
        return 0, k_tiles

    def advance(self) -> None:
        """Wait for the next response, and go to the tile that it names; by a whole warp."""
        number = take(self.responses, self.place, self.place.parity)
        ring.arrive(self.responses.tile_empty.subview(self.place.stage), self.leader, self.order.ctas)
        self.index = Uint32(number) // self.order.ctas  # beyond all tiles for -1
        self.place.advance()


def walk(order: tiles.Order, s: Any, responses: Responses, leader: Any) -> Walk:
    """Return a warp's walk from the CTA's own tile on."""
    first, _ = tiles.own_tiles(order.ctas)
    return Walk(first, order, ring.reader(s.clc_stages), responses, leader)


@cute.jit
def take(responses: Constexpr, place: Any, parity: Any) -> Any:
    """Return the number of the cancelled CTA in a response, or -1, once it is there; the lanes meet behind."""
    ring.wait(responses.tile_full.subview(place.stage), parity)
    response = responses.words.subview(place.stage * (RESPONSE_BYTES // 4)).data_ptr()
    number = prims.inline_ptx(_QUERY, read_only_args=[response], write_only_types=[Int32])
    tma.publish()  # the next response overwrites this one through the async proxy
    cute.arch.sync_warp()
    return number


@cute.jit
def ask(s: Constexpr, responses: Constexpr, leader: Any) -> None:
    """Ask for one tile after another, until a request fails; the last warp does."""
    place, left = ring.filler(s.clc_stages), cute.arch.warp_idx() == s.warps - 1
    first = pair.is_first(s.cta_group)
    while left:
        full, empty = (of.subview(place.stage) for of in (responses.tile_full, responses.tile_empty))
        if first:
            ring.wait(empty, place.parity)
        if leader:
            prims.mbarrier_arrive_expect_tx(full, RESPONSE_BYTES)
        if leader & first:
            response = responses.words.subview(place.stage * (RESPONSE_BYTES // 4))
            everyone = "multicast" if s.cta_group == 2 else None
            prims.clusterlaunchcontrol_try_cancel(response, full, multicast=everyone)
        left = take(responses, place, place.parity ^ 1) >= 0
        if not first:
            ring.arrive(empty, leader, s.cta_group)
        place.advance()
