"""Products with a gap in every head of D to try kernels on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cute_kernels import heuristics, ops_heads
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.gemm_heads import HeadSplits
from cute_kernels.trial_operands import operands, recipe
from cute_kernels.trial_problems import BF16_ROUNDING, FLOAT32_SLACK, Gemm, Outcome, Problem


@dataclass(frozen=True)
class HeadSplitGemm:
    """D = A @ B^T of a product, whose heads D holds apart; its gaps are to be zeros."""

    product: Gemm
    splits: HeadSplits

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"gemm_nt_skip_head_mid {self.product.operands}"

    def __str__(self) -> str:
        return f"{self.product}, heads {'+'.join(map(str, self.splits))}"

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        of = self.product
        return heuristics.GemmProblem(of.m, of.n, of.k, of.operands, of.d_dtype, heads=True)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        of, generator = self.product, torch.Generator().manual_seed(seed)
        a, b, exact_a, exact_b = operands(of.operands, of.m, of.n, of.k, "nt", generator, device)
        exact, magnitude = exact_a @ exact_b.T, exact_a.abs() @ exact_b.abs().T
        left, mid, right = self.splits
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[of.d_dtype]
        columns = of.n // (left + right) * sum(self.splits)
        d = torch.full((of.m, columns), torch.nan, dtype=dtype, device=device)
        head = torch.arange(columns, device=device) % sum(self.splits)
        gap = (head >= left) & (head < left + mid)

        def judge() -> Outcome:
            error = (d[:, ~gap].double() - exact).abs()
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            unit = BF16_ROUNDING if dtype is torch.bfloat16 else 0.0
            right = bool((error <= unit * exact.abs() + FLOAT32_SLACK * magnitude).all())
            return Outcome(relative, right, bool((d[:, gap] == 0).all()))

        by = recipe(of.operands)
        return lambda: ops_heads.gemm_nt_skip_head_mid(a, b, d, head_splits=self.splits, recipe=by), judge


def with_heads(product: Problem, splits: HeadSplits) -> HeadSplitGemm:
    """A product with head splits (left, mid, right). Raises ArgumentError for a product that has none."""
    if (
        type(product) is not Gemm
        or product.accumulate
        or (product.layout, product.scheduling) != ("nt", "static")
    ):
        raise ArgumentError(
            "head splits are of products to a BF16 or FP32 D without C, of operands in the layout nt"
        )
    if min(splits) < 0 or splits[0] + splits[2] == 0 or product.n % (splits[0] + splits[2]):
        raise ArgumentError(
            f"head_splits is {splits} and N {product.n}; N must be a multiple of left + right, and none is negative"
        )
    return HeadSplitGemm(product, splits)
