"""Tiles whose K tiles are shared among CTAs, for products with fewer tiles than multiprocessors.

Who has which K tiles is device/streamk.py's, and so is what makes it safe: a CTA leaves sums for another only in its
first segment, before it waits for anybody, and waits only for CTAs of lower index, which the hardware starts earlier.
So no CTA waits for one that cannot start before it ends, whatever of the grid is resident; and within a CTA, loads and
MMAs of later segments never hold up its first, since all roles take segments in the same order. Sums are added up in
the order of K, so that equal launches give equal bits.

Where CTA pairs have a share each, both CTAs walk alike, and each has a slot and flags for its rows: those of the same
CTA of another pair lie as many CTAs on.

A share's slot holds the FP32 sums of a tile, in the order in which the store warps read TMEM, be operands swapped or
not: for each warp and each 32 columns, eight times 16 bytes of every lane, the lanes side by side. A warp only meets
its like of another CTA, so each has a flag of its own. Flags are zero between launches: who collects from a slot resets
its flag.

Source: Osama et al., as in device/streamk.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair, ring, streamk, tmem
from cute_kernels.device.store import COLUMNS, wait_for_read
from cute_kernels.device.tiles import Ahead, Order
from cute_kernels.device.transposed import read_box

FLAGS = 4  # of a share
QUADS = COLUMNS // 4  # 16-byte pieces of what a lane reads of TMEM at a time
FIRST, COUNT, OTHERS = range(2, 5)  # what a lane knows of a segment, beside where its tile is


class Workspace(NamedTuple):
    """Slots: Float32, as many as a CTA has sums of a tile. flags: Int32, four a CTA, one for each store warp."""

    slots: Any  # an Array
    flags: Any  # a pointer


class Walk(Ahead):
    """The segments of this CTA's share, each of a tile of its own; it answers as tiles.Walk does.

    A lane knows of a segment its tile's row and column, its first K tile, how many it has, and, of one that begins its
    tile, how many shares have the others.
    line: the share's first K tile, the one behind its last, K tiles of a share and of a tile.
    """

    def __init__(self, order: Order, line: tuple[Any, Any, Any, Any]) -> None:
        super().__init__(line[0] // line[3], 1, lanes=1 + OTHERS)
        self.order, self.line = order, line

    def places(self) -> tuple[tuple[Any], tuple[Any]]:
        """First row of A and D for this CTA, and first row of B, of the current segment's tile."""
        row, column = self.place()
        return (row,), (column,)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The segment's first K tile, and the one behind its last."""
        first = self.known(FIRST)
        return first, first + self.known(COUNT)

    @cute.jit
    def settle(self) -> None:
        """Give the next segments to the lanes, if there are any."""
        start, end, share, k_tiles = self.line
        tile = self.own_index()
        before = tile * k_tiles
        first = cutlass.max(start, before) - before
        behind = cutlass.min(end, before + k_tiles) - before
        others = (k_tiles - behind + share - 1) // share
        lanes = (*self.order.place(tile), first, behind - first, others)
        self.have(cutlass.max(start, before) < end, lanes)


@cute.jit
def walk(order: Constexpr, k_tiles: Any, share: Any) -> Walk:
    """Return this CTA's walk over the tiles of an Order, with so many K tiles in its share.

    The grid is one-dimensional, and has as many CTAs, or pairs of them, as the K tiles of all tiles have shares.
    """
    k_tiles, share = Uint32(k_tiles), Uint32(share)
    start, last = streamk.share_index(order.ctas) * share, order.count * k_tiles
    end = cutlass.max(start, cutlass.min(start + share, last))
    result = Walk(order, (start, end, share, k_tiles))
    result.settle()
    return result


def own_index(ctas: int) -> Any:
    """Return which slot and flags are this CTA's, in the order of shares; those of a pair are one behind another."""
    return Int32(streamk.share_index(ctas) * ctas + pair.rank(ctas))


def workspace(slots: Any, flags: Any) -> Workspace:
    """Return the workspace that lies at these pointers."""
    return Workspace(cutlass.Array(slots, dtype=Float32), flags)


def placeholders() -> tuple[Any, ...]:
    """Return slots, flags and share to trace an entry with."""
    slots, flags = (make_ptr(dtype, 16, cute.AddressSpace.gmem) for dtype in (Float32, Int32))
    return slots, flags, Int32(0)


@cute.jit
def leave(s: Constexpr, mem: Any, workspace: Any, acc: Any, leader: Any) -> None:
    """Write the sums of the accumulator `acc` to this CTA's slot, and say so; in the place of a tile's store."""
    warp = cute.arch.warp_idx()
    own = own_index(s.cluster)
    place = slot_place(s, own)
    ring.wait(mem.acc_full.subview(acc.stage), acc.parity)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    address = tmem.base(mem.tmem) + (warp * 32 << 16) + acc.stage * s.tile_n
    pending = read_box(s, 0, address)
    for i in cutlass.range_constexpr(s.reads):
        values = wait_for_read(pending)
        if cutlass.const_expr(i + 1 < s.reads):
            pending = read_box(s, i + 1, address)
        for j in cutlass.range_constexpr(QUADS):
            part = cutlass.Vector.from_elements(values[4 * j : 4 * j + 4], Float32)
            workspace.slots[place + (i * QUADS + j) * 128 : 4, 16] = part
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
    streamk.publish(workspace.flags + (own * FLAGS + warp), leader)
    ring.arrive(
        mem.acc_empty.subview(acc.stage), leader, s.cluster
    )  # for lanes that `publish` has brought together


@cute.jit
def others(s: Constexpr, workspace: Any, walk: Any, leader: Any) -> Any:
    """Wait for everyone who has K tiles of the current tile, which this CTA owns; return how many they are."""
    warp, count = cute.arch.warp_idx(), walk.known(OTHERS)
    own = own_index(s.cluster)
    for i in cutlass.range(count, unroll=1):
        streamk.wait(workspace.flags + ((own + (1 + i) * s.cluster) * FLAGS + warp), leader)
    return count


@cute.jit
def collect(s: Constexpr, workspace: Any, values: Constexpr, i: Constexpr[int], count: Any) -> Any:
    """Return `values`, a lane's sums of a tile's columns 32 * i onwards, plus those of the next `count` shares."""
    sums = cutlass.Array(Float32, COLUMNS)
    for j in cutlass.range_constexpr(COLUMNS):
        sums[j] = values[j]
    place = slot_place(s, own_index(s.cluster)) + i * (COLUMNS * 32)
    for _ in cutlass.range(count, unroll=2):
        place += s.slot_bytes // 4 * s.cluster
        for j in cutlass.range_constexpr(QUADS):
            part = workspace.slots[place + j * 128 : 4, 16]
            for x in range(4):
                sums[4 * j + x] = sums[4 * j + x] + part[x]
    return [sums[j] for j in range(COLUMNS)]


def slot_place(s: Any, own: Any) -> Any:
    """Return where in `slots` this lane's first sums in a CTA's slot lie."""
    warp, lane = cute.arch.warp_idx(), cute.arch.lane_idx()
    return own * (s.slot_bytes // 4) + warp * (32 * s.tile_n) + lane * 4
