"""Products of groups of rows on CTA pairs: groups that leave a pair's second CTA without rows, or with another group's.

What one CTA does as well is test_gemm_grouped.py's and test_grouped_mxfp8_out.py's; here only pairs may be chosen.
"""

from __future__ import annotations

from typing import Any

import pytest

import sm100
from cute_kernels.runtime import KernelNotFoundError
from cute_kernels.trial_grouped import GroupedGemm, Kind
from tests.emulate.direct import SCHEDULES, by_turns, with_seeds
from tests.emulate.test_gemm_grouped import check
from tests.emulate.test_grouped_mxfp8_out import Case

KINDS: tuple[Kind, ...] = ("contiguous", "prefix", "masked")
ROWS = {
    "one of one row": (1,),
    "none, one, a half, a tile and more": (0, 1, 128, 0, 129, 256, 300, 32),
    "many of none": (0,) * 70 + (5,) + (0,) * 40 + (133,),
    "all of none": (0,) * 40,
}

CUBINS = "*_256x*_by_*", "sm100_gemm_mxf8*_128x128x???_f32"
pytestmark = pytest.mark.usefixtures("cubins")


def problem(kind: Kind, rows: tuple[int, ...], n: int, k: int, operands: str, **other: Any) -> GroupedGemm:
    alignment = other.pop("alignment", 256 if kind == "contiguous" else 128)
    return GroupedGemm(kind, rows, n, k, operands, alignment, **other)


@pytest.mark.parametrize(
    ("name", "kind", "schedule"),
    [
        pytest.param(name, kind, schedule, marks=() if (i + j + k) % 3 == 0 else pytest.mark.full)
        for i, name in enumerate(ROWS)
        for j, kind in enumerate(KINDS)
        for k, schedule in enumerate(SCHEDULES)
    ],
)
@with_seeds
def test_sizes(name: str, kind: Kind, schedule: str, seed: int) -> None:
    """Two tiles in every tile row, the second of eight columns; K ends inside a tile. A multiprocessor is to spare."""
    given = problem(kind, ROWS[name], 200, 288, "mxf4", room=150)
    check(given, schedule, seed=len(name) + seed, num_sms=5)


FORMATS = ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_k128_mxf4", "bf16")


@pytest.mark.parametrize(
    ("operands", "kind", "schedule"),
    [
        pytest.param(*(form, kind, schedule), marks=() if (i + j + k) % 3 == 0 else pytest.mark.full)
        for i, form in enumerate(FORMATS)
        for j, kind in enumerate(KINDS)
        for k, schedule in enumerate(SCHEDULES)
        if kind != "contiguous" or form in ("mxf4", "nvf4", "mxf8_k128", "bf16")
    ],
)
@with_seeds
def test_formats(operands: str, kind: Kind, schedule: str, seed: int) -> None:
    """Several K tiles with a tail, and tiles with fewer columns than a pair's halves of B."""
    k = {"bf16": 200, "mxf8": 330, "mxf8_k128": 1130}.get(operands, 384 if "_mxf4" in operands else 544)
    check(problem(kind, (3, 0, 140), 72, k, operands), schedule, seed=3 + seed, num_sms=2)


def test_every_compiled_variant_is_tested() -> None:
    pairs = [v.shape for v in sm100.variants("sm_100a") if v.shape.grouped and v.shape.cta_group == 2]
    plain = {(s.family_dtype, s.grouping) for s in pairs if not s.quantized}
    assert plain == {(f, "sizes") for f in FORMATS} | {
        (f, "indices") for f in ("mxf4", "nvf4", "mxf8_k128", "bf16")
    }
    assert {(s.family_dtype, s.grouping) for s in pairs if s.quantized} == set(QUANTIZED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_sms", [3, 16])
def test_the_number_of_multiprocessors_changes_nothing(kind: Kind, num_sms: int) -> None:
    check(problem(kind, (3, 0, 300), 392, 64, "mxf4"), num_sms=num_sms)


@pytest.mark.parametrize(("alignment", "schedule"), by_turns(4, 48, 128))
def test_runs_that_begin_anywhere(alignment: int, schedule: str) -> None:
    """The second CTA's rows are another group's, or those of several; they are not its to write."""
    rows = (3, 0, 150, 1, 40, 260)
    check(problem("prefix", rows, 40, 64, "bf16", alignment=alignment), schedule, seed=alignment)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_alignment_of_several_tiles(schedule: str) -> None:
    """So there are tiles between groups that no row is of: both CTAs pass over them."""
    check(problem("contiguous", (3, 0, 140, 520), 40, 64, "mxf4", alignment=768), schedule)


@pytest.mark.parametrize("operands", ["mxf4", "bf16"])
def test_groups_by_indices_that_begin_inside_a_tile_are_not_for_pairs(operands: str) -> None:
    given = problem("contiguous", (3, 140), 40, 64, operands, alignment=128)
    with pytest.raises(KernelNotFoundError, match="groups begin at multiples of 128, tiles have 256 rows"):
        check(given)


QUANTIZED = (("mxf8", "sizes"), ("mxf8_k128", "sizes"), ("mxf8_k128", "indices"))


@pytest.mark.parametrize(("by", "schedule"), by_turns(*QUANTIZED))
@pytest.mark.parametrize(
    ("rows", "n", "k", "blocked", "rule"),
    [((0, 1, 290, 133), 176, 256, False, "ceil"), ((5, 0, 256), 400, 128, True, "floor")],
)
def test_quantized_bits(
    rows: tuple[int, ...], n: int, k: int, blocked: bool, rule: Any, by: tuple[str, str], schedule: str
) -> None:
    """Rows of none hold numbers too, and so do those behind the last group; D and its scale factors stay there."""
    import cute_kernels

    operands, grouping = by
    kind: Kind = "prefix" if grouping == "sizes" else "contiguous"
    case = Case(problem(kind, rows, n, k, operands, room=37), len(rows), blocked)
    with cute_kernels.emulate("sm_100a", schedule, 3, 3) as emulation:
        case.run(rule=rule)
        assert [report.warnings for report in emulation.reports] == [[]]
        assert [report.grid for report in emulation.reports] == [(2, 1, 1)]
        case.check(rule)
