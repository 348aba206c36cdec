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
from sm80.w4a16_tiles import Size, count_tiles, keeps, locate

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
    s: Constexpr, mem: Any, maps: Any, tile: Any, steps: Any, place: Any, what: Constexpr[str], leader: Any
) -> Any:
    """Load the stages of K steps `steps` of a tile: "w" announces all bytes and loads W, "x" loads X, "xw" does both.

    Return the place behind them.
    """
    map_x, map_w = maps
    x_behind = (tile.row, tile.matrix) if s.layout == "masked" else (tile.row,)
    block_w = tile.column // s.UNIT_ROWS
    w_behind = (block_w,) if s.layout == "dense" else (block_w, tile.expert)
    for k in cutlass.range(steps[0], steps[1], unroll=1):
        target = mem.stages.subview(place.stage * s.stage_bytes)
        barrier = mem.full.subview(place.stage)
        ring.wait(mem.empty.subview(place.stage), place.parity)
        if leader:
            if cutlass.const_expr("w" in what):
                prims.mbarrier_arrive_expect_tx(barrier, s.x_bytes + s.w_bytes)
                tma.load(target.subview(s.x_bytes), map_w, (Int32(0), k * s.units, *w_behind), barrier)
            if cutlass.const_expr("x" in what):
                for box in cutlass.range_constexpr(s.tile_k // s.BOX_K):
                    at = (k * s.tile_k + box * s.BOX_K, *x_behind)
                    tma.load(target.subview(box * s.x_box_bytes), map_x, at, barrier)
        place.advance()
    return place


@cute.jit
def segment(s: Constexpr, size: Any, walk: Any) -> tuple[Any, Any]:
    """Return the current segment's first K step and how many it has: none, where the tile's rows are nobody's."""
    count = Int32(walk.count)
    if cutlass.const_expr(s.layout == "contiguous"):
        count = count if locate(s, size, walk.tile).expert >= 0 else Int32(0)
    return Int32(walk.first), count


@cute.jit
def load(s: Constexpr, mem: Any, maps: Any, size: Any, division: Any, leader: Any) -> None:
    """Fill every stage of this CTA's K steps; W of the first ones before anything that kernels before have written.

    Not so where the experts are to be read first.
    """
    place = ring.filler(s.stages)
    if cutlass.const_expr(s.layout != "dense"):
        prims.griddepcontrol(prims.GridDepAction.WAIT)
        walk = divide(s, size, division)
    else:
        walk = divide(s, size, division)
        prefetch(s, mem, maps, size, walk, "w", leader)
        prims.griddepcontrol(prims.GridDepAction.WAIT)
        place, walk = prefetch(s, mem, maps, size, walk, "x", leader)
    while walk.left:
        tile = locate(s, size, walk.tile)
        first, count = segment(s, size, walk)
        place = fill(s, mem, maps, tile, (first, first + count), place, "xw", leader)
        walk.advance(walk.count)


@cute.jit
def prefetch(
    s: Constexpr, mem: Any, maps: Any, size: Any, walk: Any, what: Constexpr[str], leader: Any
) -> Any:
    """Load W or X of the first stages; return the place and the walk behind them."""
    place, ahead, left = ring.filler(s.stages), walk.copy(), Int32(s.stages)
    while ahead.left & (left > 0):
        tile = locate(s, size, ahead.tile)
        first, count = Int32(ahead.first), cutlass.min(Int32(ahead.count), left)
        place = fill(s, mem, maps, tile, (first, first + count), place, what, leader)
        ahead.advance(Uint32(count))
        left -= count
    return place, ahead


@cute.jit
def divide(s: Constexpr, size: Any, division: Any) -> Any:
    """Return this CTA's walk. division: tiles that it does whole, and K steps of its share; masked: not read."""
    tiles, k_steps = Uint32(count_tiles(s, size)), ceil_div(size.k, s.tile_k)
    whole, share = division
    if cutlass.const_expr(s.layout == "masked"):
        ctas = Uint32(cute.arch.grid_dim()[0])
        whole = tiles // ctas
        whole -= cutlass.min(whole, Uint32(1))  # a share of at least a tile's K steps, as the host divides
        share = cutlass.max(((tiles - whole * ctas) * k_steps + ctas - 1) // ctas, Uint32(1))
    return streamk.walk(whole, share, k_steps, tiles)


@cute.jit
def consume(
    s: Constexpr, mem: Any, out: Any, size: Any, scales: Any, slots: Any, flags: Any, division: Any
) -> None:
    """Multiply the segments of this CTA's share, add up what belongs together, and store D."""
    warp, lane, leader = cute.arch.warp_idx(), cute.arch.lane_idx(), prims.elect_sync()
    at = Place(warp % s.warps_n, warp // s.warps_n % s.warps_m, warp // (s.warps_n * s.warps_m))
    place = ring.reader(s.stages)
    sums = cutlass.Array(Float32, s.sums)
    tile_warp = at.m * s.warps_n + at.n
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    walk = divide(s, size, division)
    while walk.left:
        for i in cutlass.range_constexpr(s.sums):
            sums[i] = Float32(0)
        first, count = segment(s, size, walk)
        for _ in cutlass.range(count, unroll=1):
            ring.wait(mem.full.subview(place.stage), place.parity)
            multiply(s, mem.words, place.stage * (s.stage_bytes // 4), sums, at, lane)
            # Reads may still be under way here, and TMA writes through another proxy: without the fence, an H200 was
            # seen to refill stages under the last reads of warps that had fallen behind.
            tma.publish()
            cute.arch.sync_warp()
            ring.arrive(mem.empty.subview(place.stage), leader)
            place.advance()
        if cutlass.const_expr(s.warps_k > 1):
            add_up(s, mem, sums, at, tile_warp, lane)
        if (at.k == 0) & (count > 0):
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
                tile = locate(
                    s, size, walk.tile
                )  # late, because registers are short while there are products
                factor = (scales + tile.expert).load() * Float32(2.0**dequant.FRAGMENT_SHIFT)
                store(s, mem, out, size, tile, at, factor, sums, lane)
        walk.advance(walk.count)


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
    s: Constexpr, mem: Any, out: Any, size: Any, tile: Any, at: Any, factor: Any, sums: Any, lane: Any
) -> None:
    """Multiply a warp's sums by `factor`, and store its part of a tile to D, 8 rows at a time.

    stmatrix transposes: sums lie along M in a lane, and D's rows along N.
    """
    d, ldd, aligned, matrix_stride = out
    row, column = tile.row + at.m * s.warp_m, tile.column + at.n * s.warp_n
    if cutlass.const_expr(s.layout == "masked"):
        d = d + Int64(tile.matrix) * matrix_stride
    blocks_n, blocks_m = s.warp_n // 16, s.warp_m // 8
    pitch = s.staging_pitch // 4
    buffer = (at.m * s.warps_n + at.n) * (8 * pitch)
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
            if (index < 8 * chunks) & (c < size.n) & keeps(s, size, tile, r):
                values = mem.staging[buffer + index // chunks * pitch + index % chunks * 4 : 4, 16]
                target_d = d + Int64(r) * ldd + c
                if (aligned != 0) & (c + 8 <= size.n):
                    store_quad(target_d, values)
                else:
                    for j in cutlass.range_constexpr(8):
                        if c + j < size.n:
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
    global_scale: Pointer,  # Float32, one for each expert
    slots: Pointer,  # Float32, slot_bytes a CTA
    flags: Pointer,  # Int32, warps_n * warps_m a CTA
    m: Int32,
    n: Int32,
    k: Int32,
    ldd: Int32,
    aligned: Int32,
    whole: Int32,
    share: Int32,
    layout: Pointer,  # Int32; dense: not read
    experts: Int32,
    matrix_stride: Int64,
    s: Constexpr,
) -> None:
    """The kernel of this file.

    ldd, matrix_stride: elements from a row of D, and from an expert's matrix of D, to the next.
    aligned: 1 where all rows of D start at multiples of 16 bytes. whole, share: what each CTA does; masked: not read.
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
    size = Size(m, n, k, experts, layout)
    if warp >= s.consumers:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[0], prims.SetMaxRegisterAction.DECREASE)
        if warp == s.consumers:
            load(s, mem, (map_x, map_w), size, (whole, share), leader)
    else:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[1], prims.SetMaxRegisterAction.INCREASE)
        slot_array, out = cutlass.Array(slots, dtype=Float32), (d, ldd, aligned, matrix_stride)
        consume(s, mem, out, size, global_scale, slot_array, flags, (whole, share))


@cute.jit
def entry(
    d: Pointer,
    scale: Pointer,
    slots: Pointer,
    flags: Pointer,
    layout: Pointer,
    i: Int32,
    j: Int64,
    s: Constexpr,
) -> None:
    """Fix the parameter order and the launch's shape for the ahead-of-time compiler."""
    any_map = tma.placeholder_map()
    gemm_w4a16(any_map, any_map, d, scale, slots, flags, i, i, i, i, i, i, i, layout, i, j, s).launch(
        grid=(1, 1, 1), block=(s.threads, 1, 1), min_blocks_per_mp=s.ctas, preferred_smem_carveout=100
    )


def compile(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    """Compile one variant for an architecture; `name` begins the entry's symbol."""
    gemm_w4a16.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    types = (cutlass.Uint16, Float32, Float32, Int32, Int32)
    pointers = [make_ptr(t, 16, cute.AddressSpace.gmem) for t in types]
    return cute.compile(entry, *pointers, Int32(0), Int64(0), shape, options=f"--gpu-arch {arch} {options}")
