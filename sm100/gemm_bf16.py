"""D[M, N] = A[M, K] @ B[N, K]^T (+ C[M, N]) for SM100: BF16 operands, FP32 accumulation, D in BF16 or FP32.

A and B are each contiguous along K, or along M or N: their Shape says. It also says whether there are batches of
all of them; then batch i of D is the sum of the products of batches i * depth to i * depth + depth - 1 of A and B,
those that lie behind the last being zero. Or there is a D for each group along K (device/k_groups.py).
Persistent: a CTA walks over 128 x tile_n tiles of D, a role a warp, or two CTAs over tiles of 256 rows
(device/pair.py), each with half the rows of A and of B in its stages.

    role      warp  waits for        fills
    store     0-3   acc_full, c_full D, by way of staging buffers that C arrives in (device/epilogue.py)
    load      4     empty            a stage's operands, by TMA
    multiply  5     full, acc_empty  an accumulator in TMEM

    barrier    one for each    completes with                                   and then
    full *     stage           load, with ab_load_bytes by TMA                 operands are there
    empty      stage           tcgen05.commit of multiply                       its MMAs are done
    acc_full   accumulator     tcgen05.commit of multiply                       the tile is summed up
    acc_empty* accumulator     the four store warps                             the tile is in registers
    c_full     staging buffer  its store warp, with store_bytes by TMA          a box of C is there

Each "with" or name is one arrival, by the elected lane of the warp. Of a pair, the first CTA alone multiplies: both
arrive at its barriers where there is a *, and its commits arrive at those of both. Bytes are those of whole boxes:
TMA fills with zeros what lies outside the tensors, so no tail needs code.

Preconditions, the host's to check: K > 0; pointers, and strides between the rows of a tensor (along M or N, or along
K where it is not contiguous), are multiples of 16 bytes; C has D's type and may be D itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
from cutlass import Constexpr, GridConstant, Int32, Int64, Pointer, Uint32
from cutlass.experimental import primitives as prims

from cute_kernels.device import groups, k_groups, launch_control, pair, ring, splitk, tiles, tma, tmem, umma
from cute_kernels.device.epilogue import store
from sm100.shape import Shape
from sm100.staging import EPILOGUE_WARPS

# Those of the epilogue come first, since warp w reads TMEM lanes 32 * (w % 4) onwards. No register budgets: at 192
# threads a CTA, one CTA an SM, the compiler may give every warp all that it can address.
LOAD, MULTIPLY = range(EPILOGUE_WARPS, EPILOGUE_WARPS + 2)


class Smem(NamedTuple):
    """Shared memory, in order. A stage is A | B."""

    stages: Any  # bytes
    staging: Any  # elements of D
    clc: Any  # launch_control.Responses where tiles are asked for
    full: Any  # from here on barriers
    empty: Any
    acc_full: Any
    acc_empty: Any
    c_full: Any
    tmem: Any  # where tcgen05.alloc leaves its address


def allocate(s: Shape) -> Smem:
    """Lay out shared memory, `s.smem_bytes` in all."""

    def array(dtype: Any, count: int, alignment: int) -> Any:
        return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=alignment)

    d_type = cutlass.BFloat16 if s.d_dtype == "bf16" else cutlass.Float32
    return Smem(
        stages=array(cutlass.Int8, s.stages * s.stage_bytes, 1024),
        staging=array(d_type, s.staging_bytes // s.staged_bytes, 1024),
        clc=launch_control.allocate(s) if s.clc else None,
        full=array(Int64, s.stages, 8),
        empty=array(Int64, s.stages, 8),
        acc_full=array(Int64, s.acc_stages, 8),
        acc_empty=array(Int64, s.acc_stages, 8),
        c_full=array(Int64, s.c_barriers, 8) if s.accumulate else None,
        tmem=array(Int32, 1, 4),
    )


def initialize(s: Shape, mem: Smem) -> None:
    """Initialise all barriers with the arrivals of the table above; by one thread."""
    ring.init(mem.full, s.stages, s.cta_group)
    ring.init(mem.empty, s.stages, 1)
    ring.init(mem.acc_full, s.acc_stages, 1)
    ring.init(mem.acc_empty, s.acc_stages, EPILOGUE_WARPS * s.cta_group)
    ring.init(mem.c_full, s.c_barriers, 1)
    if s.clc:
        launch_control.initialize(s, mem.clc)
    prims.fence_mbarrier_init()


@cute.jit
def load(
    s: Constexpr, mem: Any, map_a: Any, map_b: Any, walk: Any, k_tiles: Any, depth: Any, leader: Any
) -> None:
    """Fill every stage with the operands of a K tile: of a batch of D, those of `depth` batches of A and B."""
    place, ctas = ring.filler(s.stages), s.cta_group
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    while walk.left:
        (row_a, *batch), (row_b, *_) = walk.places
        matrix_a, matrix_b = walk.matrices if s.grouped else ((), ())
        half_b = row_b + pair.rank(ctas) * s.b_tile.rows
        first, end = walk.steps(k_tiles)
        start = k_groups.start(s, walk)
        for i in cutlass.range(depth, unroll=1):
            at = [place_d * depth + i for place_d in batch] if s.batched else []
            for k in cutlass.range(first, end, unroll=1):
                target = mem.stages.subview(place.stage * s.stage_bytes)
                barrier = mem.full.subview(place.stage)
                ring.wait(mem.empty.subview(place.stage), place.parity)
                if leader:
                    prims.mbarrier_arrive_expect_tx(pair.in_first(barrier, ctas), s.ab_load_bytes)
                    at_b = target.subview(s.b_offset)
                    place_a, place_b = (
                        (row_a, k, barrier, *at, *matrix_a),
                        (half_b, k, barrier, *at, *matrix_b),
                    )
                    tma.load_tile(s.a_tile, target, map_a, *place_a, ctas=ctas, start=start)
                    tma.load_tile(s.b_tile, at_b, map_b, *place_b, ctas=ctas, start=start)
                place.advance()
        walk.advance()
    ring.drain(mem.empty, place, s.stages)


@cute.jit
def multiply(s: Constexpr, mem: Any, walk: Any, k_tiles: Any, leader: Any) -> None:
    """Issue the MMAs of every K tile, and commits that say what is thereby done."""
    place, acc = ring.reader(s.stages), ring.filler(s.acc_stages)
    base = tmem.base(mem.tmem)
    stage_a = umma.tile_descriptor(mem.stages, s.a_tile)
    while walk.left:
        ring.wait(mem.acc_empty.subview(acc.stage), acc.parity)
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        d = base + acc.stage * s.tile_n
        first, end = walk.steps(k_tiles)
        mmas = k_groups.mmas(s, walk)
        for k in cutlass.range(first, end, unroll=1):
            ring.wait(mem.full.subview(place.stage), place.parity)
            prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
            if leader:
                offset = Int64(Uint32(place.stage * (s.stage_bytes // 16)))
                a = stage_a + offset
                b = umma.descriptor_behind(a, s.a_tile, s.b_tile)
                umma.multiply_plain(s.format, s.operand_tiles, d, a, b, k, s.cta_group, first, mmas)
                pair.commit(mem.empty.subview(place.stage), s.cta_group)
            place.advance()
        if leader:
            pair.commit(mem.acc_full.subview(acc.stage), s.cta_group)
        acc.advance()
        walk.advance()


@cute.kernel
def gemm_bf16(
    map_a: GridConstant[cuda.TensorMap],
    map_b: GridConstant[cuda.TensorMap],
    map_c: GridConstant[cuda.TensorMap],  # None, and no parameter, without accumulation
    map_d: GridConstant[cuda.TensorMap],
    m: Int32,
    n: Int32,
    k: Int32,
    batches: Any,  # Int32, of D; None, and no parameter, of a single product
    depth: Any,  # Int32, where A and B have batches too
    ks: Pointer,  # Int32, where D has groups along K
    in_place: Any,  # Int32, there too: whether D is C
    slots: Pointer,  # Float32, and like the next two no parameter unless CTAs share the K of tiles
    flags: Pointer,  # Int32
    share: Any,  # Int32, K tiles that each CTA has
    grouped: Any,  # groups.Groups, and no parameters without groups of rows
    s: Constexpr,
) -> None:
    """The kernel of this file; a 1-dimensional grid of any size."""
    warp, leader = cute.arch.warp_idx(), prims.elect_sync()
    mem = allocate(s)
    if leader & (warp == LOAD):
        tma.prefetch(map_a, map_b, map_d)
        initialize(s, mem)
    if warp == MULTIPLY:
        tmem.allocate(mem.tmem, s.tmem_columns, s.cta_group)
    pair.sync(s.cta_group)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    prims.griddepcontrol(prims.GridDepAction.LAUNCH_DEPENDENTS)
    k_tiles = tiles.ceil_div(k, s.tile_k)
    if cutlass.const_expr(s.split_k):
        walk: Any = splitk.walk(m, n, k_tiles, (s.tile_m, s.tile_n), s.group_m, share)
    elif cutlass.const_expr(s.k_grouped):
        walk = k_groups.walk(s, m, n, batches, ks, in_place)
    elif cutlass.const_expr(s.grouped):
        prims.griddepcontrol(prims.GridDepAction.WAIT)
        walk = groups.walk(s, m, n, grouped)
    else:
        walk = tiles.walk(m, n, (s.tile_m, s.tile_n), s.group_m, batches, s.cta_group)
    if cutlass.const_expr(s.clc):
        walk = launch_control.walk(walk, s, mem.clc, leader)
    if warp < EPILOGUE_WARPS:
        workspace = splitk.workspace(slots, flags) if s.split_k else None
        store(s, mem, map_c, map_d, (), walk, leader, workspace=workspace)
    elif warp == LOAD:
        load(s, mem, map_a, map_b, walk, k_tiles, Uint32(depth) if s.batched else 1, leader)
    elif (warp == MULTIPLY) & pair.is_first(s.cta_group):
        multiply(s, mem, walk, k_tiles * Uint32(depth) if s.batched else k_tiles, leader)
    if cutlass.const_expr(s.clc):
        launch_control.ask(s, mem.clc, leader)
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
    pair.sync(s.cta_group)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    if warp == MULTIPLY:
        tmem.free(tmem.base(mem.tmem), s.tmem_columns, s.cta_group)


@cute.jit
def entry(
    m: Int32,
    n: Int32,
    k: Int32,
    batches: Any,
    depth: Any,
    ks: Pointer,
    in_place: Any,
    slots: Pointer,
    flags: Pointer,
    share: Any,
    grouped: Any,
    s: Constexpr,
) -> None:
    """Fix the parameter order and the launch's shape for the ahead-of-time compiler."""
    any_map = tma.placeholder_map()
    map_c = any_map if s.accumulate else None
    maps = any_map, any_map, map_c, any_map
    gemm_bf16(*maps, m, n, k, batches, depth, ks, in_place, slots, flags, share, grouped, s).launch(
        grid=(s.cta_group, 1, 1), block=(s.threads, 1, 1), cluster=(s.cta_group, 1, 1), min_blocks_per_mp=1
    )


def compile(shape: Shape, name: str, arch: str, options: str) -> Any:
    """Compile one variant (sm100/__init__.py lists them) for an architecture; `name` begins the entry's symbol."""
    gemm_bf16.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    zero = Int32(0)
    along_k, *lengths = k_groups.placeholders(shape)
    several = (zero, zero) if shape.batched else (along_k, None)
    split = splitk.placeholders() if shape.split_k else (None,) * 3
    numbers = zero, zero, zero, *several, *lengths, *split, groups.placeholder(shape)
    return cute.compile(entry, *numbers, shape, options=f"--gpu-arch {arch} {options}")
