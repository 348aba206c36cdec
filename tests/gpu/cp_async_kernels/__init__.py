r"""The GEMMs with packed NVFP4 weights that copy by cp.async, for a Hopper GPU: as sm_80 has them, and as sm_86 does.

    python -m cute_kernels build --arch sm_90a --package sm80 --package tests.gpu.cp_async_kernels \
        --only '*cp_async*' --out FOLDER
    CUTE_KERNELS_CUBINS=FOLDER python -m pytest tests/gpu/test_gemm_w4a16.py
"""

from __future__ import annotations

from dataclasses import replace

import sm80
from cute_kernels.build.variant import Variant
from sm80.shape import CP_ASYNC_ARCHS

ARCH = "sm_90a"


def variants(arch: str) -> list[Variant]:
    """All kernels of sm_80 and, of the others, the one with two stages; none for another architecture than Hopper's."""
    found: dict[str, Variant] = {}
    for sm_shared in CP_ASYNC_ARCHS if arch == ARCH else ():
        for shape in sm80.w4a16_cp_async_shapes(sm_shared):
            variant = sm80.w4a16_cp_async_variant(shape, (ARCH,))
            if shape.stages == 2:
                variant = replace(variant, name=f"{variant.name}_2")
            found.setdefault(variant.name, variant)
    return list(found.values())
