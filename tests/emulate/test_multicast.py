"""GEMMs in clusters of two CTA pairs that load A for each other: sizes that leave pairs or CTAs without a tile, grids
that clusters do not divide, and bugs that only such clusters can have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutlass.experimental import primitives as prims

import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.device import pair, ring, tma
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from cute_kernels.trial_problems import Gemm
from cute_kernels.trials import Place, attempt
from sm100.shape import Shape
from tests.building import Request, build
from tests.emulate.direct import SCHEDULES, by_turns, check, compile_ptx, gemm, relative_error


def variant(family: str, tile_n: int, stages: int, accumulate: bool = False) -> Variant:
    shape = Shape(tile_n, stages, "f32", accumulate, family, tile_m=256, cta_group=2, multicast=True)
    return dataclasses.replace(sm100.gemm_variant(shape), name=f"multicast_{family}")


SMALL = variant("mxf4", 64, 2)
BY_FAMILY = {
    "mxf4": variant("mxf4", 192, 3),
    "nvf4": variant("nvf4", 128, 3),
    "mxf8": variant("mxf8", 192, 3),
    "mxf8_k128": variant("mxf8_k128", 128, 3),
    "mxf4_mxf8": variant("mxf4_mxf8", 128, 3),
    "bf16": variant("bf16", 128, 3, accumulate=True),
}
SIZES = [
    (1, 8, 128),  # nothing for the second pair, and nothing of A for second CTAs
    (128, 104, 512),  # half of what the first pair has of B, too
    (129, 264, 640),  # a second CTA with one row
    (257, 520, 128),  # a cluster without a second pair's tile behind one that has it
    (520, 392, 1152),
]


@pytest.mark.parametrize(
    ("size", "family", "schedule"),
    [
        pytest.param(size, family, schedule, marks=() if (i + j + k) % 3 == 0 else pytest.mark.full)
        for i, size in enumerate(SIZES)
        for j, family in enumerate(BY_FAMILY)
        for k, schedule in enumerate(SCHEDULES)
    ],
)
def test_sizes(family: str, size: tuple[int, int, int], schedule: str) -> None:
    check(BY_FAMILY[family], *size, schedule, seed=size[0], num_sms=6)


BUILT = {v.shape.family_dtype: v for v in sm100.variants("sm_100a") if v.shape.multicast}


@pytest.mark.parametrize(("family", "schedule"), by_turns("mxf4", "nvf4", "mxf8_k128"))
def test_what_is_built(family: str, schedule: str) -> None:
    """More K tiles than stages, two tiles a cluster, the second with one pair's columns alone."""
    assert set(BUILT) == {"mxf4", "nvf4", "mxf8_k128"}
    s = BUILT[family].shape
    k = s.tile_k * (s.stages + 1) + 128
    check(BUILT[family], 300, 2 * s.tile_n - 56, k, schedule, seed=7, num_sms=4)


PROBLEM = (
    400,
    264,
    1056,
)  # two tiles along M, three along N, the last of one pair; five K tiles for two stages


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(SMALL)


@pytest.mark.parametrize(("num_sms", "seed"), [(4, 0), (7, 1), (10, 2), (148, 3)])
def test_grids(ptx: str, num_sms: int, seed: int) -> None:
    """10 multiprocessors hold two clusters; 148 hold one for each tile."""
    result, exact, report = gemm(SMALL, ptx, *PROBLEM, "random", seed, num_sms)
    assert relative_error(result, exact) < 1e-6
    assert report.warnings == []
    assert report.grid == (min(num_sms // 4, 2 * 3) * 4, 1, 1)


def found(ptx: str) -> list[str]:
    """What the emulator and the result say of a program: in all schedules, up to the first that says something."""
    kinds: list[str] = []
    for schedule in SCHEDULES:
        if kinds:
            break
        try:
            result, exact, report = gemm(SMALL, ptx, *PROBLEM, schedule, num_sms=8)
        except EmulationError as fault:
            kinds.append(fault.kind)
        else:
            kinds += report.warnings
            kinds += ["wrong result"] if relative_error(result, exact) >= 1e-5 else []
    return kinds


def test_the_kernel_itself_is_right(ptx: str) -> None:
    assert found(ptx) == []


Patch = Callable[[pytest.MonkeyPatch], None]


def _one_pair_empties(patch: pytest.MonkeyPatch) -> None:
    """A stage counts as empty when this CTA's own pair is done with it."""
    original = ring.init
    patch.setattr(pair, "commit_to_all", pair.commit)
    patch.setattr(
        ring,
        "init",
        lambda barriers, count, arrivals: original(barriers, count, 1 if arrivals == 2 else arrivals),
    )


def _either_pair_empties(patch: pytest.MonkeyPatch) -> None:
    """... or the other one: the first arrival of two completes the phase."""
    original = ring.init
    patch.setattr(
        ring,
        "init",
        lambda barriers, count, arrivals: original(barriers, count, 1 if arrivals == 2 else arrivals),
    )


def _loads(change: Callable[..., dict[str, Any]]) -> Patch:
    """Change what loads by multicast are given."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = tma.load

        def load(target: Any, tensor_map: Any, at: Any, barrier: Any, ctas: int = 1, to: Any = None) -> None:
            given = {"at": at, "to": to, **(change(at, to) if to is not None else {})}
            original(target, tensor_map, given["at"], barrier, ctas, given["to"])

        patch.setattr(tma, "load", load)

    return apply


BUGS: dict[str, Patch] = {
    "stages are refilled when one's own pair has done": _one_pair_empties,
    "stages are refilled when either pair has done": _either_pair_empties,
    "stages are announced as empty to one's own pair": lambda p: p.setattr(
        pair, "commit_to_all", pair.commit
    ),
    "accumulators are announced to the first pair": lambda p: p.setattr(
        pair, "commit", lambda barrier, ctas: pair._commit(barrier, ctas, 0b11)
    ),
    "accumulators are announced to all": lambda p: p.setattr(pair, "commit", pair.commit_to_all),
    "barriers of the second pair are taken for the first's": lambda p: p.setattr(
        pair, "in_first", lambda barrier, ctas: prims.mapa(barrier, 0)
    ),
    "each CTA loads for itself alone": _loads(lambda at, to: {"to": 1 << prims.cluster_ctarank()}),
    "each CTA loads for its pair": _loads(lambda at, to: {"to": 3 << pair.which(4) * 2}),
    "both load the same half": _loads(lambda at, to: {"at": (at[0], at[1] - pair.which(4) * 64)}),
    "halves are those of the other rows": _loads(
        lambda at, to: {"at": (at[0], at[1] + 128 - pair.rank(4) * 256)}
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, bug: str, ptx: str) -> None:
    BUGS[bug](monkeypatch)
    broken = compile_ptx(dataclasses.replace(SMALL, name="broken"))
    assert _text(broken) != _text(ptx), f"{bug!r} changes nothing"
    assert found(broken), f"{bug!r} passes under every schedule"


def _text(ptx: str) -> str:
    return re.sub(r"multicast_mxf4|broken|//.*|\.(loc|file).*", "", ptx)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cta_group": 1, "tile_m": 128}, "multicast: K-major A, of two pairs"),
        ({"family_dtype": "bf16", "a_major": "mn"}, "multicast: K-major A, of two pairs"),
        ({"clc": True}, "at most one of .* multicast"),
        ({"grouping": "sizes", "d_dtype": "bf16"}, "at most one of .* multicast"),
    ],
)
def test_shapes_that_there_are_not(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        dataclasses.replace(SMALL.shape, **fields)


def test_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the runtime's own launch, of the kernels that are built: two clusters of nine multiprocessors' room."""
    request = Request(tmp_path, ("sm_100a",), "*_multicast", packages=("sm100",))
    assert not build(request, say=lambda line: None).failures
    monkeypatch.setattr(context._settings, "library", Library(tmp_path))
    for i, operands in enumerate(BUILT):
        trial = attempt(
            Gemm(300, 520, 640, "bf16", operands=operands), Place("sm_100a", SCHEDULES[i], i, 9), i
        )
        assert trial.passed, (trial.verdict, trial.hazard, trial.outcome)
