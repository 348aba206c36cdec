"""D[M, N] = A[M, K] @ B[N, K]^T (+ C[M, N]) for SM100: block-scaled or BF16 operands; D in BF16, FP32, MXFP8 or NVFP4.

A and B are in a format of device/umma_formats.py, each contiguous along K, or along M or N: their Shape says.
Scale factors, where the format has them, are packed four to an int32 and MN-major (cute_kernels/scale_factors.py);
NVFP4 has a factor for all of A and one for all of B, float32 in global memory, which multiply the sums on their way
out. There may be batches of A, B and D; with BF16 operands batch i of D is then the sum of the products of batches
i * depth to i * depth + depth - 1 of A and B, those that lie behind the last being zero. Or there is a D for each
group along K (device/k_groups.py), or rows belong to groups (device/groups.py).
Persistent: a CTA walks over 128 x tile_n tiles of D, a role a warp, or two CTAs over tiles of 256 rows
(device/pair.py), each with half the rows of A and of B in its stages; or two such pairs, which load A for each other.
A quantized D is made of the FP32 sums: a lane that stores has whole groups of columns, and writes their scale factors
itself.

    role         warp  waits for                fills
    store        0-3   acc_full, c_full         D, by way of staging buffers that C arrives in (device/epilogue.py)
    load         4     empty                    a stage's operands, by TMA
    multiply     5     full, acc_empty          an accumulator in TMEM
    load scales  6     empty                    a stage's packed scale words, by TMA
    transpose    7     scales                   scale atoms of a stage, in place of its packed words

    barrier    one for each    completes with                                   and then
    scales     stage           load scales, with sfa_bytes + sfb_bytes by TMA   packed scale words are there
    full *     stage           load, with ab_load_bytes by TMA; transpose       operands and scale atoms are there
    empty      stage           tcgen05.commit of multiply, of each pair         its scale copies and MMAs are done
    acc_full   accumulator     tcgen05.commit of multiply                       the tile is summed up
    acc_empty* accumulator     the four store warps                             the tile is in registers
    c_full     staging buffer  its store warp, with store_bytes by TMA          a box of C is there

Warps 6 and 7, `scales` and what else is said of scales are only where operands have them. Each "with" or name is one
arrival, by the elected lane of the warp. Of a pair, the first CTA alone multiplies: both arrive at its barriers where
there is a *, and its commits arrive at those of both. Bytes are those of whole boxes: TMA fills with zeros what lies
outside the tensors, so no tail needs code (a zero times any scale adds nothing); or for rows and columns that D lacks,
where several boxes come as one, with whatever is there (tma.whole_blocks). FP4 that meets FP8 is unpacked by TMA to a
byte an element. Scale factors go from a stage to TMEM columns of that same stage by tcgen05.cp, just ahead of the MMAs
that use them.

Preconditions, the host's to check: K > 0 and a multiple of the format's block; pointers, and strides between the rows
of a tensor (along M or N, or along K where it is not contiguous), are multiples of 16 bytes; scale words past K hold
zeros; C has D's type and may be D itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
from cutlass import Constexpr, Float32, GridConstant, Int32, Int64, Pointer, Uint32
from cutlass.cute.runtime import make_ptr
from cutlass.experimental import primitives as prims

from cute_kernels.device import groups, k_groups, launch_control, pair, ring, splitk, tiles, tma, tmem, umma
from cute_kernels.device.epilogue import store
from cute_kernels.device.fill import fill, fill_scales
from cute_kernels.device.heads import Heads
from cute_kernels.device.quantize import DScales
from cute_kernels.device.umma_formats import STEPS
from sm100.shape import PATTERNS_BYTES, Shape
from sm100.staging import EPILOGUE_WARPS, READ_COLUMNS

# Those of the epilogue come first, since warp w reads TMEM lanes 32 * (w % 4) onwards. No register budgets: at most 288
# threads a CTA, one CTA an SM, the compiler may give every warp all that it can address.
LOAD, MULTIPLY, LOAD_SCALES, TRANSPOSE = range(EPILOGUE_WARPS, EPILOGUE_WARPS + 4)


class Smem(NamedTuple):
    """Shared memory, in order. A stage is A | B | scale factors of A | of B, at the Shape's offsets."""

    stages: Any  # bytes
    words: Any  # the same memory as the scale words that lie in it
    staging: Any  # elements of D, or words of four where it is quantized
    patterns: Any  # of tensor maps, where groups have their own
    clc: Any  # launch_control.Responses where tiles are asked for
    scales: Any  # from here on barriers; only where operands have scales
    full: Any
    empty: Any
    acc_full: Any
    acc_empty: Any
    c_full: Any
    tmem: Any  # where tcgen05.alloc leaves its address


def allocate(s: Shape) -> Smem:
    """Lay out shared memory, `s.smem_bytes` in all."""

    def array(dtype: Any, count: int, alignment: int) -> Any:
        return cutlass.Array(dtype, count, space=cutlass.AddressSpace.smem, alignment=alignment)

    stages = array(cutlass.Int8, s.stages * s.stage_bytes, 1024)
    d_type = {"bf16": cutlass.BFloat16, "f32": Float32, "mxf8": Int32, "nvf4": Int32}[s.d_dtype]
    return Smem(
        stages=stages,
        words=cutlass.Array(stages.data_ptr(), dtype=Int32),
        staging=array(d_type, s.staging_bytes // s.staged_bytes, 1024),
        patterns=array(Int64, PATTERNS_BYTES // 8, 128) if s.group_maps else None,
        clc=launch_control.allocate(s) if s.clc else None,
        scales=array(Int64, s.stages, 8) if s.scaled else None,
        full=array(Int64, s.stages, 8),
        empty=array(Int64, s.stages, 8),
        acc_full=array(Int64, s.acc_stages, 8),
        acc_empty=array(Int64, s.acc_stages, 8),
        c_full=array(Int64, s.c_barriers, 8) if s.loads_c else None,
        tmem=array(Int32, 1, 4),
    )


def initialize(s: Shape, mem: Smem) -> None:
    """Initialise all barriers with the arrivals of the table above; by one thread."""
    ring.init(mem.scales, s.stages if s.scaled else 0, 1)
    ring.init(mem.full, s.stages, (1 + s.scaled) * s.cta_group)
    ring.init(mem.empty, s.stages, 1 + s.multicast)
    ring.init(mem.acc_full, s.acc_stages, 1)
    ring.init(mem.acc_empty, s.acc_stages, EPILOGUE_WARPS * s.cta_group)
    ring.init(mem.c_full, s.c_barriers, 1)
    if s.clc:
        launch_control.initialize(s, mem.clc)
    prims.fence_mbarrier_init()


@cute.jit
def load(
    s: Constexpr,
    mem: Any,
    maps: Any,
    scales: Constexpr[bool],
    walk: Any,
    k_tiles: Any,
    depth: Any,
    leader: Any,
    boxes: Any = None,
    whole: Any = True,
) -> None:
    """Fill one part of every stage, operands or packed scale words, with A's box and then B's.

    Two warps, because one spends most of a small tile's MMA time on issuing four boxes. A tile of a batch of D takes
    those of `depth` batches of A and B.
    maps: of A and of B, or group_maps.Maps, by which each group along K has its own. boxes: where these bring several
    boxes as one, maps of single ones, by which the last K tile comes unless `whole` (tma.whole_blocks).
    """
    made: Any = maps if s.group_maps and not scales else None
    place = ring.filler(s.stages)
    half, step = (0, 1) if scales else (pair.which(s.cluster), s.k_step)
    prims.griddepcontrol(prims.GridDepAction.WAIT)
    while walk.left:
        (row_a, *batch), (row_b, *_) = walk.places()
        matrix_a, matrix_b = walk.matrices() if s.grouped else ((), ())
        row_a, half_b = row_a + half * s.a_load.rows, row_b + pair.rank(s.cluster) * s.b_tile.rows
        first, end = walk.steps(k_tiles)
        start = k_groups.start(s, walk, scales)
        if cutlass.const_expr(made is not None):
            row_a, half_b = k_groups.enter(made, walk, start, (row_a, half_b), leader)
        both = maps if made is None else made.both()
        origin = 0 if scales or s.group_maps else start  # along K, in these maps
        first, end = Int32(first) * step + origin, Int32(end) * step + origin
        for i in cutlass.range(depth, unroll=1):
            at = [place_d * depth + i for place_d in batch] if s.batched else []
            at_a, at_b = (row_a, *at, *matrix_a), (row_b if scales else half_b, *at, *matrix_b)
            last = end
            if cutlass.const_expr(boxes is not None):
                last = cutlass.select_(whole, end, end - step)
            for k in cutlass.range(first, last, step, unroll=1):
                if cutlass.const_expr(scales):
                    fill_scales(s, mem, place, both, k, start, at_a, at_b, leader)
                else:
                    fill(s, mem, place, both, k, at_a, at_b, leader)
                place.advance()
            if cutlass.const_expr(boxes is not None):
                left = last != end
                if left:
                    fill(s, mem, place, both, last, at_a, at_b, leader, boxes)
                    place.advance()
        walk.advance()
    ring.drain(mem.empty, place, s.stages)


@cute.jit
def transpose(s: Constexpr, mem: Any, walk: Any, k_tiles: Any, leader: Any) -> None:
    """Turn the packed scale words of each stage into the atoms that tcgen05.cp takes."""
    place = ring.reader(s.stages)
    while walk.left:
        first, end = walk.steps(k_tiles)
        for _ in cutlass.range(first, end, unroll=1):
            ring.wait(mem.scales.subview(place.stage), place.parity)
            words = mem.words.subview(place.stage * (s.stage_bytes // 4) + s.sf_offset // 4)
            umma.transpose_scales(words, s.sf_atoms)
            tma.publish()
            cute.arch.sync_warp()
            ring.arrive(mem.full.subview(place.stage), leader, s.cluster)
            place.advance()
        walk.advance()


@cute.jit
def multiply(s: Constexpr, mem: Any, walk: Any, k_tiles: Any) -> None:
    """Issue the scale copies, if any, and MMAs of every K tile, and commits that say what is thereby done."""
    place, acc = ring.reader(s.stages), ring.filler(s.acc_stages)
    base = tmem.base(mem.tmem)
    stage_a = umma.tile_descriptor(mem.stages, s.a_tile)
    stage_sf = umma.scales_descriptor(mem.stages.subview(s.sf_offset)) if s.scaled else None
    descriptors = stage_a, stage_sf
    while walk.left:
        ring.wait(mem.acc_empty.subview(acc.stage), acc.parity)
        prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
        d = base + acc.stage * s.tile_n
        first, end = walk.steps(k_tiles)
        whole, rest = k_groups.mmas(s, walk, end)
        for k in cutlass.range(first, whole, unroll=1):
            multiply_tile(s, mem, descriptors, place, base, d, k, k != first)
            place.advance()
        if cutlass.const_expr(rest is not None):
            for count in cutlass.range_constexpr(1, STEPS):  # a loop for each: none has a branch
                behind = cutlass.select_(rest == count, end, whole)
                for k in cutlass.range(whole, behind, unroll=1):
                    multiply_tile(s, mem, descriptors, place, base, d, k, k != first, count)
                    place.advance()
        pair.commit(mem.acc_full.subview(acc.stage), s.cluster)
        acc.advance()
        walk.advance()


@cute.jit
def multiply_tile(
    s: Constexpr,
    mem: Any,
    descriptors: Any,
    place: Any,
    base: Any,
    d: Any,
    k: Any,
    add: Any,
    mmas: Constexpr[int] = STEPS,
) -> None:
    """Multiply K tile `k` from its stage, once that is full, and commit to the stage's being empty then.

    descriptors: of A and of the scale factors in the first stage. base, d: TMEM addresses of all, and of the
    accumulator, to which products are added if `add`. mmas: all that a tile has, or fewer.
    """
    ring.wait(mem.full.subview(place.stage), place.parity)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    (stage_a, stage_sf), ctas = descriptors, s.cta_group
    offset = Int64(Uint32(place.stage * (s.stage_bytes // 16)))
    a = stage_a + offset
    b = umma.descriptor_behind(a, s.a_tile, s.b_tile)
    if cutlass.const_expr(s.scaled):
        sfa = base + s.first_sf_column + place.stage * s.sf_columns
        umma.copy_scales(sfa, stage_sf + offset, s.sf_atoms, ctas)
        sf = sfa, sfa + s.sfa_columns, s.sfb_columns // s.sf_words
        umma.multiply(s.format, s.operand_tiles, d, a, b, *sf, k, add, ctas, mmas)
    else:
        umma.multiply_plain(s.format, s.operand_tiles, d, a, b, add, ctas, mmas)
    pair.commit_to_all(mem.empty.subview(place.stage), s.cluster)


def first_tile(
    s: Shape,
    mem: Smem,
    sizes: tuple[Any, Any, Any],
    along_k: tuple[Any, Any],
    share: Any,
    grouped: Any,
    leader: Any,
) -> Any:
    """Return a warp's walk over the tiles of its CTA; sizes: m, n and K tiles. along_k: batches and ks."""
    (m, n, k_tiles), tile = sizes, (s.tile_m, s.tile_n)
    if s.split_k:
        return splitk.walk(tiles.order(m, n, tile, s.group_m, ctas=s.cta_group), k_tiles, share)
    if s.k_grouped:
        return k_groups.walk(s, m, n, *along_k)
    if s.grouped:
        prims.griddepcontrol(prims.GridDepAction.WAIT)
        return groups.walk(s, m, n, grouped)
    of_cluster = s.tile_m, s.tile_n * (1 + s.multicast)
    order = tiles.order(m, n, of_cluster, s.group_m, along_k[0], s.cluster)
    return launch_control.walk(order, s, mem.clc, leader) if s.clc else tiles.walk(order)


@cute.kernel
def gemm(
    map_a: GridConstant[cuda.TensorMap],
    map_b: GridConstant[cuda.TensorMap],
    boxes_a: GridConstant[cuda.TensorMap],  # None, and no parameter, like the next where a K tile is one box
    boxes_b: GridConstant[cuda.TensorMap],
    map_sfa: GridConstant[cuda.TensorMap],  # None, and no parameter, like the next without scales
    map_sfb: GridConstant[cuda.TensorMap],
    map_c: GridConstant[cuda.TensorMap],  # None, and no parameter, unless C is loaded
    map_d: GridConstant[cuda.TensorMap],
    m: Int32,
    n: Int32,
    k: Int32,
    batches: Any,  # Int32, of D; None, and no parameter, of a single product
    depth: Any,  # Int32, where A and B are BF16 and have batches too
    ks: Pointer,  # Int32, where D has groups along K
    flat: Any,  # group_maps.Matrices, and no parameters unless these groups have tensor maps of their own
    global_a: Pointer,  # Float32, and like global_b no parameter where the format has none
    global_b: Pointer,
    sfd: Pointer,  # Int32, and like the next two no parameter unless D is quantized
    sfd_blocked: Any,  # Int32
    sfd_carry: Any,  # Int32; of MXFP8 alone
    global_d: Pointer,  # Float32; of NVFP4 alone
    gaps: Any,  # heads.Heads, and no parameters unless D has a gap in every head
    slots: Pointer,  # Float32, and like the next two no parameter unless CTAs share the K of tiles
    flags: Pointer,  # Int32
    share: Any,  # Int32, K tiles that each CTA has
    grouped: Any,  # groups.Groups, and no parameters without groups
    s: Constexpr,
) -> None:
    """The kernel of this file; a 1-dimensional grid of any size."""
    warp, leader = cute.arch.warp_idx(), prims.elect_sync()
    mem = allocate(s)
    if leader & (warp == LOAD):
        tma.prefetch(map_a, map_b, map_d, *((map_sfa, map_sfb) if s.scaled else ()))
        initialize(s, mem)
    if warp == MULTIPLY:
        tmem.allocate(mem.tmem, s.tmem_columns, s.cta_group)
    pair.sync(s.cluster)
    prims.tcgen05_fence(prims.Tcgen05Fence.AFTER_THREAD_SYNC)
    prims.griddepcontrol(prims.GridDepAction.LAUNCH_DEPENDENTS)
    k_tiles = tiles.ceil_div(k, s.tile_k)
    walk = first_tile(s, mem, (m, n, k_tiles), (batches, ks), share, grouped, leader)
    sums = Uint32(depth) if cutlass.const_expr(depth is not None) else 1
    if warp < EPILOGUE_WARPS:
        scales = None
        if cutlass.const_expr(s.quantized):
            columns = tiles.ceil_div(n, READ_COLUMNS // s.store_scales)
            scales = DScales(sfd, m, columns, sfd_blocked, sfd_carry, global_d)
        workspace = splitk.workspace(slots, flags) if cutlass.const_expr(s.split_k) else None
        store(s, mem, map_c, map_d, (global_a, global_b), walk, leader, scales, gaps, workspace)
    elif warp == LOAD:
        maps: Any = map_a, map_b
        if cutlass.const_expr(s.group_maps):
            maps = k_groups.maps(s, mem.patterns, maps, flat, (m, n, k), leader)
        of_load = s, mem, maps, False, walk, k_tiles, sums, leader
        boxes = (boxes_a, boxes_b) if s.several_boxes else None
        load(*of_load, boxes, tma.whole_blocks(s.operand_tiles, (m, n)))
    elif (warp == MULTIPLY) & pair.is_first(s.cluster):
        multiply(s, mem, walk, k_tiles * sums)
    elif cutlass.const_expr(s.scaled):
        if warp == LOAD_SCALES:
            load(s, mem, (map_sfa, map_sfb), True, walk, k_tiles, sums, leader)
        elif warp == TRANSPOSE:
            transpose(s, mem, walk, k_tiles, leader)
    if cutlass.const_expr(s.clc):
        launch_control.ask(s, mem.clc, leader)
    prims.tcgen05_fence(prims.Tcgen05Fence.BEFORE_THREAD_SYNC)
    pair.sync(s.cluster)
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
    flat: Any,
    global_a: Pointer,
    global_b: Pointer,
    sfd: Pointer,
    sfd_blocked: Any,
    sfd_carry: Any,
    global_d: Pointer,
    gaps: Any,
    slots: Pointer,
    flags: Pointer,
    share: Any,
    grouped: Any,
    s: Constexpr,
) -> None:
    """Fix the parameter order and the launch's shape for the ahead-of-time compiler."""
    any_map = tma.placeholder_map()
    boxes = (any_map if tile.boxes > 1 else None for tile in s.operand_tiles)
    of_scales = (any_map if s.scaled else None,) * 2
    maps = any_map, any_map, *boxes, *of_scales, any_map if s.loads_c else None, any_map
    more = flat, global_a, global_b, sfd, sfd_blocked, sfd_carry, global_d, gaps, slots, flags, share, grouped
    gemm(*maps, m, n, k, batches, depth, ks, *more, s).launch(
        grid=(s.cluster, 1, 1), block=(s.threads, 1, 1), cluster=(s.cluster, 1, 1), min_blocks_per_mp=1
    )


def compile(shape: Shape, name: str, arch: str, options: str) -> Any:
    """Compile one variant (sm100/__init__.py lists them) for an architecture; `name` begins the entry's symbol."""
    gemm.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    zero, a_factor = Int32(0), make_ptr(Float32, 16, cute.AddressSpace.gmem)
    factor = a_factor if shape.format.global_scales else None
    sfd = (make_ptr(Int32, 16, cute.AddressSpace.gmem), zero) if shape.quantized else (None,) * 2
    rule = zero if shape.d_dtype == "mxf8" else None, a_factor if shape.d_dtype == "nvf4" else None
    gaps = Heads(zero, zero, zero) if shape.heads else None
    split_k = splitk.placeholders() if shape.split_k else (None,) * 3
    of_k, *lengths = k_groups.placeholders(shape)
    batches = zero if shape.batched else of_k, zero if shape.batched and not shape.scaled else None
    more = *batches, *lengths, factor, factor, *sfd, *rule, gaps, *split_k, groups.placeholder(shape)
    return cute.compile(entry, zero, zero, zero, *more, shape, options=f"--gpu-arch {arch} {options}")
