"""einsum of BF16 on SM100: batched products and sums of them, of tensors that are slices of wider ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.runtime import Library, context
from tests.emulate.broken import rewritten
from tests.emulate.direct import SCHEDULES, by_turns

BATCHED = ("bhr,hdr->bhd", "bhd,hdr->bhr", "bhd,bhr->hdr")
SUM = "bmk,bnk->mn"

CUBINS = "*gemm_bf16*_batched*"


def tensor(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A random tensor inside a wider one, NaN in the rest of it."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((shape[0] + 1, *shape[1:-1], -(-shape[-1] // 8) * 8 + 8), torch.nan, dtype=dtype)
    inside = wide[1:, ..., : shape[-1]]
    inside.copy_(torch.randn(shape, generator=generator))
    return inside


def inputs(expression: str, sizes: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A and B, and D in float64."""
    of_a, of_b = expression.split("->")[0].split(",")
    a, b = (tensor(tuple(sizes[x] for x in of), seed) for seed, of in enumerate((of_a, of_b)))
    return a, b, torch.einsum(expression, a.double(), b.double())


def poisoned(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    d = tensor(tuple(exact.shape), 0, dtype)
    return d.fill_(torch.nan)


def error(d: torch.Tensor, exact: torch.Tensor) -> float:
    return float((d.double() - exact).norm() / exact.norm())


TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-9}


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(
    "sizes",
    [
        {"b": 20, "h": 3, "d": 72, "r": 136},
        {"b": 1, "h": 5, "d": 8, "r": 200},
        {"b": 140, "h": 1, "d": 264, "r": 8},
        {"b": 64, "h": 2, "d": 192, "r": 320},  # whole blocks of what is contiguous along M or N
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("expression", "schedule"), by_turns(*BATCHED))
def test_batched(expression: str, schedule: str, dtype: torch.dtype, sizes: dict[str, int]) -> None:
    a, b, exact = inputs(expression, sizes)
    d = poisoned(exact, dtype)
    with cute_kernels.emulate("sm_100a", schedule, 1, 3) as emulation:
        cute_kernels.einsum(expression, a, b, d)
    assert [report.warnings for report in emulation.reports] == [[]]
    assert error(d, exact) < TOLERANCE[dtype]
    assert d._base is not None
    assert int((~d._base.isnan()).sum()) == d.numel()  # nothing beside D was written


@pytest.mark.parametrize("tile_n", [128, 256])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("expression", BATCHED)
def test_every_variant(cubins: Library, expression: str, dtype: torch.dtype, tile_n: int) -> None:
    """More K tiles than stages, tiles of several batches for a CTA, tails."""
    cubins.records = tuple(r for r in cubins.records if r.config["tile_n"] == tile_n)
    schedule = SCHEDULES[(BATCHED.index(expression) + tile_n // 128 + (dtype is torch.float32)) % 3]
    a, b, exact = inputs(expression, {"b": 456, "h": 3, "d": 264, "r": 456})
    d = poisoned(exact, dtype)
    with cute_kernels.emulate("sm_100a", schedule, 2, 2) as emulation:
        cute_kernels.einsum(expression, a, b, d)
    assert emulation.reports[0].warnings == []
    assert error(d, exact) < TOLERANCE[dtype]


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("c", ["none", "apart", "d"])
@pytest.mark.parametrize(
    ("sizes", "schedule"), by_turns((13, 24, 33, 40), (1, 200, 9, 128), (40, 130, 136, 64))
)
def test_sums(sizes: tuple[int, ...], schedule: str, c: str, dtype: torch.dtype) -> None:
    """As many parts as multiprocessors, or fewer, and the last with fewer batches."""
    a, b, exact = inputs(SUM, dict(zip("bmnk", sizes, strict=True)))
    d = poisoned(exact, dtype)
    given = {"none": None, "apart": tensor(tuple(exact.shape), 3, dtype), "d": d}[c]
    if c == "d":
        d.copy_(torch.randn(d.shape))
    wanted = exact if given is None else exact + given.double()
    with cute_kernels.emulate("sm_100a", schedule, 1, 5) as emulation:
        cute_kernels.einsum(SUM, a, b, d, given)
        again = torch.empty_like(d)
        cute_kernels.einsum(SUM, a, b, again)
    with cute_kernels.emulate("sm_100a", "random", 7, 5):
        other = torch.empty_like(d)
        cute_kernels.einsum(SUM, a, b, other)
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert error(d, wanted) < TOLERANCE[dtype]
    assert torch.equal(again, other)


@pytest.mark.usefixtures("cubins")
def test_nothing_to_do() -> None:
    with cute_kernels.emulate("sm_100a") as emulation:
        for expression, shapes in (
            (BATCHED[0], ((4, 2, 0), (2, 8, 0), (4, 2, 8))),
            (BATCHED[1], ((0, 2, 8), (2, 8, 8), (0, 2, 8))),
            (SUM, ((0, 4, 8), (0, 8, 8), (4, 8))),
        ):
            a, b = (tensor(shape, 1) for shape in shapes[:2])
            d = torch.full(shapes[2], torch.nan)
            cute_kernels.einsum(expression, a, b, d)
            assert bool((d == 0).all())
        cute_kernels.einsum(SUM, tensor((0, 4, 8), 1), tensor((0, 8, 8), 1), d, torch.ones(4, 8))
        assert bool((d == 1).all())
    assert not emulation.reports


COORDINATES = r"(cp\.async\.bulk\.tensor\.3d\.{0}[^{{]*\{{)(%r\d+), (%r\d+), (%r\d+)\}}"


def _nth(pattern: str, nth: int, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        match = list(re.finditer(pattern, text))[nth]
        return text[: match.start()] + match.expand(new) + text[match.end() :]

    return change


BUGS = {
    "A of another batch": _nth(COORDINATES.format("shared"), 0, r"\1\2, \3, \3}"),
    "B of another batch": _nth(COORDINATES.format("shared"), 1, r"\1\2, \3, \2}"),
    "D of another batch": _nth(COORDINATES.format("global"), 0, r"\1\2, \3, \3}"),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("expression", [BATCHED[0], SUM])
def test_planted_bugs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str, bug: str
) -> None:
    name = "sm100_gemm_bf16_128x128x64_f32_batched"
    broken = Library(rewritten(folder, tmp_path / "broken", name, BUGS[bug]))
    broken.records = tuple(r for r in broken.records if r.name == name)
    monkeypatch.setattr(context._settings, "library", broken)
    a, b, exact = inputs(expression, dict.fromkeys("bhmn", 5) | {"d": 136, "r": 136, "k": 136})
    d = torch.full(exact.shape, torch.nan)
    try:
        with cute_kernels.emulate("sm_100a", num_sms=2):
            cute_kernels.einsum(expression, a, b, d)
    except EmulationError:
        return
    assert not error(d, exact) < 1e-6
