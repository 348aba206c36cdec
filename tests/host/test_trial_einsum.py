"""How a trial judges an expression: with a stand-in for the operation that is right, or wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import ops_einsum
from cute_kernels.formats import dequantize
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.einsum import EXPRESSIONS
from cute_kernels.scale_factors import unpack
from cute_kernels.trial_einsum import Einsum, by_expression
from cute_kernels.trial_problems import problem


def values(given: Any, order: tuple[int, int, int], granularity: int) -> torch.Tensor:
    """An operand's, in float64."""
    if isinstance(given, torch.Tensor):
        return given.double()
    elements, words = given
    by_batch = elements.permute(order)
    scales = [unpack(w, -(-by_batch.shape[2] // granularity)) for w in words]
    of_batches = [
        dequantize(x.contiguous(), s, group=(1, granularity), dtype=torch.float64)
        for x, s in zip(by_batch, scales, strict=True)
    ]
    return torch.stack(of_batches).permute([order.index(i) for i in range(3)])


@pytest.mark.parametrize("fault", ["none", "batch", "element", "c", "outside"])
@pytest.mark.parametrize("kind", ["bf16", "mxf8", "mxf8_k128"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_judgement(monkeypatch: pytest.MonkeyPatch, expression: str, kind: str, fault: str) -> None:
    def stand_in(stated: str, a: Any, b: Any, d: torch.Tensor, c: torch.Tensor, recipe: Any) -> None:
        e, granularity = EXPRESSIONS[stated], 128 if recipe is None else recipe[2]
        assert recipe == ((1, 1, 32) if kind == "mxf8" else None)
        left, right = values(a, e.a, granularity), values(b, e.b, granularity)
        if fault == "batch":
            left = left.roll(1, dims=e.a[0])
        d.copy_(torch.einsum(stated, left, right) + (0 if fault == "c" else c.double()))
        if fault == "element":
            d[(1,) * d.dim()] *= 1.01
        if fault == "outside":
            assert d._base is not None
            d._base[..., d.shape[-1]] = 0.0

    monkeypatch.setattr(ops_einsum, "einsum", stand_in)
    run, judge = Einsum(expression, 3, 5, 8, 136, kind, "f32", True).prepare("cpu", 1)
    run()
    outcome = judge()
    assert outcome.right == (fault in ("none", "outside"))
    assert outcome.contained == (fault != "outside")


def test_problems_of_the_command_line() -> None:
    product = problem("sm100.gemm_bf16", 128, 384, 128)
    summed = by_expression(product, "bmk,bnk->mn", 4096, 148)
    assert str(summed) == "4096 of 128 x 384 x 128, bf16"
    chosen_for = summed.to_choose_for()
    assert (chosen_for.batches, chosen_for.depth, chosen_for.d_dtype) == (49, 84, "f32")
    each = by_expression(product, "bhd,hdr->bhr", 8, 148).to_choose_for()
    assert (each.batches, each.depth, each.layout, each.d_dtype) == (8, 1, "nn", "bf16")
    for given, batches, expression, message in (
        (product, 0, "bhr,hdr->bhd", "there are 0 batches"),
        (product, 1, "ij,jk->ik", "the expression is 'ij,jk->ik'; supported are bhr"),
        (problem("sm100.gemm_bf16", 8, 8, 8, layout="nn"), 1, "bhr,hdr->bhd", "states the operands' layout"),
        (problem("sm100.gemm_blockscaled", 8, 16, 32, "mxf8"), 1, "bhr,hdr->bhd", "a BF16 or FP32 D"),
        (problem("sm100.gemm_blockscaled", 8, 16, 32), 1, "bhr,hdr->bhd", "the operands are 'mxf4'; einsum"),
    ):
        with pytest.raises(ArgumentError, match=message):
            by_expression(given, expression, batches, 148)
