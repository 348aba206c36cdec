"""D[M, N] = A[M, K] @ B[N, K]^T (+ C[M, N]) for SM100: MXFP4 operands, FP32 accumulation, D in BF16 or FP32.

A and B are packed E2M1, K-major; their scale factors UE8M0, one per 32 elements of K, packed four to an int32 and
MN-major (cute_kernels/scale_factors.py). Persistent: each CTA walks over 128 x tile_n tiles of D. One warp a role:

    role       warp  waits for                       fills
    store      0-3   acc_full                        D (and C by way of its staging buffers)
    load       4     empty                           operands and packed scale words of a stage, by TMA
    multiply   5     full, acc_empty                 an accumulator in TMEM, one of two
    transpose  6     scales                          scale atoms of a stage, from its packed words, in place

    barrier    a         completes with                                             says
    scales     stage     1 arrival (load), sfa_bytes + sfb_bytes by TMA             packed scale words are there
    full       stage     2 arrivals (load, transpose), a_bytes + b_bytes by TMA     operands and scale atoms are there
    empty      stage     1 arrival (tcgen05.commit of multiply)                     its copies and MMAs are done
    acc_full   accumul.  1 arrival (tcgen05.commit of multiply)                     the tile is summed up
    acc_empty  accumul.  4 arrivals (each store warp)                               it is in registers
    c_full     staging   1 arrival (the store warp itself), store_bytes by TMA      a box of C is there

Scale factors go from a stage to TMEM columns of that same stage by tcgen05.cp, just ahead of the MMAs that use them.
TMA fills with zeros what lies outside the tensors, so there are no other tails: a zero times its scale of 2^-127 adds
nothing. Bytes that the boxes bring are counted whole.

Preconditions, the host's to check: K > 0 and a multiple of 32; all pointers and row strides multiples of 16 bytes;
scale words exactly ceil(K / 128) columns, zero bytes past K; C has D's type and may be D itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
from cutlass import Constexpr, GridConstant, Int32, Int64
from cutlass.experimental import primitives as prims

from cute_kernels.device import ring, store as out, tiles, tma, tmem, umma
from sm100.shape import EPILOGUE_WARPS, SF_ATOM_BYTES, STORE_COLUMNS, Shape

# Warps; those of the epilogue come first, since warp w reads TMEM lanes 32 * (w % 4) onwards.
LOAD, MULTIPLY, TRANSPOSE = EPILOGUE_WARPS, EPILOGUE_WARPS + 1, EPILOGUE_WARPS + 2
THREADS = 32 * (TRANSPOSE + 1)


class Smem(NamedTuple):
    """Shared memory, in order. A stage is A | B | scale factors of A | of B, the offsets being the Shape's."""

    stages: Any  # bytes
    words: Any  # the same memory as the scale words that lie in it
    staging: Any  # elements of D
    scales: Any
    full: Any
    empty: Any
    acc_full: Any
    acc_empty: Any
    c_full: Any
    tmem: Any


def allocate(s: Shape) -> Smem:
    """Lay out shared memory, `s.smem_bytes` in all."""

    def array(dtype: Any, count: int, alignment: int) -> Any:
        return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=alignment)

    stages = array(cutlass.Int8, s.stages * s.stage_bytes, 1024)
    d_type = cutlass.BFloat16 if s.d_dtype == "bf16" else cutlass.Float32
    return Smem(
        stages=stages,
        words=cutlass.Array(stages.data_ptr(), dtype=Int32),
        staging=array(d_type, s.staging_bytes // s.d_bytes, 1024),
        scales=array(Int64, s.stages, 8),
        full=array(Int64, s.stages, 8),
        empty=array(Int64, s.stages, 8),
        acc_full=array(Int64, s.acc_stages, 8),
        acc_empty=array(Int64, s.acc_stages, 8),
        c_full=array(Int64, s.c_barriers, 8) if s.accumulate else None,
        tmem=array(Int32, 1, 4),
    )


@cute.jit
def load(s: Constexpr, mem: Any, maps: Any, walk: Any, k_tiles: Any):
    """Fill stages with the operands and scale words of every K tile of every tile."""
    map_a, map_b, map_sfa, map_sfb = maps
    place = ring.filler(s.stages)
    leader = prims.elect_sync()
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    while walk.left:
        tile_m, tile_n = walk.coordinates
        row_a, row_b = tile_m * s.tile_m, tile_n * s.tile_n
        for k in cutlass.range(k_tiles, unroll=1):
            stage, scales, full = place.stage * s.stage_bytes, mem.scales.subview(place.stage), mem.full.subview(place.stage)
            ring.wait(mem.empty.subview(place.stage), place.parity)
            if leader:
                word, byte = k * s.sf_words, k * (s.tile_k // 2)
                prims.mbarrier_arrive_expect_tx(scales, s.sfa_bytes + s.sfb_bytes)
                tma.load(mem.stages.subview(stage + s.sf_offset), map_sfa, (row_a, word), scales)
                tma.load(mem.stages.subview(stage + s.sf_offset + s.sfa_bytes), map_sfb, (row_b, word), scales)
                prims.mbarrier_arrive_expect_tx(full, s.a_bytes + s.b_bytes)
                tma.load(mem.stages.subview(stage), map_a, (byte, row_a), full)
                tma.load(mem.stages.subview(stage + s.b_offset), map_b, (byte, row_b), full)
            place.advance()
        walk.advance()
    ring.drain(mem.empty, place, s.stages)


@cute.jit
def transpose(s: Constexpr, mem: Any, walk: Any, k_tiles: Any):
    """Turn the packed scale words of each stage into the atoms that tcgen05.cp takes."""
    place = ring.reader(s.stages)
    leader = prims.elect_sync()
    while walk.left:
        for _ in cutlass.range(k_tiles, unroll=1):
            ring.wait(mem.scales.subview(place.stage), place.parity)
            words = mem.words.subview(place.stage * (s.stage_bytes // 4) + s.sf_offset // 4)
            umma.transpose_scales(words, s.sf_atoms)
            tma.publish()
            cute.arch.sync_warp()
            if leader:
                prims.mbarrier_arrive(mem.full.subview(place.stage))
            place.advance()
        walk.advance()


@cute.jit
def multiply(s: Constexpr, mem: Any, walk: Any, k_tiles: Any):
    """Issue the scale copies and MMAs of every K tile, and say what is thereby free or finished."""
    place, acc = ring.reader(s.stages), ring.filler(s.acc_stages)
    leader = prims.elect_sync()
    base = tmem.base(mem.tmem)
    desc_a = umma.matrix_descriptor(mem.stages, 1024, prims.Tcgen05SmemSwizzle.SWIZZLE_128B)
    desc_sf = umma.matrix_descriptor(mem.stages.subview(s.sf_offset), 128, prims.Tcgen05SmemSwizzle.NONE)
    while walk.left:
        ring.wait(mem.acc_empty.subview(acc.stage), acc.parity)
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        for k in cutlass.range(k_tiles, unroll=1):
            ring.wait(mem.full.subview(place.stage), place.parity)
            prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
            if leader:
                offset = Int64(place.stage * (s.stage_bytes // 16))
                sfa = base + s.first_sf_column + place.stage * s.sf_columns
                sfb = sfa + s.sfa_bytes // 128
                umma.copy_scales(sfa, desc_sf + offset, s.sf_atoms)
                a = desc_a + offset
                umma.multiply(
                    base + acc.stage * s.tile_n, a, a + s.b_offset // 16, sfa, sfb, s.tile_n, s.sfb_rows // 32, k == 0
                )
                prims.tcgen05_commit(mem.empty.subview(place.stage))
            place.advance()
        if leader:
            prims.tcgen05_commit(mem.acc_full.subview(acc.stage))
        acc.advance()
        walk.advance()


@cute.jit
def store(s: Constexpr, mem: Any, map_c: Any, map_d: Any, walk: Any):
    """Take finished accumulators out: convert, add C, and store 32 columns at a time."""
    warp = cute.arch.warp_idx()
    acc = ring.reader(s.acc_stages)
    leader = prims.elect_sync()
    base = tmem.base(mem.tmem) + (warp * 32 << 16)
    chunks = out.chunk_offsets(s.store_row_bytes, s.d_bytes)
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    while walk.left:
        tile_m, tile_n = walk.coordinates
        row, column = tile_m * s.tile_m + warp * 32, tile_n * s.tile_n
        ring.wait(mem.acc_full.subview(acc.stage), acc.parity)
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        address = base + acc.stage * s.tile_n
        values = out.read(address)
        for i in cutlass.range_constexpr(s.stores):
            current = values
            out.wait_for_read()
            if cutlass.const_expr(i + 1 < s.stores):
                values = out.read(address + (i + 1) * STORE_COLUMNS)
            else:
                prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
            prims.cp_async_bulk_wait_group(s.store_stages - 1, read=True)
            cute.arch.sync_warp()
            if cutlass.const_expr(i + 1 == s.stores):
                if leader:
                    prims.mbarrier_arrive(mem.acc_empty.subview(acc.stage))
            start = (warp * s.store_stages + i % s.store_stages) * (s.store_bytes // s.d_bytes)
            out.stage(mem.staging, start, chunks, current, False)
            cute.arch.sync_warp()
            if leader:
                tma.store(map_d, mem.staging.subview(start), (column + i * STORE_COLUMNS, row))
        acc.advance()
        walk.advance()
    prims.cp_async_bulk_wait_group(0)


@cute.kernel
def gemm_blockscaled(
    map_a: GridConstant[cuda.TensorMap],
    map_b: GridConstant[cuda.TensorMap],
    map_sfa: GridConstant[cuda.TensorMap],
    map_sfb: GridConstant[cuda.TensorMap],
    map_d: GridConstant[cuda.TensorMap],
    m: Int32,
    n: Int32,
    k: Int32,
    s: Constexpr,
):
    warp = cute.arch.warp_idx()
    mem = allocate(s)
    if warp == LOAD:
        if prims.elect_sync():
            tma.prefetch(map_a, map_b, map_sfa, map_sfb, map_d)
    if warp == MULTIPLY:
        if prims.elect_sync():
            ring.init(mem.scales, s.stages, 1)
            ring.init(mem.full, s.stages, 2)
            ring.init(mem.empty, s.stages, 1)
            ring.init(mem.acc_full, s.acc_stages, 1)
            ring.init(mem.acc_empty, s.acc_stages, EPILOGUE_WARPS)
            prims.fence_mbarrier_init()
    if warp == TRANSPOSE:
        tmem.allocate(mem.tmem, s.tmem_columns)
    prims.barrier_cta_sync(0)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    prims.griddepcontrol(prims.GridDepAction.LAUNCH_DEPENDENTS)
    walk = tiles.walk(m, n, s.tile_m, s.tile_n, s.group_m)
    k_tiles = tiles.ceil_div(k, s.tile_k)
    if warp < EPILOGUE_WARPS:
        store(s, mem, None, map_d, walk)
    elif warp == LOAD:
        load(s, mem, (map_a, map_b, map_sfa, map_sfb), walk, k_tiles)
    elif warp == MULTIPLY:
        multiply(s, mem, walk, k_tiles)
    elif warp == TRANSPOSE:
        transpose(s, mem, walk, k_tiles)
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
    prims.barrier_cta_sync(0)
    if warp == TRANSPOSE:
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        tmem.free(tmem.base(mem.tmem), s.tmem_columns)


@cute.jit
def entry(m: Int32, n: Int32, k: Int32, s: Constexpr):
    maps = [tma.placeholder_map() for _ in range(5)]
    gemm_blockscaled(*maps, m, n, k, s).launch(grid=(1, 1, 1), block=(THREADS, 1, 1), min_blocks_per_mp=1)


def compile(shape: Shape, name: str, arch: str, options: str) -> Any:
    gemm_blockscaled.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    return cute.compile(entry, Int32(0), Int32(0), Int32(0), shape, options=f"--gpu-arch {arch} {options}")
