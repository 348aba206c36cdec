"""How trials judge results: with a stand-in for the operation that is right, or wrong in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cute_kernels import nvfp4_weight, ops
from cute_kernels.device.umma_formats import FORMATS
from cute_kernels.formats import dequantize
from cute_kernels.scale_factors import unpack
from cute_kernels.trial_operands import operands, recipe
from cute_kernels.trial_problems import Dequantize, Gemm, Outcome, Problem, Repack, problem

Spoil = Callable[[torch.Tensor], Any]  # changes a right result in place


def values(operand: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    data, scales = operand
    return dequantize(data, unpack(scales, data.shape[1] // 16), group=(1, 32), dtype=torch.float64)


def judged(monkeypatch: pytest.MonkeyPatch, of: Problem, spoil: Spoil) -> Outcome:
    """The outcome of a problem whose operation is exact but for what `spoil` does to its result."""

    def gemm_nt(a: Any, b: Any, d: torch.Tensor, c: torch.Tensor | None, recipe: None) -> None:
        exact = values(a) @ values(b).T
        d.copy_(exact if c is None else exact + c.double())
        spoil(d)

    def nvfp4_dequantize(data: torch.Tensor, scales: torch.Tensor, factor: Any, out: torch.Tensor) -> None:
        out.copy_(dequantize(data, scales, group=(1, 16), global_scale=factor))
        spoil(out)

    def nvfp4_repack(codes: torch.Tensor, scales: torch.Tensor, factor: float, out: torch.Tensor) -> None:
        out.copy_(nvfp4_weight.pack(codes, scales, factor).data)
        spoil(out)

    monkeypatch.setattr(ops, "gemm_nt", gemm_nt)
    monkeypatch.setattr(ops, "nvfp4_dequantize", nvfp4_dequantize)
    monkeypatch.setattr(ops, "nvfp4_repack", nvfp4_repack)
    run, judge = of.prepare("cpu", seed=3)
    run()
    return judge()


def nothing(d: torch.Tensor) -> None:
    pass


def one_element(d: torch.Tensor) -> None:
    """Off by 2 % of a typical value: more than a rounding to BF16."""
    d[3, 5] += d.float().square().mean().sqrt() * 0.02 + d[3, 5].abs() * 0.02


def not_written(d: torch.Tensor) -> None:
    d[-1, -1] = torch.nan


def a_scale(packed: torch.Tensor) -> None:
    packed[-1, -1, -1] ^= 1


def units_further(packed: torch.Tensor) -> None:
    """The row block before the first one."""
    size, strides = packed.shape[1:], packed.stride()
    packed.as_strided((1, *size), strides, packed.storage_offset() - strides[0]).zero_()


def one_row_further(d: torch.Tensor) -> None:
    d.as_strided((1, d.shape[1]), d.stride(), d.storage_offset() + d.shape[0] * d.stride(0)).zero_()


def one_granule_further(d: torch.Tensor) -> None:
    """16 bytes past the 16 in which the row ends."""
    step = 16 // d.dtype.itemsize
    end = -(-d.shape[1] // step) * step
    d.as_strided((1, step), d.stride(), d.storage_offset() + end).zero_()


GEMMS = [Gemm(9, 20, 96, "f32"), Gemm(9, 20, 96, "bf16"), Gemm(9, 20, 96, "bf16", accumulate=True)]


@pytest.mark.parametrize("of", [*GEMMS, Dequantize(9, 48)], ids=str)
def test_a_right_result_passes(monkeypatch: pytest.MonkeyPatch, of: Problem) -> None:
    outcome = judged(monkeypatch, of, nothing)
    assert outcome.right
    assert outcome.contained
    assert outcome.error < 4e-3


@pytest.mark.parametrize("of", [*GEMMS, Dequantize(9, 48)], ids=str)
@pytest.mark.parametrize("spoil", [one_element, not_written])
def test_a_wrong_element_is_noticed(monkeypatch: pytest.MonkeyPatch, of: Problem, spoil: Spoil) -> None:
    assert not judged(monkeypatch, of, spoil).right


def test_float32_within_its_bound_everywhere_may_still_be_off_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gemm_nt(a: Any, b: Any, d: torch.Tensor, c: None, recipe: None) -> None:
        x, y = values(a), values(b)
        d.copy_(x @ y.T + 0.9e-5 * (x.abs() @ y.abs().T))

    monkeypatch.setattr(ops, "gemm_nt", gemm_nt)
    run, judge = Gemm(9, 20, 1024, "f32").prepare("cpu", seed=3)
    run()
    outcome = judge()
    assert 1e-5 < outcome.error < 1e-4
    assert not outcome.right


@pytest.mark.parametrize(
    ("of", "spoil"),
    [(GEMMS[0], one_granule_further), (GEMMS[1], one_granule_further), (Dequantize(9, 48), one_row_further)],
    ids=["f32", "bf16", "dequantize"],
)
def test_a_write_beside_the_result_is_noticed(
    monkeypatch: pytest.MonkeyPatch, of: Problem, spoil: Spoil
) -> None:
    outcome = judged(monkeypatch, of, spoil)
    assert outcome.right
    assert not outcome.contained


def test_a_packed_weight_is_judged_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, beside = (
        judged(monkeypatch, Repack(20, 144), spoil) for spoil in (nothing, a_scale, units_further)
    )
    assert (right.right, right.contained, right.error) == (True, True, 0.0)
    assert (wrong.right, wrong.contained) == (False, True)
    assert (beside.right, beside.contained) == (True, False)


def test_operands_use_every_code_and_many_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, exact_a, exact_b = operands("mxf4", 64, 32, 256, "nt", generator, "cpu")
    assert len(a[0].unique()) == 256
    assert len(unpack(a[1], 8).unique()) > 50
    assert torch.equal(values(a), exact_a)
    assert torch.equal(values(b), exact_b)


@pytest.mark.parametrize("layout", ["nt", "nn", "tn", "tt"])
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if "4" not in kind])
def test_operands_lie_as_the_layout_says(kind: str, layout: str) -> None:
    a, b, exact_a, exact_b = operands(kind, 9, 20, 48, layout, torch.Generator().manual_seed(0), "cpu")
    elements = [given if isinstance(given, torch.Tensor) else given[0] for given in (a, b)]
    assert elements[0].shape == ((9, 48) if layout[0] == "n" else (48, 9))
    assert elements[1].shape == ((20, 48) if layout[1] == "t" else (48, 20))
    assert (exact_a.shape, exact_b.shape) == ((9, 48), (20, 48))
    assert all(e.stride(0) * e.element_size() % 16 == 0 for e in elements)
    assert all(e.float().unique().numel() > 100 for e in elements)


@pytest.mark.parametrize("kind", FORMATS)
def test_operands_of_every_format_are_understood(kind: str) -> None:
    from cute_kernels.runtime import gemm_operands

    a, b, *_ = operands(kind, 9, 20, 256, "nt", torch.Generator().manual_seed(0), "cpu")
    of = recipe(kind)
    found = (gemm_operands.operand(name, x, of and of[2]) for name, x in (("a", a), ("b", b)))
    assert gemm_operands.kind(*found) == kind


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("sm100.other", 1, 1, 32), "there are sm100.gemm_blockscaled, sm100.gemm_bf16, sm80"),
        (("sm100.gemm_bf16", 1, 1, 3, "bf16", False, "mxf4"), "operands are 'mxf4'; .* multiplies bf16"),
        (("sm100.gemm_blockscaled", 1, 1, 32, "bf16", False, "bf16"), "operands are 'bf16'; .* mxf4, nvf4"),
        (("sm100.gemm_blockscaled", 1, None, 32), "n is missing"),
        (("sm100.gemm_blockscaled", 1, 1, 33), "k must be even"),
        (("sm80.nvfp4_dequantize", -1, None, 32), "none may be negative"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        problem(*arguments)
