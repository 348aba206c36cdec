"""Problems of the field, configurations of the block-scaled GEMM that nobody built, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cute_kernels.heuristics import Config, Estimate, GemmProblem, candidates

SMS = 148
TILES_N = (32, 64, 128, 192)
PAIR: Config = {"tile_m": 256, "cta_group": 2}  # what sets CTA pairs apart

# (M, N, K): M of the forward pass, decode and the shapes of PR 348's table, by (N, K).
WEIGHTS = [(2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
FIELD = [(m, n, k) for m in (1, 128, 4096) for n, k in WEIGHTS] + [
    (128, 2048, 7168),
    (512, 2048, 7168),
    (512, 7168, 2048),
    (1024, 7168, 2048),
    (8192, 8192, 8192),
]


def config(tile_n: int, d_dtype: str = "bf16", accumulate: bool = False, **other: Any) -> Config:
    """Of single CTAs with MXFP4 operands, both K-major; `other` fields replace these."""
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


def problem(m: int, n: int, k: int, d_dtype: str = "bf16", accumulate: bool = False) -> GemmProblem:
    return GemmProblem(m, n, k, "mxf4", d_dtype, accumulate)


def chosen(
    given: GemmProblem, num_sms: int = SMS, configs: Mapping[str, Config] = CONFIGS
) -> tuple[Config, Estimate]:
    """The best configuration for a problem."""
    best = candidates(given, num_sms, configs)[0]
    assert best.estimate is not None
    return configs[best.name], best.estimate
