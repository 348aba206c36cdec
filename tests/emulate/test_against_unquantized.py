"""Products of Gaussian operands against those of what they were before quantization, within DeepGEMM's thresholds.

They bound the error of quantizing and find little of a kernel's, which other tests hold against the operands' exact
values; but they see a whole call as its users do, from casts on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import cute_kernels
from cute_kernels.casts import cast_to_fp4, cast_to_fp8
from cute_kernels.formats import dequantize, quantize_nvfp4
from cute_kernels.scale_factors import pack_for_kernel, unpack

KINDS = ("mxf8_k128", "mxf8_k128_mxf4", "mxf4_mxf8_k128", "mxf4", "nvf4")
CUBINS = (
    *(f"sm100_gemm_{kind}_128x128x???_bf16" for kind in KINDS),
    "sm100_gemm_bf16_128x128x64_bf16",
    "sm100_gemm_mxf8_128x128x128_mxf8",
)
pytestmark = pytest.mark.usefixtures("cubins")
M, N, K = 128, 96, 512

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def deepgemm(a_fp4: bool, b_fp4: bool) -> Product:
    """Scale factors as casts give them: of an FP8 A for 1 x 128, of an FP8 B for 128 x 128, of FP4 for 1 x 32."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        d = torch.full((M, N), torch.nan, dtype=torch.bfloat16)
        recipe_a, recipe_b = (1, 32 if a_fp4 else 128), (1, 32) if b_fp4 else (128, 128)
        left, right = (
            cast_to_fp4(x, group=of) if fp4 else cast_to_fp8(x, group=of)
            for x, fp4, of in ((a, a_fp4, recipe_a), (b, b_fp4, recipe_b))
        )
        cute_kernels.fp8_fp4_gemm_nt(left, right, d, recipe_a=recipe_a, recipe_b=recipe_b)
        return d

    return product


def nvfp4(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    left, right = (
        (data, pack_for_kernel(scales, *x.shape, gran_k=16), factor)
        for x, (data, scales, factor) in ((x, quantize_nvfp4(x)) for x in (a, b))
    )
    return cute_kernels.gemm_nt(left, right)


def to_mxfp8(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    d, words = cute_kernels.gemm_nt_mxfp8(*(cast_to_fp8(x, group=(1, 32)) for x in (a, b)), recipe=(1, 1, 32))
    return dequantize(d, unpack(words, N // 32), group=(1, 32))


def bf16(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return cute_kernels.gemm_nt(a.bfloat16(), b.bfloat16())


CASES: dict[str, tuple[Product, float]] = {
    "FP8": (deepgemm(False, False), 1e-3),
    "FP8 with MXFP4": (deepgemm(False, True), 1e-2),
    "MXFP4 with FP8": (deepgemm(True, False), 1e-2),
    "MXFP4": (deepgemm(True, True), 2e-2),
    "NVFP4": (nvfp4, 2e-2),
    "MXFP8 out": (to_mxfp8, 3e-2),
    "BF16": (bf16, 1e-5),
}


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 sum(x y) / sum(x^2 + y^2), as DeepGEMM's tests have it; 0 where both are zeros."""
    x, y = x.double(), y.double()
    both = float((x * x + y * y).sum())
    return 1 - 2 * float((x * y).sum()) / both if both else 0.0


@pytest.mark.parametrize("case", CASES)
def test_thresholds(case: str) -> None:
    product, threshold = CASES[case]
    random = torch.Generator().manual_seed(7)
    # BF16 operands are what all others are quantized from.
    a, b = (torch.randn(rows, K, generator=random).bfloat16().float() for rows in (M, N))
    with cute_kernels.emulate("sm_100a", "random", 2, 2):
        d = product(a, b)
    difference = calc_diff(d, a.double() @ b.double().T)
    assert 0 < difference < threshold, difference
