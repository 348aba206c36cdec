"""Kernels that need no more than SM80 has (no TMA, no tensor memory), compiled for every architecture."""

from __future__ import annotations

from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, TensorMapSpec, Variant
from sm80.shape import ARCHS, TMA_ARCHS, DequantizeShape, RepackShape, W4a16Shape


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`. Listing them imports no DSL."""
    gemms = [w4a16_variant(shape) for shape in w4a16_shapes()] if arch in TMA_ARCHS else []
    return [dequantize_variant(), repack_variant(), *gemms] if arch in ARCHS else []


def dequantize_variant() -> Variant:
    """Of 1, 2, 4 and 8 words a thread, 2 was the fastest on an H200."""
    shape, name = DequantizeShape(threads=128, words_per_thread=2), "sm80_nvfp4_dequantize"
    return Variant(
        kernel="nvfp4_dequantize",
        name=name,
        shape=shape,
        params=(
            Param("packed", "pointer"),
            Param("scales", "pointer"),
            Param("global_scale", "pointer"),
            Param("out", "pointer"),
            Param("blocks", "i64"),
        ),
        block=(shape.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=0,
        archs=ARCHS,
        compile=partial(_compile_nvfp4_dequantize, shape, name),
    )


def repack_variant() -> Variant:
    """Eight warps read a row's 512 bytes of codes and 64 of scales side by side."""
    shape, name = RepackShape(warps=8), "sm80_nvfp4_repack"
    return Variant(
        kernel="nvfp4_repack",
        name=name,
        shape=shape,
        params=(
            Param("codes", "pointer"),
            Param("scales", "pointer"),
            Param("packed", "pointer"),
            Param("n", "u32"),
            Param("blocks", "u32"),
        ),
        block=(shape.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=0,
        archs=ARCHS,
        compile=partial(_compile_nvfp4_repack, shape, name),
    )


def w4a16_shapes() -> list[W4a16Shape]:
    """Ten configurations: of 18 that were measured on an H200, with M from 1 to 4096 and six sizes of W, dropping the
    others costs nothing on average.
    """
    # warp_n, warp_m, warps_n, warps_m, warps_k, units, CTAs an SM
    table = [
        (32, 8, 1, 1, 4, 4, 2),
        (32, 8, 2, 1, 4, 4, 2),
        (32, 16, 1, 1, 8, 8, 1),
        (32, 16, 2, 1, 4, 4, 2),
        (32, 32, 1, 1, 8, 8, 1),
        (64, 32, 2, 1, 4, 4, 1),
        (32, 64, 1, 1, 4, 4, 1),
        (32, 64, 4, 1, 2, 2, 1),
        (32, 128, 4, 1, 1, 1, 1),
        (32, 128, 8, 1, 1, 1, 1),
    ]
    grouped = [
        table[i] for i in (3, 5, 7, 8)
    ]  # one for each tile_m; the last holds more sums than masked can
    rows = [(*row, "dense") for row in table]
    rows += [(*row, layout) for layout in ("contiguous", "masked") for row in grouped]
    return [W4a16Shape.deepest(x_dtype, *row) for x_dtype in ("bf16", "f16") for row in rows]


def w4a16_variant(shape: W4a16Shape) -> Variant:
    """NVFP4 weights times BF16 or FP16 activations, for a shape."""
    s = shape
    grouped = "" if s.layout == "dense" else f"_{s.layout}"
    name = f"sm80_gemm_w4a16_{s.x_dtype}_{s.tile_n}x{s.tile_m}x{s.tile_k}{grouped}"
    x_box = (s.BOX_K, s.tile_m) + ((1,) if s.layout == "masked" else ())
    w_box = (s.UNIT_BYTES // 8, s.units, s.tile_n // s.UNIT_ROWS) + (() if s.layout == "dense" else (1,))
    return Variant(
        kernel="gemm_w4a16",
        name=name,
        shape=s,
        params=(
            Param("map_x", "tensor_map", TensorMapSpec(s.x_dtype, x_box, "128B")),
            Param("map_w", "tensor_map", TensorMapSpec("u64", w_box, "none")),
            Param("d", "pointer"),
            Param("global_scale", "pointer"),
            Param("slots", "pointer"),
            Param("flags", "pointer"),
            *(Param(number, "i32") for number in ("m", "n", "k", "ldd", "aligned", "whole", "share")),
            Param("layout", "pointer"),
            Param("experts", "i32"),
            Param("matrix_stride", "i64"),
        ),
        block=(s.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=s.smem_bytes,
        archs=TMA_ARCHS,
        compile=partial(_compile_gemm_w4a16, s, name),
        allow_spills="up to 20 bytes, a few accesses beside the 256 MMAs of a stage" if s.sums == 128 else "",
    )


def _compile_gemm_w4a16(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    from sm80 import gemm_w4a16 as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_nvfp4_dequantize(shape: DequantizeShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_dequantize as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_nvfp4_repack(shape: RepackShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_repack as kernel

    return kernel.compile(shape, name, arch, options)
