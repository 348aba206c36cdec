"""A family small enough to build in every test, and a kernel of it that the build must refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, Variant
from tiny_kernels.shape import Shape

ARCHS = ("sm_80", "sm_90a", "sm_100a")


def variants(arch: str) -> list[Variant]:
    """Two sizes of `scale`, on three architectures."""
    return [scale_variant(Shape(per_thread)) for per_thread in (1, 4)] if arch in ARCHS else []


def scale_variant(shape: Shape, allow_spills: str = "") -> Variant:
    """`out[i] = factor * in[i]`, shape.per_thread elements a thread."""
    return Variant(
        kernel="scale",
        name=shape.name,
        shape=shape,
        params=(
            Param("source", "pointer"),
            Param("target", "pointer"),
            Param("factor", "f32"),
            Param("n", "i32"),
        ),
        block=(shape.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=0,
        archs=ARCHS,
        compile=partial(compile_scale, shape),
        allow_spills=allow_spills,
    )


def compile_scale(shape: Shape, arch: str, options: str) -> Any:
    """Imports the DSL only here."""
    from tiny_kernels import scale

    return scale.compile(shape, arch, options)
