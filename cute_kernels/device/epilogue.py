"""The store role: finished accumulators from TMEM to D in global memory, C added on the way, for every GEMM of SM100.

Four warps, warp w of which takes rows 32 * w onwards of each tile, which are columns of D where its operands are
swapped. What a kernel's Shape and its shared memory must have for it:

    shape                tile_m, tile_n, cluster, acc_stages, accumulate, loads_c, global_scales, quantized, split_k,
                         swap_ab, grouped (with which goes a groups.Walk), staged_bytes, d_packed, store_scales, and the
                         figures of its reads, stores and staging buffers
    staging              elements of D, or words of four where D is quantized, a set of buffers for each warp
    acc_full, acc_empty  barriers, one an accumulator: the tile is summed up; the four warps have it in registers, or
                         the eight of a CTA pair, which all arrive at the first CTA's
    c_full               barriers, one a staging buffer, where C is loaded: completes with store_bytes by TMA
    tmem                 where tcgen05.alloc left its address
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Int32
from cutlass.experimental import primitives as prims

from cute_kernels.device import groups, ring, splitk, tma, tmem
from cute_kernels.device import heads as head_splits
from cute_kernels.device.quantize import mxfp8, rule, store_scales
from cute_kernels.device.quantize_nvfp4 import nvfp4, unit
from cute_kernels.device.store import (
    COLUMNS,
    add_staged,
    chunk_offsets,
    scale,
    stage,
    stage_words,
    wait_for_read,
)
from cute_kernels.device.transposed import add_transposed, own_place, read_box, stage_transposed


@cute.jit
def store(
    s: Constexpr,
    mem: Any,
    map_c: Any,
    map_d: Any,
    factors: Constexpr,
    walk: Any,
    leader: Any,
    scales: Constexpr = None,
    heads: Constexpr = None,
    workspace: Constexpr = None,
) -> None:
    """Take finished accumulators out, 32 columns at a time: multiply by both `factors`, add C, convert, store.

    Or store first, where TMA adds: D in FP32 holds C.

    factors: pointers to Float32, a pair where there are any. scales: DScales where D is quantized.
    heads: Heads where D has a gap in every head.
    workspace: splitk.Workspace where CTAs share a tile's K, whose sums are added up first.
    """
    warp = cute.arch.warp_idx()
    acc = ring.reader(s.acc_stages)
    base = tmem.base(mem.tmem) + (warp * 32 << 16)
    lines = chunk_offsets(s.store_row_bytes, s.staged_bytes)
    own: Any = own_place(s.staged_bytes) if s.swap_ab else None
    own_chunks = len(lines) // s.store_reads  # that a read fills of a lane's row
    buffers = [(warp * s.store_stages + i) * (s.store_bytes // s.staged_bytes) for i in range(s.store_stages)]
    c_parity = Int32(0)
    heads = head_splits.prepared(heads)
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    factor = factors[0].load() * factors[1].load() if s.global_scales and not s.grouped else None
    scaled_later = s.quantized and not s.grouped  # as part of what is done then
    how, quantize = None, mxfp8
    if cutlass.const_expr(s.d_dtype == "mxf8"):
        how = rule(scales.carry, factor)
    if cutlass.const_expr(s.d_dtype == "nvf4"):
        how, quantize = unit(scales.factor.load(), factor), nvfp4
    if cutlass.const_expr(s.split_k):  # noqa: SIM102 - the inner one is the device's
        if walk.left & (walk.known(splitk.FIRST) > 0):  # of the first segment only (device/streamk.py)
            splitk.leave(s, mem, workspace, acc, leader)
            acc.advance()
            walk.advance()
    while walk.left:
        (first, *of_a), (column, *of_b) = walk.places()
        matrix = of_b if s.swap_ab else of_a
        row = first + warp * 32
        kept: Any = walk.kept(column if s.swap_ab else row) if s.grouped else None
        by = walk.factor(factors) if s.global_scales and s.grouped else factor
        if cutlass.const_expr(s.loads_c):
            fetch_c(s, mem, map_c, 0, box(s, 0, row, column, matrix), leader)
        ring.wait(mem.acc_full.subview(acc.stage), acc.parity)
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        address = base + acc.stage * s.tile_n
        pending = read_box(s, 0, address)
        word = Int32(0)
        shift = head_splits.shift(heads, column)
        shares = splitk.others(s, workspace, walk, leader) if s.split_k else 0
        for i in cutlass.range_constexpr(s.reads):
            values = wait_for_read(pending)
            if cutlass.const_expr(s.split_k):
                values = splitk.collect(s, workspace, values, i, shares)
            if cutlass.const_expr(s.global_scales and not scaled_later):
                values = scale(values, by)
            if cutlass.const_expr(i + 1 < s.reads):
                pending = read_box(s, i + 1, address)
            else:
                prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
            at, part = divmod(i, s.store_reads)
            start = buffers[at % s.store_stages]
            chunks = own if s.swap_ab else lines[part * own_chunks :][:own_chunks]
            if cutlass.const_expr(s.loads_c and part == 0):
                if cutlass.const_expr(at + 1 < s.stores):
                    fetch_c(s, mem, map_c, at + 1, box(s, at + 1, row, column, matrix), leader)
                turn = c_parity ^ (at // s.store_stages % 2)
                ring.wait(mem.c_full.subview(warp * s.store_stages + at % s.store_stages), turn)
            elif cutlass.const_expr(part == 0):
                prims.cp_async_bulk_wait_group(s.store_stages - 1, read=True)
                cute.arch.sync_warp()  # for lanes that have waited for nothing
            if cutlass.const_expr(
                i + 1 == s.reads
            ):  # .aligned, wait_for_read has waited for all lanes' reads
                ring.arrive(mem.acc_empty.subview(acc.stage), leader, s.cluster)
            if cutlass.const_expr(s.quantized):
                words, found = quantize(values, how)
                stage_words(mem.staging, start, chunks, words)
                turns = 4 // s.store_scales  # that fill a word of scale factors
                word = (word if i % turns else 0) | (found << (32 // turns * (i % turns)))
                if cutlass.const_expr((i + 1) % turns == 0):
                    group = (column // COLUMNS + (i + 1 - turns)) * s.store_scales
                    keep = kept.own_row if s.grouped else None
                    store_scales(scales, word, row + cute.arch.lane_idx(), group, keep)
            else:
                if cutlass.const_expr(s.loads_c):
                    add = add_transposed if s.swap_ab else add_staged
                    values = add(mem.staging, start, chunks, values)
                put = stage_transposed if s.swap_ab else stage
                put(mem.staging, start, chunks, values)
            if cutlass.const_expr(part + 1 == s.store_reads):
                tma.publish()
                cute.arch.sync_warp()
                if cutlass.const_expr(s.grouped):
                    staged = mem.staging, start, lines
                    kept_box = (row, kept.box) if s.swap_ab else (kept.box, column)
                    groups.store(walk, map_d, box(s, at, *kept_box, matrix), staged, kept, leader)
                elif leader:
                    place = box(s, at, row, column + shift[0], matrix)
                    tma.store(map_d, mem.staging.subview(start), place, add=s.accumulate and not s.loads_c)
                prims.cp_async_bulk_commit_group()
            shift = head_splits.advance(heads, shift, COLUMNS)
        c_parity = c_parity ^ (s.stores // s.store_stages % 2)
        acc.advance()
        walk.advance()
    prims.cp_async_bulk_wait_group(0)


def box(s: Any, i: int, row: Any, column: Any, matrix: Any) -> tuple[Any, ...]:
    """Return where in D the box of store `i` begins, innermost first; row and column are the accumulator's."""
    column = column + i * s.store_columns
    return (row, column, *matrix) if s.swap_ab else (column // s.d_packed, row, *matrix)


@cute.jit
def fetch_c(s: Constexpr, mem: Any, map_c: Any, i: Constexpr[int], at: Any, leader: Any) -> None:
    """Load the box of C for a tile's store `i` into the buffer that it goes out of, once the last one has left.

    Of two buffers, the other one's store may still be under way only where a tile begins: later it is this one's.
    """
    index = cute.arch.warp_idx() * s.store_stages + i % s.store_stages
    prims.cp_async_bulk_wait_group(s.store_stages - 1 if i == 0 else 0, read=True)
    if leader:
        prims.mbarrier_arrive_expect_tx(mem.c_full.subview(index), s.store_bytes)
        buffer = mem.staging.subview(index * (s.store_bytes // s.staged_bytes))
        tma.load(buffer, map_c, at, mem.c_full.subview(index))
