"""How a trial judges a product with packed NVFP4 weights: with a stand-in that is right, or wrong in one way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import nvfp4_weight, ops, trial_w4a16
from cute_kernels.nvfp4_weight import PackedNvfp4Weight
from cute_kernels.runtime import ArgumentError

RIGHT = (True, True)


def values(weight: PackedNvfp4Weight) -> torch.Tensor:
    codes, scales, factor = nvfp4_weight.unpack(weight)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
    elements = table[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()]
    return (
        elements * scales.double().repeat_interleave(16, -1) * factor.double().view(*codes.shape[:-2], 1, 1)
    )


@pytest.mark.parametrize("x_dtype", ["bf16", "f16"])
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [("none", RIGHT), ("element", (False, True)), ("unwritten", (False, True)), ("outside", (True, False))],
)
def test_judgement(
    monkeypatch: pytest.MonkeyPatch, x_dtype: str, fault: str, verdict: tuple[bool, bool]
) -> None:
    def stand_in(x: torch.Tensor, weight: PackedNvfp4Weight, out: torch.Tensor) -> None:
        out.copy_(x.double() @ values(weight).T)
        if fault == "element":
            out[2, 5] *= 1.02
        if fault == "unwritten":
            out[4, 0] = torch.nan
        if fault == "outside":
            out.as_strided((5, 48), out.stride())[1, 42] = 0.0

    monkeypatch.setattr(ops, "w4a16_gemm_nt", stand_in)
    run, judge = trial_w4a16.product(5, 40, 64, x_dtype).prepare("cpu", 1)
    run()
    outcome = judge()
    assert (outcome.right, outcome.contained) == verdict


@pytest.mark.parametrize("kind", ["contiguous", "masked"])
@pytest.mark.parametrize(
    ("fault", "verdict"), [("none", RIGHT), ("expert", (False, True)), ("row of none", (True, False))]
)
def test_judgement_of_experts(
    monkeypatch: pytest.MonkeyPatch, kind: Any, fault: str, verdict: tuple[bool, bool]
) -> None:
    def stand_in(x: torch.Tensor, weight: PackedNvfp4Weight, layout: torch.Tensor, *others: Any) -> None:
        out = next(other for other in others if isinstance(other, torch.Tensor))
        if kind == "contiguous":
            owner = layout
        else:
            rows = torch.arange(x.shape[1])
            owner = torch.where(rows < layout[:, None], torch.arange(3)[:, None], -1)
        for expert in range(3):
            of = (expert + 1) % 2 if fault == "expert" else expert
            out[owner == expert] = (x[owner == expert].double() @ values(weight)[of].T).to(out.dtype)
        if fault == "row of none":
            out[tuple((owner < 0).nonzero()[0])] = 1.0

    monkeypatch.setattr(ops, f"m_grouped_w4a16_gemm_nt_{kind}", stand_in)
    run, judge = trial_w4a16.of_experts(trial_w4a16.product(5, 40, 64, "bf16"), kind, 3).prepare("cpu", 1)
    run()
    outcome = judge()
    assert (outcome.right, outcome.contained) == verdict


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((1, None, 16, None), "n is missing"),
        ((1, 1, 24, None), "a multiple of 16"),
        ((-1, 1, 16, None), "none may be negative"),
        ((1, 1, 16, "f32"), "the operands are 'f32'; .* bf16 or f16"),
    ],
)
def test_refusals(sizes: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        trial_w4a16.product(*sizes)


@pytest.mark.parametrize(
    ("kind", "experts", "reason"), [("prefix", 2, "'prefix'"), ("masked", -1, "-1 groups")]
)
def test_refusals_of_experts(kind: Any, experts: int, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        trial_w4a16.of_experts(trial_w4a16.product(1, 1, 16, None), kind, experts)
