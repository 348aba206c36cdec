"""D[M, N] = X[M, K] @ W[N, K]^T: activations X in BF16 or FP16, weights W in NVFP4; FP32 accumulation, D in X's type.

W is packed as cute_kernels/w4a16_layout.py says: fragments of mma.sync with their scale factors, which are decoded
in registers (device/dequant.py). W is the MMA's A operand, 16 rows of W by 16 of K, and X its B operand, so that a
decode batch of 8 rows wastes nothing. K is permuted inside every 64 elements, the same way in both operands. A
persistent grid; device/streamk.py gives every CTA its share of all K steps.

    role        warp         waits for           fills
    consume     0..          full, or ready      sums, in registers; D
    sort        consumers    full                X anew, where the MMA is wgmma (w4a16_wgmma.py)
    load        loader       empty               a stage: X | W, by TMA

    barrier    one for each    completes with                             and then
    full       stage           load, with x_bytes + w_bytes by TMA        X and W are there
    ready      stage           every warp that sorts                      X is in W's order of K
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

from typing import Any

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
from cutlass import Constexpr, Float32, GridConstant, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import ring, tma
from sm80 import w4a16_wgmma
from sm80.shape import W4a16Shape
from sm80.w4a16_products import Place, multiply
from sm80.w4a16_sums import Results, Smem, allocate, finish
from sm80.w4a16_tiles import Size, divide, locate, segment


@cute.jit
def fill(
    s: Constexpr, mem: Smem, maps: Any, tile: Any, steps: Any, place: Any, what: Constexpr[str], leader: Any
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
def load(s: Constexpr, mem: Smem, maps: Any, size: Any, division: Any, leader: Any) -> None:
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
    s: Constexpr, mem: Smem, maps: Any, size: Any, walk: Any, what: Constexpr[str], leader: Any
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
def sort(s: Constexpr, mem: Smem, size: Size, division: Any, leader: Any) -> None:
    """Sort X of every stage of this CTA's K steps, behind TMA and before wgmma."""
    place, thread = ring.reader(s.stages), (cute.arch.warp_idx() - s.consumers) * 32 + cute.arch.lane_idx()
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    walk = divide(s, size, division)
    while walk.left:
        _, count = segment(s, size, walk)
        for _ in cutlass.range(count, unroll=1):
            ring.wait(mem.full.subview(place.stage), place.parity)
            w4a16_wgmma.sort(s, mem.words, place.stage * (s.stage_bytes // 4), thread)
            tma.publish()
            cute.arch.sync_warp()
            ring.arrive(mem.ready.subview(place.stage), leader)
            place.advance()
        walk.advance(walk.count)


@cute.jit
def consume(s: Constexpr, mem: Smem, to: Results, size: Size, division: Any) -> None:
    """Multiply the segments of this CTA's share, add up what belongs together, and store D."""
    warp, lane, leader = cute.arch.warp_idx(), cute.arch.lane_idx(), prims.elect_sync()
    at = Place(warp % s.warps_n, warp // s.warps_n % s.warps_m, warp // (s.warps_n * s.warps_m))
    place = ring.reader(s.stages)
    product = w4a16_wgmma.multiply if s.sorters else multiply
    sums = cutlass.Array(Float32, s.sums)
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    walk = divide(s, size, division)
    while walk.left:
        for i in cutlass.range_constexpr(s.sums):
            sums[i] = Float32(0)
        first, count = segment(s, size, walk)
        for _ in cutlass.range(count, unroll=1):
            ring.wait((mem.ready if s.sorters else mem.full).subview(place.stage), place.parity)
            product(s, mem.words, place.stage * (s.stage_bytes // 4), sums, at, lane)
            # Reads may still be under way here, and TMA writes through another proxy: without the fence, an H200 was
            # seen to refill stages under the last reads of warps that had fallen behind.
            tma.publish()
            cute.arch.sync_warp()
            ring.arrive(mem.empty.subview(place.stage), leader)
            place.advance()
        finish(s, mem, to, size, walk, (first, count), at, sums)
        walk.advance(walk.count)


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
    if leader & (warp == s.loader):
        tma.prefetch(map_x, map_w)
        ring.init(mem.full, s.stages, 1)
        if cutlass.const_expr(s.sorters):
            ring.init(mem.ready, s.stages, s.sorters)
        ring.init(mem.empty, s.stages, s.consumers)
        prims.fence_mbarrier_init()
    prims.barrier_cta_sync(0)
    prims.griddepcontrol(prims.GridDepAction.LAUNCH_DEPENDENTS)
    size = Size(m, n, k, experts, layout)
    if warp >= s.consumers:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[0], prims.SetMaxRegisterAction.DECREASE)
        if cutlass.const_expr(s.sorters):  # noqa: SIM102  (known in tracing, and the next when it runs)
            if warp < s.loader:
                sort(s, mem, size, (whole, share), leader)
        if warp == s.loader:
            load(s, mem, (map_x, map_w), size, (whole, share), leader)
    else:
        if cutlass.const_expr(s.registers):
            prims.setmaxregister(s.registers[1], prims.SetMaxRegisterAction.INCREASE)
        slot_array = cutlass.Array(slots, dtype=Float32)
        to = Results(d, ldd, aligned, matrix_stride, global_scale, slot_array, flags)
        consume(s, mem, to, size, (whole, share))


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
