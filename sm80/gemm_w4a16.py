"""D[M, N] = X[M, K] @ W[N, K]^T: activations X in BF16 or FP16, weights W in NVFP4; FP32 accumulation, D in X's type.

W is packed as cute_kernels/w4a16_layout.py says: fragments of mma.sync with their scale factors, which are decoded
in registers (device/dequant.py). W is the MMA's A operand, 16 rows of W by 16 of K, and X its B operand, so that a
decode batch of 8 rows wastes nothing. K is permuted inside every 64 elements, the same way in both operands. A
persistent grid; device/streamk.py gives every CTA its share of all K steps.

    role        warp         waits for           fills
    consume     0..          full                sums, in registers; D
    load        consumers    empty               a stage: X | W, by TMA

    barrier    one for each    completes with                             and then
    full       stage           load, with x_bytes + w_bytes by TMA        X and W are there
    empty      stage           every consumer warp                        the stage is read

X arrives in boxes of 64 elements of K, rows of 128 bytes, swizzled by TMA: 16-byte chunk c of row r lies at
c ^ (r % 8). A lane's 16-byte reads then meet no bank twice. W and its scale factors are read as they lie. Bytes
are those of whole boxes: TMA fills with zeros what lies outside the tensors, so no tail needs code in the main loop.

A stage's K is shared among warps_k warps, which add up their sums in shared memory at a segment's end. W is constant,
so its first stages are loaded before griddepcontrol.wait: with programmatic dependent launch they arrive while the
kernel before is still at its end.

Preconditions, the host's to check: K > 0, a multiple of 16; X and the workspace 16-byte aligned, X's row stride too;
flags zero. global_scale: one FP32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
from cutlass import Constexpr, Float32, GridConstant, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import dequant, ring, streamk, tma
from cute_kernels.device.tiles import ceil_div
from sm80.shape import W4a16Shape
from sm80.w4a16_products import Place, multiply

CONSUMERS = 1  # the named barrier of the consumer warps


class Smem(NamedTuple):
    """Shared memory, in order."""

    stages: Any  # bytes; a stage is X | W
    words: Any  # the same memory as Uint32
    exchange: Any  # Float32
    staging: Any  # Uint32
    full: Any
    empty: Any


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
        full=array(Int64, s.stages, 8),
        empty=array(Int64, s.stages, 8),
    )


@cute.jit
def fill(
    s: Constexpr, mem: Any, map_x: Any, map_w: Any, walk: Any, place: Any, what: Constexpr[str], leader: Any
) -> Any:
    """Load the stages of a walk from `place` on: "w" announces all bytes and loads W, "x" loads X, "xw" does both.

    Return the place behind them.
    """
    while walk.left:
        tile_m, tile_n = walk.tile
        row_x, block_w = Int32(tile_m * s.tile_m), Int32(tile_n * (s.tile_n // s.UNIT_ROWS))
        first = Int32(walk.first)
        for k in cutlass.range(first, first + Int32(walk.count), unroll=1):
            target = mem.stages.subview(place.stage * s.stage_bytes)
            barrier = mem.full.subview(place.stage)
            ring.wait(mem.empty.subview(place.stage), place.parity)
            if leader:
                if cutlass.const_expr("w" in what):
                    prims.mbarrier_arrive_expect_tx(barrier, s.x_bytes + s.w_bytes)
                    tma.load(target.subview(s.x_bytes), map_w, (Int32(0), k * s.units, block_w), barrier)
                if cutlass.const_expr("x" in what):
                    for box in cutlass.range_constexpr(s.tile_k // s.BOX_K):
                        at = (k * s.tile_k + box * s.BOX_K, row_x)
                        tma.load(target.subview(box * s.x_box_bytes), map_x, at, barrier)
            place.advance()
        walk.advance()
    return place


@cute.jit
def load(s: Constexpr, mem: Any, map_x: Any, map_w: Any, walk: Any, leader: Any) -> None:
    """Fill every stage of this CTA's share; W of the first ones before anything that kernels before have written."""
    ahead, after = walk.split(s.stages)
    fill(s, mem, map_x, map_w, ahead, ring.filler(s.stages), "w", leader)
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    place = fill(s, mem, map_x, map_w, ahead, ring.filler(s.stages), "x", leader)
    fill(s, mem, map_x, map_w, after, place, "xw", leader)


@cute.jit
def consume(
    s: Constexpr, mem: Any, out: Any, size: Any, factor: Any, slots: Any, flags: Any, walk: Any
) -> None:
    """Multiply the segments of this CTA's share, add up what belongs together, and store D."""
    warp, lane, leader = cute.arch.warp_idx(), cute.arch.lane_idx(), prims.elect_sync()
    at = Place(warp % s.warps_n, warp // s.warps_n % s.warps_m, warp // (s.warps_n * s.warps_m))
    place = ring.reader(s.stages)
    sums = cutlass.Array(Float32, s.sums)
    tile_warp = at.m * s.warps_n + at.n
    while walk.left:
        for i in cutlass.range_constexpr(s.sums):
            sums[i] = Float32(0)
        first, count = Int32(walk.first), Int32(walk.count)
        for _ in cutlass.range(count, unroll=1):
            ring.wait(mem.full.subview(place.stage), place.parity)
            multiply(s, mem.words, place.stage * (s.stage_bytes // 4), sums, at, lane)
            cute.arch.sync_warp()
            ring.arrive(mem.empty.subview(place.stage), leader)
            place.advance()
        if cutlass.const_expr(s.warps_k > 1):
            add_up(s, mem, sums, at, tile_warp, lane)
        if at.k == 0:
            share = Int32(streamk.share_index())
            slot = tile_warp * (s.sums * 32) + lane * 4
            flag = flags + tile_warp
            if first > 0:
                leave(s, slots, share * (s.slot_bytes // 4) + slot, sums)
                streamk.publish(flag + share * s.flags, leader)
            else:
                done = count
                while done < Int32(walk.k_steps):
                    share += 1
                    streamk.wait(flag + share * s.flags, leader)
                    collect(s, slots, share * (s.slot_bytes // 4) + slot, sums)
                    done += Int32(walk.share)
                tile_m, tile_n = walk.tile
                row = Int32(tile_m) * s.tile_m + at.m * s.warp_m
                column = Int32(tile_n) * s.tile_n + at.n * s.warp_n
                store(s, mem, out, size, (row, column), factor, sums, tile_warp, lane)
        walk.advance()


@cute.jit
def add_up(s: Constexpr, mem: Any, sums: Any, at: Any, tile_warp: Any, lane: Any) -> None:
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
    s: Constexpr, mem: Any, out: Any, size: Any, at: Any, factor: Any, sums: Any, tile_warp: Any, lane: Any
) -> None:
    """Multiply a warp's sums by `factor`, and store them to D from row and column `at` on, 8 rows at a time.

    stmatrix transposes: sums lie along M in a lane, and D's rows along N.
    """
    (d, ldd, aligned), (m, n), (row, column) = out, size, at
    blocks_n, blocks_m = s.warp_n // 16, s.warp_m // 8
    pitch = s.staging_pitch // 4
    buffer = tile_warp * (8 * pitch)
    chunks = s.warp_n // 8  # of 16 bytes, in a row
    # Matrices 2b and 2b + 1 are rows 16b.. and 16b + 8.. of W; lane 8i + r gives the address of row r of matrix i.
    target = buffer + lane % 8 * pitch + lane // 8 * 4
    for i in cutlass.range_constexpr(blocks_m):
        for b in cutlass.range_constexpr(0, blocks_n, 2):
            pairs = [
                dequant.to_pair(sums[place] * factor, sums[place + 1] * factor, s.x_dtype)
                for block in range(b, min(b + 2, blocks_n))
                for place in ((block * blocks_m + i) * 4, (block * blocks_m + i) * 4 + 2)
            ]
            prims.stmatrix(mem.staging.subview(target + b * 8), pairs, prims.MMALayout.COL)
        cute.arch.sync_warp()
        for chunk in cutlass.range_constexpr(-(-8 * chunks // 32)):
            index = chunk * 32 + lane
            r, c = row + i * 8 + index // chunks, column + index % chunks * 8
            if (index < 8 * chunks) & (r < m) & (c < n):
                values = mem.staging[buffer + index // chunks * pitch + index % chunks * 4 : 4, 16]
                target_d = d + Int64(r) * ldd + c
                if (aligned != 0) & (c + 8 <= n):
                    store_quad(target_d, values)
                else:
                    for j in cutlass.range_constexpr(8):
                        if c + j < n:
                            half = (values[j // 2] >> (16 * (j % 2))) & 0xFFFF
                            (target_d + j).store(cutlass.Uint16(half))
        cute.arch.sync_warp()


def store_quad(target: Any, values: Any) -> None:
    """Store 16 bytes to global memory."""
    prims.inline_ptx(
        "st.global.v4.b32 [{$r0}], {{$r1}, {$r2}, {$r3}, {$r4}};",
        read_only_args=[target, *(values[i] for i in range(4))],
    )


@cute.kernel
def gemm_w4a16(
    map_x: GridConstant[cuda.TensorMap],
    map_w: GridConstant[cuda.TensorMap],
    d: Pointer,  # Uint16: bits of X's type
    global_scale: Pointer,  # Float32
    slots: Pointer,  # Float32, slot_bytes a CTA
    flags: Pointer,  # Int32, warps_n * warps_m a CTA
    m: Int32,
    n: Int32,
    k: Int32,
    ldd: Int32,
    aligned: Int32,
    share: Int32,
    s: Constexpr,
) -> None:
    """The kernel of this file.

    ldd: elements from a row of D to the next; aligned: 1 where all rows of D start at multiples of 16 bytes.
    share: K steps of a CTA.
    """
    warp, leader = cute.arch.warp_idx(), prims.elect_sync()
    mem = allocate(s)
    if leader & (warp == s.consumers):
        tma.prefetch(map_x, map_w)
        ring.init(mem.full, s.stages, 1)
        ring.init(mem.empty, s.stages, s.consumers)
        prims.fence_mbarrier_init()
    prims.barrier_cta_sync(0)
    prims.griddepcontrol(prims.GridDepAction.LAUNCH_DEPENDENTS)
    tiles_m, tiles_n, k_steps = ceil_div(m, s.tile_m), ceil_div(n, s.tile_n), ceil_div(k, s.tile_k)
    walk = streamk.walk(share, k_steps, tiles_m, tiles_n, s.group_m)
    if warp >= s.consumers:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[0], prims.SetMaxRegisterAction.DECREASE)
        if warp == s.consumers:
            load(s, mem, map_x, map_w, walk, leader)
    else:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[1], prims.SetMaxRegisterAction.INCREASE)
        prims.griddepcontrol(prims.GridDepAction.WAIT)
        factor = global_scale.load() * Float32(2.0**dequant.FRAGMENT_SHIFT)
        slot_array = cutlass.Array(slots, dtype=Float32)
        consume(s, mem, (d, ldd, aligned), (m, n), factor, slot_array, flags, walk)


@cute.jit
def entry(d: Pointer, scale: Pointer, slots: Pointer, flags: Pointer, size: Int32, s: Constexpr) -> None:
    """Fix the parameter order and the launch's shape for the ahead-of-time compiler."""
    any_map = tma.placeholder_map()
    gemm_w4a16(any_map, any_map, d, scale, slots, flags, size, size, size, size, size, size, s).launch(
        grid=(1, 1, 1), block=(s.threads, 1, 1), min_blocks_per_mp=s.ctas, preferred_smem_carveout=100
    )


def compile(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    """Compile one variant for an architecture; `name` begins the entry's symbol."""
    gemm_w4a16.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    pointers = [make_ptr(t, 16, cute.AddressSpace.gmem) for t in (cutlass.Uint16, Float32, Float32, Int32)]
    return cute.compile(entry, *pointers, Int32(0), shape, options=f"--gpu-arch {arch} {options}")
