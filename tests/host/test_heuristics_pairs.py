"""When CTA pairs are chosen for groups of rows and for quantized products, among the kernels that are built."""

from __future__ import annotations

from functools import cache

import pytest

import sm100
from cute_kernels.heuristics import Candidate, GemmProblem, candidates
from cute_kernels.heuristics.common import Config

SMS = 148
WEIGHTS = [(6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048)]
FORMATS = ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_k128_mxf4", "bf16")


@cache
def configs(kernel: str) -> dict[str, Config]:
    return {v.name: v.shape.config() for v in sm100.variants("sm_100a") if v.kernel == kernel}


def ranked(problem: GemmProblem, num_sms: int = SMS) -> tuple[Config, list[Candidate]]:
    """The configuration chosen, and all candidates."""
    of = configs(problem.kernel)
    found = candidates(problem, num_sms, of)
    assert found[0].estimate is not None
    return of[found[0].name], found


def by_sizes(n: int, k: int, operands: str, groups: int, room: int, expected: int) -> GemmProblem:
    return GemmProblem(room, n, k, operands, "bf16", groups=groups, grouping="sizes", expected_m=expected)


@pytest.mark.parametrize("operands", FORMATS)
@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_groups_of_more_rows_than_one_cta_has_take_pairs(n: int, k: int, operands: str) -> None:
    """By sizes, whatever groups begin with. Groups of a CTA's rows would leave the second one of a pair idle."""
    for groups, expected in ((32, 192), (6, 1024), (8, 4096)):
        picked, found = ranked(by_sizes(n, k, operands, groups, 4096, expected))
        assert (picked["cta_group"], picked["grouping"]) == (2, "sizes")
        best = found[0].estimate
        assert best is not None and best.grid == (SMS, 1, 1)
        assert best.figures["tiles"] == groups * -(-expected // 256) * -(-n // picked["tile_n"])
    for expected in (1, 32, 128):
        assert ranked(by_sizes(n, k, operands, 8, 4096, expected))[0]["cta_group"] == 1


@pytest.mark.parametrize("operands", ["mxf4", "nvf4", "mxf8_k128", "bf16"])
def test_by_indices_pairs_need_groups_that_begin_with_their_tiles(operands: str) -> None:
    def problem(alignment: int) -> GemmProblem:
        return GemmProblem(
            32768, 6144, 7168, operands, "bf16", groups=8, grouping="indices", alignment=alignment
        )

    assert ranked(problem(256))[0]["cta_group"] == ranked(problem(512))[0]["cta_group"] == 2
    picked, found = ranked(problem(128))
    assert picked["cta_group"] == 1
    pairs = [
        c for c in found if "_256x" in c.name and c.name.endswith("_by_indices") and "_bf16_by" in c.name
    ]
    whys = {c.unsuitable for c in pairs if configs(problem(1).kernel)[c.name]["family_dtype"] == operands}
    assert whys == {"groups begin at multiples of 128, tiles have 256 rows"}


@pytest.mark.parametrize(("operands", "d_dtype"), [("mxf8", "mxf8"), ("mxf8_k128", "mxf8"), ("nvf4", "nvf4")])
def test_large_quantized_products_take_pairs(operands: str, d_dtype: str) -> None:
    assert ranked(GemmProblem(4096, 7168, 2048, operands, d_dtype))[0]["cta_group"] == 2
    assert ranked(GemmProblem(128, 24576, 1536, operands, d_dtype))[0]["cta_group"] == 1
    assert ranked(GemmProblem(4096, 7168, 2048, operands, d_dtype), num_sms=1)[0]["cta_group"] == 1


@pytest.mark.parametrize(
    ("grouping", "alignment", "ctas"), [("sizes", 128, 2), ("indices", 256, 2), ("indices", 128, 1)]
)
def test_groups_whose_products_are_quantized(grouping: str, alignment: int, ctas: int) -> None:
    """The shapes of groups in ops: G 4 and 8, some 4096 rows a group."""
    for groups in (4, 8):
        given = GemmProblem(
            32768,
            *(4096, 7168, "mxf8_k128", "mxf8"),
            groups=groups,
            grouping=grouping,
            alignment=alignment,
            expected_m=32768 // groups,
        )
        assert ranked(given)[0]["cta_group"] == ctas
