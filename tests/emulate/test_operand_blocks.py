"""Operands contiguous along M or N: one box brings a K tile where M and N are whole blocks, and box by box else."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch
from cutlass import Boolean

import sm100
from cute_kernels.device import tma
from cute_kernels.device.umma_formats import Major
from cute_kernels.runtime.arguments import Tiled, in_blocks
from sm100.shape import Shape
from tests.emulate.direct import SCHEDULES, check, compile_ptx, gemm, relative_error

KINDS: dict[str, tuple[Major, Major, int, int]] = {  # majorness of A and B, tile_n, CTAs a tile
    "nn": ("k", "mn", 128, 1),
    "tt": ("mn", "k", 128, 1),
    "tn": ("mn", "mn", 256, 1),
    "tn of pairs": ("mn", "mn", 256, 2),
}


@lru_cache
def shape(kind: str) -> Shape:
    a_major, b_major, tile_n, ctas = KINDS[kind]
    return Shape.fitting(tile_n, "f32", False, "bf16", a_major, b_major, cta_group=ctas)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(192, 320, 200), (192, 328, 200), (200, 320, 200), (40, 24, 65), (72, 8, 1)]
)
def test_whole_blocks_and_others(kind: str, m: int, n: int, k: int, schedule: str) -> None:
    """Whole blocks that are no whole tiles; those of A alone, and of B; rows of less than a block, and a single one."""
    variant = sm100.gemm_variant(shape(kind))
    check(variant, m, n, k, schedule, seed=m + n, num_sms=2)


def test_maps_of_blocks_lie_within_their_tensors() -> None:
    """Whole blocks are all in the map, others without the last row; rows of less than a block are one."""
    params = {p.name: p.tensor_map for p in sm100.gemm_variant(shape("tn")).params if p.tensor_map}
    room = torch.empty(1)

    def blocks(name: str, extent: int, k: int) -> tuple[int, ...]:
        tensor = Tiled(room.data_ptr(), extent * 2, (k,), (-(-extent // 8) * 16,))
        spec, mapped = in_blocks(params[name], tensor)
        assert mapped.nbytes <= tensor.nbytes
        return mapped.dims(spec.dtype) + spec.box

    assert blocks("map_a", 192, 100) == (128, 100, 3, 128, 64, 2)
    assert blocks("map_b", 320, 100) == (128, 100, 5, 128, 64, 4)
    assert blocks("map_b", 328, 100) == (128, 99, 6, 128, 64, 4)
    assert blocks("map_a", 200, 1) == (128, 1, 3, 128, 64, 2)
    assert blocks("map_a", 24, 100) == (48, 99, 1, 128, 64, 2)
    assert blocks("map_a", 24, 1) == (48, 1, 1, 128, 64, 2)
    assert blocks("map_a_boxes", 200, 100) == (400, 100, 128, 64)


@pytest.mark.parametrize("bug", ["none", "the next block", "the last block again"])
def test_planted_bugs(bug: str) -> None:
    variant = sm100.gemm_variant(shape("nn"))
    text = compile_ptx(variant)
    at = text.index("cp.async.bulk.tensor.3d")
    first = text[at : text.index(";", at)]
    coordinate = first[first.index("{") : first.index("}")].split(", ")[2]
    line = text.rindex("\n", 0, at) + 1
    change = {"none": "", "the next block": f"add.s32 {coordinate}, {coordinate}, 1;\n"}
    change["the last block again"] = f"max.s32 {coordinate}, {coordinate}, 1;\n"
    result, exact, _ = gemm(variant, text[:line] + change[bug] + text[line:], 192, 320, 200, "random", 1)
    assert (relative_error(result, exact) > 1e-6) == (bug != "none")


@pytest.mark.parametrize(("m", "n", "wrong"), [(192, 320, False), (200, 320, True), (192, 328, True)])
def test_the_last_k_tile_in_blocks_is_found(
    monkeypatch: pytest.MonkeyPatch, m: int, n: int, wrong: bool
) -> None:
    """Planted in the source: then the last row of an operand without whole blocks is missing."""
    monkeypatch.setattr(tma, "whole_blocks", lambda *of: Boolean(True))
    broken = dataclasses.replace(sm100.gemm_variant(shape("tn")), name="last_k_tile_in_blocks")
    result, exact, _ = gemm(broken, compile_ptx(broken), m, n, 200, "random", 1)
    assert (relative_error(result, exact) > 1e-6) == wrong
