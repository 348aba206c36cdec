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
from cute_kernels.device.tiles import ceil_div, coordinates, divide, reciprocal, reciprocals_of_order
from cute_kernels.device.transposed import read_box

FLAGS = 4  # of a share
QUADS = COLUMNS // 4  # 16-byte pieces of what a lane reads of TMEM at a time


class Workspace(NamedTuple):
    """Slots: Float32, as many as a CTA has sums of a tile. flags: Int32, four a CTA, one for each store warp."""

    slots: Any  # an Array
    flags: Any  # a pointer


class Walk:
    """The segments of this CTA's share, and the tiles that they are of; it answers as tiles.Walk does.

    reciprocals: of the order of tiles, as tiles.Walk has them, and of the share.
    """

    def __init__(
        self,
        line: Any,
        tiles_m: Any,
        tiles_n: Any,
        group_m: int,
        tile: tuple[int, int],
        ctas: int,
        reciprocals: tuple[Any, Any, Any],
    ) -> None:
        self.line, self.tiles_m, self.tiles_n = line, tiles_m, tiles_n
        self.group_m, self.tile, self.ctas, self.reciprocals = group_m, tile, ctas, reciprocals

    def __extract_mlir_values__(self) -> list[Any]:
        sizes = [v.ir_value() for v in (self.tiles_m, self.tiles_n)]
        return [*self.line.__extract_mlir_values__(), *sizes]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        *line, tiles_m, tiles_n = values
        line = self.line.__new_from_mlir_values__(line)
        fixed = self.group_m, self.tile, self.ctas, self.reciprocals
        return Walk(line, Uint32(tiles_m), Uint32(tiles_n), *fixed)

    @property
    def left(self) -> Any:
        """Whether there is a segment at the current place."""
        return self.line.left

    @property
    def places(self) -> tuple[tuple[Any], tuple[Any]]:
        """First row of A and D for this CTA, and first row of B, of the current segment's tile."""
        of_order = self.reciprocals[:2]
        m, n = coordinates(self.line.tile, self.tiles_m, self.tiles_n, self.group_m, of_order)
        row = m * self.tile[0] + pair.rank(self.ctas) * (self.tile[0] // self.ctas)
        return (row,), (n * self.tile[1],)

    def steps(self, k_tiles: Any) -> tuple[Any, Any]:
        """The segment's first K tile, and the one behind its last."""
        first = self.line.first
        return first, first + self.line.count

    def advance(self) -> None:
        """Go to this CTA's next segment."""
        self.line.advance(self.line.count)


def walk(
    m: Any, n: Any, k_tiles: Any, tile: tuple[int, int], group_m: int, share: Any, ctas: int = 1
) -> Walk:
    """Return this CTA's walk over the tiles of an [m, n] output, with so many K tiles in its share.

    The grid is one-dimensional, and has as many CTAs, or pairs of them, as the K tiles of all tiles have shares.
    """
    tiles_m, tiles_n = ceil_div(m, tile[0]), ceil_div(n, tile[1])
    line = streamk.walk(0, share, k_tiles, tiles_m * tiles_n, ctas)
    reciprocals = *reciprocals_of_order(tiles_m, tiles_n, group_m), reciprocal(share)
    return Walk(line, tiles_m, tiles_n, group_m, tile, ctas, reciprocals)


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
    line, warp = walk.line, cute.arch.warp_idx()
    behind = line.k_steps - line.count
    quotient, _ = divide(behind + line.share - 1, line.share, walk.reciprocals[2])
    count = Int32(quotient)
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
