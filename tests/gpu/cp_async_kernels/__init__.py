r"""The GEMMs with packed NVFP4 weights that copy by cp.async, for a Hopper GPU: as sm_80 has them, and as sm_86 does.

    for only in '*cp_async*' nvfp4_repack; do
        python -m cute_kernels build --arch sm_90a --package sm80 --package tests.gpu.cp_async_kernels --only "$only" \
            --out FOLDER
    done
    CUTE_KERNELS_CUBINS=FOLDER python -m pytest tests/gpu/test_gemm_w4a16.py
"""

from __future__ import annotations

import sm80
from cute_kernels.build.variant import Variant
from sm80.shape import CP_ASYNC_ARCHS

ARCH, MOST = "sm_90a", max(CP_ASYNC_ARCHS)


def variants(arch: str) -> list[Variant]:
    """All kernels of sm_80 and, of the others, the one with two stages; none for another architecture than Hopper's."""
    found = []
    for sm_shared in CP_ASYNC_ARCHS if arch == ARCH else ():
        for shape in sm80.w4a16_cp_async_shapes(sm_shared):
            if shape.sm_shared == MOST or shape.stages == 2:
                found.append(sm80.w4a16_cp_async_variant(shape, (ARCH,)))
    return found
