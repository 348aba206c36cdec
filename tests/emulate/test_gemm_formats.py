"""NVFP4 and MXFP8 products on SM100: numbers against float64, no hazard in any schedule, tails in every dimension.

By the kernel alone, launched by hand, and by the operations. MXFP4, which shares every line, is test_gemm_mxf4.py's;
FP4 that meets FP8 is test_gemm_mixed.py's.
"""

from __future__ import annotations

import pytest
import torch

import cute_kernels
from cute_kernels.formats import dequantize, quantize_mxfp8, quantize_nvfp4
from cute_kernels.runtime.gemm_operands import Scaled
from cute_kernels.scale_factors import pack_for_kernel
from sm100 import variants
from tests.emulate.direct import check

FAMILIES = ("nvf4", "mxf8", "mxf8_k128")
VARIANTS = {
    v.name: v
    for v in variants("sm_100a")
    if v.shape.family_dtype in FAMILIES and "mn" not in (v.shape.a_major, v.shape.b_major)
    if not (v.shape.quantized or v.shape.heads or v.shape.split_k or v.shape.grouped or v.shape.clc)
    if not (v.shape.d_batched or v.shape.multicast)
}
SCHEDULES = ("eager", "lazy", "random")


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant(name: str) -> None:
    """More K tiles than stages, several tiles a CTA, a tail in every dimension; schedules by turns."""
    variant = VARIANTS[name]
    place = list(VARIANTS).index(name)
    k = variant.shape.tile_k * (variant.shape.stages + 1) + 32
    check(variant, 150 * variant.shape.cta_group, 200, k, SCHEDULES[place % 3], seed=place)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 32), (129, 264, 544), (128, 128, 512), (7, 1000, 96)])
def test_sizes(family: str, m: int, n: int, k: int, schedule: str) -> None:
    (variant,) = (
        v
        for v in VARIANTS.values()
        if (v.shape.family_dtype, v.shape.tile_n, v.shape.d_dtype) == (family, 128, "f32")
        if not v.shape.accumulate and v.shape.cta_group == 1
    )
    check(variant, m, n, k, schedule, seed=m, num_sms=3)


CUBINS = "*gemm_nvf4_128x64x*", "*gemm_mxf8_*128x64x*"


def operand(rows: int, k: int, granularity: int, seed: int) -> tuple[Scaled, torch.Tensor]:
    """A random matrix whose blocks differ in size, quantized as the operations take it, and its exact values."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=random)
    x *= torch.exp2(
        torch.randint(-6, 6, (rows, -(-k // 16)), generator=random).repeat_interleave(16, 1)[:, :k]
    )
    if granularity == 16:
        data, scales, factor = quantize_nvfp4(x)
        exact = dequantize(data, scales, group=(1, 16), global_scale=factor, dtype=torch.float64)
        return (data, pack_for_kernel(scales, rows, k, gran_k=16), factor), exact
    data, scales = quantize_mxfp8(x, group_k=granularity)
    exact = dequantize(data, scales, group=(1, granularity), dtype=torch.float64)
    wide = torch.full((rows, -(-k // 16) * 16), 448.0).to(torch.float8_e4m3fn)  # what lies between the rows
    wide[:, :k] = data
    return (wide[:, :k], pack_for_kernel(scales, rows, k, gran_k=granularity)), exact


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(
    ("granularity", "k"), [(16, 352), (16, 32), (32, 352), (32, 77), (128, 1120), (128, 100), (128, 77)]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_operations(granularity: int, k: int, schedule: str) -> None:
    """With and without C, in FP32 and BF16, into poisoned D."""
    (a, exact_a), (b, exact_b) = operand(130, k, granularity, 1), operand(72, k, granularity, 2)
    exact = exact_a @ exact_b.T
    recipe = (1, 1, granularity)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        d = torch.full((130, 72), torch.nan)
        cute_kernels.fp8_fp4_gemm_nt(a, b, d, recipe=recipe)
        c = torch.randn(130, 72).to(torch.bfloat16)
        narrow = cute_kernels.gemm_nt(a, b, None, c, recipe=recipe)
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert (d.double() - exact).norm() < 1e-6 * exact.norm()
    wanted = exact + c.double()
    assert bool(((narrow.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-5 * exact.abs().max()).all())


@pytest.mark.usefixtures("cubins")
def test_a_result_over_a_global_scale() -> None:
    (a, _), (b, _) = operand(40, 64, 16, 1), operand(32, 64, 16, 2)
    d = torch.ones(40, 32)
    with (
        cute_kernels.emulate("sm_100a") as emulation,
        pytest.raises(cute_kernels.ArgumentError, match="d shares memory with b's global scale"),
    ):
        cute_kernels.gemm_nt(a, (*b[:2], d[3, 5]), d)
    assert not emulation.reports
    assert bool((d == 1).all())
