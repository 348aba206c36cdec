"""Products whose operands are swapped: a few rows of A as the N of the tensor core, D transposed on its way out.

By the operations, with no other kernels to choose from. That each variant serves many rows and several tiles too is
in test_gemm_formats.py, test_gemm_mixed.py and test_gemm_bf16.py, and here for MXFP4.
"""

from __future__ import annotations

import pytest

import cute_kernels
import sm100
from cute_kernels.runtime import Library, context
from cute_kernels.trial_problems import Gemm
from cute_kernels.trials import Place, attempt
from sm100.shape import Shape
from tests.building import Request, build
from tests.emulate.direct import by_turns, check
from tests.emulate.test_gemm_mxf4 import existing
from tests.gemm_cases import Case, Operands

ARCH = "sm_100a"
SCHEDULES = ("eager", "lazy", "random")
BUILT = [v for v in sm100.variants(ARCH) if v.shape.swap_ab and not (v.shape.grouped or v.shape.split_k)]
NARROW = sm100.gemm_variant(Shape.fitting(16, "bf16", False, swap_ab=True))
MXF4 = {v.name: v for v in (NARROW, *BUILT) if v.shape.family_dtype == "mxf4"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Kernels with swapped operands alone."""
    found = existing()
    if found is None:
        out = tmp_path_factory.mktemp("cubins")
        for only in ("*_swap_ab", "*_swap_ab_accumulate"):
            request = Request(out, (ARCH,), only=only, packages=("sm100",))
            assert not build(request, say=lambda line: None).failures
        found = Library(out)
    result = Library(found.folder)
    names = {v.name for v in BUILT}
    result.records = tuple(r for r in result.records if r.name in names and r.arch == ARCH)
    assert {r.name for r in result.records} == names
    return result


@pytest.fixture(autouse=True)
def cubins(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context._settings, "library", library)


ROWS = (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 70)
N = (8, 200, 1, 129, 264, 3, 128, 1001)  # of which TMA stores whole 16 bytes, or that cost a copy
K = (32, 256, 1056, 3104)  # with more K tiles than stages
OUTPUTS = (
    ("bf16", "none"),
    ("f32", "none"),
    ("bf16", "apart"),
    ("f32", "d"),
    ("f32", "apart"),
    ("bf16", "d"),
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Case(m, n, K[(i + j) % 4], *OUTPUTS[(i + j + j // 3) % 6], SCHEDULES[(i + 2 * j) % 3], i + j),
            marks=() if (i + j) % 3 == 0 else pytest.mark.full,
        )
        for i, m in enumerate(ROWS)
        for j, n in enumerate(N)
    ],
    ids=str,
)
def test_few_rows(case: Case) -> None:
    """D in the midst of poisoned memory, with a row stride of its own, by two CTAs."""
    o = Operands(case)
    with cute_kernels.emulate(ARCH, case.schedule, case.seed, num_sms=2) as emulation:
        cute_kernels.gemm_nt(o.a, o.b, o.d, o.c)
    assert o.wrong() == ""
    (report,) = emulation.reports
    assert "swap_ab" in report.kernel
    assert report.warnings == []


# As calls name them, A's first: tokens, and then weights.
FORMATS = ("nvf4", "mxf8", "mxf8_k128", "bf16", "mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128")
MIXED = FORMATS[4:]


@pytest.mark.parametrize(
    ("problem", "place"),
    [
        pytest.param(
            Gemm(m, n, k, d, c, form),
            Place(ARCH, SCHEDULES[(i + j) % 3], seed=i, num_sms=2),
            id=f"{form}-{m}x{n}x{k}-{d}-{c}-{SCHEDULES[(i + j) % 3]}",
        )
        for i, form in enumerate(FORMATS)
        for j, (m, n, k, d, c) in enumerate(
            (
                (1, 200, 384, "bf16", False),
                (16, 136, 1664, "bf16", False),
                (31, 264, 128, "bf16", False),
                (17, 130, 384, "f32", False),
                (32, 200, 1664, "f32", True),
                (18, 129, 1664, "bf16", True),
                (70, 264, 128, "bf16", True),
            )
        )
        if (d, c) == ("bf16", False) or form not in MIXED
    ],
)
def test_every_format(problem: Gemm, place: Place) -> None:
    trial = attempt(problem, place, operand_seed=place.seed)
    assert trial.passed, trial


@pytest.mark.parametrize(("name", "schedule"), by_turns(*MXF4))
def test_every_variant_of_mxf4(name: str, schedule: str) -> None:
    """More K tiles than stages, several tiles a CTA, a tail in every dimension."""
    variant = MXF4[name]
    check(variant, 264, 2 * variant.shape.tile_n + 3, 256 * (variant.shape.stages + 1) + 32, schedule, seed=1)
