"""NVFP4 and MXFP8 products by the SM100 kernel alone, launched by hand: numbers against float64, no hazard in any
schedule, tails in every dimension. MXFP4, which shares every line, is test_gemm_mxf4.py's.
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from cute_kernels.build.variant import Variant
from sm100 import variants
from tests.emulate.direct import compile_ptx, gemm, relative_error

VARIANTS = {v.name: v for v in variants("sm_100a") if v.shape.family_dtype != "mxf4"}
SCHEDULES = ("eager", "lazy", "random")


@lru_cache
def ptx(name: str) -> str:
    return compile_ptx(VARIANTS[name])


def check(variant: Variant, m: int, n: int, k: int, schedule: str, seed: int, num_sms: int = 2) -> None:
    result, exact, report = gemm(variant, ptx(variant.name), m, n, k, schedule, seed, num_sms)
    assert report.warnings == []
    # D in BF16 differs by one rounding: 2^-9 of each element at most.
    assert relative_error(result, exact) < (1e-6 if variant.shape.d_dtype == "f32" else 2.0**-9)


@pytest.mark.parametrize("name", [v for v in VARIANTS])
def test_every_variant(name: str) -> None:
    """More K tiles than stages, several tiles a CTA, a tail in every dimension; schedules by turns."""
    variant = VARIANTS[name]
    place = list(VARIANTS).index(name)
    k = variant.shape.tile_k * (variant.shape.stages + 1) + 32
    check(variant, 150, 200, k, SCHEDULES[place % 3], seed=place)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", ["nvf4", "mxf8", "mxf8_k128"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 32), (129, 264, 544), (128, 128, 512), (7, 1000, 96)])
def test_sizes(family: str, m: int, n: int, k: int, schedule: str) -> None:
    (variant,) = (
        v
        for v in VARIANTS.values()
        if (v.shape.family_dtype, v.shape.tile_n, v.shape.d_dtype) == (family, 128, "f32")
        if not v.shape.accumulate
    )
    check(variant, m, n, k, schedule, seed=m, num_sms=3)
