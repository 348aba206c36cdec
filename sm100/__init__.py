"""Kernels for SM100 and SM103 (B200, B300), and the variants of them that `python -m cute_kernels build` compiles."""

from __future__ import annotations

from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, TensorMapSpec, Variant
from cute_kernels.device.umma_formats import TILE_BYTES
from sm100.shape import STORE_COLUMNS, STORE_ROWS, DDtype, Shape

ARCHS = ("sm_100a", "sm_103a")
# By operand formats. NVFP4's scale factors would leave 192 columns of D with two stages.
TILES_N = {
    "mxf4": (32, 64, 128, 192),
    "nvf4": (32, 64, 128),
    "mxf8": (32, 64, 128, 192),
    "mxf8_k128": (32, 64, 128, 192),
    "mxf8_mxf4": (32, 128, 192),
    "mxf8_k128_mxf4": (32, 128, 192),
    "mxf4_mxf8": (32, 128),
    "mxf4_mxf8_k128": (32, 128),
}
D_DTYPES: tuple[DDtype, ...] = ("bf16", "f32")


def variants(arch: str) -> list[Variant]:
    """Return what to build for an architecture: nothing for one that these kernels do not run on."""
    if arch not in ARCHS:
        return []
    return [
        gemm_variant(Shape.fitting(tile_n, d_dtype, accumulate, family_dtype))
        for family_dtype, tiles_n in TILES_N.items()
        for tile_n in tiles_n
        for d_dtype in D_DTYPES
        for accumulate in (False, True)
    ]


def gemm_variant(shape: Shape) -> Variant:
    """Return the variant of one shape, its tensor maps being the boxes that the kernel counts on."""

    def tensor_map(name: str, dtype: str, box: tuple[int, int], swizzle: Any) -> Param:
        return Param(name, "tensor_map", TensorMapSpec(dtype, box, swizzle))

    store_box, store_swizzle = (STORE_COLUMNS, STORE_ROWS), f"{shape.store_row_bytes}B"
    name = f"sm100_gemm_{shape.family_dtype}_{shape.tile_m}x{shape.tile_n}x{shape.tile_k}_{shape.d_dtype}"
    name += "_accumulate" if shape.accumulate else ""
    return Variant(
        kernel="gemm_blockscaled",
        name=name,
        shape=shape,
        params=(
            tensor_map("map_a", shape.format.a.load_as, (TILE_BYTES, shape.tile_m), "128B"),
            tensor_map("map_b", shape.format.b.load_as, (TILE_BYTES, shape.tile_n), "128B"),
            tensor_map("map_sfa", "i32", (shape.sfa_rows, shape.sf_words), "none"),
            tensor_map("map_sfb", "i32", (shape.sfb_rows, shape.sf_words), "none"),
            *([tensor_map("map_c", shape.d_dtype, store_box, store_swizzle)] if shape.accumulate else []),
            tensor_map("map_d", shape.d_dtype, store_box, store_swizzle),
            Param("m", "i32"),
            Param("n", "i32"),
            Param("k", "i32"),
            *([Param(f"global_{of}", "pointer") for of in "ab"] if shape.format.global_scales else []),
        ),
        block=(shape.threads, 1, 1),
        cluster=(shape.cluster_m, 1, 1),
        dynamic_shared=shape.smem_bytes,
        archs=ARCHS,
        compile=partial(_compile, shape, name),
    )


def _compile(shape: Shape, name: str, arch: str, options: str) -> Any:
    from sm100 import gemm_blockscaled as kernel  # imports the DSL, which listing variants does not need

    return kernel.compile(shape, name, arch, options)
