"""Kernels that need no more than SM80 has (no TMA, no tensor memory), compiled for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, TensorMapSpec, Variant
from sm80.shape import ARCHS, CP_ASYNC_ARCHS, TMA_ARCHS, DequantizeShape, RepackShape, W4a16Shape


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`. Listing them imports no DSL."""
    gemms = [gemm for gemm in map(w4a16_variant, w4a16_shapes()) if arch in gemm.archs]
    for sm_shared, archs in CP_ASYNC_ARCHS.items():
        if arch in archs:
            gemms = [w4a16_cp_async_variant(shape, archs) for shape in w4a16_cp_async_shapes(sm_shared)]
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
    """Ten configurations with mma.sync: of 18 that were measured on an H200, with M from 1 to 4096 and six sizes of W,
    dropping the others costs nothing on average. And two with wgmma.
    """
    # warp_n, warp_m, warps_n, warps_m, warps_k, units, CTAs an SM
    table = [
        (32, 8, 1, 1, 8, 8, 1),
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
    wgmma = [(16, 128, 8, 1, 1, 1, 1), (32, 128, 8, 1, 1, 1, 1)]
    rows = [(row, "dense", "mma.sync") for row in table]
    rows += [(row, layout, "mma.sync") for layout in ("contiguous", "masked") for row in grouped]
    rows += [(row, layout, "wgmma") for layout in ("dense", "contiguous") for row in wgmma]
    return [
        W4a16Shape.deepest(x_dtype, *row, layout=layout, mma=mma)
        for x_dtype in ("bf16", "f16")
        for row, layout, mma in rows
    ]


def w4a16_cp_async_shapes(sm_shared: int) -> list[W4a16Shape]:
    """One configuration for each tile_m, of eight warps; two or three stages in 99 KiB, more where there is more."""
    # warp_n, warp_m, warps_n, warps_m, warps_k, units, CTAs an SM
    table = [
        (32, 8, 2, 1, 4, 4, 1),
        (32, 16, 4, 1, 2, 2, 1),
        (32, 32, 8, 1, 1, 1, 1),
        (32, 32, 4, 2, 1, 1, 1),
        (32, 64, 4, 2, 1, 1, 1),
    ]
    rows = [(*row, "dense") for row in table]
    rows += [(*table[i], layout) for layout in ("contiguous", "masked") for i in (1, 3)]
    return [
        W4a16Shape.deepest(x_dtype, *row, "cp_async", sm_shared)
        for x_dtype in ("bf16", "f16")
        for row in rows
    ]


def w4a16_variant(shape: W4a16Shape) -> Variant:
    """NVFP4 weights times BF16 or FP16 activations, for a shape; operands by TMA."""
    s = shape
    x_box = (s.BOX_K, s.tile_m) + ((1,) if s.layout == "masked" else ())
    w_box = (s.UNIT_BYTES // 8, s.units, s.tile_n // s.UNIT_ROWS) + (() if s.layout == "dense" else (1,))
    operands = (
        Param("map_x", "tensor_map", TensorMapSpec(s.x_dtype, x_box, "128B")),
        Param("map_w", "tensor_map", TensorMapSpec("u64", w_box, "none")),
    )
    name = f"{_w4a16_name(s)}_wgmma" if s.sorters else _w4a16_name(s)
    archs = ("sm_90a",) if s.sorters else TMA_ARCHS
    few_spills = s.sums == 128 and not s.sorters
    spills = "up to 48 bytes, a few accesses beside the 256 MMAs of a stage" if few_spills else ""
    return _w4a16_variant(s, name, archs, operands, _compile_gemm_w4a16, spills)


def w4a16_cp_async_variant(shape: W4a16Shape, archs: tuple[str, ...]) -> Variant:
    """The same with operands by cp.async, for architectures with `shape.sm_shared` bytes or more."""
    operands = (
        Param("x", "pointer"),
        Param("w", "pointer"),
        Param("ldx", "i32"),
        Param("x_matrix_stride", "i64"),
    )
    name = f"{_w4a16_name(shape)}_cp_async_s{shape.stages}"  # which tells architectures apart
    return _w4a16_variant(shape, name, archs, operands, _compile_gemm_w4a16_cp_async)


def _w4a16_name(s: W4a16Shape) -> str:
    grouped = "" if s.layout == "dense" else f"_{s.layout}"
    return f"sm80_gemm_w4a16_{s.x_dtype}_{s.tile_n}x{s.tile_m}x{s.tile_k}{grouped}"


def _w4a16_variant(
    shape: W4a16Shape,
    name: str,
    archs: tuple[str, ...],
    operands: tuple[Param, ...],
    compile: Callable[[W4a16Shape, str, str, str], Any],
    allow_spills: str = "",
) -> Variant:
    return Variant(
        kernel="gemm_w4a16",
        name=name,
        shape=shape,
        params=(
            *operands,
            Param("d", "pointer"),
            Param("global_scale", "pointer"),
            Param("slots", "pointer"),
            Param("flags", "pointer"),
            *(Param(number, "i32") for number in ("m", "n", "k", "ldd", "aligned", "whole", "share")),
            Param("layout", "pointer"),
            Param("experts", "i32"),
            Param("matrix_stride", "i64"),
        ),
        block=(shape.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=shape.smem_bytes,
        archs=archs,
        compile=partial(compile, shape, name),
        allow_spills=allow_spills,
    )


def _compile_gemm_w4a16(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    from sm80 import gemm_w4a16 as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_gemm_w4a16_cp_async(shape: W4a16Shape, name: str, arch: str, options: str) -> Any:
    from sm80 import gemm_w4a16_cp_async as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_nvfp4_dequantize(shape: DequantizeShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_dequantize as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_nvfp4_repack(shape: RepackShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_repack as kernel

    return kernel.compile(shape, name, arch, options)
