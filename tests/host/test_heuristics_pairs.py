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


@pytest.mark.parametrize("operands", ["mxf4", "nvf4", "mxf8_k128"])
@pytest.mark.parametrize("shape", [(4096, 7168, 16384), (8192, 8192, 8192), (4096, 24576, 1536)], ids=str)
def test_large_products_whose_loads_bound_them_take_clusters_of_two_pairs(
    shape: tuple[int, int, int], operands: str
) -> None:
    picked, found = ranked(GemmProblem(*shape, operands, "bf16"))
    assert picked["multicast"]
    best = found[0].estimate
    alone = next(c.estimate for c in found if c.name == found[0].name.removesuffix("_multicast"))
    assert best is not None and alone is not None
    assert alone.figures["bound"] == "loads"
    # 64 rows of 128 bytes less, unless something else bounds the tile then.
    saved = alone.figures["cycles/K-block"] - best.figures["cycles/K-block"]
    assert saved == 128 if best.figures["bound"] == "loads" else 0 < saved < 128
    assert best.figures["tiles"] == -(-shape[0] // 256) * -(-shape[1] // (2 * picked["tile_n"]))


@pytest.mark.parametrize(("num_sms", "clusters"), [(4, 1), (8, 1), (20, 1), (24, 2), (148, 33), (160, 36)])
def test_clusters_of_four_that_are_sure_to_run_at_once(num_sms: int, clusters: int) -> None:
    """However 8 GPCs share the multiprocessors, in twos."""
    name = "sm100_gemm_mxf4_256x192x256_bf16_multicast"
    given = GemmProblem(8192, 8192, 8192, "mxf4", "bf16")
    (one,) = candidates(given, num_sms, {name: configs("gemm_blockscaled")[name]})
    assert one.estimate is not None and one.estimate.grid == (4 * clusters, 1, 1)
    if num_sms >= 24:
        twos, gpcs = num_sms // 2, 8
        shares = [twos // gpcs + (i < twos % gpcs) for i in range(gpcs)]
        uneven = [twos // gpcs + (1 if i % 2 else -1) for i in range(gpcs)]
        assert clusters <= sum(share // 2 for share in shares)
        assert clusters <= sum(share // 2 for share in uneven) + twos % gpcs
    else:
        assert 4 * clusters <= num_sms


def test_a_cluster_of_four_needs_four() -> None:
    name = "sm100_gemm_mxf4_256x192x256_bf16_multicast"
    given = GemmProblem(8192, 8192, 8192, "mxf4", "bf16")
    (none,) = candidates(given, 3, {name: configs("gemm_blockscaled")[name]})
    assert none.unsuitable == "a cluster of 4 does not fit 3 multiprocessors"


def test_few_columns_take_no_second_pair() -> None:
    """Of 128 columns, the second pair of each cluster would have none, and keep another from starting."""
    for operands in ("mxf4", "nvf4", "mxf8_k128"):
        assert not ranked(GemmProblem(16384, 128, 8192, operands, "bf16"))[0]["multicast"]


@pytest.mark.parametrize("operands", ["mxf8_k128", "bf16"])
@pytest.mark.parametrize(
    "shape", [(256, 2048, 7168), (256, 4096, 7168), (512, 2048, 7168), (512, 2112, 7168)], ids=str
)
def test_pairs_share_few_tiles_of_more_rows_than_one_cta_has(
    shape: tuple[int, int, int], operands: str
) -> None:
    """Where two CTAs would each load all of B for 128 rows; of 128 rows, the second CTA of a pair has none."""
    picked, found = ranked(GemmProblem(*shape, operands, "bf16"))
    assert picked["split_k"] and picked["cta_group"] == 2
    best = found[0].estimate
    assert best is not None and best.grid[0] % 2 == 0 and best.grid[0] <= SMS
    assert (
        best.figures["tiles"]
        < best.grid[0] // 2
        == -(-best.figures["tiles"] * best.figures["of"] // best.arguments["share"])
    )
    alone = ranked(GemmProblem(128, *shape[1:], operands, "bf16"))[0]
    assert alone["cta_group"] == 1
