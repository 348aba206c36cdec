"""Products of CTA pairs that leave as MXFP8 or NVFP4: bit for bit what quantizing the FP32 product gives.

The second CTA's rows may all lie outside D; its scale factors' words and padding are then nobody's, or the first's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.formats import nvfp4_global_scale, quantize_mxfp8
from tests.emulate import test_gemm_mxfp8_out as mxfp8_out
from tests.emulate import test_gemm_nvfp4_out as nvfp4_out
from tests.emulate.direct import by_turns
from tests.emulate.scaled_operands import operand, recipe

SIZES = [
    (1, 32, 128, "blocked"),
    (127, 160, 96, "packed"),
    (259, 288, 640, "blocked"),
    (384, 416, 96, "packed"),
]
TO_MXFP8, TO_NVFP4 = ("mxf8", "mxf8_k128"), ("nvf4",)

CUBINS = (
    "*_256x128x*_mxf8",
    "*_256x128x*_nvf4",
    *(f"sm100_gemm_{f}_128x128x???_f32" for f in {*TO_MXFP8, *TO_NVFP4}),
)
pytestmark = pytest.mark.usefixtures("cubins")


@pytest.mark.parametrize(("family", "schedule"), by_turns(*TO_MXFP8))
@pytest.mark.parametrize(("size", "rule"), list(zip(SIZES, ("ceil", "floor") * 2, strict=True)))
def test_mxfp8(family: str, schedule: str, size: tuple[int, int, int, str], rule: Any) -> None:
    m, n, k, layout = size
    a, b = operand(family, m, k, m), operand(family, n, k, n + 1)
    with cute_kernels.emulate("sm_100a", schedule, 3, 3) as emulation:
        found = mxfp8_out.quantized_into_poison(a, b, layout, rule, family)
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=recipe(family))
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert emulation.reports[0].grid == (2, 1, 1)
    elements, wanted = quantize_mxfp8(product, rule=rule)
    assert torch.equal(found[1].view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(found[0], elements.view(torch.uint8))


@pytest.mark.parametrize(("family", "schedule"), by_turns(*TO_NVFP4))
@pytest.mark.parametrize("size", SIZES)
def test_nvfp4(family: str, schedule: str, size: tuple[int, int, int, str]) -> None:
    m, n, k, layout = size
    a, b = operand(family, m, k, m), operand(family, n, k, n + 1)
    with cute_kernels.emulate("sm_100a", schedule, 5, 3) as emulation:
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=recipe(family))
        factor = nvfp4_global_scale(product.abs().amax())
        found = nvfp4_out.quantized_into_poison(a, b, factor, layout, family)
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert emulation.reports[1].grid == (2, 1, 1)
    nvfp4_out.same(found, product, factor)


def test_what_is_built() -> None:
    pairs = [v.shape for v in sm100.variants("sm_100a") if v.shape.cta_group == 2 and not v.shape.grouped]
    quantizing = {(s.family_dtype, s.d_dtype) for s in pairs if s.quantized}
    assert quantizing == {*((f, "mxf8") for f in TO_MXFP8), *((f, "nvf4") for f in TO_NVFP4)}
