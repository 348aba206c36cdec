"""What comes behind the products: sums of K warps and of CTAs are added up, and D is stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Int64, Uint16, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import dequant, streamk
from sm80.shape import W4a16Shape
from sm80.w4a16_products import Place
from sm80.w4a16_tiles import Size, Tile, keeps, locate

CONSUMERS = 1  # the named barrier of the warps that multiply


class Smem(NamedTuple):
    """Shared memory, in order."""

    stages: Any  # bytes; a stage is X | W
    words: Any  # the same memory as Uint32
    exchange: Any  # Float32
    staging: Any  # Uint32
    full: Any  # Int64, a barrier for each stage; none where stages come by cp.async
    empty: Any
    ready: Any  # where X is sorted (w4a16_wgmma.py)


def allocate(s: W4a16Shape) -> Smem:
    """Lay out shared memory, `s.smem_bytes` in all."""

    def array(dtype: Any, count: int, alignment: int) -> Any:
        return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=alignment)

    stages = array(cutlass.Int8, s.stages * s.stage_bytes, 1024)
    return Smem(
        stages=stages,
        words=cutlass.Array(stages.data_ptr(), dtype=Uint32),
        exchange=array(Float32, s.exchange_bytes // 4, 128) if s.exchange_bytes else None,
        staging=array(Uint32, s.staging_bytes // 4, 128),
        full=array(Int64, s.stages, 8) if s.copy == "tma" else None,
        empty=array(Int64, s.stages, 8) if s.copy == "tma" else None,
        ready=array(Int64, s.stages, 8) if s.sorters else None,
    )


class Results(NamedTuple):
    """Where results go, and what they are multiplied by.

    d: pointer to the bits of D; ldd, matrix_stride: elements from a row of D, and from an expert's matrix, to the next.
    aligned: 1 where all rows start at multiples of 16 bytes. scales: pointer to Float32, one for each expert.
    slots: Float32 array, slot_bytes for each CTA. flags: pointer to Int32, one for each warp of a tile and CTA.
    """

    d: Any
    ldd: Any
    aligned: Any
    matrix_stride: Any
    scales: Any
    slots: Any
    flags: Any


@cute.jit
def finish(
    s: Constexpr, mem: Smem, to: Results, size: Size, walk: Any, steps: Any, at: Place, sums: Any
) -> None:
    """End a segment whose sums are there: leave them to the tile's owner, or collect what others left and store D.

    steps: the segment's first K step, and how many there were.
    """
    first, count = steps
    lane = cute.arch.lane_idx()
    leader = lane == 0
    tile_warp = at.m * s.warps_n + at.n
    if cutlass.const_expr(s.warps_k > 1):
        add_up(s, mem, sums, at, tile_warp, lane)
    if (at.k == 0) & (count > 0):
        share = Int32(streamk.share_index())
        slot = tile_warp * (s.sums * 32) + lane * 4
        flag = to.flags + tile_warp
        if first > 0:
            leave(s, to.slots, share * (s.slot_bytes // 4) + slot, sums)
            streamk.publish(flag + share * s.flags, leader)
        else:
            done = count
            while done < Int32(walk.k_steps):
                share += 1
                streamk.wait(flag + share * s.flags, leader)
                collect(s, to.slots, share * (s.slot_bytes // 4) + slot, sums)
                done += Int32(walk.share)
            tile = locate(s, size, walk.tile)  # late, because registers are short while there are products
            factor = (to.scales + tile.expert).load() * Float32(2.0**dequant.FRAGMENT_SHIFT)
            store(s, mem, to, size, tile, at, factor, sums, lane)


@cute.jit
def add_up(s: Constexpr, mem: Smem, sums: Any, at: Place, tile_warp: Any, lane: Any) -> None:
    """Add the sums of all K warps to those of the first one, in their order."""
    stride = s.tile_n * s.tile_m  # Float32 that a K warp of every part of the tile has
    place = tile_warp * (s.sums * 32) + lane * 4
    if at.k > 0:
        for i in cutlass.range_constexpr(0, s.sums, 4):
            part = cutlass.Vector.from_elements([sums[i + j] for j in range(4)], Float32)
            mem.exchange[place + (at.k - 1) * stride + i * 32 : 4, 16] = part
    prims.barrier_cta_sync(CONSUMERS, thread_count=s.consumers * 32)
    if at.k == 0:
        for k in cutlass.range_constexpr(s.warps_k - 1):
            for i in cutlass.range_constexpr(0, s.sums, 4):
                part = mem.exchange[place + k * stride + i * 32 : 4, 16]
                for j in range(4):
                    sums[i + j] = sums[i + j] + part[j]
    # The next segment's exchange may not overtake this one's.
    prims.barrier_cta_sync(CONSUMERS, thread_count=s.consumers * 32)


@cute.jit
def leave(s: Constexpr, slots: Any, place: Any, sums: Any) -> None:
    """Write this thread's sums to its warp's part of a slot, 16 bytes a lane side by side."""
    for i in cutlass.range_constexpr(0, s.sums, 4):
        part = cutlass.Vector.from_elements([sums[i + j] for j in range(4)], Float32)
        slots[place + i * 32 : 4, 16] = part


@cute.jit
def collect(s: Constexpr, slots: Any, place: Any, sums: Any) -> None:
    """Add what `leave` wrote."""
    for i in cutlass.range_constexpr(0, s.sums, 4):
        part = slots[place + i * 32 : 4, 16]
        for j in range(4):
            sums[i + j] = sums[i + j] + part[j]


@cute.jit
def store(
    s: Constexpr, mem: Smem, to: Results, size: Size, tile: Tile, at: Place, factor: Any, sums: Any, lane: Any
) -> None:
    """Multiply a warp's sums by `factor`, and store its part of a tile to D, 8 rows at a time."""
    d = to.d
    row, column = tile.row + at.m * s.warp_m, tile.column + at.n * s.warp_n
    if cutlass.const_expr(s.layout == "masked"):
        d = d + Int64(tile.matrix) * to.matrix_stride
    pitch = s.staging_pitch // 4
    buffer = (at.m * s.warps_n + at.n) * (8 * pitch)
    chunks = s.warp_n // 8  # of 16 bytes, in a row
    for i in cutlass.range_constexpr(s.warp_m // 8):
        stage_rows(s, mem, buffer, i, factor, sums, lane)
        cute.arch.sync_warp()
        for chunk in cutlass.range_constexpr(-(-8 * chunks // 32)):
            index = chunk * 32 + lane
            r, c = row + i * 8 + index // chunks, column + index % chunks * 8
            if (index < 8 * chunks) & (c < size.n) & keeps(s, size, tile, r):
                values = mem.staging[buffer + index // chunks * pitch + index % chunks * 4 : 4, 16]
                target_d = d + Int64(r) * to.ldd + c
                if (to.aligned != 0) & (c + 8 <= size.n):
                    store_quad(target_d, values)
                else:
                    for j in cutlass.range_constexpr(8):
                        if c + j < size.n:
                            half = (values[j // 2] >> (16 * (j % 2))) & 0xFFFF
                            (target_d + j).store(cutlass.Uint16(half))
        cute.arch.sync_warp()


@cute.jit
def stage_rows(
    s: Constexpr, mem: Smem, buffer: Any, i: Constexpr[int], factor: Any, sums: Any, lane: Any
) -> None:
    """Write the i-th 8 rows of a warp's part of D to its staging buffer (`buffer`: its first word) as X's type.

    Sums lie along M in a lane, and D's rows along N. stmatrix transposes; where there is none (below sm_90), lanes
    write single elements, those of a warp to words of 32 different banks.
    """
    blocks_n, blocks_m, pitch = s.warp_n // 16, s.warp_m // 8, s.staging_pitch // 4
    # Two words a 16-row block of W: columns g and g + 8 of rows 2t (low half) and 2t + 1, for lane 4g + t.
    words = [
        dequant.to_pair(sums[place] * factor, sums[place + 1] * factor, s.x_dtype)
        for block in range(blocks_n)
        for place in ((block * blocks_m + i) * 4, (block * blocks_m + i) * 4 + 2)
    ]
    if cutlass.const_expr(s.copy == "tma"):
        # Matrices 2b and 2b + 1 are rows 16b.. and 16b + 8.. of W; lane 8i + r gives the address of row r of matrix i.
        target = buffer + lane % 8 * pitch + lane // 8 * 4
        for b in cutlass.range_constexpr(0, 2 * blocks_n, 4):
            prims.stmatrix(mem.staging.subview(target + b * 4), words[b : b + 4], prims.MMALayout.COL)
    else:
        halves = cutlass.Array(mem.staging.data_ptr(), dtype=Uint16)
        target = (buffer + lane % 4 * 2 * pitch) * 2 + lane // 4
        for b in cutlass.range_constexpr(2 * blocks_n):
            halves[target + b * 8] = Uint16(words[b] & 0xFFFF)
            halves[target + b * 8 + 2 * pitch] = Uint16(words[b] >> 16)


def store_quad(target: Any, values: Any) -> None:
    """Store 16 bytes to global memory."""
    prims.inline_ptx(
        "st.global.v4.b32 [{$r0}], {{$r1}, {$r2}, {$r3}, {$r4}};",
        read_only_args=[target, *(values[i] for i in range(4))],
    )
