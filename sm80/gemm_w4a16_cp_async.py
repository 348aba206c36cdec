"""gemm_w4a16.py's products where there is no TMA, and no mbarriers: stages arrive by cp.async.

There are no roles: every warp multiplies, and every thread copies its part of each stage (w4a16_copies.py). K steps
run through a ring of stages, whatever segments they belong to, so that the next tile arrives while this one is stored:

    K step i    waits for                                  so that
    wait        this thread's copies of step i             at most stages - 2 newer groups are under way
    barrier     all threads                                step i is there, and step i - 1 is read by everyone
    fill                                                   step i + stages - 1 goes where step i - 1 was
    multiply                                               sums, in registers

A thread makes one group a K step, an empty one behind the last, so that groups can be counted.

What TMA does not do here: behind the ends of X and W, copies read no bytes and write zeros. D is turned in shared
memory by single elements, since stmatrix needs sm_90 too. There is no programmatic dependent launch. Preconditions
are the same.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Int64, Pointer
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import cp_async
from sm80.shape import W4a16Shape
from sm80.w4a16_copies import Operands, source
from sm80.w4a16_products import Place, multiply
from sm80.w4a16_sums import Results, Smem, allocate, finish
from sm80.w4a16_tiles import Size, divide, segment


@cute.jit
def work(s: Constexpr, mem: Smem, of: Operands, to: Results, size: Size, division: Any) -> None:
    """Copy and multiply the segments of this CTA's share, add up what belongs together, and store D."""
    warp, lane = cute.arch.warp_idx(), cute.arch.lane_idx()
    at = Place(warp % s.warps_n, warp // s.warps_n % s.warps_m, warp // (s.warps_n * s.warps_m))
    sums = cutlass.Array(Float32, s.sums)
    walk = divide(s, size, division)
    ahead = source(walk)
    for stage in cutlass.range(s.stages - 1, unroll=1):
        ahead.fill(s, mem, of, size, stage)
    stage, empty = Int32(0), Int32(s.stages - 1)  # to be read, and to be filled
    while walk.left:
        for i in cutlass.range_constexpr(s.sums):
            sums[i] = Float32(0)
        first, count = segment(s, size, walk)
        for _ in cutlass.range(count, unroll=1):
            cp_async.wait(s.stages - 2)
            prims.barrier_cta_sync_aligned(0)
            ahead.fill(s, mem, of, size, empty)
            multiply(s, mem.words, stage * (s.stage_bytes // 4), sums, at, lane)
            empty = stage
            stage = stage + 1 if stage + 1 < s.stages else Int32(0)
        finish(s, mem, to, size, walk, (first, count), at, sums)
        walk.advance(walk.count)


@cute.kernel
def gemm_w4a16_cp_async(
    x: Pointer,  # Uint8: bits of X
    w: Pointer,  # Uint8
    ldx: Int32,
    x_matrix_stride: Int64,
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

    ldx, x_matrix_stride: elements from a row of X, and from an expert's matrix of X, to the next; the others as
    `gemm_w4a16` has them.
    """
    mem = allocate(s)
    of = Operands(x, w, Int64(ldx) * 2, x_matrix_stride * 2)
    to = Results(d, ldd, aligned, matrix_stride, global_scale, cutlass.Array(slots, dtype=Float32), flags)
    work(s, mem, of, to, Size(m, n, k, experts, layout), (whole, share))


@cute.jit
def entry(
    x: Pointer,
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
    gemm_w4a16_cp_async(x, x, i, j, d, scale, slots, flags, i, i, i, i, i, i, i, layout, i, j, s).launch(
        grid=(1, 1, 1), block=(s.threads, 1, 1), min_blocks_per_mp=s.ctas, preferred_smem_carveout=100
    )


def compile(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    """Compile one variant for an architecture; `name` begins the entry's symbol."""
    gemm_w4a16_cp_async.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    types = (cutlass.Uint8, cutlass.Uint16, Float32, Float32, Int32, Int32)
    pointers = [make_ptr(t, 16, cute.AddressSpace.gmem) for t in types]
    return cute.compile(entry, *pointers, Int32(0), Int64(0), shape, options=f"--gpu-arch {arch} {options}")
