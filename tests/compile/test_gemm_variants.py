"""Which variants of the block-scaled GEMM of SM100 there are, and which shapes are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sm100 import variants
from sm100.shape import Shape

ARCH = "sm_100a"
VARIANTS = [v for v in variants(ARCH) if v.kernel == "gemm_blockscaled"]


def test_variants_cover_the_configurations() -> None:
    shapes = [
        (
            *(v.shape.family_dtype, v.shape.a_major, v.shape.b_major),
            *(v.shape.cta_group, v.shape.tile_n, v.shape.d_dtype, v.shape.accumulate),
            *(v.shape.heads, v.shape.split_k, v.shape.swap_ab),
        )
        for v in VARIANTS
        if not (v.shape.d_batched or v.shape.grouped or v.shape.clc or v.shape.multicast)
    ]
    assert [v.name for v in VARIANTS if v.shape.multicast] == [
        f"sm100_gemm_{tile}_bf16_multicast"
        for tile in ("mxf4_256x192x256", "nvf4_256x128x256", "mxf8_k128_256x192x128")
    ]
    assert {v.name for v in VARIANTS if v.shape.clc} == {
        f"sm100_gemm_mxf4_{tile}x256_{d}_clc" for tile in ("128x128", "256x192") for d in ("bf16", "f32")
    }
    k_major = {
        **dict.fromkeys(("mxf4", "mxf8", "mxf8_k128"), (32, 64, 128, 192)),
        "nvf4": (32, 64, 128),
        **dict.fromkeys(("mxf8_mxf4", "mxf8_k128_mxf4"), (32, 128, 192)),
        **dict.fromkeys(("mxf4_mxf8", "mxf4_mxf8_k128"), (32, 128)),
    }
    pairs = {**dict.fromkeys(("mxf4", "mxf8", "mxf8_k128"), (128, 192)), "nvf4": (128,)}
    pairs |= dict.fromkeys(("mxf8_mxf4", "mxf8_k128_mxf4"), (192,))
    tiles = {(form, "k", "k", 1): tiles_n for form, tiles_n in k_major.items()} | {
        (form, *majors, 1): (128,)
        for form in ("mxf8", "mxf8_k128")
        for majors in (("k", "mn"), ("mn", "k"), ("mn", "mn"))
    }
    tiles |= {(form, "k", "k", 2): tiles_n for form, tiles_n in pairs.items()}
    wanted = {
        (*form, n, d, c, False, False, False)
        for form in tiles
        for n in tiles[form]
        for d in ("bf16", "f32")
        for c in (False, True)
    }
    quantizing = ("mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_mxf4")
    wanted |= {(form, "k", "k", 1, 128, "mxf8", False, False, False, False) for form in quantizing}
    wanted |= {(form, "k", "k", 1, 128, "nvf4", False, False, False, False) for form in ("nvf4", "mxf8")}
    wanted.add(("mxf8_k128", "k", "k", 2, 128, "bf16", False, False, True, False))
    in_pairs = (("mxf8", "mxf8"), ("mxf8_k128", "mxf8"), ("nvf4", "nvf4"))
    wanted |= {(form, "k", "k", 2, 128, d, False, False, False, False) for form, d in in_pairs}
    heads = [(form, "bf16") for form in ("mxf4", "nvf4", "mxf8", "mxf8_k128")] + [("mxf8_k128", "f32")]
    wanted |= {(form, "k", "k", 1, 128, d, False, True, False, False) for form, d in heads}
    sharing = ("mxf4", "nvf4", "mxf8", "mxf8_k128")
    wanted |= {
        (form, "k", "k", 1, 64, d, c, False, True, False)
        for form in sharing
        for d in ("bf16", "f32")
        for c in ((False, True) if form == "mxf8_k128" else (False,))
    }
    mixed = ("mxf8_mxf4", "mxf8_k128_mxf4")
    wanted |= {(form, "k", "k", 1, 64, "bf16", False, False, True, False) for form in mixed}
    wanted |= {(form, "k", "k", 1, 32, "bf16", False, False, True, True) for form in ("mxf8", "mxf8_k128")}
    wanted |= {
        (form, "k", "k", 1, n, d, c, False, False, True)
        for form, tiles_n in k_major.items()
        for n, d, c in ((32, d, c) for d in ("bf16", "f32") for c in (False, True))
        if (d, c) == ("bf16", False) or 64 in tiles_n
    }
    assert len(shapes) == len(wanted)
    assert set(shapes) == wanted
    assert [v.name for v in variants("sm_103a")] == [v.name for v in variants(ARCH)]
    assert len({v.name for v in variants(ARCH)}) == len(variants(ARCH))
    assert variants("sm_90a") == variants("sm_120a") == []


def test_variants_of_several_outputs() -> None:
    tiles = ("128x128x128_f32_k_grouped_tn", "128x192x128_f32_k_grouped", "256x192x128_f32_k_grouped")
    k_grouped = [f"{form}_{tile}_accumulate" for form in ("mxf8", "mxf8_k128") for tile in tiles]
    layouts = ("bf16_batched", "f32_batched", "bf16_batched_nn", "f32_batched_nn", "f32_batched_tn")
    sums = tuple(f"{d}_accumulate" for d in ("bf16_batched", "f32_batched", "f32_batched_tn"))
    forms = ("mxf8", "mxf8_k128")
    batched = [f"{form}_128x128x128_{output}" for form in forms for output in layouts + sums]
    found = [v.name.removeprefix("sm100_gemm_") for v in VARIANTS if v.shape.d_batched]
    assert sorted(found) == sorted(k_grouped + batched)


def test_variants_of_groups_of_rows() -> None:
    quantizing = [
        v.name for v in VARIANTS if v.shape.grouped and v.shape.quantized and v.shape.cta_group == 2
    ]
    assert quantizing == [
        f"sm100_gemm_{of}"
        for of in (
            "mxf8_256x128x128_mxf8_by_sizes",
            "mxf8_k128_256x128x128_mxf8_by_sizes",
            "mxf8_k128_256x128x128_mxf8_by_indices",
        )
    ]
    assert [v.name for v in VARIANTS if v.shape.grouped and v.name not in quantizing] == [
        f"sm100_gemm_{form}_128x128x{k}_bf16_by_{grouping}"
        for form, k in (
            *(("mxf4", 256), ("nvf4", 256), ("mxf8", 128), ("mxf8_k128", 128)),
            *(("mxf8_mxf4", 128), ("mxf8_k128_mxf4", 128), ("mxf4_mxf8", 128), ("mxf4_mxf8_k128", 128)),
        )
        for grouping in ("indices", "sizes")
    ] + [f"sm100_gemm_{form}_128x128x128_bf16_by_indices_nn" for form in ("mxf8", "mxf8_k128")] + [
        f"sm100_gemm_{form}_bf16_swap_ab_by_{grouping}"
        for form in (
            *("mxf4_128x32x256", "nvf4_128x32x256", "mxf8_128x32x128", "mxf8_k128_128x32x128"),
            *("mxf8_mxf4_128x32x128", "mxf8_k128_mxf4_128x32x128"),
            *("mxf4_mxf8_128x32x128", "mxf4_mxf8_k128_128x32x128"),
        )
        for grouping in ("indices", "sizes")
    ] + [
        f"sm100_gemm_{form}_128x128x128_mxf8_by_{grouping}"
        for form in ("mxf8", "mxf8_k128")
        for grouping in ("indices", "sizes")
    ] + [
        f"sm100_gemm_{form}_{tile}_bf16_by_{grouping}"
        for grouping in ("sizes", "indices")
        for form, tile in (
            *(("mxf4", "256x192x256"), ("nvf4", "256x128x256"), ("mxf8", "256x192x128")),
            *(("mxf8_k128", "256x192x128"), ("mxf8_k128_mxf4", "256x192x128")),
        )
        if grouping == "sizes" or form in ("mxf4", "nvf4", "mxf8_k128")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_n": 40}, "tile_n 40"),
        ({"tile_n": 288}, "tile_n 288"),
        ({"tile_n": 144}, "whole stores of 32"),
        ({"tile_m": 64}, "tile_m 64"),
        ({"family_dtype": "mxf6"}, "family_dtype 'mxf6'"),
        ({"cta_group": 2}, "tile_m 128"),
        ({"cta_group": 3}, "cta_group 3"),
        ({"d_dtype": "f16"}, "d_dtype 'f16'"),
        ({"stages": 1}, "stages 1"),
        ({"stages": 7}, "232448"),
        ({"stages": 4, "tile_n": 256}, "TMEM columns of 512"),
        ({"acc_stages": 1}, "acc_stages 1"),
        ({"group_m": 0}, "group_m 0"),
        ({"tile_n": 96}, "3 stores in turns of two"),
        ({"tile_n": 48, "swap_ab": True}, "whole stores of 32"),
        ({"swap_ab": True, "d_dtype": "mxf8"}, "at most one of"),
        ({"grouping": "sizes", "heads": True}, "at most one of"),
        ({"grouping": "sizes", "swap_ab": True}, "swapped in groups: 32 rows, to BF16"),
        ({"grouping": "sizes", "accumulate": True}, "C is added to no D"),
        ({"swap_ab": True, "tile_m": 256, "cta_group": 2}, "cta_group 2: this tile is one CTA's"),
        ({"k_grouped": True}, "groups along K: no FP4"),
        ({"k_grouped": True, "b_major": "mn"}, "groups along K: A and B are alike"),
        ({"batched": True, "d_dtype": "mxf8"}, "at most one of"),
    ],
)
def test_shape_refuses(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"tile_n": 128, "stages": 6, "d_dtype": "bf16", "accumulate": False}
    Shape(**fields)
    with pytest.raises(AssertionError, match=message):
        Shape(**{**fields, **change})


@pytest.mark.parametrize("shape", [v.shape for v in VARIANTS], ids=[v.name for v in VARIANTS])
def test_fitting_leaves_no_room_for_a_stage(shape: Shape) -> None:
    with pytest.raises(AssertionError, match=r"of 232448|of 512"):
        replace(shape, stages=shape.stages + 1)
