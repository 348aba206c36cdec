"""Groups along K: each D of a launch sums up a slice of K of its own, of a length that the device alone knows.

MN-major, A is [K, M] and B [K, N]: the rows of group 0, right behind them those of group 1, and so on, ks[g] of them
for group g. K-major, each group has an A [M, ks[g]] and a B [N, ks[g]], one behind another, and tensor maps of its own
(device/group_maps.py). The scale factors of a group begin a word of their own (scale_factors.pack_k_grouped). Products
are added to D, and so a group of no K is passed over.

MN-major, rows of the next group come with the last K tile of one, and MMAs leave them out, each of which takes a whole
number of rows that every ks[g] is a multiple of (`k_multiple`). K-major, TMA fills with zeros what is behind a group.

Warps read `ks` in global memory, after griddepcontrol.wait and anew for each tile, so a captured launch
serves whatever lengths it holds by then.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import group_maps, tiles
from cute_kernels.device.umma_formats import STEPS, Format

LANES = 32


class Walk(tiles.Walk):
    """The tiles of all Ds, of one group after another, without those of groups of no K.

    groups: how many there are. ks: a pointer to Int32.
    """

    def __init__(self, order: tiles.Order, form: Format, groups: Any, ks: Any) -> None:
        super().__init__(*tiles.own_tiles(order.ctas), order)
        self.form, self.groups, self.ks = form, groups, ks

    def group(self) -> Any:
        """The group that the current tile is of."""
        return self.known(2)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The current tile's first K tile, counted from its group's first, and the one behind its last."""
        return 0, tiles.ceil_div(length(self), self.form.tile_k)

    @cute.jit
    def settle(self) -> None:
        """Give the next tiles that are not passed over to the lanes, if there are any."""
        self._take()
        while (self.turn == 0) & (self.index < self.order.count):
            self.turn = Int32(0)  # as it is: see Ahead.advance
            self._take()

    def _take(self) -> None:
        own = self.own_index()
        row, column, group = self.order.place(own)
        length = (self.ks + cutlass.min(group, self.groups - 1)).load()
        self.have((own < self.order.count) & (length > 0), (row, column, group), gaps=True)


@cute.jit
def walk(s: Constexpr, m: Any, n: Any, groups: Any, ks: Any) -> Walk:
    """Return this CTA's walk over the tiles of [m, n] outputs, one for each group; the grid is one-dimensional.

    Waits for the kernel before this one, whose result `ks` may be.
    """
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    order = tiles.order(m, n, (s.tile_m, s.tile_n), s.group_m, groups, s.cta_group)
    result = Walk(order, s.format, groups, ks)
    result.settle()
    return result


def length(walk: Any) -> Any:
    """Return the elements along K of the current tile's group."""
    return (walk.ks + walk.group()).load()


def mmas(s: Any, walk: Any, end: Any) -> tuple[Any, Any]:
    """Return how many K tiles of the current tile have all MMAs, and the MMAs of one more; None where there is none.

    end: K tiles of the current tile.
    """
    if not s.k_grouped or s.group_maps or s.format.k_multiple == s.tile_k:
        return end, None
    count = tiles.ceil_div(length(walk), s.format.k_multiple)
    return count // STEPS, count % STEPS


@cute.jit
def start(s: Constexpr, walk: Any, words: Constexpr[bool] = False) -> Any:
    """Return the element of K that the current tile's group begins with, or the word of its scale factors.

    By a whole warp, whose lanes share out the lengths of the groups before.
    """
    if cutlass.const_expr(not s.k_grouped):
        return 0
    form, ks, group = s.format, walk.ks, walk.group()
    total = Int32(0)
    for first in cutlass.range(0, group, LANES, unroll=1):
        before = first + cute.arch.lane_idx()
        if before < group:
            length = (ks + before).load()
            if cutlass.const_expr(words):
                total += Int32(tiles.ceil_div(length, form.tile_k * form.a.tiles_per_word)) * form.words
            else:
                total += length
    return prims.redux_sync(total, prims.ReductionKind.ADD, 0xFFFFFFFF)


def maps(
    s: Any, patterns: Any, carried: tuple[Any, Any], flat: Any, sizes: tuple[Any, ...], leader: Any
) -> Any:
    """Return the group_maps.Maps of one warp, as `group_maps.begin` makes them."""
    which = s.map_slots, s.format.bits, s.format.k_multiple
    return group_maps.begin(patterns, carried, flat, sizes, *which, leader)


def enter(maps: Any, walk: Any, start: Any, rows: tuple[Any, Any], leader: Any) -> tuple[Any, Any]:
    """Go to the current tile's group, which begins at `start`, as `group_maps.Maps.enter` does."""
    return maps.enter(walk.group(), start, length(walk), rows, leader)


def placeholders(s: Any) -> tuple[Any, Any, Any]:
    """Return the number of groups, their lengths and matrices to trace an entry with; None where there are none."""
    if not s.k_grouped:
        return None, None, None
    lengths = make_ptr(Int32, 16, cute.AddressSpace.gmem)
    return Int32(0), lengths, group_maps.placeholder(s)
