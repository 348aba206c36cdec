"""Products whose CTAs ask for their tiles (cluster launch control): numbers, who gets which tile, and planted bugs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest

import cute_kernels
import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import ArgumentError
from sm100.shape import Shape
from tests.emulate.direct import SCHEDULES, by_turns, check, compile_ptx, gemm, relative_error
from tests.gemm_cases import Case, Operands

VARIANTS = {v.name: v for v in sm100.variants("sm_100a") if v.shape.clc}


@pytest.mark.parametrize(("name", "schedule"), by_turns(*VARIANTS))
def test_every_variant(name: str, schedule: str) -> None:
    """More tiles than CTAs fit, and more K tiles than stages; a tail in every dimension."""
    variant = VARIANTS[name]
    s = variant.shape
    k = s.tile_k * (s.stages + 1) - 32
    check(variant, 300 * s.cta_group, 520, k, schedule, seed=list(VARIANTS).index(name), num_sms=4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("m", "n", "sms"), [(1, 8, 1), (129, 264, 1), (600, 100, 3), (256, 200, 16)])
def test_sizes(schedule: str, m: int, n: int, sms: int) -> None:
    """A tile alone, all tiles for one CTA, and a multiprocessor for every tile."""
    check(VARIANTS["sm100_gemm_bf16_128x128x64_f32_clc"], m, n, 100, schedule, seed=m, num_sms=sms)


SMALL = dataclasses.replace(
    sm100.gemm_variant(Shape(64, 2, "f32", False, "bf16", clc=True)), name="asking_two_stages"
)
PAIR = dataclasses.replace(
    sm100.gemm_variant(Shape(64, 2, "f32", False, "bf16", tile_m=256, cta_group=2, clc=True)),
    name="asking_pair",
)
SIZES = (300, 520, 100)  # 27 tiles of the one, 18 of the pair


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    return {v.name: compile_ptx(v) for v in (SMALL, PAIR)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_free_ctas_take_the_tiles_of_others(ptx: dict[str, str], schedule: str) -> None:
    """With every request granted, as many CTAs as fit do all tiles, each in its turn; else others start too."""
    result, exact, report = gemm(SMALL, ptx[SMALL.name], *SIZES, schedule, 1, 4)
    assert relative_error(result, exact) < 1e-6
    assert report.grid == (27, 1, 1)
    started = report.operations["tcgen05.alloc"]
    assert started == 4 if schedule == "eager" else 4 < started < 27
    # Every CTA that starts fails once, and every other tile comes of a request.
    assert report.operations["clusterlaunchcontrol.try_cancel"] == 27


def test_equal_bits(ptx: dict[str, str]) -> None:
    results = {
        bytes(np.ascontiguousarray(gemm(SMALL, ptx[SMALL.name], *SIZES, schedule, 1, sms)[0]))
        for schedule in SCHEDULES
        for sms in (2, 5)
    }
    assert len(results) == 1


def drop(text: str, pattern: str, nth: int = 0) -> str:
    match = list(re.finditer(pattern, text))[nth]
    return text[: match.start()] + text[match.end() :]


def around(text: str, place: str, nth: int, pattern: str, back: bool = False) -> str:
    """Without the first match of a pattern behind the nth match of a place, or the last before it."""
    at = [m.start() for m in re.finditer(place, text)][nth]
    return drop(text[:at], pattern, -1) + text[at:] if back else text[:at] + drop(text[at:], pattern)


QUERY, ASK = r"clusterlaunchcontrol\.query", r"clusterlaunchcontrol\.try_cancel[^;]*;"
WAIT = r"mbarrier\.try_wait[^,;]* (%p\d+),[^;]*;"


def pass_wait(text: str, place: str, nth: int) -> str:
    """With the last wait before a place passed at once."""
    at = [m.start() for m in re.finditer(place, text)][nth]
    wait = list(re.finditer(WAIT, text[:at]))[-1]
    return text[: wait.start()] + f"mov.pred {wait[1]}, -1;" + text[wait.end() :]


BUGS: dict[str, Callable[[str], str]] = {
    "asks without waiting until all have read": lambda t: pass_wait(t, ASK, -1),
    "reads before the response is there": lambda t: pass_wait(t, QUERY, 0),
    "expects no bytes": lambda t: around(t, ASK, -1, r"mbarrier\.arrive\.expect_tx[^;]*;", back=True),
    "expects 32 bytes": lambda t: t.replace(", 16;", ", 32;") if t.count(", 16;") == 1 else wrong_bytes(t),
    "does not say that it has read": lambda t: around(t, QUERY, 0, r"mbarrier\.arrive[^;]*;"),
    "no fence behind the read": lambda t: around(t, QUERY, 0, r"fence\.proxy\.async\.shared::cta;"),
    "asks again after a failure": lambda t: t[: t.rindex("query_cancel")]
    + re.sub(r"setp\.gt(\.s32 \t%p\d+, %r\d+, -1;)", r"setp.ge\1", t[t.rindex("query_cancel") :]),
    "query of a failed request": lambda t: re.sub(r"@canceled ", "", t, count=1),
}  # fmt: skip


def wrong_bytes(text: str) -> str:
    """The constant behind the expectation that stands before the request."""
    at = re.search(ASK, text)
    assert at
    expected = list(re.finditer(r"expect_tx[^;]*, (%r\d+);", text[: at.start()]))[-1]
    return re.sub(rf"mov\.b32 \t{expected[1]}, 16;", f"mov.b32 \t{expected[1]}, 32;", text)


@pytest.mark.parametrize("variant", [SMALL, PAIR], ids=["one", "pair"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(ptx: dict[str, str], bug: str, variant: Variant) -> None:
    broken, found = BUGS[bug](ptx[variant.name]), []
    assert broken != ptx[variant.name]
    for schedule in SCHEDULES:
        try:
            result, exact, report = gemm(variant, broken, *SIZES, schedule, 0, 4, step_limit=300_000)
        except EmulationError as fault:
            found.append(fault.kind)
        else:
            found += [*report.warnings, *["wrong result"] * (relative_error(result, exact) > 1e-6)]
    assert found, f"{bug!r} passes under every schedule"


CUBINS = "*gemm_mxf4_128x128*_bf16*"


@pytest.mark.usefixtures("cubins")
def test_the_operation_asks_where_it_is_told_to() -> None:
    o = Operands(Case(300, 200, 512, "bf16"))
    with cute_kernels.emulate("sm_100a", "random", 3, 2) as emulation:
        cute_kernels.gemm_nt(o.a, o.b, o.d)
        static = o.d.clone()
        o.d.fill_(float("nan"))
        cute_kernels.gemm_nt(o.a, o.b, o.d, scheduling="clc")
        assert o.wrong() == ""
        assert bool((static == o.d).all())
        assert [(r.grid[0], "clc" in r.kernel, r.warnings) for r in emulation.reports] == [
            (2, False, []),
            (6, True, []),
        ]
        for scheduling, c in (("dynamic", None), ("clc", o.d)):
            with pytest.raises(
                ArgumentError, match=f"scheduling is {scheduling!r} .* without c. Leave it out"
            ):
                cute_kernels.gemm_nt(o.a, o.b, o.d, c, scheduling=scheduling)
    with cute_kernels.emulate("sm_100a", "random", 3, 3) as emulation:
        for busy_sms in (0, 1):  # of three
            o.d.fill_(float("nan"))
            cute_kernels.gemm_nt(o.a, o.b, o.d, scheduling="auto", busy_sms=busy_sms)
            assert bool((static == o.d).all())
    assert [(r.grid[0], "clc" in r.kernel, r.warnings) for r in emulation.reports] == [
        (3, False, []),
        (6, True, []),
    ]
