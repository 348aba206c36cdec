"""Products whose tiles' K tiles are shared among CTAs: numbers against float64, equal bits, flags left at zero.

Every launch by `gemm` finds its slots poisoned, and asserts that it leaves no flag set.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.emulator import EmulationError
from cute_kernels.heuristics import candidates
from cute_kernels.runtime import Library, context
from cute_kernels.trial_problems import Gemm
from cute_kernels.trials import Place, attempt
from sm100.shape import Shape
from tests.building import Request, build
from tests.emulate.direct import SCHEDULES, by_turns, compile_ptx, gemm, relative_error
from tests.gemm_cases import Case, Operands

VARIANTS = {v.name: v for v in sm100.variants("sm_100a") if v.shape.split_k}


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    """What has been compiled, by name."""
    return {}


def sums(
    ptx: dict[str, str],
    name: str,
    sizes: tuple[int, int, int],
    share: int,
    schedule: str,
    seed: int,
    sms: int,
) -> Any:
    """D of a variant, checked."""
    variant = VARIANTS[name]
    if name not in ptx:
        ptx[name] = compile_ptx(variant)
    result, exact, report = gemm(variant, ptx[name], *sizes, schedule, seed, sms, share=share)
    assert report.warnings == []
    # D in BF16 differs by one rounding: 2^-9 of each element at most.
    assert relative_error(result, exact) < (1e-6 if variant.shape.d_dtype == "f32" else 2.0**-9)
    return result


@pytest.mark.parametrize(("name", "schedule"), by_turns(*VARIANTS))
def test_every_variant(ptx: dict[str, str], name: str, schedule: str) -> None:
    """More K tiles than stages in a share that is no divisor of them, tails everywhere, more CTAs than fit at once."""
    shape = VARIANTS[name].shape
    place = list(VARIANTS).index(name)
    k_tiles = shape.stages + 4
    mixed = shape.format.a.load_as != shape.format.b.load_as
    tail = 0 if mixed else 32  # FP4 that TMA unpacks has whole K tiles
    sizes = (150 * shape.cta_group, 104 if shape.cta_group == 1 else 168, shape.tile_k * (k_tiles - 1) + tail)
    sums(ptx, name, sizes, shape.stages + 2, schedule, seed=place, sms=2)


MXF4, BF16 = "sm100_gemm_mxf4_128x64x256_f32_split_k", "sm100_gemm_bf16_128x64x64_f32_split_k"


SWAPPED, WITH_C = (
    "sm100_gemm_bf16_128x32x64_bf16_swap_ab_split_k",
    "sm100_gemm_bf16_128x64x64_f32_split_k_accumulate",
)


@pytest.mark.parametrize(
    ("share", "name", "schedule"),
    [
        pytest.param(share, *case.values, marks=[*case.marks, *[pytest.mark.full] * (share not in some)])
        for some, names in (((1, 2, 3, 4, 5), (MXF4, BF16)), ((2, 5), (SWAPPED, WITH_C)))
        for share in (1, 2, 3, 4, 5)
        for case in by_turns(*names)
    ],
)
def test_shares(ptx: dict[str, str], name: str, share: int, schedule: str) -> None:
    """Of one K tile, of a divisor of a tile's six and of others, such that up to three tiles' ends meet in a CTA."""
    tile_k = VARIANTS[name].shape.tile_k
    sums(ptx, name, (130, 72, 6 * tile_k), share, schedule, seed=share, sms=3)


@pytest.mark.parametrize(("m", "n", "k_tiles", "share"), [(1, 8, 2, 1), (128, 64, 7, 2), (7, 1000, 3, 2)])
def test_sizes(ptx: dict[str, str], m: int, n: int, k_tiles: int, share: int) -> None:
    for i, name in enumerate((MXF4, BF16)):
        k = VARIANTS[name].shape.tile_k * k_tiles
        sums(ptx, name, (m, n, k - 32), share, SCHEDULES[(m + i) % 3], seed=m, sms=4)


@pytest.mark.parametrize("name", [MXF4, BF16, SWAPPED, pytest.param(WITH_C, marks=pytest.mark.full)])
def test_equal_bits(ptx: dict[str, str], name: str) -> None:
    """Whoever comes first, and however many CTAs run at once; but not those of another order of the sums."""
    sizes = (130, 72, 7 * VARIANTS[name].shape.tile_k)

    def bits(share: int, schedule: str, seed: int, sms: int) -> bytes:
        result, _, _ = gemm(VARIANTS[name], ptx[name], *sizes, schedule, seed, sms, share=share)
        return bytes(np.ascontiguousarray(result))

    sums(ptx, name, sizes, 2, "random", 0, 3)
    assert len({bits(2, schedule, 0, sms) for schedule in SCHEDULES for sms in (1, 4)}) == 1
    # Rounding to BF16 may leave nothing of the difference.
    assert name == SWAPPED or bits(2, "eager", 0, 4) != bits(3, "eager", 0, 4)


SMALL = dataclasses.replace(
    sm100.gemm_variant(Shape(64, 2, "f32", False, "bf16", split_k=True)), name="shared_two_stages"
)


@pytest.fixture(scope="module")
def two_stages() -> str:
    return compile_ptx(SMALL)


def drop(text: str, pattern: str, nth: int = 0) -> str:
    match = list(re.finditer(pattern, text))[nth]
    return text[: match.start()] + text[match.end() :]


def change(text: str, old: str, new: str) -> str:
    """With every match of a pattern replaced."""
    changed, count = re.subn(old, new, text)
    assert count
    return changed


BUGS: dict[str, Callable[[str], str]] = {
    "sums published without release": lambda t: change(t, r"st\.release\.gpu", "st.relaxed.gpu"),
    "sums awaited without acquire": lambda t: change(t, r"ld\.acquire\.gpu", "ld.relaxed.gpu"),
    "sums published before all lanes wrote": lambda t: drop(t, r"bar\.warp\.sync[^;]*;"),
    "sums read before the leader has waited": lambda t: drop_behind(t, "ld.acquire", r"bar\.warp\.sync[^;]*;"),
    "flags stay set": lambda t: drop_behind(t, "ld.acquire", r"st\.global\.b32[^;]*;"),
    "accumulator handed back while it is read": lambda t: drop(t, r"tcgen05\.fence::before_thread_sync;", 1),
    "accumulator of a share not awaited": lambda t: drop(t, r"tcgen05\.fence::after_thread_sync;", 1),
    "no tcgen05.wait::ld": lambda t: drop(t, r"tcgen05\.wait::ld\.sync\.aligned;"),
}  # fmt: skip


def drop_behind(text: str, place: str, pattern: str) -> str:
    at = text.index(place)
    return text[:at] + drop(text[at:], pattern)


def shared(text: str, schedule: str) -> tuple[float, list[str]]:
    """The error and the warnings. CTAs have four segments, so that the accumulators of left sums are used again."""
    result, exact, report = gemm(SMALL, text, 150, 200, 3 * 64, schedule, 0, 3, share=7)
    return relative_error(result, exact), report.warnings


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_small_kernel_is_right(two_stages: str, schedule: str) -> None:
    error, warnings = shared(two_stages, schedule)
    assert error < 1e-6
    assert warnings == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(two_stages: str, bug: str) -> None:
    broken, found = BUGS[bug](two_stages), []
    for schedule in SCHEDULES:
        try:
            error, warnings = shared(broken, schedule)
        except EmulationError as fault:
            found.append(fault.kind)
        except AssertionError as left:
            found.append(str(left))
        else:
            found += [*warnings, *["wrong result"] * (error > 1e-6)]
    assert found, f"{bug!r} passes under every schedule"


CUBINS = "*gemm_mxf4_128x64*_bf16*"


@pytest.mark.usefixtures("cubins")
def test_the_operation_shares_where_it_pays() -> None:
    """One workspace serves launches of all sizes, one after another; with C, or tiles enough, nothing is shared."""
    shared, bits = [], []
    with cute_kernels.emulate("sm_100a", "random", 3, 12) as emulation:
        for case in (
            Case(128, 128, 7168, "bf16"),
            Case(200, 100, 6144 + 32, "bf16"),
            Case(128, 128, 7168, "bf16"),
            Case(128, 128, 512, "bf16"),
            Case(500, 250, 4096, "bf16"),
            Case(128, 128, 7168, "bf16", "apart"),
        ):
            o = Operands(case)
            cute_kernels.gemm_nt(o.a, o.b, o.d, o.c)
            assert o.wrong() == ""
            bits.append(o.d.clone())
            report = emulation.reports[-1]
            assert report.warnings == []
            shared.append(("split_k" in report.kernel, report.grid[0]))
    assert shared == [(True, 8), (True, 12), (True, 8), (False, 2), (False, 12), (False, 2)]
    assert torch.equal(bits[0], bits[2])


def test_few_rows_and_a_given_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding shares swapped tiles; C is added by who owns a tile."""
    swapped, with_c, unshared = (
        f"sm100_gemm_bf16_128x{tile}"
        for tile in (
            "32x64_bf16_swap_ab_split_k",
            "64x64_bf16_split_k_accumulate",
            "32x64_bf16_swap_ab_accumulate",
        )
    )
    for only in (swapped, with_c, unshared):
        request = Request(tmp_path, ("sm_100a",), only=only, packages=("sm100",))
        assert not build(request, say=lambda line: None).failures
    monkeypatch.setattr(context._settings, "library", Library(tmp_path))
    configs = {r.name: r.config for r in context.library().records}
    assert sorted(configs) == sorted((swapped, with_c, unshared))
    for m, k, c, wanted in ((16, 2048, False, swapped), (128, 2048, True, with_c), (16, 256, True, unshared)):
        problem = Gemm(m, 136, k, "bf16", c, "bf16")
        assert candidates(problem.to_choose_for(), 12, configs)[0].name == wanted
        trial = attempt(problem, Place("sm_100a", "random", m, 12), operand_seed=m)
        assert trial.passed, trial
