"""The performance harness, and the kernels that measure what a GPU reaches: `build --package perf` compiles them."""

from __future__ import annotations

from functools import partial
from typing import Any

from cute_kernels.build.variant import Param, Variant
from perf.kernels.shape import ARCHS, EmptyShape, MmaSyncShape, ReadShape

READS = (ReadShape(256, 4), ReadShape(256, 8), ReadShape(512, 8))  # which is the fastest depends on the size


def variants(arch: str) -> list[Variant]:
    """The variants that the build compiles for `arch`. Listing them imports no DSL."""
    if arch not in ARCHS:
        return []
    mma = MmaSyncShape(warps=8, chains=8)
    pointers = Param("operands", "pointer"), Param("out", "pointer")
    return [
        _variant("ceiling_empty", "perf_empty", EmptyShape(), (Param("unused", "i32"),)),
        _variant("ceiling_mma_sync", "perf_mma_sync", mma, (*pointers, Param("iterations", "i32"))),
        *(
            _variant(
                "ceiling_read",
                f"perf_read_{shape.threads}x{shape.loads}",
                shape,
                (
                    Param("data", "pointer"),
                    Param("out", "pointer"),
                    Param("wanted", "u32"),
                    Param("pieces", "i64"),
                ),
            )
            for shape in READS
        ),
    ]


def _variant(kernel: str, name: str, shape: Any, params: tuple[Param, ...]) -> Variant:
    return Variant(
        kernel=kernel,
        name=name,
        shape=shape,
        params=params,
        block=(shape.threads, 1, 1),
        cluster=(1, 1, 1),
        dynamic_shared=0,
        archs=ARCHS,
        compile=partial(_compile, kernel, shape, name),
    )


def _compile(kernel: str, shape: Any, name: str, arch: str, options: str) -> Any:
    from perf.kernels import ceilings

    return ceilings.compile(kernel, shape, name, arch, options)
