"""How a trial judges a D with a gap in every head: with a stand-in for the operation that is right, or wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import ops_heads
from cute_kernels.formats import dequantize
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import unpack
from cute_kernels.trial_heads import with_heads
from cute_kernels.trial_problems import problem

SPLITS = (32, 64, 96)


def product(**options: Any) -> Any:
    return problem("sm100.gemm_blockscaled", 5, 256, 64, **options)


def values(operand: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return dequantize(operand[0], unpack(operand[1], 2), group=(1, 32), dtype=torch.float64)


@pytest.mark.parametrize("fault", ["none", "element", "unwritten", "shifted", "gap"])
def test_judgement(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def stand_in(a: Any, b: Any, d: torch.Tensor, head_splits: Any, recipe: None) -> None:
        exact = (values(a) @ values(b).T).to(d.dtype)
        d.view(5, 2, -1)[:, :, 32:96] = 0
        for head in range(2):
            start = head * sum(SPLITS)
            parts = exact[:, head * 128 : head * 128 + 128].split([32, 96], 1)
            d[:, start : start + 32] = parts[0]
            d[:, start + 96 : start + 192] = parts[1] if fault != "shifted" else parts[1].roll(1, 1)
        if fault == "element":
            d[1, 200] *= 1.1
        if fault == "unwritten":
            d[2, 383] = torch.nan
        if fault == "gap":
            d[0, 40] = 1

    monkeypatch.setattr(ops_heads, "gemm_nt_skip_head_mid", stand_in)
    run, judge = with_heads(product(), SPLITS).prepare("cpu", 3)
    run()
    outcome = judge()
    assert (outcome.right, outcome.contained) == (fault in ("none", "gap"), fault != "gap")


@pytest.mark.parametrize(
    "options", [{"accumulate": True}, {"layout": "tn", "operands": "mxf8"}, {"d_dtype": "mxf8"}]
)
def test_refused_products(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="head splits are of products"):
        with_heads(product(**options), SPLITS)


@pytest.mark.parametrize("splits", [(32, 64, 32 + 1), (0, 32, 0), (-32, 32, 64)])
def test_refused_splits(splits: tuple[int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="N must be a multiple"):
        with_heads(product(), splits)
