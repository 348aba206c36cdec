"""Brings in a stage of W4A16 by cp.async: each thread its chunks of 16 bytes, and zeros where a tensor has ended.

What lies in a stage is what TMA writes (gemm_w4a16.py): boxes of X, 64 elements of K wide, whose 16-byte chunk c of
row r is at c ^ (r % 8); behind them units of W. Eight threads copy a row of a box, which is 128 bytes of X; 64 threads
the codes of a unit, and 8 its scale factors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int32, Int64

from cute_kernels.device import cp_async
from cute_kernels.device.streamk import Walk
from cute_kernels.device.tiles import ceil_div
from cute_kernels.w4a16_layout import SCALES_AT
from sm80.w4a16_sums import Smem
from sm80.w4a16_tiles import Size, locate, segment

CHUNK = 16  # bytes of a copy


class Operands(NamedTuple):
    """Pointers to the bytes of X and W; bytes from a row of X, and from an expert's matrix, to the next (Int64)."""

    x: Any
    w: Any
    row_bytes: Any
    matrix_bytes: Any


class Source:
    """Which K step is copied next: `step` of a tile, of which `left` are to come; behind them, where `walk` stands.

    row, rows: the tile's first row of X, and where rows end; block: its first 16-row block of W.
    x_at, w_at: bytes from the first of X to that row, and from the first of W to the first unit of the K step.
    """

    def __init__(self, walk: Walk, *places: Any) -> None:
        self.walk = walk
        self.step, self.left, self.row, self.rows, self.block, self.x_at, self.w_at = places

    def __extract_mlir_values__(self) -> list[Any]:
        places = (self.step, self.left, self.row, self.rows, self.block, self.x_at, self.w_at)
        return [*self.walk.__extract_mlir_values__(), *(v.ir_value() for v in places)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Source:
        walk, places = self.walk.__new_from_mlir_values__(values[:-7]), values[-7:]
        return Source(walk, *map(Int32, places[:5]), *map(Int64, places[5:]))

    @cute.jit
    def seek(self, s: Constexpr, of: Operands, size: Size) -> None:
        """Go to the next segment with a K step if this one has no more."""
        while (self.left == 0) & self.walk.left:
            tile = locate(s, size, self.walk.tile)
            self.step, self.left = segment(s, size, self.walk)
            self.row, self.rows, self.block = tile.row, tile.rows, tile.column // s.UNIT_ROWS
            self.x_at = Int64(tile.matrix) * of.matrix_bytes + Int64(tile.row) * of.row_bytes
            row_block = Int64(tile.expert) * ceil_div(size.n, s.UNIT_ROWS) + self.block
            self.w_at = (row_block * ceil_div(size.k, s.UNIT_K) + self.step * s.units) * s.UNIT_BYTES
            self.walk.advance(self.walk.count)

    @cute.jit
    def fill(self, s: Constexpr, mem: Smem, of: Operands, size: Size, stage: Any) -> None:
        """Start to copy the next K step into a stage, if there is one; a group of this thread's copies in any case."""
        self.seek(s, of, size)
        if self.left > 0:
            target = stage * s.stage_bytes
            copy_x(s, mem, of, size, self, target)
            target = target + s.x_bytes
            copy_w(s, mem, of, size, self, target, 64)
            if Int32(cute.arch.thread_idx()[0]) < s.w_units * 8:
                copy_w(s, mem, of, size, self, target, 8)
            self.step += 1
            self.left -= 1
            self.w_at += s.units * s.UNIT_BYTES
        cp_async.commit()


def source(walk: Walk) -> Source:
    """Return the first K step of a walk, which the source goes along by itself."""
    zero = Int32(0)
    return Source(walk.copy(), zero, zero, zero, zero, zero, Int64(0), Int64(0))


@cute.jit
def copy_x(s: Constexpr, mem: Smem, of: Operands, size: Size, source: Source, target: Any) -> None:
    """Copy this thread's chunks of X; all boxes of a stage are rows one below the other here."""
    thread = Int32(cute.arch.thread_idx()[0])
    chunk, row, box = thread % 8, thread // 8 % s.tile_m, thread // 8 // s.tile_m
    k = source.step * s.tile_k + box * s.BOX_K + chunk * 8
    origin = of.x + (source.x_at + Int64(row) * of.row_bytes + Int64(k) * 2)
    target = target + box * s.x_box_bytes + row * 128 + (chunk ^ row % 8) * CHUNK
    for first in cutlass.range_constexpr(0, s.x_bytes // 128, s.threads // 8):
        boxes, rows = divmod(first, s.tile_m)
        inside = (source.row + row + rows < source.rows) & (k + boxes * s.BOX_K < size.k)
        at = mem.stages.subview(target + boxes * s.x_box_bytes + rows * 128)
        cp_async.copy(at, origin + (of.row_bytes * rows + boxes * 128), inside)


@cute.jit
def copy_w(
    s: Constexpr, mem: Smem, of: Operands, size: Size, source: Source, target: Any, threads: Constexpr[int]
) -> None:
    """Copy this thread's chunks of W's codes (threads: 64, that copy those of a unit) or scale factors (8)."""
    thread = Int32(cute.arch.thread_idx()[0])
    index = thread // threads
    block, unit = index // s.units, index % s.units
    byte = thread % threads * CHUNK + (0 if threads == 64 else SCALES_AT)
    blocks, units = ceil_div(size.n, s.UNIT_ROWS), ceil_div(size.k, s.UNIT_K)
    pitch = Int64(units) * s.UNIT_BYTES
    origin = of.w + (source.w_at + Int64(block) * pitch + Int64(unit * s.UNIT_BYTES + byte))
    target = target + index * s.UNIT_BYTES + byte
    for first in cutlass.range_constexpr(0, s.w_units, s.threads // threads):
        down, along = divmod(first, s.units)
        inside = (source.block + block + down < blocks) & (source.step * s.units + unit + along < units)
        at = mem.stages.subview(target + first * s.UNIT_BYTES)
        cp_async.copy(at, origin + (pitch * down + along * s.UNIT_BYTES), inside)
