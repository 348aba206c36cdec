"""The table of loops beside their peers', on figures made up for it."""

from __future__ import annotations

from typing import Any

import pytest

from perf import bars
from perf.static import BASELINE, read_baseline
from sm100 import variants


def figures(mma: int, per_iteration: int, load: int, store: int, columns: int) -> dict[str, Any]:
    return {
        "loops": {
            "mma": {"instructions": mma, "MMA": per_iteration},
            "mma / outer": {"instructions": 999},
            "tma load": {"instructions": load},
            "tma load 2": {"instructions": load - 5},
            "epilogue": {"instructions": 2 * store, "least": store, "tmem_columns": columns},
        }
    }


def test_the_worst_loop_of_each_kind_counts() -> None:
    read = {
        "sm_100a sm100_gemm_mxf8_128x64x128_bf16": figures(47, 4, 29, 92, 64),
        "sm_100a sm100_gemm_mxf4_256x192x256_f32": figures(118, 8, 30, 93, 64),
        "sm_100a sm100_gemm_mxf4_mxf8_k128_128x32x128_bf16": figures(56, 4, 12, 32, 32),
        "sm_90a sm80_gemm_w4a16": figures(1, 4, 1, 1, 32),
    }
    pair, mixed, plain = bars.rows(read)
    assert (pair.mma, pair.bar, pair.load, pair.store) == (59.0, 58, 30.0, 46.5)
    assert pair.over == ["mma", "load", "store"]
    assert (mixed.mma, mixed.bar, mixed.over) == (56.0, 55, ["mma"])
    assert (plain.mma, plain.bar, plain.over) == (47.0, 47, [])
    text = bars.render(read, over=True)
    assert "256x192" in text
    assert "128x64" not in text
    assert "mixed" not in bars.render(read, only="mxf8_128")


def test_every_loop_over_k_blocks_counts() -> None:
    """Of fewer MMAs than a K block has, a turn is one all the same; a loop around others is none over K blocks."""
    rest, boxes = (figures(47, 4, 28, 92, 64) for _ in range(2))
    rest["loops"]["mma 2"] = {"instructions": 48, "MMA": 3}
    boxes["loops"]["tma load 2"] = {"instructions": 42, "TMA": 6}
    boxes["loops"]["tma load / outer"] = {"instructions": 99, "TMA": 6}
    read = {
        f"sm_100a sm100_gemm_bf16_128x{n}x64_bf16": f for n, f in zip((32, 64), (rest, boxes), strict=True)
    }
    assert [(row.mma, row.load) for row in bars.rows(read)] == [(48, 28), (47, 42)]


def test_every_gemm_of_the_baseline_has_its_loops() -> None:
    found = bars.rows(read_baseline(BASELINE)[1])
    assert len(found) > 200
    assert all(row.mma > 0 and row.load > 0 for row in found)
    assert all(row.store >= row.needed for row in found)  # which no loop can be under


def test_halves_of_the_lanes_are_those_of_a_tile() -> None:
    read = {"sm_100a sm100_gemm_bf16_128x32x64_bf16_swap_ab": figures(47, 4, 28, 92, 64)}
    (loops,) = (of["loops"] for of in read.values())
    del loops["epilogue"]["tmem_columns"]
    assert [row.store for row in bars.rows(read)] == [92]


NEEDED = {
    "mxf8_128x128x128_bf16": 1 + 16 + 4 + 7 + 9 / 4,
    "mxf8_128x128x128_f32": 1 + 8 + 7 + 9 / 4,
    "mxf8_128x128x128_f32_accumulate": 1 + 8 + 7 + 9 / 4,  # TMA adds
    "mxf8_128x128x128_bf16_accumulate": 1 + 4 + 32 + 16 + 4 + 9 + 9 / 4,
    "bf16_128x64x64_bf16": 1 + 16 + 4 + (7 + 9) / 2,  # stored at once
    "nvf4_128x128x256_bf16": 1 + 16 + 16 + 4 + 7 + 9 / 4,
    "bf16_128x32x64_f32_swap_ab": 1 + 32 + 7 + 9,
    "bf16_128x32x64_bf16_swap_ab": 1 + 16 + 4 + 7 + 9,
    "mxf8_128x128x128_mxf8": 1 + 57 + (7 + 9 + 4) / 4,
    "nvf4_128x128x256_nvf4": 1 + 100 + (7 + 9 + 8) / 4,
}


@pytest.mark.parametrize("name", NEEDED)
def test_needed_is_the_sum_of_the_steps(name: str) -> None:
    (shape,) = (v.shape for v in variants("sm_100a") if v.name == f"sm100_gemm_{name}")
    assert bars.needed(shape) == NEEDED[name]
