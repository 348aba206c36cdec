"""Groups of few rows: operands swapped, so that a tile has 32 rows of a group, and 128 rows of its matrix.

With no other kernels to choose from. What all grouped products have in common is test_gemm_grouped.py's.
"""

from __future__ import annotations

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.device.umma_formats import SWAPPED
from cute_kernels.runtime import KernelNotFoundError, Library, context
from cute_kernels.trial_grouped import GroupedGemm, Kind
from cute_kernels.trials import Place, attempt
from tests.building import Request, build
from tests.emulate.direct import with_seeds
from tests.emulate.test_gemm_grouped import Captured, flat
from tests.emulate.test_gemm_mxf4 import existing

ARCH = "sm_100a"
SCHEDULES = ("eager", "lazy", "random")
KINDS: tuple[Kind, ...] = ("contiguous", "prefix", "masked")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Grouped kernels with swapped operands alone."""
    found = existing()
    if found is None:
        out = tmp_path_factory.mktemp("cubins")
        request = Request(out, (ARCH,), only="*swap_ab_by_*", packages=("sm100",))
        assert not build(request, say=lambda line: None).failures
        found = Library(out)
    result = Library(found.folder)
    names = {v.name for v in sm100.variants(ARCH) if v.shape.swap_ab and v.shape.grouped}
    result.records = tuple(r for r in result.records if r.name in names and r.arch == ARCH)
    assert {r.name for r in result.records} == names
    return result


@pytest.fixture(autouse=True)
def cubins(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context._settings, "library", library)


def check(problem: GroupedGemm, schedule: str = "random", seed: int = 0, num_sms: int = 3) -> None:
    """Run a problem, and hold it right, contained and free of hazards."""
    trial = attempt(problem, Place(ARCH, schedule, seed, num_sms), seed)
    assert trial.passed, (trial.verdict, trial.hazard, trial.outcome)


ROWS = {
    "one of one row": (1,),
    "none, one, many": (0, 1, 40, 0, 32, 31, 33, 16, 17, 2),
    "more than a warp has lanes": (0,) * 40 + (5,) + (0,) * 31 + (33,),
    "all of none": (0,) * 40,
}


@pytest.mark.parametrize(
    ("rows", "kind", "schedule"),
    [
        # One schedule each in every run of the tests, by turns; the others with the full matrix.
        pytest.param(
            rows,
            kind,
            schedule,
            marks=() if (i + j + k) % 3 == 0 else pytest.mark.full,
            id=f"{name}-{kind}-{schedule}",
        )
        for i, (name, rows) in enumerate(ROWS.items())
        for j, kind in enumerate(KINDS)
        for k, schedule in enumerate(SCHEDULES)
    ],
)
@with_seeds
def test_sizes(rows: tuple[int, ...], kind: Kind, schedule: str, seed: int) -> None:
    """Two tiles of columns, the second of eight; K ends inside a tile. Nothing is written but the rows of groups."""
    alignment = {"contiguous": 32, "prefix": 4, "masked": 128}[kind]
    check(GroupedGemm(kind, rows, 136, 288, alignment=alignment, room=37), schedule, seed=len(rows) + seed)


@pytest.mark.parametrize(("kind", "schedule"), [*zip(KINDS, SCHEDULES, strict=True)])
def test_columns_that_are_not_whole_16_bytes(kind: Kind, schedule: str) -> None:
    """What lies behind a row of D stays as it is, and so do rows of none."""
    check(GroupedGemm(kind, (3, 0, 34, 1), 131, 64, alignment=32, room=9), schedule, seed=6)


def test_an_alignment_of_several_tiles() -> None:
    """So there are tiles between groups that no row is of."""
    check(GroupedGemm("contiguous", (3, 0, 140), 40, 64, alignment=384))


@pytest.mark.parametrize(
    ("form", "kind", "schedule"),
    [
        pytest.param(
            *(SWAPPED[v.shape.family_dtype], kind, SCHEDULES[(i // 2 + j) % 3]),
            marks=pytest.mark.full if kind == "prefix" else (),
        )
        for i, v in enumerate(v for v in sm100.variants(ARCH) if v.shape.swap_ab and v.shape.grouped)
        for j, kind in enumerate(KINDS)
        if (kind == "contiguous") == (v.shape.grouping == "indices")
    ],
)
@with_seeds
def test_formats(form: str, kind: Kind, schedule: str, seed: int) -> None:
    """More K tiles than stages, several tiles a CTA; in NVFP4, a global scale for each group."""
    k = 256 * 12 if form in ("mxf4", "nvf4") else 128 * 12
    check(GroupedGemm(kind, (0, 33, 1, 7), 264, k, form), schedule, seed=4 + seed, num_sms=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_launch_serves_other_sizes(kind: Kind) -> None:
    """Sizes change in place, as between replays of a graph."""
    first = Captured(kind, (4, 0, 34), 40, 288, alignment=32, room=32)
    second = Captured(kind, (33, 9, 1) if kind != "masked" else (66, 0, 9), 40, 288, alignment=32)
    (run, judge), (run_second, judge_second) = first.prepare("cpu", 1), second.prepare("cpu", 2)
    run()
    run_second()
    memory, others = first.given, second.given
    kept = [t.clone() for t in flat(memory)]
    for values, target, judged in ((flat(others), others[2], judge_second), (kept, memory[2], judge)):
        for tensor, value in zip(flat(memory), values, strict=True):
            tensor.copy_(value)
        memory[2].fill_(torch.nan)
        with cute_kernels.emulate(ARCH, num_sms=2):
            GroupedGemm(kind, (4, 0, 34), 40, 288, alignment=32).run(*memory)
        target.copy_(memory[2].clone())
        outcome = judged()
        assert outcome.right and outcome.contained


def test_an_alignment_that_no_tile_has() -> None:
    with pytest.raises(KernelNotFoundError, match="groups begin at multiples of 16, tiles have 32 rows"):
        check(GroupedGemm("contiguous", (3, 5), 40, 64, alignment=16))
