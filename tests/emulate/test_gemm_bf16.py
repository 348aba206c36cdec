"""BF16 products on SM100 in every layout: numbers against float64, no hazard in any schedule, tails everywhere.

The batched ones are test_einsum.py's, and those with groups along K test_k_grouped.py's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.device.umma_formats import Major
from cute_kernels.emulator import EmulationError
from sm100.shape import Shape
from tests.emulate.direct import by_turns, check, compile_ptx, gemm, half_of, relative_error

VARIANTS = {
    v.name: v
    for v in sm100.variants("sm_100a")
    if v.kernel == "gemm_bf16"
    and not (v.shape.d_batched or v.shape.split_k or v.shape.clc or v.shape.grouped)
}
SCHEDULES = ("eager", "lazy", "random")
LAYOUTS: dict[str, tuple[Major, Major]] = {
    "nt": ("k", "k"),
    "nn": ("k", "mn"),
    "tn": ("mn", "mn"),
    "tt": ("mn", "k"),
}


@pytest.mark.parametrize("name", half_of(VARIANTS))
def test_every_variant(name: str) -> None:
    """More K tiles than stages, several tiles a CTA, a tail in every dimension; schedules by turns."""
    variant = VARIANTS[name]
    place = list(VARIANTS).index(name)
    s = variant.shape
    check(variant, 150 * s.cta_group, 264, 64 * (s.stages + 1) + 8, SCHEDULES[place % 3], seed=place)


@pytest.mark.parametrize(("layout", "schedule"), by_turns(*LAYOUTS))
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 1), (129, 264, 200), (128, 128, 512), (7, 1000, 77)])
def test_sizes(layout: str, m: int, n: int, k: int, schedule: str) -> None:
    shape = Shape.fitting(128, "f32", False, "bf16", *LAYOUTS[layout])
    check(sm100.gemm_variant(shape), m, n, k, schedule, seed=m, num_sms=3)


CUBINS = "*gemm_bf16_128x128x64_*"


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    """BF16 [rows, columns] with a row stride of its own, NaN between the rows."""
    random = torch.Generator().manual_seed(seed)
    wide = torch.full((rows, -(-columns // 8) * 8 + 8), torch.nan, dtype=torch.bfloat16)
    wide[:, :columns] = torch.randn(rows, columns, generator=random)
    return wide[:, :columns]


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("m", "n", "k"), [(130, 40, 328), (1, 9, 65), (33, 1, 1)])
@pytest.mark.parametrize(("layout", "schedule"), by_turns(*LAYOUTS))
def test_operations(layout: str, schedule: str, m: int, n: int, k: int) -> None:
    """By both names, with and without C, in FP32 and BF16, into poisoned D."""
    a = matrix(m, k, 1) if layout[0] == "n" else matrix(k, m, 1)
    b = matrix(k, n, 2) if layout[1] == "n" else matrix(n, k, 2)
    exact = (a if layout[0] == "n" else a.t()).double() @ (b if layout[1] == "n" else b.t()).double()
    room = torch.full((m + 2, -(-n // 8) * 8 + 8), torch.nan)
    d, c = room[1:-1, :n], matrix(m, n, 3)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        getattr(cute_kernels, f"bf16_gemm_{layout}")(a, b, d)
        narrow = getattr(cute_kernels, f"gemm_{layout}")(a, b, None, c)
        wide = getattr(cute_kernels, f"gemm_{layout}")(a, b, out_dtype=torch.float32)
        twice = room.clone()[1:-1, :n]
        getattr(cute_kernels, f"bf16_gemm_{layout}")(a, b, twice, twice)
    assert [report.warnings for report in emulation.reports] == [[]] * 4
    assert int(room.isnan().sum()) == room.numel() - d.numel()
    assert (d.double() - exact).norm() <= 1e-6 * exact.norm()
    assert torch.equal(wide, d)
    assert (twice.double() - 2 * exact).norm() <= 1e-6 * exact.norm() * 2
    assert narrow.dtype is torch.bfloat16
    wanted = exact + c.double()
    assert bool(((narrow.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-5 * exact.abs().max()).all())


@pytest.mark.usefixtures("cubins")
def test_empty_sums_and_results() -> None:
    with cute_kernels.emulate("sm_100a") as emulation:
        d = torch.full((5, 16), torch.nan)
        cute_kernels.bf16_gemm_nt(matrix(5, 0, 1), matrix(16, 0, 2), d)
        assert bool((d == 0).all())
        cute_kernels.bf16_gemm_nt(matrix(5, 0, 1), matrix(16, 0, 2), d, torch.ones(5, 16))
        assert bool((d == 1).all())
        assert cute_kernels.gemm_nn(matrix(0, 8, 1), matrix(8, 16, 2)).shape == (0, 16)
    assert not emulation.reports


SHAPE = dataclasses.replace(Shape.fitting(128, "f32", False, "bf16", "mn", "mn"), stages=2)
VARIANT = dataclasses.replace(sm100.gemm_variant(SHAPE), name="bf16_two_stages")
_FULL = SHAPE.stages * SHAPE.stage_bytes + SHAPE.staging_bytes
_EMPTY = _FULL + 8 * SHAPE.stages


def _drop(text: str, pattern: str, nth: int = 0) -> str:
    match = list(re.finditer(pattern, text))[nth]
    return text[: match.start()] + text[match.end() :]


def _constants(text: str, pattern: str, change: Callable[[int], int]) -> str:
    """Changes every integer that a pattern finds in group 2, between its groups 1 and 3."""
    changed = re.sub(pattern, lambda m: f"{m[1]}{change(int(m[2]))}{m[3]}", text)
    assert changed != text
    return changed


def _pass_wait_on(text: str, offset: int) -> str:
    """Makes the waits on the barriers at an offset pass at once: of both load loops, and before the end."""
    parts = re.split(rf"(?<=, {offset};)", text)
    assert len(parts) > 2
    wait = r"\A([^;]*;[^;]*)mbarrier\.try_wait\S*\s+(%p\d+),[^;]*;"
    return parts[0] + "".join(re.sub(wait, r"\1mov.pred \2, -1;", part) for part in parts[1:])


_DESCRIPTOR = 1 << 4 | 1 << 7 | 1 << 10 | 3 << 15 | (128 >> 3) << 17 | (128 >> 4) << 24
BUGS: dict[str, Callable[[str], str]] = {
    "A is called K-major": lambda t: _constants(t, rf"(, )({_DESCRIPTOR})(;)", lambda v: v ^ 1 << 15),
    "B is called K-major": lambda t: _constants(t, rf"(, )({_DESCRIPTOR})(;)", lambda v: v ^ 1 << 16),
    "A and B are called FP16": lambda t: _constants(
        t, rf"(, )({_DESCRIPTOR})(;)", lambda v: v ^ 1 << 7 ^ 1 << 10
    ),
    "a box fewer is expected": lambda t: _constants(
        t, rf"(, )({SHAPE.ab_load_bytes})(;)", lambda v: v - 8192
    ),
    "the second box of A at the first's columns": lambda t: _constants(
        t, r"(add\.s32 \t%r\d+, %r\d+, )(128)(;)", lambda v: 0
    ),
    "commit of a stage dropped": lambda t: _drop(t, r"tcgen05\.commit[^;]*;"),
    "load does not wait for empty": lambda t: _pass_wait_on(t, _EMPTY),
    "no fence before the accumulator is handed back": lambda t: _drop(
        t, r"tcgen05\.fence::before_thread_sync;", 1
    ),
    "tensor memory not given back": lambda t: _drop(t, r"tcgen05\.dealloc[^;]*;"),
}


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(VARIANT)


@pytest.mark.parametrize("bug", ["none", *BUGS])
def test_planted_bugs(ptx: str, bug: str) -> None:
    text = ptx if bug == "none" else BUGS[bug](ptx)
    found = []
    for schedule in SCHEDULES:
        try:
            result, exact, report = gemm(VARIANT, text, 200, 136, 328, schedule, num_sms=1)
        except EmulationError as fault:
            found.append(fault.kind)
        else:
            found += report.warnings + ["wrong result"] * (relative_error(result, exact) > 1e-6)
    assert bool(found) == (bug != "none"), found
