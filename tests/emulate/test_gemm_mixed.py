"""FP8 x MXFP4 and MXFP4 x FP8 on SM100: one operand is unpacked by TMA, and each has its own scale granularity."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.emulator import EmulationError
from cute_kernels.formats import dequantize, quantize_mxfp4, quantize_mxfp8
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack_for_kernel
from sm100.shape import Shape
from tests.emulate.direct import by_turns, check, compile_ptx, gemm, half_of, relative_error

FAMILIES = ("mxf8_mxf4", "mxf8_k128_mxf4", "mxf4_mxf8", "mxf4_mxf8_k128")
VARIANTS = {v.name: v for v in sm100.variants("sm_100a") if v.shape.family_dtype in FAMILIES}
SCHEDULES = ("eager", "lazy", "random")


@pytest.mark.parametrize("name", half_of(VARIANTS))
def test_every_variant(name: str) -> None:
    """More K tiles than stages, several tiles a CTA, tails in M and N; schedules by turns."""
    variant = VARIANTS[name]
    place = list(VARIANTS).index(name)
    s = variant.shape
    check(variant, 150 * s.cta_group, 200, s.tile_k * (s.stages + 1), SCHEDULES[place % 3], seed=place)


@pytest.mark.parametrize(("family", "schedule"), by_turns(*FAMILIES))
@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 128), (129, 264, 640), (7, 1000, 384)])
def test_sizes(family: str, m: int, n: int, k: int, schedule: str) -> None:
    check(sm100.gemm_variant(Shape.fitting(128, "f32", False, family)), m, n, k, schedule, seed=m, num_sms=3)


CUBINS = "*gemm_mx*_mx*_128x32x128_*"


Pair = tuple[torch.Tensor, torch.Tensor]


def operand(rows: int, k: int, granularity: int, seed: int) -> tuple[Pair, torch.Tensor]:
    """A random matrix whose blocks differ in size, and its exact values: MXFP4, or FP8 of a granularity."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=random)
    x *= torch.exp2(
        torch.randint(-6, 6, (rows, -(-k // 32)), generator=random).repeat_interleave(32, 1)[:, :k]
    )
    data, scales = quantize_mxfp8(x, group_k=granularity) if granularity else quantize_mxfp4(x)
    granularity = granularity or 32
    exact = dequantize(data, scales, group=(1, granularity), dtype=torch.float64)
    return (data, pack_for_kernel(scales, rows, k, gran_k=granularity)), exact


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("k", [128, 1152])
@pytest.mark.parametrize(("granularities", "schedule"), by_turns((128, 0), (32, 0), (0, 128), (0, 32)))
def test_operations(granularities: tuple[int, int], k: int, schedule: str) -> None:
    """With and without C, in FP32 and BF16, into poisoned D; granularities of A and B, 0 for MXFP4."""
    (a, exact_a), (b, exact_b) = (operand(70, k, g, seed) for seed, g in enumerate(granularities))
    exact = exact_a @ exact_b.T
    recipe_a, recipe_b = ((1, g or 32) for g in granularities)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        d = torch.full((70, 72), torch.nan)
        cute_kernels.fp8_fp4_gemm_nt(a, b, d[:, :70], recipe_a=recipe_a, recipe_b=recipe_b)
        c = torch.randn(70, 72).to(torch.bfloat16)[:, :70]
        narrow = cute_kernels.gemm_nt(a, b, None, c, recipe=None if 128 in granularities else (1, 1, 32))
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert bool(d[:, 70:].isnan().all())
    assert (d[:, :70].double() - exact).norm() < 1e-6 * exact.norm()
    wanted = exact + c.double()
    assert bool(((narrow.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-5 * exact.abs().max()).all())


def shifted(pair: Pair) -> Pair:
    """The same elements 16 bytes further on."""
    memory = torch.zeros(pair[0].numel() + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 32 + 16
    data = memory[start : start + pair[0].numel()].view(pair[0].shape)
    return data, pair[1]


def apart(pair: Pair) -> Pair:
    """The same elements with 16 bytes between rows."""
    rows, columns = pair[0].shape
    return torch.zeros(rows, columns + 16, dtype=torch.uint8)[:, :columns], pair[1]


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("fp4_first", [False, True])
@pytest.mark.parametrize(
    ("k", "spoil", "recipe", "message"),
    [
        (
            160,
            None,
            (128, 32),
            "K is 160; .* needs a multiple of 128, because TMA unpacks FP4 that meets FP8",
        ),
        (128, shifted, (128, 32), "b starts at address .* multiples of 32 bytes only"),
        (128, apart, (128, 32), r"b is uint8 .* rows are 80 bytes apart, .* multiples of 32 bytes only"),
        (
            128,
            None,
            (128, 128),
            "b is uint8 .* a recipe of 128 elements a scale factor; .* MXFP4 has 2 and 32",
        ),
    ],
)
def test_refusals(
    fp4_first: bool, k: int, spoil: Callable[[Pair], Pair] | None, recipe: tuple[int, int], message: str
) -> None:
    eight, four = operand(20, k, 128, 1)[0], operand(20, k, 0, 2)[0]
    four = spoil(four) if spoil else four
    d = torch.full((20, 20), 7.0)
    pair, recipes = ((four, eight), recipe[::-1]) if fp4_first else ((eight, four), recipe)
    message = re.sub("^b ", "a ", message) if fp4_first else message
    with cute_kernels.emulate("sm_100a") as emulation, pytest.raises(ArgumentError, match=message):
        cute_kernels.fp8_fp4_gemm_nt(*pair, d, recipe_a=(1, recipes[0]), recipe_b=(1, recipes[1]))
    assert not emulation.reports
    assert bool((d == 7).all())


SHAPE = dataclasses.replace(Shape.fitting(64, "f32", False, "mxf8_k128_mxf4"), stages=2)
VARIANT = dataclasses.replace(sm100.gemm_variant(SHAPE), name="mixed_two_stages")


def _all(text: str, pattern: str, change: Callable[[re.Match[str]], str]) -> str:
    changed = re.sub(pattern, change, text)
    assert changed != text
    return changed


def _descriptors(flip: int) -> Callable[[str], str]:
    """Flips a bit of the first constant that an MMA's instruction descriptor is made from."""
    base = 5 << 10 | 1 << 23 | (64 >> 3) << 17 | 1 << 27
    return lambda text: _all(text, rf"\b{base}\b", lambda m: str(base ^ flip))


BUGS: dict[str, Callable[[str], str]] = {
    "expects the bytes after unpacking": lambda t: _all(
        t, rf"\b{SHAPE.ab_load_bytes};", lambda m: f"{SHAPE.a_bytes + SHAPE.b_bytes};"
    ),
    "B is called E4M3": _descriptors(5 << 10),
    "the scale byte of A where that of B belongs": lambda t: _all(
        t, r"shl\.b32 (\t%r\d+, %r\d+), 29;", lambda m: f"shl.b32 {m[1]}, 4;"
    ),
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
            result, exact, report = gemm(VARIANT, text, 130, 72, 640, schedule)
        except EmulationError as fault:
            found.append(fault.kind)
        else:
            found += report.warnings + ["wrong result"] * (relative_error(result, exact) > 1e-6)
    assert bool(found) == (bug != "none"), found
