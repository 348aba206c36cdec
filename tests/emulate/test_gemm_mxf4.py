"""gemm_nt in MXFP4 on the emulator: numbers against float64, nothing else touched, no hazard in any
schedule.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import processes
from cute_kernels.runtime import KernelRecord, Library, ManifestError, context
from tests.building import Request, build
from tests.gemm_cases import DTYPES, PAIRWISE, VALUES, Case, Operands

ARCH = "sm_100a"
FAMILY = "gemm_blockscaled"


def existing() -> Library | None:
    """The cubins of the environment, where the test command has just built them."""
    try:
        library = Library(os.environ["CUTE_KERNELS_CUBINS"])
    except (KeyError, ManifestError):
        return None
    return library if library.find(FAMILY, (ARCH,)) else None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    found = existing()
    if found is None:
        out = tmp_path_factory.mktemp("cubins")
        result = build(Request(out, (ARCH,), only="*gemm_mxf4*", packages=("sm100",)), say=lambda line: None)
        assert not result.failures
        found = Library(out)
    return found


@pytest.fixture(autouse=True)
def cubins(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context._settings, "library", library)


def run(case: Case, num_sms: int = 8, operands: Operands | None = None) -> list[Any]:
    """Run a case and check it; returns the emulator's reports."""
    o = operands or Operands(case)
    with cute_kernels.emulate(ARCH, case.schedule, case.seed, num_sms) as emulation:
        assert cute_kernels.gemm_nt(o.a, o.b, o.d, o.c) is o.d
    assert o.wrong() == ""
    reports = list(emulation.reports)
    assert [report.warnings for report in reports] == [[]]
    return reports


def only(library: Library, record: KernelRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one kernel to choose from."""
    chosen = Library(library.folder)
    chosen.records = tuple(r for r in chosen.records if r.name == record.name and r.arch == ARCH)
    monkeypatch.setattr(context._settings, "library", chosen)


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_pairwise(case: Case) -> None:
    run(case)


def test_the_pairwise_cases_are_pairwise() -> None:
    for one, two in itertools.combinations(VALUES, 2):
        met = {(getattr(case, one), getattr(case, two)) for case in PAIRWISE}
        assert met == set(itertools.product(VALUES[one], VALUES[two])), (one, two)


@pytest.mark.parametrize("schedule", VALUES["schedule"])
def test_the_number_of_processes_changes_nothing(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_WORTH_FORKING", 1e-9)
    found = []
    for number in (1, 2, 2, 3):
        monkeypatch.setattr(processes, "most_processes", lambda number=number: number)
        case = Case(200, 328, 544, "bf16", schedule=schedule)
        operands = Operands(case)
        found.append((run(case, 4, operands), operands.d.clone()))
    for reports, d in found[1:]:
        assert reports == found[0][0]
        assert torch.equal(d, found[0][1])


@pytest.mark.full
@pytest.mark.parametrize("k", VALUES["k"])
@pytest.mark.parametrize("n", VALUES["n"])
@pytest.mark.parametrize("m", VALUES["m"])
def test_every_combination(m: int, n: int, k: int) -> None:
    for d, c, schedule, seed in itertools.product(*(VALUES[key] for key in ("d", "c", "schedule", "seed"))):
        run(Case(m, n, k, d, c, schedule, seed))


TILES = ((1, 32), (1, 64), (1, 128), (1, 192), (2, 128), (2, 192))  # CTAs, columns
VARIANTS = tuple(itertools.product(TILES, DTYPES, (False, True)))


@pytest.mark.parametrize(
    ("variant", "schedule"),
    [
        # One schedule each in every run of the tests, by turns; the others with the full matrix.
        pytest.param(variant, schedule, marks=() if (i + j) % 3 == 0 else pytest.mark.full)
        for i, variant in enumerate(VARIANTS)
        for j, schedule in enumerate(VALUES["schedule"])
    ],
)
def test_every_variant(
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    variant: tuple[tuple[int, int], str, bool],
    schedule: str,
) -> None:
    """Two CTAs have several tiles each, of more K tiles than there are stages; tails in every dimension."""
    (ctas, tile_n), d, accumulate = variant
    wanted = {
        "family_dtype": "mxf4",
        "cta_group": ctas,
        "multicast": False,
        "heads": False,
        "grouping": "",
        "split_k": False,
        "clc": False,
        "tile_n": tile_n,
        "d_dtype": d,
        "accumulate": accumulate,
        "swap_ab": False,
    }
    (record,) = (
        r
        for r in library.find(FAMILY, (ARCH,))
        if all(r.config[key] == value for key, value in wanted.items())
    )
    only(library, record, monkeypatch)
    k = 256 * record.config["stages"] + 256 + 32
    (report,) = run(Case(150 * ctas, 200, k, d, "apart" if accumulate else "none", schedule, 5), num_sms=2)
    assert report.kernel.startswith(record.name)
    assert report.grid == (2, 1, 1)


def test_every_compiled_variant_is_tested(library: Library) -> None:
    compiled = {
        ((r.config["cta_group"], r.config["tile_n"]), r.config["d_dtype"], r.config["accumulate"])
        for r in library.find(FAMILY, (ARCH,))
        if r.config["family_dtype"] == "mxf4" and r.config["d_dtype"] in ("bf16", "f32")
        if not (r.config["heads"] or r.config["split_k"] or r.config["clc"] or r.config["swap_ab"])
    }
    assert compiled == set(VARIANTS)


@pytest.mark.parametrize("num_sms", [1, 3, 16])
def test_the_number_of_multiprocessors_changes_nothing(num_sms: int) -> None:
    run(Case(300, 200, 288, "f32", "apart"), num_sms=num_sms)


def test_scale_factors_far_apart() -> None:
    """Blocks of one row whose products differ by up to 2^120."""
    case = Case(64, 96, 512)
    run(case, operands=Operands(case, spread=30))


@pytest.mark.parametrize(("n", "d"), [(1001, "bf16"), (3, "bf16"), (97, "f32"), (1, "f32")])
@pytest.mark.parametrize("c", ["none", "apart", "d"])
def test_rows_that_end_inside_16_bytes(n: int, d: str, c: str) -> None:
    run(Case(130, n, 96, d, c))


def test_an_allocated_result_of_ragged_rows() -> None:
    case = Case(130, 1001, 96, "bf16")
    o = Operands(case)
    with cute_kernels.emulate(ARCH):
        o.d.copy_(cute_kernels.gemm_nt(o.a, o.b))
    assert o.wrong() == ""


def test_a_call_again_on_other_values() -> None:
    case = Case(128, 96, 256)
    o, other = Operands(case), Operands(Case(128, 96, 256, seed=9))
    with cute_kernels.emulate(ARCH):
        cute_kernels.gemm_nt(o.a, o.b, o.d)
        assert o.wrong() == ""
        for tensor, values in zip((*o.a, *o.b), (*other.a, *other.b), strict=True):
            tensor.copy_(values)
        cute_kernels.gemm_nt(o.a, o.b, o.d)
    o.exact, o.magnitude = other.exact, other.magnitude
    assert o.wrong() == ""


def test_fp4_tensors_of_torch() -> None:
    o = Operands(Case(64, 32, 64))
    a, b = ((elements.contiguous().view(torch.float4_e2m1fn_x2), scales) for elements, scales in (o.a, o.b))
    with cute_kernels.emulate(ARCH):
        cute_kernels.gemm_nt(a, b, o.d)
    assert o.wrong() == ""


def test_k_of_zero_and_empty_results() -> None:
    for case in (Case(5, 16, 0, "bf16", "apart"), Case(0, 16, 32), Case(5, 0, 32)):
        o = Operands(case)
        with cute_kernels.emulate(ARCH) as emulation:
            cute_kernels.gemm_nt(o.a, o.b, o.d, o.c)
        assert not emulation.reports
        assert o.wrong() == ""


def test_the_check_itself_sees_mistakes() -> None:
    o = Operands(Case(64, 96, 288, "bf16"))
    good = o.exact.to(torch.bfloat16)
    o.d.copy_(good)
    assert o.wrong() == ""
    o.d[3, 5] = o.d[3, 5].float() * (1 + 2.0**-6)
    assert "1 elements are wrong; (3, 5)" in o.wrong()
    o.d.copy_(good)
    o.d[63, 95] = float("nan")
    assert "not finite" in o.wrong()
    o.d.copy_(good)
    o._memory[0, 0] = 0
    assert "outside" in o.wrong()
