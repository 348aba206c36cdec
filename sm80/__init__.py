"""Kernels that need no more than SM80 has (no TMA, no tensor memory), compiled for every architecture."""

from __future__ import annotations

from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, Variant
from sm80.shape import ARCHS, DequantizeShape, RepackShape


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`. Listing them imports no DSL."""
    return [dequantize_variant(), repack_variant()] if arch in ARCHS else []


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


def _compile_nvfp4_dequantize(shape: DequantizeShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_dequantize as kernel

    return kernel.compile(shape, name, arch, options)


def _compile_nvfp4_repack(shape: RepackShape, name: str, arch: str, options: str) -> Any:
    from sm80 import nvfp4_repack as kernel

    return kernel.compile(shape, name, arch, options)
