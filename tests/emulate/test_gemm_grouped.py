"""Products of groups of rows on SM100: every size of group, numbers against float64, nothing else written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels import ops_grouped
from cute_kernels.runtime import Library, context
from cute_kernels.trial_grouped import GroupedGemm, Kind
from cute_kernels.trials import Place, attempt
from tests.building import Request, build
from tests.emulate.direct import with_seeds
from tests.emulate.test_gemm_mxf4 import existing

SCHEDULES = ("eager", "lazy", "random")
KINDS: tuple[Kind, ...] = ("contiguous", "prefix", "masked")


@pytest.fixture(scope="module", autouse=True)
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernels as what operations run, without those that test_swap_ab_groups.py and test_pair_groups.py run."""
    library = existing()
    if library is None:
        out = tmp_path_factory.mktemp("cubins")
        request = Request(out, ("sm_100a",), only="*_128x128x*_bf16_by_*", packages=("sm100",))
        assert not build(request, say=lambda line: None).failures
        library = Library(out)
    others = [r for r in library.records if r.config.get("swap_ab") or r.config.get("cta_group") == 2]
    library.records = tuple(r for r in library.records if r not in others)
    context._settings.library = library
    yield
    cute_kernels.set_cubins(None)


def check(problem: GroupedGemm, schedule: str = "random", seed: int = 0, num_sms: int = 3) -> None:
    """Run a problem, and hold it right, contained and free of hazards."""
    trial = attempt(problem, Place("sm_100a", schedule, seed, num_sms), seed)
    assert trial.passed, (trial.verdict, trial.hazard, trial.outcome)


ROWS = {
    "one of one row": (1,),
    "none, one, many": (0, 1, 300, 0, 32, 127, 129),
    "many of none": (0,) * 70 + (5,) + (0,) * 40 + (33,),
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
    """Two tiles in every tile row, the second of eight columns; K ends inside a tile."""
    check(GroupedGemm(kind, rows, 136, 288, room=150), schedule, seed=len(rows) + seed)


MIXED = ("mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128")
FORMATS = ("mxf4", "nvf4", "mxf8", "mxf8_k128", *MIXED, "bf16")


@pytest.mark.parametrize(
    ("operands", "kind", "schedule"),
    [
        pytest.param(
            *(operands, kind, schedule),
            marks=() if (i + j) % 3 == (i + k) % 3 == 0 else pytest.mark.full,
        )
        for i, operands in enumerate(FORMATS)
        for j, kind in enumerate(KINDS)
        for k, schedule in enumerate(SCHEDULES)
    ],
)
@with_seeds
def test_formats(operands: str, kind: Kind, schedule: str, seed: int) -> None:
    """Several K tiles with a tail; more tile rows than one in a group."""
    k = {"bf16": 200, "mxf8": 330, "mxf8_k128": 1130}.get(operands, 384 if operands in MIXED else 544)
    check(GroupedGemm(kind, (3, 0, 140), 136, k, operands), schedule, seed=3 + seed, num_sms=2)


@pytest.mark.parametrize(
    ("operands", "schedule"),
    [
        pytest.param(operands, schedule, marks=() if i == j else pytest.mark.full)
        for i, operands in enumerate(("bf16", "mxf8", "mxf8_k128"))
        for j, schedule in enumerate(SCHEDULES)
    ],
)
def test_an_n_major_b(operands: str, schedule: str) -> None:
    """N is not whole blocks of 64, and is."""
    for n in (136, 192):
        check(GroupedGemm("contiguous", (3, 0, 140), n, 330, operands, layout="nn"), schedule, seed=4)


def test_every_compiled_variant_is_tested() -> None:
    grouped = [v.shape for v in sm100.variants("sm_100a") if v.shape.grouped]
    built = [s for s in grouped if not (s.swap_ab or s.quantized or s.cta_group == 2)]
    assert {s.family_dtype for s in built if s.b_major == "k"} == set(FORMATS)
    assert {s.family_dtype for s in built if s.b_major == "mn"} == {"bf16", "mxf8", "mxf8_k128"}


def test_one_global_scale_for_all_groups() -> None:
    """In the place of those of each."""
    problem = Captured("masked", (6, 2), 40, 64, "nvf4")
    problem.prepare("cpu", 0)[0]()
    (a, b, d, layout) = problem.given
    a[2].fill_(0.75)
    b[2].fill_(1.5)
    with cute_kernels.emulate("sm_100a"):
        GroupedGemm("masked", (6, 2), 40, 64, "nvf4").run(a, b, d, layout)
        by_group = d.clone()
        one_a, one_b = ((*of[:2], of[2][:1].clone()) for of in (a, b))
        GroupedGemm("masked", (6, 2), 40, 64, "nvf4").run(one_a, one_b, d.fill_(torch.nan), layout)
    assert bool((by_group.isnan() == d.isnan()).all())
    assert bool((by_group == d)[~d.isnan()].all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_sms", [1, 16])
def test_the_number_of_multiprocessors_changes_nothing(kind: Kind, num_sms: int) -> None:
    check(GroupedGemm(kind, (3, 0, 130), 264, 64), num_sms=num_sms)


@pytest.mark.parametrize("alignment", [4, 48])
def test_runs_that_begin_anywhere(alignment: int) -> None:
    """Rows of a tile that are another group's are not its to write."""
    check(GroupedGemm("prefix", (3, 0, 150, 1, 40), 40, 64, alignment=alignment), seed=alignment)


@pytest.mark.parametrize(
    ("n", "kind", "schedule"),
    [
        pytest.param(n, kind, schedule, marks=() if (i + j) % 3 == k else pytest.mark.full)
        for i, n in enumerate((1, 100, 131))
        for j, kind in enumerate(KINDS)
        for k, schedule in enumerate(SCHEDULES)
    ],
)
def test_columns_that_are_not_whole_16_bytes(n: int, kind: Kind, schedule: str) -> None:
    """What lies behind a row of D stays as it is, and so do rows of none."""
    check(GroupedGemm(kind, (3, 0, 140, 1), n, 64, room=9), schedule, seed=n)


def test_an_n_major_b_of_ragged_rows() -> None:
    check(GroupedGemm("contiguous", (3, 0, 140), 131, 330, "mxf8", layout="nn"), seed=5)


def test_an_alignment_of_several_tiles() -> None:
    """So there are tiles between groups that no row is of."""
    check(GroupedGemm("contiguous", (3, 0, 140), 40, 64, alignment=384))


class Captured(GroupedGemm):
    """One whose run keeps the tensors that it is given."""

    given: tuple[Any, Any, torch.Tensor, torch.Tensor]

    def run(self, *tensors: Any) -> None:
        """Keep them."""
        object.__setattr__(self, "given", tensors)


def flat(tensors: Any) -> list[torch.Tensor]:
    """The tensors in nested tuples."""
    return [tensors] if isinstance(tensors, torch.Tensor) else [t for part in tensors for t in flat(part)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_launch_serves_other_sizes(kind: Kind) -> None:
    """Sizes change in place, as between replays of a graph."""
    first = Captured(kind, (4, 0, 130), 40, 288, room=128)
    rows = {"contiguous": (200, 9, 1), "prefix": (200, 9, 1), "masked": (258, 0, 9)}[kind]
    second = Captured(kind, rows, 40, 288)
    (run, judge), (run_second, judge_second) = first.prepare("cpu", 1), second.prepare("cpu", 2)
    run()
    run_second()
    memory, others = first.given, second.given
    kept = [t.clone() for t in flat(memory)]
    d, results = memory[2], []
    ops_grouped._requests.clear()
    with cute_kernels.emulate("sm_100a"):
        for values in (kept, flat(others), kept):
            for tensor, value in zip(flat(memory), values, strict=True):
                tensor.copy_(value)
            d.fill_(torch.nan)
            GroupedGemm(kind, (4, 0, 130), 40, 288).run(*memory)
            results.append(d.clone())
    assert len(ops_grouped._requests) == 1
    for result, target, judged in zip(results, (d, others[2], d), (judge, judge_second, judge), strict=True):
        target.copy_(result)
        outcome = judged()
        assert outcome.right and outcome.contained


def test_sizes_beyond_the_room_are_cut_off() -> None:
    problem = Captured("masked", (6, 6), 40, 64)
    run, judge = problem.prepare("cpu", 0)
    run()
    a, b, d, layout = problem.given
    layout[1] = 900
    with cute_kernels.emulate("sm_100a"):
        assert cute_kernels.m_grouped_gemm_nt_masked(a, b, d, layout, 4) is d
    outcome = judge()
    assert outcome.right and outcome.contained


@pytest.mark.parametrize("n", [40, 37])
def test_a_result_that_is_not_given(n: int) -> None:
    problem = Captured("contiguous", (6, 1), n, 64)
    run, judge = problem.prepare("cpu", 0)
    run()
    a, b, d, layout = problem.given
    with cute_kernels.emulate("sm_100a"):
        result = cute_kernels.m_grouped_gemm_nt_contiguous(a, b, None, layout)
    assert result.stride() == (-(-n // 8) * 8, 1)
    d[layout >= 0] = result[layout >= 0]
    assert judge().right


def test_no_rows_at_all() -> None:
    problem = Captured("contiguous", (0, 0), 40, 64)
    problem.prepare("cpu", 0)[0]()
    with cute_kernels.emulate("sm_100a") as emulation:
        GroupedGemm("contiguous", (0, 0), 40, 64).run(*problem.given)
    assert not emulation.reports


@pytest.mark.parametrize("spoil", ["element", "row of none", "beyond"])
def test_the_check_itself_sees_mistakes(spoil: str) -> None:
    problem = Captured("masked", (6, 0), 40, 64)
    run, judge = problem.prepare("cpu", 0)
    run()
    a, b, d, layout = problem.given
    with cute_kernels.emulate("sm_100a"):
        GroupedGemm("masked", (6, 0), 40, 64).run(a, b, d, layout)
    assert judge().right and judge().contained
    if spoil == "element":
        d[0, 3, 5] *= 1 + 2.0**-6
    elif spoil == "row of none":
        d[1, 0, 0] = 0
    else:
        d.as_strided((2, 6, 48), d.stride())[0, 0, 47] = 0
    assert not (judge().right and judge().contained)


def test_the_first_example_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "grouped.md").read_text()
    program, _ = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(program, {})
