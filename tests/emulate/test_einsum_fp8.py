"""einsum of FP8 and MXFP8 on SM100: batched products of tensors that are slices of wider ones, against float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import EmulationError
from cute_kernels.formats import dequantize
from cute_kernels.runtime import Library, context
from cute_kernels.runtime.einsum import EXPRESSIONS
from cute_kernels.scale_factors import pack_for_kernel
from tests.emulate.broken import rewritten
from tests.emulate.direct import by_turns
from tests.emulate.test_einsum import BATCHED, COORDINATES, _nth, error

PLAIN, GRADIENT = BATCHED[0], BATCHED[2]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-9}
OUTPUTS = [(e, dtype) for e in BATCHED for dtype in TOLERANCE if (e, dtype) != (GRADIENT, torch.bfloat16)]

CUBINS = "*_mxf8_*_batched*"


def operand(
    shape: tuple[int, ...], order: tuple[int, int, int], seed: int, granularity: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(Elements inside a wider tensor, NaN in the rest of it; scale factors), and their values in float64.

    order: of the dimensions as [batch, MN, K].
    """
    random = torch.Generator().manual_seed(seed)
    width = -(-shape[-1] // 16) * 16 + 16
    wide = torch.full((shape[0] + 1, *shape[1:-1], width), 0x7F, dtype=torch.uint8)
    inside = wide[1:, ..., : shape[-1]]
    codes = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    inside.copy_(codes)
    batch, mn, k = (shape[i] for i in order)
    scales = torch.randint(117, 138, (batch, mn, -(-k // granularity)), generator=random, dtype=torch.uint8)
    by_batch = codes.permute(order).contiguous().view(torch.float8_e4m3fn)
    values = torch.stack(
        [
            dequantize(x, s, group=(1, granularity), dtype=torch.float64)
            for x, s in zip(by_batch, scales, strict=True)
        ]
    )
    back = [order.index(i) for i in range(3)]
    elements = inside.view(torch.float8_e4m3fn)
    return (elements, pack_for_kernel(scales, mn, k, gran_k=granularity)), values.permute(back)


def poisoned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    wide = torch.full((shape[0] + 1, shape[1], -(-shape[2] // 8) * 8 + 8), torch.nan, dtype=dtype)
    return wide[1:, :, : shape[2]]


def problem(
    expression: str, sizes: dict[str, int], granularity: int = 128
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A and B, and D in float64."""
    of_a, of_b = expression.split("->")[0].split(",")
    e = EXPRESSIONS[expression]
    a, left = operand(tuple(sizes[x] for x in of_a), e.a, 1, granularity)
    b, right = operand(tuple(sizes[x] for x in of_b), e.b, 2, granularity)
    return a, b, torch.einsum(expression, left, right)


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize(
    "sizes",
    [{"b": 20, "h": 3, "d": 72, "r": 136}, {"b": 264, "h": 2, "d": 8, "r": 640}],
    ids=["tails", "long"],
)
@pytest.mark.parametrize(
    ("output", "schedule"), by_turns(*((e, dtype, by) for e, dtype in OUTPUTS for by in (32, 128)))
)
def test_batched(output: tuple[str, torch.dtype, int], schedule: str, sizes: dict[str, int]) -> None:
    """Several tiles of several batches a CTA; more K tiles than a scale word has factors for; by both names."""
    expression, dtype, granularity = output
    a, b, exact = problem(expression, sizes, granularity)
    d = poisoned(exact.shape, dtype)
    with cute_kernels.emulate("sm_100a", schedule, 1, 2) as emulation:
        named = cute_kernels.einsum if sizes["h"] == 2 else cute_kernels.fp8_einsum
        named(expression, a, b, d, recipe=None if granularity == 128 else (1, 1, 32))
    assert [report.warnings for report in emulation.reports] == [[]]
    assert error(d, exact) < TOLERANCE[dtype]
    assert d._base is not None
    assert int((~d._base.isnan()).sum()) == d.numel()  # nothing beside D was written


SUMS = [
    (e, d, by) for e, d in ((GRADIENT, torch.float32), *((PLAIN, d) for d in TOLERANCE)) for by in (32, 128)
]


@pytest.mark.usefixtures("cubins")
@pytest.mark.parametrize("c", ["apart", "d"])
@pytest.mark.parametrize(("output", "schedule"), by_turns(*SUMS))
def test_c_is_added(output: tuple[str, torch.dtype, int], schedule: str, c: str) -> None:
    expression, dtype, granularity = output
    a, b, exact = problem(expression, {"b": 300, "h": 2, "d": 136, "r": 24}, granularity)
    d = poisoned(exact.shape, dtype)
    given = d if c == "d" else poisoned(exact.shape, dtype)
    given.copy_(torch.randn(exact.shape) * exact.std())
    wanted = exact + given.double()
    with cute_kernels.emulate("sm_100a", schedule, 2, 3) as emulation:
        cute_kernels.fp8_einsum(expression, a, b, d, given, recipe=(1, 1, granularity))
    assert emulation.reports[0].warnings == []
    assert error(d, wanted) < TOLERANCE[dtype]
    assert d._base is not None
    assert int((~d._base.isnan()).sum()) == d.numel()


@pytest.mark.usefixtures("cubins")
def test_nothing_to_sum_up() -> None:
    a, b, exact = problem(GRADIENT, {"b": 0, "h": 2, "d": 8, "r": 16})
    d = torch.full(exact.shape, torch.nan)
    with cute_kernels.emulate("sm_100a") as emulation:
        cute_kernels.einsum(GRADIENT, a, b, d)
        assert bool((d == 0).all())
        cute_kernels.einsum(GRADIENT, a, b, d, torch.ones_like(d))
        assert bool((d == 1).all())
    assert not emulation.reports


BUGS: dict[str, Callable[[str], str]] = {
    f"{what} of another batch": _nth(COORDINATES.format(space), nth, r"\1\2, \3, \2}")
    for what, space, nth in (("A", "shared", 0), ("B", "shared", 1), ("D", "global", 0))
} | {
    f"scale factors of {what} of another batch": _nth(COORDINATES.format("shared"), nth, r"\1\2, \3, \3}")
    for what, nth in (("A", 2), ("B", 3))
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    name = "sm100_gemm_mxf8_k128_128x128x128_f32_batched"
    broken = Library(rewritten(folder, tmp_path / "broken", name, BUGS[bug]))
    broken.records = tuple(r for r in broken.records if r.name == name)
    monkeypatch.setattr(context._settings, "library", broken)
    a, b, exact = problem(BATCHED[0], {"b": 5, "h": 3, "d": 132, "r": 136})
    d = torch.full(exact.shape, torch.nan)
    try:
        with cute_kernels.emulate("sm_100a", num_sms=2):
            cute_kernels.einsum(BATCHED[0], a, b, d)
    except EmulationError:
        return
    assert not error(d, exact) < 1e-6
