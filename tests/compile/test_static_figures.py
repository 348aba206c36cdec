"""Static figures of cubins as built here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perf import static
from sm100 import variants
from tests.building import Request, build

GEMM = next(v for v in variants("sm_100a") if v.kernel == "gemm_blockscaled")


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, static.Figures]:
    out: Path = tmp_path_factory.mktemp("cubins")
    gemms = tuple(f"*gemm_{name}" for name, _ in (*MULTIPLY, *EPILOGUE))
    for arch, only in (("sm_90a", "nvfp4_dequantize"), *(("sm_100a", name) for name in (GEMM.name, *gemms))):
        result = build(Request(out, archs=(arch,), only=only), say=lambda line: None)
        assert result.failures == {}
    return static.read_all(out)


def test_the_roles_of_the_gemm_are_found(read: dict[str, static.Figures]) -> None:
    figures = read[f"sm_100a {GEMM.name}"]
    loops = figures["loops"]
    assert loops["mma"]["MMA"] > 0
    assert loops["tma load"]["TMA"] >= 2  # A and B at least
    assert "MMA" not in loops["tma load"] and "MMA" not in loops["epilogue"]
    assert loops["epilogue"]["tmem_columns"] % GEMM.shape.tile_n == 0
    assert figures["ctas_per_sm"] == 1
    assert figures["stages"] == GEMM.shape.stages
    assert figures["spill_bytes"] == 0


def test_the_dequantization_is_one_loop_over_global_memory(read: dict[str, static.Figures]) -> None:
    figures = read["sm_90a sm80_nvfp4_dequantize"]
    assert set(figures["loops"]) == {"global"}
    assert figures["loops"]["global"]["LDG/STG"] == 3
    assert figures["spill_bytes"] == 0


# Instructions of a K tile: of NVIDIA's kernels with as many CTAs a tile, and where it is FP8 with FP8, FP8 with FP4
# or BF16 of DeepGEMM's, which take fewer.
MULTIPLY = [
    ("mxf4_128x128x256_bf16", 55),
    ("mxf4_256x192x256_bf16", 58),
    ("mxf4_256x192x256_bf16_multicast", 58),
    ("nvf4_128x128x256_bf16", 67),
    ("mxf8_128x128x128_bf16", 47),
    ("mxf8_256x192x128_bf16", 47),
    ("mxf8_k128_128x128x128_bf16", 47),
    ("mxf8_k128_256x192x128_bf16", 47),
    ("mxf8_128x128x128_f32_k_grouped_tn_accumulate", 47),
    ("mxf8_k128_256x192x128_f32_k_grouped_accumulate", 47),
    ("mxf8_k128_mxf4_256x192x128_bf16", 55),
    ("mxf8_mxf4_256x192x128_bf16", 55),
    ("bf16_128x128x64_bf16", 44),
    ("bf16_128x256x64_bf16_batched_tn", 44),
    ("bf16_256x256x64_f32_k_grouped_tn_accumulate", 44),
    ("bf16_256x256x64_f32_k_grouped_accumulate", 44),
]


@pytest.mark.parametrize(("name", "most"), MULTIPLY)
def test_multiply_takes_few_instructions(read: dict[str, static.Figures], name: str, most: int) -> None:
    figures = read[f"sm_100a sm100_gemm_{name}"]
    assert figures["spill_bytes"] == 0
    assert figures["loops"]["mma"]["instructions"] <= most
    loops = figures["loops"]
    rests = [loop["instructions"] for role, loop in loops.items() if re.fullmatch(r"mma \d", role)]
    assert len(rests) == (3 if "k_grouped_tn" in name else 0)  # of one MMA, two and three
    assert max(rests, default=0) < loops["mma"]["instructions"]
    loads = [loop["instructions"] for role, loop in loops.items() if re.fullmatch(r"tma load( \d)?", role)]
    assert len(loads) == (1 if name.startswith("bf16") else 2)
    assert max(loads) < 30


# (operands, rows and columns of a tile): stages of NVIDIA's kernels with that tile, and of BF16 of DeepGEMM's.
STAGES = {
    ("mxf4", 128, 128): 6,
    ("mxf4", 256, 128): 8,
    ("nvf4", 128, 128): 5,
    ("nvf4", 256, 128): 7,
    ("mxf8", 128, 128): 6,
    ("mxf8", 256, 128): 8,
    ("bf16", 256, 256): 6,
}


@pytest.mark.parametrize("tile", STAGES)
def test_rings_are_as_deep_as_those_of_peers(tile: tuple[str, int, int]) -> None:
    """Of all products to BF16, whatever else they do."""
    shapes = [v.shape for v in variants("sm_100a")]
    ours = [s for s in shapes if (s.family_dtype, s.tile_m, s.tile_n, s.d_dtype) == (*tile, "bf16")]
    assert ours
    assert min(s.stages for s in ours) >= STAGES[tile]


# The least instructions of the epilogue for 32 columns of D, of tiles of 128 columns if not said otherwise. The fewest
# of a peer are 46, with nothing but the conversion to BF16: one tcgen05.ld, 16 conversions and 4 stores to shared
# memory, 8 for the hand-over to TMA, and a quarter of a tile's 50. What is above does more for each pair of values:
EPILOGUE = [
    ("mxf4_128x128x256_bf16", 37),
    ("mxf4_128x128x256_f32", 25),
    ("mxf8_k128_128x128x128_bf16_batched", 38),
    ("nvf4_128x128x256_f32", 41),  # a product with both global scales
    ("nvf4_128x128x256_bf16", 53),  # that product, and a conversion
    ("mxf8_128x128x128_bf16_by_indices", 41),  # and for a tile: which group it is of, and which of its rows
    ("mxf8_128x128x128_bf16_by_sizes", 41),
    ("mxf8_128x128x128_bf16_heads", 44),  # and four times where the columns go
    ("bf16_128x128x64_bf16_clc", 46),  # and for a tile: which it is, from the response that says so
    ("bf16_128x64x64_bf16_split_k", 41),  # two to a tile, and who else has K tiles of it
    ("bf16_128x32x64_bf16", 53),  # one to a tile
    ("bf16_128x64x64_bf16", 38),  # two to a tile, stored at once
    ("mxf8_128x128x128_f32_accumulate", 25),  # as without C, which TMA adds
    ("nvf4_128x128x256_f32_accumulate", 41),
    ("bf16_128x64x64_f32_split_k_accumulate", 34),
    ("bf16_128x32x64_f32_swap_ab_accumulate", 65),  # 32 stores: a lane has a column, and one to a tile
    ("bf16_256x256x64_f32_k_grouped_tn_accumulate", 23),
    ("mxf8_128x128x128_bf16_accumulate", 81),  # 32 sums, which BF16 C has one by one, and 16 conversions
    ("mxf8_128x128x128_mxf8", 72),  # 16 for the largest, 16 products, 16 conversions, 8 for the scale factor
    ("nvf4_128x128x256_mxf8", 85),  # the same, of the sums: the global scales are part of the products
    ("mxf8_128x128x128_nvf4", 127),  # 16 for the largest; products and conversions twice, for two bounds
    ("nvf4_128x128x256_nvf4", 130),  # the same, as with MXFP8
]


@pytest.mark.parametrize(("name", "most"), EPILOGUE)
def test_epilogue_takes_few_instructions(read: dict[str, static.Figures], name: str, most: int) -> None:
    figures = read[f"sm_100a sm100_gemm_{name}"]
    (loop,) = (loop for role, loop in figures["loops"].items() if role == "epilogue")
    assert figures["spill_bytes"] == 0
    assert 32 * static.least_of(loop) / loop["tmem_columns"] <= most
