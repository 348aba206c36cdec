"""FP8 and MXFP8 products on SM100 of operands that are contiguous along M or N, with scale factors as ever."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.emulator import EmulationError
from cute_kernels.formats import dequantize, quantize_mxfp8
from cute_kernels.scale_factors import pack_for_kernel
from sm100.shape import Shape
from tests.emulate.direct import SCHEDULES, by_turns, check, compile_ptx, gemm, half_of, relative_error

LAYOUTS = ("nn", "tn", "tt")
VARIANTS = {
    v.name: v
    for v in sm100.variants("sm_100a")
    if v.kernel == "gemm_blockscaled" and "mn" in (v.shape.a_major, v.shape.b_major)
}


@pytest.mark.parametrize("name", half_of(VARIANTS))
def test_every_variant(name: str) -> None:
    """More K tiles than stages, several tiles a CTA, a tail in every dimension; schedules by turns."""
    variant = VARIANTS[name]
    place = list(VARIANTS).index(name)
    check(variant, 150, 200, 128 * (variant.shape.stages + 1) + 40, SCHEDULES[place % 3], seed=place)


CUBINS = "*gemm_mxf8*_128x128x128_*_[nt][nt]*"


Pair = tuple[torch.Tensor, torch.Tensor]


def operand(rows: int, k: int, granularity: int, transposed: bool, seed: int) -> tuple[Pair, torch.Tensor]:
    """A random matrix as the operations take it, [rows, k] or [k, rows], and its exact values as [rows, k]."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=random)
    x *= torch.exp2(
        torch.randint(-6, 6, (rows, -(-k // 32)), generator=random).repeat_interleave(32, 1)[:, :k]
    )
    data, scales = quantize_mxfp8(x, group_k=granularity)
    exact = dequantize(data, scales, group=(1, granularity), dtype=torch.float64)
    words = pack_for_kernel(scales, rows, k, gran_k=granularity)
    lines = data.t() if transposed else data
    wide = torch.full((len(lines), -(-lines.shape[1] // 16) * 16 + 16), 448.0).to(torch.float8_e4m3fn)
    wide[:, : lines.shape[1]] = lines
    return (wide[:, : lines.shape[1]], words.t() if transposed else words), exact


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(("m", "n", "k"), [(130, 72, 328), (1, 9, 77)])
@pytest.mark.parametrize("granularity", [32, 128])
@pytest.mark.parametrize(("layout", "schedule"), by_turns(*LAYOUTS))
def test_operations(
    layout: str,
    schedule: str,
    granularity: int,
    m: int,
    n: int,
    k: int,
) -> None:
    """By three names, with and without C, in FP32 and BF16."""
    a, exact_a = operand(m, k, granularity, layout[0] == "t", 1)
    b, exact_b = operand(n, k, granularity, layout[1] == "n", 2)
    exact = exact_a @ exact_b.T
    recipe = (1, 1, granularity)
    room: list[Any] = [torch.full((m, -(-n // 8) * 8), torch.nan) for _ in range(2)]
    c = torch.randn(m, -(-n // 8) * 8).to(torch.bfloat16)[:, :n]
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        for d, name in zip(room, ("fp8_fp4_gemm", "fp8_gemm"), strict=True):
            getattr(cute_kernels, f"{name}_{layout}")(a, b, d[:, :n], recipe=recipe)
        narrow = getattr(cute_kernels, f"gemm_{layout}")(a, b, None, c, recipe=recipe)
    assert [report.warnings for report in emulation.reports] == [[]] * 3
    assert torch.equal(*(d[:, :n] for d in room))
    assert (room[0][:, :n].double() - exact).norm() < 1e-6 * exact.norm()
    wanted = exact + c.double()
    assert bool(((narrow.double() - wanted).abs() <= 2.0**-8 * wanted.abs() + 1e-5 * exact.abs().max()).all())


SHAPE = dataclasses.replace(Shape.fitting(128, "f32", False, "mxf8", "mn", "mn"), stages=2)
VARIANT = dataclasses.replace(sm100.gemm_variant(SHAPE), name="mxf8_tn_two_stages")
DESCRIPTOR = 3 << 15 | 1 << 23 | (128 >> 3) << 17 | 1 << 27


def flipped(bits: int) -> Callable[[str], str]:
    """Flips bits of the four MMAs' instruction descriptors, which differ in their scale bytes."""
    constants = [DESCRIPTOR | byte * (1 << 29 | 1 << 4) for byte in range(4)]
    signed = {(c - (1 << 32) if c >> 31 else c): c for c in constants}
    return lambda text: re.sub(
        rf"(?<=, )({'|'.join(map(str, (*signed, *constants)))})(?=;)", lambda m: str(int(m[0]) ^ bits), text
    )


def columns_of_a_for_b(text: str) -> str:
    """Loads B's box from the columns of A's."""
    loads = list(re.finditer(r"(cp\.async\.bulk\.tensor\.2d\.shared[^{]*\{)(%r\d+)(, %r\d+\})", text))
    return text[: loads[1].start(2)] + loads[0][2] + text[loads[1].end(2) :]


BUGS: dict[str, Callable[[str], str]] = {
    "A is called K-major": flipped(1 << 15),
    "B is called K-major": flipped(1 << 16),
    "B from the columns of A": columns_of_a_for_b,
}


@pytest.fixture(scope="module")
def ptx() -> str:
    return compile_ptx(VARIANT)


@pytest.mark.parametrize("bug", ["none", *BUGS])
def test_planted_bugs(ptx: str, bug: str) -> None:
    text = ptx if bug == "none" else BUGS[bug](ptx)
    assert (text == ptx) == (bug == "none")
    found = []
    for schedule in SCHEDULES:
        try:
            result, exact, report = gemm(VARIANT, text, 136, 200, 640, schedule)
        except EmulationError as fault:
            found.append(fault.kind)
        else:
            found += report.warnings + ["wrong result"] * (relative_error(result, exact) > 1e-6)
    assert bool(found) == (bug != "none"), found
