"""GEMMs on CTA pairs: sizes that a pair does not divide, grids with a CTA to spare, and bugs that only pairs can have.

What one CTA does as well is test_gemm_mxf4.py's, test_gemm_formats.py's and test_planted_bugs.py's; every variant of
pairs runs there too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.device import pair, tma
from cute_kernels.emulator import EmulationError
from sm100.shape import Shape
from tests.emulate.direct import check, compile_ptx, gemm, relative_error
from tests.emulate.test_planted_bugs import drop, replace_nth

SCHEDULES = ("eager", "lazy", "random")


def shape(family: str, tile_n: int, stages: int) -> Shape:
    return Shape(tile_n, stages, "f32", False, family, tile_m=256, cta_group=2)


def variant(of: Shape, name: str) -> Variant:
    return dataclasses.replace(sm100.gemm_variant(of), name=name)


SMALL = variant(shape("mxf4", 64, 2), "pair_two_stages")
BY_FAMILY = {
    "mxf4": variant(shape("mxf4", 192, 3), "pair_mxf4"),
    "nvf4": variant(shape("nvf4", 128, 3), "pair_nvf4"),
    "mxf8": variant(shape("mxf8", 192, 3), "pair_mxf8"),
    "mxf8_k128": variant(shape("mxf8_k128", 128, 3), "pair_mxf8_k128"),
    "bf16": variant(shape("bf16", 256, 3), "pair_bf16"),
}


SIZES = [
    (1, 8, 32),  # nothing for the second CTA
    (128, 104, 512),  # nothing of A for it, and half of B
    (129, 264, 544),
    (257, 200, 96),
    (520, 392, 1056),
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
    check(BY_FAMILY[family], *size, schedule, seed=size[0], num_sms=3)


@pytest.mark.parametrize(("num_sms", "seed"), [(2, 0), (5, 1), (8, 2), (148, 3)])
def test_grids(ptx: str, num_sms: int, seed: int) -> None:
    """5 multiprocessors hold two pairs; 148 hold one for each tile."""
    result, exact, report = gemm(SMALL, ptx, 600, 200, 544, "random", seed, num_sms)
    assert relative_error(result, exact) < 1e-6
    assert report.warnings == []
    assert report.grid == (min(num_sms // 2, 3 * 4) * 2, 1, 1)


PROBLEM = (400, 136, 1056)  # two tiles along M, three along N; five K tiles for two stages


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(SMALL)


def every(text: str, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> str:
    changed, count = re.subn(pattern, replacement, text)
    assert count, pattern
    return changed


COMMIT = r"tcgen05\.commit[^;]*multicast::cluster[^;]*;"


def _no_multicast(text: str, nth: int) -> str:
    """A commit that arrives in the first CTA alone."""
    return replace_nth(
        text, COMMIT, lambda m: re.sub(r", %rs\d+", "", m[0].replace(".multicast::cluster", "")), nth
    )


def _arrival_stays(text: str, nth: int) -> str:
    """An arrival at the CTA's own barrier, which in the second CTA nobody waits for."""
    mapped = r"mapa\.shared::cluster\.u32 \t(%r\d+), (%r\d+), 0;"
    return replace_nth(text, mapped, lambda m: f"mov.b32 \t{m[1]}, {m[2]};", nth)


def _copies_signal_their_own_cta(text: str) -> str:
    """A tensor copy's barrier whose address keeps the bit of the CTA's rank."""
    return every(text, r"and\.b32 \t(%r\d+), (%r\d+), -167772\d\d;", r"mov.b32 \1, \2;")


def _no_cluster_barrier(text: str, nth: int) -> str:
    return drop(drop(text, r"barrier\.cluster\.arrive[^;]*;", nth), r"barrier\.cluster\.wait[^;]*;", nth)


BUGS: dict[str, Callable[[str], str]] = {
    "stages are emptied in the first CTA only": lambda t: _no_multicast(t, 0),
    "accumulators are announced in the first CTA only": lambda t: _no_multicast(t, 1),
    "tensor copies signal their own CTA": _copies_signal_their_own_cta,
    "no barrier of the cluster at the start": lambda t: _no_cluster_barrier(t, 0),
    "no barrier of the cluster at the end": lambda t: _no_cluster_barrier(t, -1),
    "stores keep to their own CTA's accumulators": lambda t: _arrival_stays(t, 0),
    "loads expect their bytes in their own CTA": lambda t: _arrival_stays(t, 1),
    "scale atoms are announced in their own CTA": lambda t: _arrival_stays(t, 2),
}


def found(ptx: str) -> list[str]:
    """What the emulator and the result say of a program: in all schedules, up to the first that says something."""
    kinds: list[str] = []
    for schedule in SCHEDULES:
        if kinds:
            break
        try:
            result, exact, report = gemm(SMALL, ptx, *PROBLEM, schedule)
        except EmulationError as fault:
            kinds.append(fault.kind)
        else:
            kinds += report.warnings
            kinds += ["wrong result"] if relative_error(result, exact) >= 1e-5 else []
    return kinds


def test_the_kernel_itself_is_right(ptx: str) -> None:
    assert found(ptx) == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(ptx: str, bug: str) -> None:
    assert found(BUGS[bug](ptx)), f"{bug!r} passes under every schedule"


@pytest.mark.parametrize("opcode", ["alloc", "relinquish_alloc_permit", "dealloc", "cp", "mma", "commit"])
def test_instructions_of_one_cta_among_those_of_pairs_are_refused(ptx: str, opcode: str) -> None:
    mixed = every(ptx, rf"(tcgen05\.{opcode}\.cta_group::)2", r"\g<1>1")
    with pytest.raises(
        EmulationError, match=rf"tcgen05.{opcode}.* in one kernel; all its .* the same .cta_group"
    ):
        gemm(SMALL, mixed, *PROBLEM)


@pytest.mark.parametrize("part", ["A", "B", "SFA", "SFB"])
def test_a_wrong_half_is_found(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Planted in the source: both CTAs load the same rows, or of SFB each another half."""
    original = tma.load
    made: list[str] = []

    def load(
        target: Any, tensor_map: Any, at: tuple[Any, ...], barrier: Any, ctas: int = 1, *to: Any
    ) -> None:
        made.append(["SFA", "SFB"][len(made) % 2] if ctas == 1 else ["A", "B"][len(made) % 2])
        if made[-1] == part:
            half = {"A": -128, "SFA": -128, "B": -SMALL.shape.tile_n // 2, "SFB": SMALL.shape.tile_n // 2}
            shift = pair.rank(2) * half[part] if half[part] > 0 else -(pair.rank(2) * -half[part])
            at = (at[0], at[1] + shift) if ctas == 2 else (at[0] + shift, at[1])
        original(target, tensor_map, at, barrier, ctas, *to)

    monkeypatch.setattr(tma, "load", load)
    broken = compile_ptx(dataclasses.replace(SMALL, name=f"wrong_half_of_{part}"))
    assert sorted(made) == ["A", "B", "SFA", "SFB"]
    assert found(broken) == ["wrong result"]
