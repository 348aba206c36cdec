"""Random block-scaled operands as the operations take them."""

from __future__ import annotations

import torch

from cute_kernels.formats import quantize_mxfp4, quantize_mxfp8, quantize_nvfp4
from cute_kernels.runtime.gemm_operands import Scaled
from cute_kernels.scale_factors import pack_for_kernel

GRANULARITY = {"mxf4": 32, "nvf4": 16, "mxf8": 32, "mxf8_k128": 128}


def operand(family: str, rows: int, k: int, seed: int) -> Scaled:
    """A random matrix, blocks of which differ in size, and rows more: as the operations take it."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=random)
    x *= torch.exp2(torch.randint(-6, 6, (rows, -(-k // 16)), generator=random)).repeat_interleave(16, 1)[
        :, :k
    ]
    x *= torch.exp2(torch.randint(-12, 12, (rows, 1), generator=random))
    if family == "nvf4":
        data, scales, factor = quantize_nvfp4(x)
        return data, pack_for_kernel(scales, rows, k, gran_k=16), factor
    data, scales = quantize_mxfp4(x) if family == "mxf4" else quantize_mxfp8(x, group_k=GRANULARITY[family])
    return data, pack_for_kernel(scales, rows, k, gran_k=GRANULARITY[family])


def recipe(family: str) -> tuple[int, int, int]:
    return 1, 1, GRANULARITY[family]
