"""Which configuration is chosen, and why: properties that any sensible choice has, at shapes of the field."""

from __future__ import annotations

import dataclasses

import pytest

from cute_kernels.heuristics import DequantizeProblem, GemmProblem, candidates, explain, split_k
from cute_kernels.heuristics.common import Estimate, Unsuitable, rank
from cute_kernels.heuristics.sm100 import ASK, gemm
from cute_kernels.runtime.gemm_operands import KINDS

SMS = 148
MAJORS = (("k", "k"), ("k", "mn"), ("mn", "k"), ("mn", "mn"))
TILES_N = (32, 64, 128, 192)

# (M, N, K): M of the forward pass, decode and the shapes of PR 348's table, by (N, K).
WEIGHTS = [(2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
FIELD = [(m, n, k) for m in (1, 128, 4096) for n, k in WEIGHTS] + [
    (128, 2048, 7168),
    (512, 2048, 7168),
    (512, 7168, 2048),
    (1024, 7168, 2048),
    (8192, 8192, 8192),
]


def config(tile_n, d_dtype="bf16", accumulate=False, **other):
    stages = {32: 9, 64: 8, 128: 6, 192: 4}.get(tile_n, 4)
    return {
        "family_dtype": "mxf4",
        "tile_m": 128,
        "tile_n": tile_n,
        "tile_k": 256,
        "stages": stages,
        "acc_stages": 2,
        "d_dtype": d_dtype,
        "accumulate": accumulate,
        "a_major": "k",
        "b_major": "k",
        "batched": False,
        "heads": False,
        "k_grouped": False,
        "grouping": "",
        "cta_group": 1,
        "multicast": False,
        "split_k": False,
        "swap_ab": False,
        "clc": False,
        **other,
    }


CONFIGS = {
    f"{tile_n}_{d}{'_c' if c else ''}": config(tile_n, d, c)
    for tile_n in TILES_N
    for d in ("bf16", "f32")
    for c in (False, True)
}


def problem(m, n, k, d_dtype="bf16", accumulate=False):
    return GemmProblem(m, n, k, "mxf4", d_dtype, accumulate)


def chosen(given, num_sms=SMS, configs=CONFIGS):
    best = candidates(given, num_sms, configs)[0]
    assert best.estimate is not None
    return configs[best.name], best.estimate


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_the_choice_serves_the_problem(shape):
    for d_dtype in ("bf16", "f32"):
        for accumulate in (False, True):
            picked, estimate = chosen(problem(*shape, d_dtype, accumulate))
            assert (picked["d_dtype"], picked["accumulate"]) == (d_dtype, accumulate)
            tiles = -(-shape[0] // 128) * -(-shape[1] // picked["tile_n"])
            assert estimate.figures["tiles"] == tiles
            assert estimate.grid == (min(SMS, tiles), 1, 1)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_candidates_are_ranked_and_complete(shape):
    ranked = candidates(problem(*shape), SMS, CONFIGS)
    assert sorted(c.name for c in ranked) == sorted(CONFIGS)
    cycles = [c.estimate.cycles for c in ranked if c.estimate]
    assert cycles == sorted(cycles)
    assert len(cycles) == len(TILES_N)
    assert all(c.unsuitable for c in ranked[len(TILES_N) :])


@pytest.mark.parametrize(("n", "k"), WEIGHTS)
def test_few_rows_spread_over_many_multiprocessors(n, k):
    """For one row the tiles are columns alone: as many multiprocessors as narrow tiles give must work."""
    _, estimate = chosen(problem(1, n, k))
    assert estimate.grid[0] >= min(SMS, n // 192)


def test_large_problems_take_wide_tiles():
    for shape in ((4096, 4096, 7168), (8192, 8192, 8192), (4096, 7168, 16384)):
        assert chosen(problem(*shape))[0]["tile_n"] >= 128


def test_small_problems_take_narrow_tiles():
    assert chosen(problem(128, 576, 7168))[0]["tile_n"] == 32
    assert chosen(problem(1, 2112, 7168))[0]["tile_n"] == 32


def test_a_second_wave_costs():
    """148 tiles of 128 columns fill the device once; 149 would need it twice, unless tiles are wider."""
    one, two = (gemm(problem(128, 128 * tiles, 7168), config(128), SMS) for tiles in (SMS, SMS + 1))
    assert two.cycles > 1.6 * one.cycles
    assert chosen(problem(128, 128 * (SMS + 1), 7168))[0]["tile_n"] != 128


def test_more_multiprocessors_never_cost():
    for shape in FIELD:
        cycles = [chosen(problem(*shape), sms)[1].cycles for sms in (1, 8, 64, 132, 148, 160)]
        assert cycles == sorted(cycles, reverse=True), shape


def test_more_work_never_costs_less():
    for tile_n in TILES_N:
        for grown in ((256, 2112, 7168), (128, 4224, 7168), (128, 2112, 14336)):
            small = gemm(problem(128, 2112, 7168), config(tile_n), SMS)
            assert gemm(problem(*grown), config(tile_n), SMS).cycles >= small.cycles


def test_more_stages_and_a_second_accumulator_never_cost():
    given = problem(512, 7168, 2048)
    cycles = [gemm(given, config(128, stages=s), SMS).cycles for s in (2, 3, 4, 8)]
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[0] > cycles[-1]
    double, single = (gemm(given, config(128, acc_stages=a), SMS).cycles for a in (2, 1))
    assert double < single


PAIR = {"tile_m": 256, "cta_group": 2}


def test_clusters_are_whole():
    estimate = gemm(problem(300, 256, 512), config(128, **PAIR), SMS)
    assert estimate.figures["tiles"] == 4
    assert estimate.grid == (8, 1, 1)
    assert gemm(problem(4096, 4096, 512), config(128, **PAIR), 7).grid == (6, 1, 1)
    with pytest.raises(Unsuitable, match="a cluster of 2 does not fit 1 multiprocessors"):
        gemm(problem(300, 256, 512), config(128, **PAIR), 1)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_pairs_for_many_rows_and_full_devices(shape):
    """A pair halves what its CTAs load of B; where it leaves multiprocessors idle, or rows, single CTAs win."""
    configs = {**CONFIGS, "128_pair": config(128, **PAIR), "192_pair": config(192, **PAIR)}
    picked, _ = chosen(problem(*shape), configs=configs)
    m, n, k = shape
    if m <= 128 or -(-m // 256) * -(-n // 64) < SMS // 2:
        assert picked["cta_group"] == 1
    if m >= 512 and -(-m // 256) * -(-n // 192) >= SMS // 2 and k > 512:  # below, stores bound the tile
        assert picked["cta_group"] == 2


def test_a_pair_splits_its_tile():
    """The same K block as one CTA's of half the rows, but for the loads and reads of half of B."""
    given = problem(8192, 8192, 8192)
    one, two = (gemm(given, config(128, **other), SMS).figures for other in ({}, PAIR))
    assert one["bound"] == two["bound"] == "loads"
    half_b = 64 * 128
    assert one["cycles/K-block"] - two["cycles/K-block"] == half_b / 64
    assert two["tiles"] == one["tiles"] / 2


def test_tiles_are_asked_for_only_where_the_call_says_so():
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


def either(shape, busy=0, operands="mxf4"):
    return GemmProblem(*shape, operands, "bf16", scheduling="auto", busy_sms=busy)


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_fixed_tiles_are_chosen_where_all_multiprocessors_are_free(compiled, shape):
    for operands in ("mxf4", "bf16", "mxf8"):
        fixed = GemmProblem(*shape, operands, "bf16")
        picked, estimate = chosen(either(shape, 0, operands), configs=compiled)
        assert not picked["clc"]
        assert estimate == chosen(fixed, configs=compiled)[1]


@pytest.mark.parametrize("shape", [(4096, 4096, 7168), (4096, 7168, 2048), (8192, 8192, 8192)], ids=str)
@pytest.mark.parametrize("busy", [4, 16, 32])
def test_tiles_are_asked_for_beside_other_kernels(compiled, shape, busy):
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
def test_tiles_that_fit_beside_other_kernels_stay_fixed(compiled, shape):
    for operands in ("mxf4", "bf16"):
        picked, estimate = chosen(either(shape, 32, operands), configs=compiled)
        assert not picked["clc"]
        assert estimate.grid[0] <= SMS - 32


def test_busy_multiprocessors_never_help(compiled):
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


def test_an_explanation_weighs_all_orders(compiled):
    text = explain(either((4096, 4096, 7168), 16), SMS, compiled)
    head, *lines = text.splitlines()
    assert "auto scheduling, beside 16 busy multiprocessors" in head
    suitable = [line for line in lines if " cycles " in line]
    assert "_clc" in suitable[0] and "chosen" in suitable[0]
    assert any("_clc" not in line for line in suitable)


SPLIT_K = {"split_k": True, "slot_bytes": 128 * 64 * 4}


@pytest.mark.parametrize("shape", FIELD, ids=str)
def test_tiles_are_shared_only_where_they_leave_multiprocessors_idle(shape):
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
def test_few_tiles_of_many_k_blocks_are_shared(shape):
    best, *others = candidates(problem(*shape), SMS, {**CONFIGS, "shared": config(64, **SPLIT_K)})
    assert best.name == "shared"
    figures = best.estimate.figures
    assert figures["tiles"] < best.estimate.grid[0] == figures["CTAs"] <= SMS
    assert best.estimate.arguments == {"share": figures["K-blocks/CTA"]}
    assert best.estimate.cycles < others[0].estimate.cycles


@pytest.fixture(scope="module")
def compiled():
    """What is built for SM100."""
    import sm100

    return {v.name: v.shape.config() for v in sm100.variants("sm_100a")}


@pytest.mark.parametrize("operands", sorted(set(KINDS.values())))
def test_every_format_has_a_kernel_for_each_d_with_c_and_without(compiled, operands):
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
def test_decoding_shares_swapped_tiles(compiled, m, n, k):
    """Of few weights and a long K. Half of the bytes, as FP4 has them, are loaded before sums could change hands."""
    for operands in ("mxf8", "mxf8_k128", "bf16"):
        picked, estimate = chosen(GemmProblem(m, n, k, operands, "bf16"), configs=compiled)
        assert picked["split_k"] and picked["swap_ab"]
        assert estimate.figures["tiles"] == -(-n // 128) < estimate.grid[0] <= SMS
    picked, _ = chosen(problem(m, n, k), configs=compiled)
    assert not picked["split_k"] and not picked["swap_ab"]


@pytest.mark.parametrize(("n", "k"), [(2112, 7168), (576, 7168)])
@pytest.mark.parametrize("operands", ["mxf8_mxf4", "mxf8_k128_mxf4"])
def test_mixed_products_of_middle_sizes_share_tiles(compiled, operands, n, k):
    picked, _ = chosen(GemmProblem(128, n, k, operands, "bf16"), configs=compiled)
    assert picked["split_k"] and not picked["swap_ab"]


@pytest.mark.parametrize("operands", ["mxf4", "nvf4", "mxf8", "mxf8_k128", "bf16"])
def test_decoding_adds_c_to_swapped_tiles(compiled, operands):
    """Of weights whose K is too short to share."""
    for d_dtype in ("bf16", "f32"):
        given = GemmProblem(16, 24576, 1536, operands, d_dtype, accumulate=True)
        picked, _ = chosen(given, configs=compiled)
        assert picked["swap_ab"] and picked["accumulate"]


@pytest.mark.parametrize(("n", "k"), [(2112, 7168), (576, 7168), (4096, 7168)])
@pytest.mark.parametrize("operands", ["mxf8_k128", "bf16"])
def test_tiles_that_c_is_added_to_are_shared_too(compiled, operands, n, k):
    for d_dtype in ("bf16", "f32"):
        given = GemmProblem(128, n, k, operands, d_dtype, accumulate=True)
        picked, _ = chosen(given, configs=compiled)
        assert picked["split_k"] and picked["accumulate"]
        without = {name: c for name, c in compiled.items() if not c["split_k"]}
        assert chosen(given, configs=compiled)[1].cycles < 0.9 * chosen(given, configs=without)[1].cycles


@pytest.mark.parametrize("sms", [1, 2, 7, SMS])
@pytest.mark.parametrize("tiles", [1, 2, 33, 147, 148])
@pytest.mark.parametrize("k_blocks", [1, 2, 3, 28, 256])
def test_divisions(tiles, k_blocks, sms):
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


def test_what_bounds_a_tile():
    def bound(given, tile_n, **other):
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
def test_few_rows_of_many_columns_are_swapped(m, n, k):
    picked, estimate = chosen(problem(m, n, k), configs=CONFIGS | SWAPPED)
    assert picked["swap_ab"]
    assert picked["tile_n"] == (16 if m <= 16 else 32)
    assert estimate.figures["tiles"] == n / 128
    assert estimate.grid == (SMS, 1, 1)


@pytest.mark.parametrize("shape", [s for s in FIELD if s[0] >= 512 or (s[0] == 1 and s[1] <= 4096)], ids=str)
def test_many_rows_and_few_columns_are_not_swapped(shape):
    assert not chosen(problem(*shape), configs=CONFIGS | SWAPPED)[0]["swap_ab"]


def test_swapped_operands_are_those_of_the_transposed_problem():
    given = GemmProblem(24, 4096, 7168, "mxf4_mxf8_k128", "bf16")
    fields = {"tile_k": 128, "swap_ab": True}
    estimate = gemm(given, config(32, family_dtype="mxf8_k128_mxf4", **fields), SMS)
    turned = GemmProblem(4096, 24, 7168, "mxf8_k128_mxf4", "bf16")
    assert estimate == gemm(turned, config(32, family_dtype="mxf8_k128_mxf4", tile_k=128), SMS)
    with pytest.raises(Unsuitable, match="family_dtype is mxf8_k128_mxf4, the problem needs mxf4_mxf8_k128"):
        gemm(given, config(32, family_dtype="mxf4_mxf8_k128", **fields), SMS)
    majors = GemmProblem(24, 4096, 7168, "bf16", "bf16", b_major="mn")
    with pytest.raises(Unsuitable, match="b_major is k, the problem needs mn"):
        gemm(majors, config(32, family_dtype="bf16", tile_k=64, swap_ab=True), SMS)


def test_explanations_name_every_configuration_and_the_reasons():
    text = explain(problem(512, 2048, 7168), SMS, CONFIGS)
    assert "gemm_blockscaled mxf4 nt, M=512 N=2048 K=7168, D bf16, on 148 multiprocessors" in text
    lines = text.splitlines()
    assert len(lines) == 1 + len(CONFIGS)
    assert "chosen" in lines[1]
    assert all("%" in line and "waves" in line for line in lines[2 : 1 + len(TILES_N)])
    assert "  128_f32: d_dtype is f32, the problem needs bf16" in lines
    assert "  128_bf16_c: accumulate is True, the problem needs False" in lines


def test_an_explanation_of_nothing():
    text = explain(problem(512, 2048, 7168, "f32", True), SMS, {"a": config(128)})
    assert text.splitlines()[1:] == [
        "  no configuration serves this problem:",
        "  a: d_dtype is bf16, the problem needs f32",
    ]


def test_a_configuration_of_another_version_serves_nothing():
    """One that says nothing of what the model asks for; a mistake of the model's own stays one."""
    older = {key: value for key, value in config(128).items() if key != "multicast"}
    best, other = candidates(problem(512, 2048, 7168), SMS, {"older": older, "today's": config(192)})
    assert (best.name, other.estimate) == ("today's", None)
    assert other.unsuitable.startswith(
        "its manifest does not say 'multicast': another version of cute_kernels built"
    )

    def mistaken(*_):
        raise KeyError("tile_n")

    with pytest.raises(KeyError):
        rank(problem(512, 2048, 7168), SMS, {"a": config(128)}, mistaken)


def test_ties_go_by_name():
    def supplier(given, config, num_sms):
        return Estimate(config["cycles"], (1, 1, 1))

    configs = {"b": {"cycles": 1.0}, "c": {"cycles": 0.5}, "a": {"cycles": 1.0}}
    assert [c.name for c in rank(problem(1, 1, 32), 1, configs, supplier)] == ["c", "a", "b"]


def test_every_compiled_configuration_is_understood():
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
def test_dequantize_grid(groups, blocks, grid):
    configs = {"x": {"threads": 128, "words_per_thread": 2, "blocks_per_cta": 128}}
    best = candidates(DequantizeProblem(groups, blocks), 132, configs)[0]
    assert best.estimate.grid == grid


@pytest.mark.parametrize("operands", ["mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128"])
def test_fp4_that_meets_fp8_loads_half_the_bytes(operands):
    def cycles(of, m, n):
        given = GemmProblem(m, n, 7168, of, "bf16")
        return gemm(given, config(128, family_dtype=of, tile_k=128), SMS).cycles

    # Decode is bound by the weights' bytes.
    few, many = ((1, 65536), (8192, 8192)) if operands.startswith("mxf8") else ((65536, 1), (8192, 8192))
    assert cycles("mxf4", *few) * 0.99 < cycles(operands, *few) < 0.6 * cycles("mxf8", *few)
    assert cycles("mxf4", *many) < cycles(operands, *many) < cycles("mxf8", *many)


def test_bf16_is_a_family_of_its_own_with_a_quarter_of_the_rate():
    given = GemmProblem(8192, 8192, 8192, "bf16", "bf16")
    assert (given.kernel, given.layout) == ("gemm_bf16", "nt")
    configs = {str(n): config(n, family_dtype="bf16", tile_k=64) for n in (32, 64, 128, 256)}
    picked, estimate = chosen(given, configs=configs)
    assert picked["tile_n"] == 256
    assert estimate.figures["cycles/K-block"] >= 128 * 256 * 64 / 4096


@pytest.mark.parametrize(("a_major", "b_major"), [("k", "mn"), ("mn", "k"), ("mn", "mn")])
def test_majorness_must_be_that_of_the_operands(a_major, b_major):
    given = GemmProblem(512, 512, 512, "bf16", "bf16", a_major=a_major, b_major=b_major)
    fields = {"family_dtype": "bf16", "tile_k": 64}
    configs = {
        f"{a}_{b}": config(128, a_major=a, b_major=b, **fields) for a in ("k", "mn") for b in ("k", "mn")
    }
    best, *others = candidates(given, SMS, configs)
    assert best.name == f"{a_major}_{b_major}"
    assert all("_major is" in c.unsuitable for c in others)


def test_batches_fill_the_device_together():
    def estimate(batches, depth=1):
        given = GemmProblem(128, 128, 512, "bf16", "bf16", batches=batches, depth=depth)
        return gemm(given, config(128, family_dtype="bf16", tile_k=64, batched=True), SMS)

    assert estimate(100).grid == (100, 1, 1)
    assert estimate(300).grid == (SMS, 1, 1)
    assert estimate(300).figures["tiles"] == 300
    assert estimate(100).cycles < estimate(300).cycles
    assert estimate(100).cycles < estimate(100, depth=8).cycles


def test_batches_need_a_kernel_for_them():
    configs = {str(b): config(128, family_dtype="bf16", tile_k=64, batched=b) for b in (False, True)}
    for batches in (0, 4):
        best, other = candidates(GemmProblem(128, 128, 512, "bf16", "bf16", batches=batches), SMS, configs)
        assert best.name == str(batches > 0)
        assert "batched is" in other.unsuitable
    text = explain(GemmProblem(128, 64, 512, "bf16", "f32", batches=4, depth=3), SMS, configs)
    assert "gemm_bf16 bf16 nt, 4 batches of 3 x M=128 N=64 K=512, D f32, on 148" in text


def test_groups_along_k_need_a_kernel_for_them():
    configs = {str(k): config(128, "f32", True, k_grouped=k) for k in (False, True)}
    given = GemmProblem(4096, 7168, 8192, "mxf4", "f32", True, batches=4, k_grouped=True)
    best, other = candidates(given, SMS, configs)
    assert best.name == "True"
    assert best.estimate.figures["tiles"] == 4 * 32 * 56
    assert other.unsuitable == "k_grouped is False, the problem needs True"
    assert "4 groups along K of M=4096 N=7168 K=8192, D f32 + C, on" in explain(given, SMS, configs)
    (single, none) = candidates(problem(128, 128, 512, "f32", True), SMS, configs)
    assert (single.name, none.estimate) == ("False", None)


def grouped(grouping, groups=8, m=1024, expected_m=100, **other):
    return GemmProblem(
        m, 256, 512, "mxf4", "bf16", groups=groups, grouping=grouping, expected_m=expected_m, **other
    )


def test_groups_need_a_kernel_for_them():
    configs = {by or "none": config(128, grouping=by) for by in ("", "indices", "sizes")}
    for by in ("indices", "sizes"):
        best, *others = candidates(grouped(by, alignment=128), SMS, configs)
        assert best.name == by
        wanted = by or "none"
        assert all(f"the problem needs {wanted}" in other.unsuitable for other in others)
        assert {other.unsuitable.split()[2] for other in others} == {f"{name}," for name in configs} - {
            f"{wanted},"
        }
    text = explain(grouped("sizes"), SMS, configs)
    assert "gemm_blockscaled mxf4 nt, 8 groups by sizes, M=1024 N=256 K=512, D bf16, on 148" in text


def test_tiles_of_groups():
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
def test_thin_groups_are_swapped(groups, room, n, k):
    def picked(**fields):
        given = GemmProblem(n=n, k=k, operands="mxf4", d_dtype="bf16", groups=groups, **fields)
        by = {"grouping": fields["grouping"]}
        configs = {"128": config(128, **by), "swapped": config(32, stages=9, swap_ab=True, **by)}
        return chosen(given, configs=configs)[0]["swap_ab"]

    assert all(picked(m=room, grouping="sizes", expected_m=rows) for rows in (1, 8, 32))
    assert not any(picked(m=room, grouping="sizes", expected_m=rows) for rows in (33, 100, 1000))
    assert picked(m=groups * 32, grouping="indices", alignment=32)
    assert not picked(m=groups * 128, grouping="indices", alignment=128)


def test_groups_begin_with_tiles():
    with pytest.raises(Unsuitable, match="groups begin at multiples of 64, tiles have 128 rows"):
        gemm(grouped("indices", alignment=64), config(128, grouping="indices"), SMS)
