"""Which configuration is chosen, and why: properties that any sensible choice has, at shapes of the field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cute_kernels.heuristics import Config, Estimate, GemmProblem, candidates, explain, split_k
from cute_kernels.heuristics.common import Unsuitable, rank
from cute_kernels.heuristics.sm100 import ASK, gemm
from tests.host.gemm_configs import CONFIGS, FIELD, PAIR, SMS, TILES_N, WEIGHTS, chosen, config, problem


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_the_choice_serves_the_problem(shape: tuple[int, int, int]) -> None:
    for d_dtype in ("bf16", "f32"):
        for accumulate in (False, True):
            picked, estimate = chosen(problem(*shape, d_dtype, accumulate))
            assert (picked["d_dtype"], picked["accumulate"]) == (d_dtype, accumulate)
            tiles = -(-shape[0] // 128) * -(-shape[1] // picked["tile_n"])
            assert estimate.figures["tiles"] == tiles
            assert estimate.grid == (min(SMS, tiles), 1, 1)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_candidates_are_ranked_and_complete(shape: tuple[int, int, int]) -> None:
    ranked = candidates(problem(*shape), SMS, CONFIGS)
    assert sorted(c.name for c in ranked) == sorted(CONFIGS)
    cycles = [c.estimate.cycles for c in ranked if c.estimate]
    assert cycles == sorted(cycles)
    assert len(cycles) == len(TILES_N)
    assert all(c.unsuitable for c in ranked[len(TILES_N) :])


@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_few_rows_spread_over_many_multiprocessors(n: int, k: int) -> None:
    """For one row the tiles are columns alone: as many multiprocessors as narrow tiles give must work."""
    _, estimate = chosen(problem(1, n, k))
    assert estimate.grid[0] >= min(SMS, n // 192)


def test_large_problems_take_wide_tiles() -> None:
    for shape in ((4096, 4096, 7168), (8192, 8192, 8192), (4096, 7168, 16384)):
        assert chosen(problem(*shape))[0]["tile_n"] >= 128


def test_small_problems_take_narrow_tiles() -> None:
    assert chosen(problem(128, 576, 7168))[0]["tile_n"] == 32
    assert chosen(problem(1, 2112, 7168))[0]["tile_n"] == 32


def test_a_second_wave_costs() -> None:
    """148 tiles of 128 columns fill the device once; 149 would need it twice, unless tiles are wider."""
    one, two = (gemm(problem(128, 128 * tiles, 7168), config(128), SMS) for tiles in (SMS, SMS + 1))
    assert two.cycles > 1.6 * one.cycles
    assert chosen(problem(128, 128 * (SMS + 1), 7168))[0]["tile_n"] != 128


def test_more_multiprocessors_never_cost() -> None:
    for shape in FIELD:
        cycles = [chosen(problem(*shape), sms)[1].cycles for sms in (1, 8, 64, 132, 148, 160)]
        assert cycles == sorted(cycles, reverse=True), shape


def test_more_work_never_costs_less() -> None:
    for tile_n in TILES_N:
        for grown in ((256, 2112, 7168), (128, 4224, 7168), (128, 2112, 14336)):
            small = gemm(problem(128, 2112, 7168), config(tile_n), SMS)
            assert gemm(problem(*grown), config(tile_n), SMS).cycles >= small.cycles


def test_more_stages_and_a_second_accumulator_never_cost() -> None:
    given = problem(512, 7168, 2048)
    cycles = [gemm(given, config(128, stages=s), SMS).cycles for s in (2, 3, 4, 8)]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > cycles[-1]
    double, single = (gemm(given, config(128, acc_stages=a), SMS).cycles for a in (2, 1))
    assert double < single


def test_clusters_are_whole() -> None:
    estimate = gemm(problem(300, 256, 512), config(128, **PAIR), SMS)
    assert estimate.figures["tiles"] == 4
    assert estimate.grid == (8, 1, 1)
    assert gemm(problem(4096, 4096, 512), config(128, **PAIR), 7).grid == (6, 1, 1)
    with pytest.raises(Unsuitable, match="a cluster of 2 does not fit 1 multiprocessors"):
        gemm(problem(300, 256, 512), config(128, **PAIR), 1)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_pairs_for_many_rows_and_full_devices(shape: tuple[int, int, int]) -> None:
    """A pair halves what its CTAs load of B; where it leaves multiprocessors idle, or rows, single CTAs win."""
    configs = {**CONFIGS, "128_pair": config(128, **PAIR), "192_pair": config(192, **PAIR)}
    picked, _ = chosen(problem(*shape), configs=configs)
    m, n, k = shape
    if m <= 128 or -(-m // 256) * -(-n // 64) < SMS // 2:
        assert picked["cta_group"] == 1
    if m >= 512 and -(-m // 256) * -(-n // 192) >= SMS // 2 and k > 512:  # below, stores bound the tile
        assert picked["cta_group"] == 2


def test_a_pair_splits_its_tile() -> None:
    """The same K block as one CTA's of half the rows, but for the loads and reads of half of B."""
    given = problem(8192, 8192, 8192)
    one, two = (gemm(given, config(128, **other), SMS).figures for other in ({}, PAIR))
    assert one["bound"] == two["bound"] == "loads"
    half_b = 64 * 128
    assert one["cycles/K-block"] - two["cycles/K-block"] == half_b / 64
    assert two["tiles"] == one["tiles"] / 2


def test_tiles_are_asked_for_only_where_the_call_says_so() -> None:
    """The choice is that among static orders, with a CTA for every tile in place of one for every multiprocessor."""
    asking = {f"{tile_n}_clc": config(tile_n, clc=True) for tile_n in TILES_N}
    for shape in FIELD:
        static = problem(*shape)
        picked, estimate = chosen(static, configs=CONFIGS | asking)
        dynamic = dataclasses.replace(static, scheduling="clc")
        other, same = chosen(dynamic, configs=CONFIGS | asking)
        assert not picked["clc"] and other["clc"]
        assert (picked["tile_n"], estimate.cycles) == (other["tile_n"], same.cycles - ASK)
        assert same.grid == (same.figures["tiles"], 1, 1)
        assert "clc scheduling" in str(dynamic)
    pair = gemm(
        dataclasses.replace(problem(8192, 8192, 512), scheduling="clc"), config(192, clc=True, **PAIR), SMS
    )
    assert pair.grid == (2 * 32 * 43, 1, 1)


SPLIT_K: Config = {"split_k": True, "slot_bytes": 128 * 64 * 4}


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_tiles_are_shared_only_where_they_leave_multiprocessors_idle(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    tiles = -(-m // 128) * -(-n // 64)
    best, *_ = candidates(problem(*shape), SMS, {**CONFIGS, "shared": config(64, **SPLIT_K)})
    if best.name == "shared":
        assert k >= 4096
        assert tiles < SMS
    if tiles >= SMS:
        with pytest.raises(Unsuitable, match="leave no CTA of 148 anything to share"):
            gemm(problem(*shape), config(64, **SPLIT_K), SMS)


@pytest.mark.parametrize("shape", [(128, 2112, 7168), (128, 576, 7168), (512, 576, 7168)], ids=str)
def test_few_tiles_of_many_k_blocks_are_shared(shape: tuple[int, int, int]) -> None:
    best, *others = candidates(problem(*shape), SMS, {**CONFIGS, "shared": config(64, **SPLIT_K)})
    assert best.name == "shared"
    assert best.estimate is not None and others[0].estimate is not None
    figures = best.estimate.figures
    assert figures["tiles"] < best.estimate.grid[0] == figures["CTAs"] <= SMS
    assert best.estimate.arguments == {"share": figures["K-blocks/CTA"]}
    assert best.estimate.cycles < others[0].estimate.cycles


@pytest.mark.parametrize("sms", [1, 2, 7, SMS])
@pytest.mark.parametrize("tiles", [1, 2, 33, 147, 148])
@pytest.mark.parametrize("k_blocks", [1, 2, 3, 28, 256])
def test_divisions(tiles: int, k_blocks: int, sms: int) -> None:
    """By the model as it is stated, over every division that there is; what an owner collects, by counting."""
    block, leave, collect = 300.0, 3000.0, 500.0
    division = split_k.best(tiles, k_blocks, sms, block, leave, collect)
    costs = {}
    for share in range(1, k_blocks):
        ctas = -(-tiles * k_blocks // share)
        ends = [tile * k_blocks for tile in range(tiles + 1)]
        owners = [first // share for first in ends[:-1]]
        lasts = [(end - 1) // share for end in ends[1:]]
        collects = max(last - owner for last, owner in zip(lasts, owners, strict=True))
        if ctas <= sms:
            costs[share] = collects, share * block + leave + collects * collect
    if division is None:
        assert not costs
        return
    assert division.ctas == -(-tiles * k_blocks // division.share) <= sms
    collects, cycles = costs[division.share]
    # The model counts on tiles that begin anywhere in a share, which not every number of tiles has.
    assert collects <= division.collects <= collects + 1
    assert min(cycles for _, cycles in costs.values()) <= division.cycles <= cycles + collect


def test_what_bounds_a_tile() -> None:
    def bound(given: GemmProblem, tile_n: int, **other: Any) -> str:
        return gemm(given, config(tile_n, **other), SMS).figures["bound"]

    assert bound(problem(1, 64, 8192), 192) == "MMA"  # of rows that nobody fetches
    assert bound(problem(1, 64, 8192), 32) == "shared memory"
    assert bound(problem(8192, 8192, 8192), 64, stages=16) == "loads"
    assert bound(problem(8192, 8192, 8192), 128, stages=2) == "latency"
    assert bound(problem(4096, 4096, 64), 128) in ("epilogue", "DRAM")
    assert bound(problem(128, 24576, 1536), 192) == "DRAM"


SWAPPED = {
    f"swapped_{tile_n}": config(tile_n, stages=12 if tile_n == 16 else 10, swap_ab=True)
    for tile_n in (16, 32)
}


@pytest.mark.parametrize("m", [1, 8, 16, 17, 32])
@pytest.mark.parametrize(("n", "k"), [(24576, 1536), (32768, 512), (129280, 7168)])
def test_few_rows_of_many_columns_are_swapped(m: int, n: int, k: int) -> None:
    picked, estimate = chosen(problem(m, n, k), configs=CONFIGS | SWAPPED)
    assert picked["swap_ab"]
    assert picked["tile_n"] == (16 if m <= 16 else 32)
    assert estimate.figures["tiles"] == n / 128
    assert estimate.grid == (SMS, 1, 1)


@pytest.mark.parametrize("shape", [s for s in FIELD if s[0] >= 512 or (s[0] == 1 and s[1] <= 4096)], ids=str)
def test_many_rows_and_few_columns_are_not_swapped(shape: tuple[int, int, int]) -> None:
    assert not chosen(problem(*shape), configs=CONFIGS | SWAPPED)[0]["swap_ab"]


def test_swapped_operands_are_those_of_the_transposed_problem() -> None:
    given = GemmProblem(24, 4096, 7168, "mxf4_mxf8_k128", "bf16")
    fields: Config = {"tile_k": 128, "swap_ab": True}
    estimate = gemm(given, config(32, family_dtype="mxf8_k128_mxf4", **fields), SMS)
    turned = GemmProblem(4096, 24, 7168, "mxf8_k128_mxf4", "bf16")
    assert estimate == gemm(turned, config(32, family_dtype="mxf8_k128_mxf4", tile_k=128), SMS)
    with pytest.raises(Unsuitable, match="family_dtype is mxf8_k128_mxf4, the problem needs mxf4_mxf8_k128"):
        gemm(given, config(32, family_dtype="mxf4_mxf8_k128", **fields), SMS)
    majors = GemmProblem(24, 4096, 7168, "bf16", "bf16", b_major="mn")
    with pytest.raises(Unsuitable, match="b_major is k, the problem needs mn"):
        gemm(majors, config(32, family_dtype="bf16", tile_k=64, swap_ab=True), SMS)


def test_explanations_name_every_configuration_and_the_reasons() -> None:
    text = explain(problem(512, 2048, 7168), SMS, CONFIGS)
    assert "gemm_blockscaled mxf4 nt, M=512 N=2048 K=7168, D bf16, on 148 multiprocessors" in text
    lines = text.splitlines()
    assert len(lines) == 1 + len(CONFIGS)
    assert "chosen" in lines[1]
    assert all("%" in line and "waves" in line for line in lines[2 : 1 + len(TILES_N)])
    assert "  128_f32: d_dtype is f32, the problem needs bf16" in lines
    assert "  128_bf16_c: accumulate is True, the problem needs False" in lines


def test_an_explanation_of_nothing() -> None:
    text = explain(problem(512, 2048, 7168, "f32", True), SMS, {"a": config(128)})
    assert text.splitlines()[1:] == [
        "  no configuration serves this problem:",
        "  a: d_dtype is bf16, the problem needs f32",
    ]


def test_a_configuration_of_another_version_serves_nothing() -> None:
    """One that says nothing of what the model asks for; a mistake of the model's own stays one."""
    older = {key: value for key, value in config(128).items() if key != "multicast"}
    best, other = candidates(problem(512, 2048, 7168), SMS, {"older": older, "today's": config(192)})
    assert (best.name, other.estimate) == ("today's", None)
    assert other.unsuitable.startswith(
        "its manifest does not say 'multicast': another version of cute_kernels built"
    )

    def mistaken(*_: object) -> Estimate:
        raise KeyError("tile_n")

    with pytest.raises(KeyError):
        rank(problem(512, 2048, 7168), SMS, {"a": config(128)}, mistaken)


def test_ties_go_by_name() -> None:
    def supplier(given: GemmProblem, config: Config, num_sms: int) -> Estimate:
        return Estimate(config["cycles"], (1, 1, 1))

    configs = {"b": {"cycles": 1.0}, "c": {"cycles": 0.5}, "a": {"cycles": 1.0}}
    assert [c.name for c in rank(problem(1, 1, 32), 1, configs, supplier)] == ["c", "a", "b"]
