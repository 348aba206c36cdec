"""CTA pairs that share the K tiles of a tile: numbers against float64, equal bits, and bugs that only pairs can have.

What single CTAs do as well is test_split_k.py's, whose launches leave no flag set either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cutlass import Int32

import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.device import pair, splitk, streamk
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from cute_kernels.trial_problems import Gemm
from cute_kernels.trials import Place, attempt
from sm100.shape import Shape
from tests.building import Request, build
from tests.emulate.direct import SCHEDULES, by_turns, compile_ptx, gemm, relative_error


def variant(family: str) -> Variant:
    shape = Shape(64, 3, "f32", False, family, tile_m=256, cta_group=2, split_k=True)
    return dataclasses.replace(sm100.gemm_variant(shape), name=f"shared_by_pairs_{family}")


VARIANTS = {family: variant(family) for family in ("bf16", "mxf4", "mxf8_k128")}
SIZES = {"bf16": (400, 104, 72 * 8), "mxf4": (130, 200, 1184), "mxf8_k128": (257, 40, 1130)}


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    return {family: compile_ptx(v) for family, v in VARIANTS.items()}


@pytest.mark.parametrize(("family", "schedule"), by_turns(*VARIANTS))
@pytest.mark.parametrize("share", [1, 2, 3, 4])
def test_shares(ptx: dict[str, str], family: str, share: int, schedule: str) -> None:
    """From a K tile each to tiles and a half; in all, more pairs than are at work at once."""
    result, exact, report = gemm(
        VARIANTS[family], ptx[family], *SIZES[family], schedule, share, 5, share=share
    )
    assert relative_error(result, exact) < 1e-6
    assert report.warnings == []
    assert report.grid[0] % 2 == 0


@pytest.mark.parametrize("size", [(1, 8, 320), (128, 64, 640), (129, 72, 320)])
def test_rows_that_one_cta_has_alone(ptx: dict[str, str], size: tuple[int, int, int]) -> None:
    for i, schedule in enumerate(SCHEDULES):
        result, exact, report = gemm(VARIANTS["bf16"], ptx["bf16"], *size, schedule, i, 4, share=2)
        assert relative_error(result, exact) < 1e-6
        assert report.warnings == []


def test_equal_launches_give_equal_bits(ptx: dict[str, str]) -> None:
    """Whoever comes first: sums are added up in the order of K."""
    results = [
        gemm(VARIANTS["mxf4"], ptx["mxf4"], *SIZES["mxf4"], schedule, 7, sms, share=2)[0]
        for schedule, sms in zip(SCHEDULES, (2, 5, 148), strict=True)
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, Patch] = {
    "both CTAs have the first one's slot": lambda p: p.setattr(
        splitk, "own_index", lambda ctas: Int32(streamk.share_index(ctas) * ctas)
    ),
    "pairs count as single CTAs": lambda p: p.setattr(
        splitk, "own_index", lambda ctas: Int32(streamk.share_index(ctas)) + Int32(pair.rank(ctas))
    ),
    "each CTA has a share": lambda p: p.setattr(
        streamk, "share_index", lambda ctas=1, original=streamk.share_index: original(1)
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    BUGS[bug](monkeypatch)
    broken = compile_ptx(dataclasses.replace(VARIANTS["bf16"], name="broken"))
    found = []
    for schedule in SCHEDULES:
        try:
            result, exact, report = gemm(
                VARIANTS["bf16"], broken, *SIZES["bf16"], schedule, 1, 4, 300_000, share=2
            )
        except (EmulationError, AssertionError) as fault:
            found.append(str(fault))
        else:
            found += report.warnings
            found += ["wrong result"] if relative_error(result, exact) >= 1e-5 else []
        if found:
            return
    raise AssertionError(f"{bug!r} passes under every schedule")


def test_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the runtime's own launch, with its workspace, of the kernels that are built."""
    request = Request(tmp_path, ("sm_100a",), "*_256x128x*_split_k", packages=("sm100",))
    assert not build(request, say=lambda line: None).failures
    monkeypatch.setattr(context._settings, "library", Library(tmp_path))
    for i, operands in enumerate(("bf16", "mxf8_k128")):
        for seed in range(2):  # the flags are as the first left them
            place = Place("sm_100a", SCHEDULES[i], seed, 15)
            trial = attempt(Gemm(300, 136, 1152, "bf16", operands=operands), place, seed)
            assert trial.passed, (trial.verdict, trial.hazard, trial.outcome)
