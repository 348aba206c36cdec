"""Tensor maps that the kernel makes: of A and of B of each group along K, which are matrices of their own.

A_g is [M, ks[g]] and B_g [N, ks[g]], K-major, and all A lie one after another, as do all B. Where A_g begins and how
far apart its rows are is known to the device alone, so no map that a launch carries fits any of them. It carries
patterns: maps of A as if there were one group, and of B. Of these a group's maps differ in address, extent along K and
row stride.

The warp that loads A and B makes the maps that it loads by, when it comes to a tile of another group:

    1  one lane replaces the three fields of both patterns, in shared memory (tensormap.replace)
    2  bar.warp.sync, since every lane takes part in what follows
    3  the warp copies them to a slot in global memory, where TMA reads maps, and releases them to the tensormap proxy
       (tensormap.cp_fenceproxy)
    4  each lane acquires them from there (fence.proxy.tensormap::generic.acquire): copies that it issues from now on
       read the slot's new contents, and none that were cached
    5  bar.warp.sync: nobody replaces fields again before all have copied them

A map must not change while a copy that reads it is under way, and copies are: loads run `stages` ahead of the MMAs. So
slots take turns, one more than there are stages. Each group that a map is made for has one K tile at least, so before
a slot's turn comes again, the warp has filled as many stages as there are with K tiles of later groups. For the last
of these it waited until the stage that the slot's last K tile may have lain in was empty: read by the MMAs, and so
complete. No other wait is needed, and the maps of the next group are made while loads by the current ones are still
under way.

Slots belong to a stream. They are written after griddepcontrol.wait, when the launch before has come to its end, and
nothing is read that the launch itself has not written. So launches may be captured, and serve other lengths then.

Sources: PTX ISA, "tensormap.replace", "tensormap.cp_fenceproxy", "membar, fence" (the proxy fences).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int8, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

MAP_BYTES = 128
WORDS = MAP_BYTES // 8  # Int64 words of a map
GENERIC = cutlass.AddressSpace.generic
WIDE_FETCH = 1 << 21  # in a map's second Int64: see `begin`
NOWHERE = -(1 << 30)  # a row, outside whatever there is

# Ordinals count from 0, those of strides from that between rows; prims.tensormap_replace refuses 0.
_REPLACE = """
    tensormap.replace.tile.global_address.shared::cta.b1024.b64 [{$r0}], {$r1};
    tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [{$r0}], 0, {$r2};
    tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [{$r0}], 0, {$r3};
"""


class Matrices(NamedTuple):
    """What a launch has of them.

    a, b: Int8, the first byte of A and of B. slots: Int64, for each CTA the slots that take turns, each a map of A and
    one of B; at a multiple of 128 bytes.
    """

    a: Pointer
    b: Pointer
    slots: Pointer


class Map(NamedTuple):
    """A map in global memory, in place of one that the launch carries."""

    where: Any

    def get_ptr(self) -> Any:
        """Return its address."""
        return self.where


class Maps:
    """The maps of the current group, one warp's.

    patterns: Int64 in shared memory, a map of A and one of B, 128-byte aligned. sizes: M, N, and K of all groups.
    slots: how many take turns. bits: of an element. group: which they are of; slot: where they lie.
    """

    def __init__(
        self,
        patterns: Any,
        matrices: Matrices,
        sizes: tuple[Any, Any, Any],
        slots: int,
        bits: int,
        k_multiple: int,
        group: Any,
        slot: Any,
    ) -> None:
        self.patterns, self.matrices, self.sizes = patterns, matrices, sizes
        self.slots, self.bits, self.k_multiple = slots, bits, k_multiple
        self.group, self.slot = group, slot

    def __extract_mlir_values__(self) -> list[Any]:
        return [self.group.ir_value(), self.slot.ir_value()]

    def __new_from_mlir_values__(self, values: list[Any]) -> Maps:
        fixed = self.patterns, self.matrices, self.sizes, self.slots, self.bits, self.k_multiple
        return Maps(*fixed, Int32(values[0]), Int32(values[1]))

    def both(self) -> tuple[Map, Map]:
        """Return the maps of A and of B."""
        a = self._place()
        return Map(a.tospace(GENERIC)), Map((a + WORDS).tospace(GENERIC))

    def _place(self) -> Any:
        return self.matrices.slots + (Int32(cute.arch.block_idx()[0]) * self.slots + self.slot) * (2 * WORDS)

    @cute.jit
    def enter(
        self, group: Any, start: Any, length: Any, rows: tuple[Any, Any], leader: Any
    ) -> tuple[Any, Any]:
        """Go to a group, whose K begins at element `start` of all: make its maps unless the current ones are its.

        By the whole warp; `leader` is true in one lane. Returns where in these maps the rows of A and of B are to be
        loaded from: where it was said, or outside where the group has no K that lies in A and B.
        """
        m, n, k = self.sizes
        fits = (start >= 0) & (length <= k - start) & (length % self.k_multiple == 0)
        if group != self.group:
            self.group = Int32(group)
            self.slot += 1
            if self.slot == self.slots:
                self.slot = Int32(0)
            if leader & fits:
                self._replace(0, self.matrices.a, m, start, length)
                self._replace(WORDS, self.matrices.b, n, start, length)
            cute.arch.sync_warp()
            for word in (0, WORDS):
                source, target = self.patterns.subview(word), self._place() + word
                prims.tensormap_cp_fenceproxy(target, source, MAP_BYTES, prims.MemScope.GPU)
            for made in self.both():
                prims.fence_proxy_acquire(prims.MemScope.GPU, made.where, MAP_BYTES)
            cute.arch.sync_warp()
        row_a, row_b = (cutlass.select_(fits, Int32(row), Int32(NOWHERE)) for row in rows)
        return row_a, row_b

    def _replace(self, word: int, first: Any, rows: Any, start: Any, length: Any) -> None:
        """Turn a pattern into the map of rows of `length` elements, behind `start` elements of each row."""
        nbytes = self.bits // 8
        address = first.toint(Int64) + Int64(start) * Int64(rows) * nbytes
        where = Uint32(self.patterns.subview(word).data_ptr().toint())
        prims.inline_ptx(_REPLACE, read_only_args=[where, address, length * nbytes, Int64(length * nbytes)])


@cute.jit
def begin(
    patterns: Any,
    carried: Any,
    matrices: Any,
    sizes: Any,
    slots: Constexpr[int],
    bits: Constexpr[int],
    k_multiple: Constexpr[int],
    leader: Any,
) -> Maps:
    """Return maps of no group yet, having copied the patterns that the launch carries; by the whole warp.

    WIDE_FETCH, which a driver may set for a large tensor, lets TMA fetch beyond a tensor's end, where memory must be
    mapped. A group may end where the memory does, so its maps have it clear, as `prims.tensormap_replace` would.
    """
    if leader:
        for i in cutlass.range_constexpr(2):
            source = cutlass.Pointer(carried[i].get_ptr(), dtype=Int64)
            for word in cutlass.range_constexpr(WORDS):
                value = (source + word).load()
                patterns[i * WORDS + word] = value & ~WIDE_FETCH if word == 1 else value
    a, b = Pointer(matrices.a, dtype=Int8), Pointer(matrices.b, dtype=Int8)
    matrices = Matrices(a, b, Pointer(matrices.slots, dtype=Int64))
    return Maps(patterns, matrices, sizes, slots, bits, k_multiple, Int32(-1), Int32(slots - 1))


def placeholder(s: Any) -> Matrices | None:
    """Return Matrices to trace an entry with; None where a Shape's groups have no maps of their own."""
    if not s.group_maps:
        return None
    a_byte = make_ptr(Int8, 16, cute.AddressSpace.gmem)
    return Matrices(a_byte, a_byte, make_ptr(Int64, 128, cute.AddressSpace.gmem))
