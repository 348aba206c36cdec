"""Which configuration is chosen by what a call is of: orders of tiles, formats, layouts, batches and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from cute_kernels.heuristics import Config, DequantizeProblem, Estimate, GemmProblem, candidates, explain
from cute_kernels.heuristics.common import Unsuitable
from cute_kernels.heuristics.sm100 import gemm
from cute_kernels.runtime.gemm_operands import KINDS
from tests.host.gemm_configs import FIELD, PAIR, SMS, chosen, config, problem

MAJORS = (("k", "k"), ("k", "mn"), ("mn", "k"), ("mn", "mn"))


@pytest.fixture(scope="module")
def compiled() -> Mapping[str, Config]:
    """What is built for SM100."""
    import sm100

    return {v.name: v.shape.config() for v in sm100.variants("sm_100a")}


def either(shape: tuple[int, int, int], busy: int = 0, operands: str = "mxf4") -> GemmProblem:
    return GemmProblem(*shape, operands, "bf16", scheduling="auto", busy_sms=busy)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_fixed_tiles_are_chosen_where_all_multiprocessors_are_free(
    compiled: Mapping[str, Config], shape: tuple[int, int, int]
) -> None:
    for operands in ("mxf4", "bf16", "mxf8"):
        fixed = GemmProblem(*shape, operands, "bf16")
        picked, estimate = chosen(either(shape, 0, operands), configs=compiled)
        assert not picked["clc"]
        assert estimate == chosen(fixed, configs=compiled)[1]


@pytest.mark.parametrize("shape", [(4096, 4096, 7168), (4096, 7168, 2048), (8192, 8192, 8192)], ids=str)
@pytest.mark.parametrize("busy", [4, 16, 32])
def test_tiles_are_asked_for_beside_other_kernels(
    compiled: Mapping[str, Config], shape: tuple[int, int, int], busy: int
) -> None:
    """Fixed ones wait for the CTAs that started late: a whole round more."""
    for operands in ("mxf4", "bf16"):
        picked, estimate = chosen(either(shape, busy, operands), configs=compiled)
        assert picked["clc"]
        ranked = candidates(either(shape, busy, operands), SMS, compiled)
        fixed = next(c.estimate for c in ranked if c.estimate and not compiled[c.name]["clc"])
        assert estimate.cycles < 0.8 * fixed.cycles
        alone = chosen(either(shape, 0, operands), configs=compiled)[1]
        assert alone.cycles <= estimate.cycles < 1.6 * alone.cycles


@pytest.mark.parametrize("shape", [(128, 576, 7168), (1, 2112, 7168), (128, 2112, 7168)], ids=str)
def test_tiles_that_fit_beside_other_kernels_stay_fixed(
    compiled: Mapping[str, Config], shape: tuple[int, int, int]
) -> None:
    for operands in ("mxf4", "bf16"):
        picked, estimate = chosen(either(shape, 32, operands), configs=compiled)
        assert not picked["clc"]
        assert estimate.grid[0] <= SMS - 32


def test_busy_multiprocessors_never_help(compiled: Mapping[str, Config]) -> None:
    for shape in FIELD:
        for scheduling in ("static", "clc", "auto"):
            given = [
                GemmProblem(*shape, "mxf4", "bf16", scheduling=scheduling, busy_sms=busy)
                for busy in (0, 1, 16, 32, 74, 140, 147)
            ]
            cycles = [chosen(of, configs=compiled)[1].cycles for of in given]
            assert cycles == sorted(cycles), (shape, scheduling)
    with pytest.raises(Unsuitable, match="a cluster of 2 does not fit 1 multiprocessors"):
        gemm(either((4096, 4096, 7168), 147), config(192, **PAIR), SMS)


def test_an_explanation_weighs_all_orders(compiled: Mapping[str, Config]) -> None:
    text = explain(either((4096, 4096, 7168), 16), SMS, compiled)
    head, *lines = text.splitlines()
    assert "auto scheduling, beside 16 busy multiprocessors" in head
    suitable = [line for line in lines if " cycles " in line]
    assert "_clc" in suitable[0] and "chosen" in suitable[0]
    assert any("_clc" not in line for line in suitable)


@pytest.mark.parametrize("operands", sorted(set(KINDS.values())))
def test_every_format_has_a_kernel_for_each_d_with_c_and_without(
    compiled: Mapping[str, Config], operands: str
) -> None:
    """Of all layouts where elements may be MN-major; of FP4 and what meets it, K-major."""
    layouts = MAJORS if operands in ("bf16", "mxf8", "mxf8_k128") else MAJORS[:1]
    for m, n, k in ((1, 2112, 7168), (128, 7168, 2048), (4096, 4096, 7168), (4096, 576, 7168)):
        for d_dtype in ("bf16", "f32"):
            for accumulate in (False, True):
                for majors in layouts:
                    picked, _ = chosen(
                        GemmProblem(m, n, k, operands, d_dtype, accumulate, *majors), configs=compiled
                    )
                    assert (picked["d_dtype"], picked["accumulate"]) == (d_dtype, accumulate)


@pytest.mark.parametrize("m", [1, 16, 32])
@pytest.mark.parametrize(("n", "k"), [(2112, 7168), (576, 7168), (2048, 7168)])
def test_decoding_shares_swapped_tiles(compiled: Mapping[str, Config], m: int, n: int, k: int) -> None:
    """Of few weights and a long K. Half of the bytes, as FP4 has them, are loaded before sums could change hands."""
    for operands in ("mxf8", "mxf8_k128", "bf16"):
        picked, estimate = chosen(GemmProblem(m, n, k, operands, "bf16"), configs=compiled)
        assert picked["split_k"] and picked["swap_ab"]
        assert estimate.figures["tiles"] == -(-n // 128) < estimate.grid[0] <= SMS
    picked, _ = chosen(problem(m, n, k), configs=compiled)
    assert not picked["split_k"] and not picked["swap_ab"]


@pytest.mark.parametrize(("n", "k"), [(2112, 7168), (576, 7168)])
@pytest.mark.parametrize("operands", ["mxf8_mxf4", "mxf8_k128_mxf4"])
def test_mixed_products_of_middle_sizes_share_tiles(
    compiled: Mapping[str, Config], operands: str, n: int, k: int
) -> None:
    picked, _ = chosen(GemmProblem(128, n, k, operands, "bf16"), configs=compiled)
    assert picked["split_k"] and not picked["swap_ab"]


@pytest.mark.parametrize("operands", ["mxf4", "nvf4", "mxf8", "mxf8_k128", "bf16"])
def test_decoding_adds_c_to_swapped_tiles(compiled: Mapping[str, Config], operands: str) -> None:
    """Of weights whose K is too short to share."""
    for d_dtype in ("bf16", "f32"):
        given = GemmProblem(16, 24576, 1536, operands, d_dtype, accumulate=True)
        picked, _ = chosen(given, configs=compiled)
        assert picked["swap_ab"] and picked["accumulate"]


@pytest.mark.parametrize(("n", "k"), [(2112, 7168), (576, 7168), (4096, 7168)])
@pytest.mark.parametrize("operands", ["mxf8_k128", "bf16"])
def test_tiles_that_c_is_added_to_are_shared_too(
    compiled: Mapping[str, Config], operands: str, n: int, k: int
) -> None:
    for d_dtype in ("bf16", "f32"):
        given = GemmProblem(128, n, k, operands, d_dtype, accumulate=True)
        picked, _ = chosen(given, configs=compiled)
        assert picked["split_k"] and picked["accumulate"]
        without = {name: c for name, c in compiled.items() if not c["split_k"]}
        assert chosen(given, configs=compiled)[1].cycles < 0.9 * chosen(given, configs=without)[1].cycles


@pytest.mark.parametrize("operands", ["mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128"])
def test_fp4_that_meets_fp8_loads_half_the_bytes(operands: str) -> None:
    def cycles(of: str, m: int, n: int) -> float:
        given = GemmProblem(m, n, 7168, of, "bf16")
        return gemm(given, config(128, family_dtype=of, tile_k=128), SMS).cycles

    # Decode is bound by the weights' bytes.
    few, many = ((1, 65536), (8192, 8192)) if operands.startswith("mxf8") else ((65536, 1), (8192, 8192))
    assert cycles("mxf4", *few) * 0.99 < cycles(operands, *few) < 0.6 * cycles("mxf8", *few)
    assert cycles("mxf4", *many) < cycles(operands, *many) < cycles("mxf8", *many)


def test_bf16_is_a_family_of_its_own_with_a_quarter_of_the_rate() -> None:
    given = GemmProblem(8192, 8192, 8192, "bf16", "bf16")
    assert (given.kernel, given.layout) == ("gemm_bf16", "nt")
    configs = {str(n): config(n, family_dtype="bf16", tile_k=64) for n in (32, 64, 128, 256)}
    picked, estimate = chosen(given, configs=configs)
    assert picked["tile_n"] == 256
    assert estimate.figures["cycles/K-block"] >= 128 * 256 * 64 / 4096


@pytest.mark.parametrize(("a_major", "b_major"), [("k", "mn"), ("mn", "k"), ("mn", "mn")])
def test_majorness_must_be_that_of_the_operands(a_major: str, b_major: str) -> None:
    given = GemmProblem(512, 512, 512, "bf16", "bf16", a_major=a_major, b_major=b_major)
    fields: Config = {"family_dtype": "bf16", "tile_k": 64}
    configs = {
        f"{a}_{b}": config(128, a_major=a, b_major=b, **fields) for a in ("k", "mn") for b in ("k", "mn")
    }
    best, *others = candidates(given, SMS, configs)
    assert best.name == f"{a_major}_{b_major}"
    assert all("_major is" in c.unsuitable for c in others)


def test_batches_fill_the_device_together() -> None:
    def estimate(batches: int, depth: int = 1) -> Estimate:
        given = GemmProblem(128, 128, 512, "bf16", "bf16", batches=batches, depth=depth)
        return gemm(given, config(128, family_dtype="bf16", tile_k=64, batched=True), SMS)

    assert estimate(100).grid == (100, 1, 1)
    assert estimate(300).grid == (SMS, 1, 1)
    assert estimate(300).figures["tiles"] == 300
    assert estimate(100).cycles < estimate(300).cycles
    assert estimate(100).cycles < estimate(100, depth=8).cycles


def test_batches_need_a_kernel_for_them() -> None:
    configs = {str(b): config(128, family_dtype="bf16", tile_k=64, batched=b) for b in (False, True)}
    for batches in (0, 4):
        best, other = candidates(GemmProblem(128, 128, 512, "bf16", "bf16", batches=batches), SMS, configs)
        assert best.name == str(batches > 0)
        assert "batched is" in other.unsuitable
    text = explain(GemmProblem(128, 64, 512, "bf16", "f32", batches=4, depth=3), SMS, configs)
    assert "gemm_bf16 bf16 nt, 4 batches of 3 x M=128 N=64 K=512, D f32, on 148" in text


def test_groups_along_k_need_a_kernel_for_them() -> None:
    configs = {str(k): config(128, "f32", True, k_grouped=k) for k in (False, True)}
    given = GemmProblem(4096, 7168, 8192, "mxf4", "f32", True, batches=4, k_grouped=True)
    best, other = candidates(given, SMS, configs)
    assert best.name == "True"
    assert best.estimate is not None and best.estimate.figures["tiles"] == 4 * 32 * 56
    assert other.unsuitable == "k_grouped is False, the problem needs True"
    assert "4 groups along K of M=4096 N=7168 K=8192, D f32 + C, on" in explain(given, SMS, configs)
    (single, none) = candidates(problem(128, 128, 512, "f32", True), SMS, configs)
    assert (single.name, none.estimate) == ("False", None)


def grouped(
    grouping: str, groups: int = 8, m: int = 1024, expected_m: int = 100, **other: Any
) -> GemmProblem:
    return GemmProblem(
        m, 256, 512, "mxf4", "bf16", groups=groups, grouping=grouping, expected_m=expected_m, **other
    )


def test_groups_need_a_kernel_for_them() -> None:
    configs = {by or "none": config(128, grouping=by) for by in ("", "indices", "sizes")}
    for by in ("indices", "sizes"):
        best, *others = candidates(grouped(by, alignment=128), SMS, configs)
        assert best.name == by
        assert all(f"the problem needs {by}" in other.unsuitable for other in others)
        assert {other.unsuitable.split()[2] for other in others} == {f"{name}," for name in configs} - {
            f"{by},"
        }
    text = explain(grouped("sizes"), SMS, configs)
    assert "gemm_blockscaled mxf4 nt, 8 groups by sizes, M=1024 N=256 K=512, D bf16, on 148" in text


def test_tiles_of_groups() -> None:
    """By indices all rows may be in use; by sizes there is room for all, but the expected ones count."""
    by_indices = gemm(grouped("indices", alignment=256), config(128, grouping="indices"), SMS)
    assert by_indices.grid == (16, 1, 1)
    by_sizes = gemm(grouped("sizes", groups=80), config(128, grouping="sizes"), SMS)
    assert by_sizes.grid == (SMS, 1, 1)
    assert by_sizes.figures["tiles"] == 160
    assert gemm(grouped("sizes", groups=2), config(128, grouping="sizes"), SMS).grid == (32, 1, 1)
    more = gemm(grouped("sizes", groups=80, expected_m=1000), config(128, grouping="sizes"), SMS)
    assert more.grid == by_sizes.grid
    assert more.cycles > by_sizes.cycles


@pytest.mark.parametrize(("groups", "room"), [(8, 128), (32, 4096), (128, 1024)])
@pytest.mark.parametrize(("n", "k"), [(4096, 7168), (7168, 2048)])
def test_thin_groups_are_swapped(groups: int, room: int, n: int, k: int) -> None:
    def picked(**fields: Any) -> bool:
        given = GemmProblem(n=n, k=k, operands="mxf4", d_dtype="bf16", groups=groups, **fields)
        by = {"grouping": fields["grouping"]}
        configs = {"128": config(128, **by), "swapped": config(32, stages=9, swap_ab=True, **by)}
        return chosen(given, configs=configs)[0]["swap_ab"]

    assert all(picked(m=room, grouping="sizes", expected_m=rows) for rows in (1, 8, 32))
    assert not any(picked(m=room, grouping="sizes", expected_m=rows) for rows in (33, 100, 1000))
    assert picked(m=groups * 32, grouping="indices", alignment=32)
    assert not picked(m=groups * 128, grouping="indices", alignment=128)


def test_groups_begin_with_tiles() -> None:
    with pytest.raises(Unsuitable, match="groups begin at multiples of 64, tiles have 128 rows"):
        gemm(grouped("indices", alignment=64), config(128, grouping="indices"), SMS)


def test_every_compiled_configuration_is_understood() -> None:
    """The shapes that the kernels declare, as the manifest carries them."""
    import sm80
    import sm100

    variants = [v for v in sm100.variants("sm_100a") if v.kernel == "gemm_blockscaled"]
    configs = {v.name: v.shape.config() for v in variants}
    for d_dtype in ("bf16", "f32"):
        for accumulate in (False, True):
            assert candidates(problem(4096, 4096, 7168, d_dtype, accumulate), SMS, configs)[0].estimate
    dequantize = {v.name: v.shape.config() for v in sm80.variants("sm_90a") if v.kernel == "nvfp4_dequantize"}
    assert candidates(DequantizeProblem(1, 1000), 132, dequantize)[0].estimate


@pytest.mark.parametrize(
    ("groups", "blocks", "grid"),
    [(1, 1, (1, 1, 1)), (1, 128, (1, 1, 1)), (1, 129, (2, 1, 1)), (64, 300, (3, 64, 1))],
)
def test_dequantize_grid(groups: int, blocks: int, grid: tuple[int, int, int]) -> None:
    configs = {"x": {"threads": 128, "words_per_thread": 2, "blocks_per_cta": 128}}
    best = candidates(DequantizeProblem(groups, blocks), 132, configs)[0]
    assert best.estimate is not None and best.estimate.grid == grid
