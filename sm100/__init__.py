"""Kernels for SM100 and SM103 (B200, B300), and the variants of them that `python -m cute_kernels build` compiles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, TensorMapSpec, Variant
from cute_kernels.device.umma_formats import Major
from sm100.shape import Grouping, Shape
from sm100.staging import DDtype

ARCHS = ("sm_100a", "sm_103a")
MN_MAJOR: tuple[tuple[Major, Major], ...] = (("k", "mn"), ("mn", "k"), ("mn", "mn"))
MIXED = ("mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128")  # FP8 or MXFP8 with MXFP4
# Columns of D by operand formats and majorness of A and B. NVFP4's scale factors would leave 192 columns with two
# stages; a box of an MN-major B is 128 columns of FP8, or 64 of BF16.
TILES_N: dict[tuple[str, Major, Major], tuple[int, ...]] = {
    ("mxf4", "k", "k"): (32, 64, 128, 192),
    ("nvf4", "k", "k"): (32, 64, 128),
    ("mxf8", "k", "k"): (32, 64, 128, 192),
    ("mxf8_k128", "k", "k"): (32, 64, 128, 192),
    **{(form, *majors): (128,) for form in ("mxf8", "mxf8_k128") for majors in MN_MAJOR},
    ("mxf8_mxf4", "k", "k"): (32, 128, 192),
    ("mxf8_k128_mxf4", "k", "k"): (32, 128, 192),
    ("mxf4_mxf8", "k", "k"): (32, 128),
    ("mxf4_mxf8_k128", "k", "k"): (32, 128),
    ("bf16", "k", "k"): (32, 64, 128, 256),
    ("bf16", "k", "mn"): (64, 128, 256),
    ("bf16", "mn", "k"): (128, 256),
    ("bf16", "mn", "mn"): (128, 256),
}
BATCHED: tuple[tuple[Major, Major], ...] = (
    ("k", "k"),
    ("k", "mn"),
    ("mn", "mn"),
)  # those that ops.einsum needs
# The same of FP8 and MXFP8 operands: with D's types, and whether C is added.
BATCHED_FP8: dict[tuple[Major, Major], tuple[tuple[DDtype, bool], ...]] = {
    ("k", "k"): (("bf16", False), ("f32", False), ("bf16", True), ("f32", True)),
    ("k", "mn"): (("bf16", False), ("f32", False)),
    ("mn", "mn"): (("f32", False), ("f32", True)),
}
# Of groups along K, by majorness of A and B: formats, CTAs a tile and its columns: the widest, because there M and N
# are a layer's. MN-major boxes of FP8 are 128 columns, so that half a tile would be 256, and leave no TMEM for scales.
K_GROUPED: dict[Major, tuple[tuple[str, int, int], ...]] = {
    "mn": (("bf16", 1, 256), ("bf16", 2, 256), ("mxf8", 1, 128), ("mxf8_k128", 1, 128)),
    "k": tuple((form, ctas, 192) for form in ("mxf8", "mxf8_k128") for ctas in (1, 2))
    + (("bf16", 1, 256), ("bf16", 2, 256)),
}
# Of CTA pairs, which save loads where there are tiles enough: the widest, and one for fewer columns.
PAIR_TILES_N: dict[tuple[str, Major, Major], tuple[int, ...]] = {
    ("mxf4", "k", "k"): (128, 192),
    ("nvf4", "k", "k"): (128,),
    ("mxf8", "k", "k"): (128, 192),
    ("mxf8_k128", "k", "k"): (128, 192),
    ("mxf8_mxf4", "k", "k"): (192,),
    ("mxf8_k128_mxf4", "k", "k"): (192,),
    ("bf16", "k", "k"): (128, 256),
    **{("bf16", *majors): (256,) for majors in MN_MAJOR},
}
# The same in clusters of two pairs that load A for each other, into BF16: of the formats whose loads take longer than
# their MMAs (cute_kernels/heuristics/sm100.py), which BF16's do not.
MULTICAST = {"mxf4": 192, "nvf4": 128, "mxf8_k128": 192}
# Of swapped operands, A's format being the weights': columns of a tile, which are rows of tokens, with dtypes of D and
# whether C is added.
SWAPPED: dict[tuple[str, ...], tuple[tuple[int, DDtype, bool], ...]] = {
    ("mxf4", "nvf4", "mxf8", "mxf8_k128", "bf16"): tuple(
        (32, d, c) for d in ("bf16", "f32") for c in (False, True)
    ),
    MIXED: ((32, "bf16", False),),
}
D_DTYPES: tuple[DDtype, ...] = ("bf16", "f32")
# Operands of products whose D has a gap in every head.
HEADS: tuple[tuple[str, DDtype], ...] = (
    ("mxf8_k128", "bf16"),
    ("mxf8_k128", "f32"),
    ("mxf8", "bf16"),
    ("mxf4", "bf16"),
    ("nvf4", "bf16"),
)
# Of groups of rows: formats, and those of which B may be N-major, by the ways to say whose rows are whose.
GROUPED: dict[tuple[Major, Major], tuple[tuple[str, ...], tuple[Grouping, ...]]] = {
    ("k", "k"): (
        ("mxf4", "nvf4", "mxf8", "mxf8_k128", *MIXED, "bf16"),
        ("indices", "sizes"),
    ),
    ("k", "mn"): (("mxf8", "mxf8_k128", "bf16"), ("indices",)),
}
# Of swapped operands, A's format being that of the groups' matrices.
SWAPPED_GROUPED = ("mxf4", "nvf4", "mxf8", "mxf8_k128", *MIXED, "bf16")
GROUPINGS: tuple[Grouping, ...] = ("indices", "sizes")
# Of CTA pairs in groups of rows, with the tiles' columns: by sizes what MoE layers have, since there no tile reaches
# beyond its group; by indices, where callers must align groups to 256 rows for it, one format a kind of MMA.
PAIRS_BY_SIZES = {
    "mxf4": 192,
    "nvf4": 128,
    "mxf8": 192,
    "mxf8_k128": 192,
    "mxf8_k128_mxf4": 192,
    "bf16": 256,
}
PAIRS_BY_INDICES = {"mxf4": 192, "nvf4": 128, "mxf8_k128": 192, "bf16": 256}
QUANTIZED_GROUPED = ("mxf8", "mxf8_k128")  # operands of groups whose products are quantized to MXFP8
QUANTIZING: dict[DDtype, tuple[str, ...]] = {  # operands of which products are quantized, by what to
    "mxf8": ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_mxf4"),
    "nvf4": ("nvf4", "mxf8"),
}
# The same of CTA pairs: of dense products what follows a layer of its own kind, of groups those whose tiles never
# reach beyond one, and those that DeepGEMM's name for it takes.
QUANTIZING_PAIRS: tuple[tuple[str, DDtype, Grouping], ...] = (
    ("mxf8", "mxf8", ""),
    ("mxf8_k128", "mxf8", ""),
    ("nvf4", "nvf4", ""),
    ("mxf8", "mxf8", "sizes"),
    ("mxf8_k128", "mxf8", "sizes"),
    ("mxf8_k128", "mxf8", "indices"),
)
# Operands of products whose tiles' K is shared, and the tiles' columns: few, since sums take as long as tiles are wide.
SPLIT_K, SPLIT_K_TILE_N = ("mxf4", "nvf4", "mxf8", "mxf8_k128", "bf16"), 64
SPLIT_K_MIXED = ("mxf8_mxf4", "mxf8_k128_mxf4")  # and into BF16 alone
SPLIT_K_WITH_C = ("mxf8_k128", "bf16")  # and those to which C is added
# And those swapped: FP4's K is loaded in half the time, so that at the K of a layer sharing it saves nothing.
SPLIT_K_SWAPPED = ("mxf8", "mxf8_k128", "bf16")
# And those of CTA pairs, which load B once for twice the rows: 256 to 512 rows of FP8 and BF16 with a layer's K. FP4's
# K is over too soon for it.
SPLIT_K_PAIRS, SPLIT_K_PAIR_TILE_N = ("mxf8_k128", "bf16"), 128
# Operands, CTAs of a tile and its columns where tiles are asked for.
CLC = (("mxf4", 1, 128), ("mxf4", 2, 192), ("bf16", 1, 128), ("bf16", 2, 256))


def variants(arch: str) -> list[Variant]:
    """Return what to build for an architecture: nothing for one that these kernels do not run on."""
    if arch not in ARCHS:
        return []
    batched = [
        gemm_variant(Shape.fitting(tile_n, d_dtype, False, "bf16", *majors, batched=True))
        for majors in BATCHED
        for tile_n in (128, 256)
        for d_dtype in D_DTYPES
    ]
    batched += [
        gemm_variant(Shape.fitting(128, *output, operands, *majors, batched=True))
        for operands in ("mxf8_k128", "mxf8")
        for majors, outputs in BATCHED_FP8.items()
        for output in outputs
    ]
    products = [
        gemm_variant(Shape.fitting(tile_n, d_dtype, accumulate, *operands, cta_group=cta_group))
        for cta_group, table in ((1, TILES_N), (2, PAIR_TILES_N))
        for operands, tiles_n in table.items()
        for tile_n in tiles_n
        for d_dtype in D_DTYPES
        for accumulate in (False, True)
    ]
    products += [
        gemm_variant(Shape.fitting(tile_n, "bf16", False, operands, cta_group=2, multicast=True))
        for operands, tile_n in MULTICAST.items()
    ]
    grouped = [
        gemm_variant(Shape.fitting(128, "bf16", False, form, *majors, grouping=by))
        for majors, (forms, groupings) in GROUPED.items()
        for form in forms
        for by in groupings
    ]
    grouped += [
        gemm_variant(Shape.fitting(32, "bf16", False, form, swap_ab=True, grouping=by))
        for form in SWAPPED_GROUPED
        for by in GROUPINGS
    ]
    grouped += [
        gemm_variant(Shape.fitting(128, "mxf8", False, operands, grouping=by))
        for operands in QUANTIZED_GROUPED
        for by in GROUPINGS
    ]
    pairs_by: dict[Grouping, dict[str, int]] = {"sizes": PAIRS_BY_SIZES, "indices": PAIRS_BY_INDICES}
    grouped += [
        gemm_variant(Shape.fitting(tile_n, "bf16", False, form, cta_group=2, grouping=by))
        for by, pairs in pairs_by.items()
        for form, tile_n in pairs.items()
    ]
    k_grouped = [
        gemm_variant(
            Shape.fitting(tile_n, "f32", True, form, major, major, cta_group=cta_group, k_grouped=True)
        )
        for major, tiles in K_GROUPED.items()
        for form, cta_group, tile_n in tiles
    ]
    quantized = [
        gemm_variant(Shape.fitting(128, d_dtype, False, operands))
        for d_dtype, kinds in QUANTIZING.items()
        for operands in kinds
    ]
    quantized += [
        gemm_variant(Shape.fitting(128, d_dtype, False, operands, cta_group=2, grouping=by))
        for operands, d_dtype, by in QUANTIZING_PAIRS
    ]
    heads = [gemm_variant(Shape.fitting(128, d, False, operands, heads=True)) for operands, d in HEADS]
    split_k = [
        gemm_variant(Shape.fitting(SPLIT_K_TILE_N, d_dtype, accumulate, operands, split_k=True))
        for accumulate, kinds in ((False, SPLIT_K), (True, SPLIT_K_WITH_C))
        for operands in kinds
        for d_dtype in D_DTYPES
    ]
    split_k += [
        gemm_variant(Shape.fitting(SPLIT_K_TILE_N, "bf16", False, operands, split_k=True))
        for operands in SPLIT_K_MIXED
    ]
    split_k += [
        gemm_variant(Shape.fitting(SPLIT_K_PAIR_TILE_N, "bf16", False, operands, split_k=True, cta_group=2))
        for operands in SPLIT_K_PAIRS
    ]
    split_k += [
        gemm_variant(Shape.fitting(32, "bf16", False, operands, swap_ab=True, split_k=True))
        for operands in SPLIT_K_SWAPPED
    ]
    swapped = [
        gemm_variant(Shape.fitting(*output, form, swap_ab=True))
        for forms, outputs in SWAPPED.items()
        for form in forms
        for output in outputs
    ]
    clc = [
        gemm_variant(Shape.fitting(tile_n, d_dtype, False, operands, cta_group=cta_group, clc=True))
        for operands, cta_group, tile_n in CLC
        for d_dtype in D_DTYPES
    ]
    return batched + products + k_grouped + quantized + heads + split_k + swapped + grouped + clc


def gemm_variant(shape: Shape) -> Variant:
    """Return the variant of one shape, its tensor maps being the boxes that the kernel counts on."""

    def tensor_map(name: str, dtype: str, box: tuple[int, int], swizzle: Any) -> Param:
        of_groups = ("map_a", "map_sfa") if shape.swap_ab else ("map_b", "map_sfb")
        several = (
            shape.d_batched
            if name in ("map_c", "map_d")
            else shape.batched or (shape.grouped and name in of_groups)
        )
        several |= shape.grouping == "sizes"
        return Param(name, "tensor_map", TensorMapSpec(dtype, (*box, *[1] * several), swizzle))

    family = "gemm_blockscaled" if shape.scaled else "gemm_bf16"
    store_box, store_swizzle = shape.store_box, shape.store_swizzle
    layout = "".join(
        "n" if major == nt else "t" for major, nt in ((shape.a_major, "k"), (shape.b_major, "mn"))
    )
    name = f"sm100_gemm_{shape.family_dtype}_{shape.tile_m}x{shape.tile_n}x{shape.tile_k}_{shape.d_dtype}"
    kinds = ("multicast", "swap_ab", "batched", "k_grouped", "heads", "split_k", "clc")
    name += "".join(f"_{kind}" for kind in kinds if getattr(shape, kind))
    name += f"_by_{shape.grouping}" if shape.grouping else ""
    name += ("" if layout == "nt" else f"_{layout}") + ("_accumulate" if shape.accumulate else "")
    operands = (
        tensor_map("map_a", shape.format.a.load_as, shape.a_load.box, "128B"),
        tensor_map("map_b", shape.format.b.load_as, shape.b_tile.box, "128B"),
    )
    scales = (
        (
            tensor_map("map_sfa", "i32", (shape.sfa_rows, shape.sf_words), "none"),
            tensor_map("map_sfb", "i32", (shape.sfb_rows, shape.sf_words), "none"),
        )
        if shape.scaled
        else ()
    )
    return Variant(
        kernel=family,
        name=name,
        shape=shape,
        params=(
            *(
                replace(p, tensor_map=replace(p.tensor_map, blocks=tile.boxes))
                for p, tile in zip(operands, shape.operand_tiles, strict=True)
                if p.tensor_map
            ),
            *(
                replace(p, name=f"{p.name}_boxes")
                for p, tile in zip(operands, shape.operand_tiles, strict=True)
                if tile.boxes > 1
            ),
            *scales,
            *([tensor_map("map_c", shape.d_dtype, store_box, store_swizzle)] if shape.loads_c else []),
            tensor_map("map_d", "u8" if shape.quantized else shape.d_dtype, store_box, store_swizzle),
            Param("m", "i32"),
            Param("n", "i32"),
            Param("k", "i32"),
            *([Param("batches", "i32")] if shape.d_batched else []),
            *([Param("depth", "i32")] if shape.batched and not shape.scaled else []),
            *([Param("ks", "pointer")] if shape.k_grouped else []),
            *([Param(of, "pointer") for of in ("a", "b", "map_slots")] if shape.group_maps else []),
            *([Param(f"global_{of}", "pointer") for of in "ab"] if shape.format.global_scales else []),
            *([Param("sfd", "pointer"), Param("sfd_blocked", "i32")] if shape.quantized else []),
            *([Param("sfd_carry", "i32")] if shape.d_dtype == "mxf8" else []),
            *([Param("global_d", "pointer")] if shape.d_dtype == "nvf4" else []),
            *([Param(f"head_{of}", "i32") for of in ("width", "right", "mid")] if shape.heads else []),
            *(
                [Param("slots", "pointer"), Param("flags", "pointer"), Param("share", "i32")]
                if shape.split_k
                else []
            ),
            *(_group_params(shape) if shape.grouping else ()),
        ),
        block=(shape.threads, 1, 1),
        cluster=(shape.cluster, 1, 1),
        dynamic_shared=shape.smem_bytes,
        archs=ARCHS,
        compile=partial(_compile, shape, name),
    )


def _group_params(shape: Shape) -> tuple[Param, ...]:
    """Return the parameters of device/groups.py's Groups, and the steps from a group's global scales to the next's."""
    return (
        Param("layout", "pointer"),
        Param("groups", "i32"),
        Param("alignment", "i32"),
        Param("d", "pointer"),
        Param("row_stride", "i32"),
        Param("matrix_stride", "i64"),
        *([Param(f"global_{of}_step", "i32") for of in "ab"] if shape.global_scales else []),
    )


def _compile(shape: Shape, name: str, arch: str, options: str) -> Any:
    from sm100 import gemm  # imports the DSL, which listing variants does not need

    return gemm.compile(shape, name, arch, options)
