"""Operands contiguous along M or N: one box brings a K tile where M and N are whole blocks, and box by box else."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import sm100
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
@pytest.mark.parametrize(("m", "n"), [(192, 320), (192, 328), (200, 320)])
def test_whole_blocks_and_others(kind: str, m: int, n: int, schedule: str) -> None:
    """Whole blocks that are no whole tiles; and those of A alone, and of B."""
    variant = sm100.gemm_variant(shape(kind))
    check(variant, m, n, 200, schedule, seed=m + n, num_sms=2)


def test_maps_have_blocks_together_or_not_at_all() -> None:
    params = sm100.gemm_variant(shape("tn")).params
    room = torch.empty(1)

    def maps(m: int, n: int) -> dict[str, tuple[int, ...]]:
        ab = {
            name: Tiled(room.data_ptr(), extent * 2, (100,), (4096,))
            for name, extent in (("map_a", m), ("map_b", n))
        }
        return {
            name: tensor.dims(spec.dtype) + spec.box for name, (spec, tensor) in in_blocks(params, ab).items()
        }

    assert maps(192, 320) == {
        "map_a": (128, 100, 3, 128, 64, 2),
        "map_b": (128, 100, 5, 128, 64, 4),
    }
    assert maps(192, 328) == maps(200, 320) == {}


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
