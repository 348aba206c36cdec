"""NVFP4 weights without TMA: what is built for which architecture, what fits there, and what is chosen."""

from __future__ import annotations

import pytest

import sm80
from cute_kernels.emulator import architecture
from cute_kernels.heuristics import Candidate, W4a16Problem, candidates
from sm80.shape import ARCHS, CP_ASYNC_ARCHS, TMA_ARCHS, W4a16Shape
from tests.gpu import cp_async_kernels

# An architecture, and the multiprocessors of a GPU of it: A100, RTX 3090, RTX 4090, RTX 5090.
GPUS = (("sm_80", 108), ("sm_86", 82), ("sm_89", 128), ("sm_120a", 170))


def gemms(arch: str) -> dict[str, sm80.Variant]:
    return {v.name: v for v in sm80.variants(arch) if v.kernel == "gemm_w4a16"}


def choose(arch: str, num_sms: int, problem: W4a16Problem) -> Candidate:
    return candidates(problem, num_sms, {name: v.shape.config() for name, v in gemms(arch).items()})[0]


def test_every_architecture_has_one_way_to_copy() -> None:
    with_cp_async = [arch for archs in CP_ASYNC_ARCHS.values() for arch in archs]
    assert sorted([*TMA_ARCHS, *with_cp_async]) == sorted(ARCHS)
    for arch in ARCHS:
        copies = {v.shape.copy for v in gemms(arch).values()}
        assert copies == ({"tma"} if arch in TMA_ARCHS else {"cp_async"}), arch


@pytest.mark.parametrize("arch", [arch for arch, _ in GPUS])
def test_kernels_fit_in_shared_memory_and_are_the_deepest_that_do(arch: str) -> None:
    most = architecture.find(arch).max_shared
    for name, variant in gemms(arch).items():
        s = variant.shape
        assert variant.dynamic_shared == s.smem_bytes <= most, name
        assert s.stages == 8 or s.smem_bytes + s.stage_bytes > most, name
        assert not s.config()["pdl"]
        assert not any(param.tensor_map for param in variant.params)


@pytest.mark.parametrize(("arch", "num_sms"), GPUS)
@pytest.mark.parametrize("x_dtype", ["bf16", "f16"])
def test_tiles_grow_with_m(arch: str, num_sms: int, x_dtype: str) -> None:
    tiles = []
    for m in (1, 8, 9, 16, 64, 128, 4096):
        chosen = choose(arch, num_sms, W4a16Problem(m, 14336, 4096, x_dtype))
        shape = gemms(arch)[chosen.name].shape
        assert shape.x_dtype == x_dtype
        assert chosen.estimate is not None and chosen.estimate.grid[0] <= num_sms
        tiles.append(shape.tile_m)
    assert tiles == sorted(tiles) and tiles[:2] == [8, 8] and tiles[-1] == 128


@pytest.mark.parametrize(("arch", "num_sms"), GPUS)
def test_experts_whose_rows_are_aligned_to_a_tile_are_served(arch: str, num_sms: int) -> None:
    for m, alignment, tile_m in ((128, 128, (16, 64)), (128, 16, (16,)), (128, 48, (16,))):
        problem = W4a16Problem(m, 1024, 1024, "bf16", "contiguous", 8, alignment)
        chosen = choose(arch, num_sms, problem)
        assert chosen.estimate is not None and gemms(arch)[chosen.name].shape.tile_m in tile_m
    refused = choose(arch, num_sms, W4a16Problem(128, 1024, 1024, "bf16", "contiguous", 8, 24))
    assert refused.estimate is None
    masked = choose(arch, num_sms, W4a16Problem(100, 1024, 1024, "f16", "masked", 8))
    assert masked.estimate is not None and masked.estimate.grid == (num_sms, 1, 1)


def test_shapes_that_leave_threads_without_a_share_are_refused() -> None:
    with pytest.raises(AssertionError):
        W4a16Shape("bf16", 32, 8, 2, 1, 4, 4, 1, stages=6, copy="cp_async", sm_shared=164 << 10)
    with pytest.raises(AssertionError, match="whole passes over X"):
        W4a16Shape("bf16", 32, 8, 1, 1, 3, 3, 1, stages=2, copy="cp_async", sm_shared=164 << 10)
    with pytest.raises(AssertionError, match="and over W"):
        W4a16Shape("bf16", 64, 8, 2, 1, 1, 2, 1, stages=2, copy="cp_async", sm_shared=164 << 10)


def test_a_hopper_gpu_can_run_every_configuration() -> None:
    def tiles(variants: list[sm80.Variant]) -> set[tuple[object, ...]]:
        shapes = [v.shape for v in variants if v.kernel == "gemm_w4a16"]
        return {(s.x_dtype, s.layout, s.tile_n, s.tile_m, s.tile_k, min(s.stages, 3)) for s in shapes}

    built = cp_async_kernels.variants("sm_90a")
    assert tiles(built) == tiles(sm80.variants("sm_80")) | {
        tile for tile in tiles(sm80.variants("sm_86")) if tile[-1] == 2
    }
    assert not {v.name for v in built} & gemms("sm_90a").keys()
    assert cp_async_kernels.variants("sm_80") == []
