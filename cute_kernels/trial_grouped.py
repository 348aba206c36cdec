"""Grouped products to try kernels on: groups of any sizes, none included, and a judgement of what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cute_kernels import heuristics, ops_grouped, ops_quantized
from cute_kernels.device.umma_formats import FORMATS
from cute_kernels.runtime import ArgumentError
from cute_kernels.trial_operands import operand, recipe
from cute_kernels.trial_problems import (
    BF16_ROUNDING,
    FLOAT32_SLACK,
    Gemm,
    Mxfp8Output,
    Outcome,
    Problem,
    QuantizedGemm,
)

Kind = Literal["contiguous", "prefix", "masked"]


@dataclass(frozen=True)
class GroupedGemm:
    """D[r] = A[r] @ B[group of r]^T in BF16, of groups of so many `rows`, into n columns, summed over k.

    kind: of the layout: "contiguous", runs in any order with a group or -1 for each row; "prefix", runs in order with
        their ends; "masked", a matrix a group. operands: what kernels call their formats.
    layout: of operands, "nt", or where kind is "contiguous" also "nn". alignment: of runs.
    room: rows of none behind the last run, or behind those of the largest group in each matrix.
    """

    kind: Kind
    rows: tuple[int, ...]
    n: int
    k: int
    operands: str = "mxf4"
    alignment: int = 128
    room: int = 0
    layout: str = "nt"

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"m_grouped_gemm_{self.layout}_{self.kind} {self.operands}"

    def __str__(self) -> str:
        return f"{'+'.join(map(str, self.rows))} x {self.n} x {self.k}"

    @property
    def m(self) -> int:
        """Rows of A, or of each of its matrices."""
        if self.kind == "masked":
            return max(self.rows) + self.room
        return sum(map(self._aligned, self.rows)) + self.room

    @property
    def expected_m(self) -> int:
        """The mean of the groups' rows, 1 at least."""
        return max(1, sum(self.rows) // len(self.rows))

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        return heuristics.GemmProblem(
            *(self.m, self.n, self.k, self.operands, "bf16"),
            b_major="mn" if self.layout == "nn" else "k",
            groups=len(self.rows),
            grouping="indices" if self.kind == "contiguous" else "sizes",
            alignment=self.alignment,
            expected_m=self.expected_m,
        )

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        a, b, exact, magnitude, owner, on_device = self.drawn(device, seed)
        columns = -(-self.n // 8) * 8 + 8
        room = torch.full((*owner.shape, columns), torch.nan, dtype=torch.bfloat16, device=device)
        d, used = room[..., : self.n], owner >= 0

        def judge() -> Outcome:
            error = (d.double() - exact)[used].abs()
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            bound = BF16_ROUNDING * exact.abs() + FLOAT32_SLACK * magnitude
            contained = bool(room[..., self.n :].isnan().all() and d[~used].isnan().all())
            return Outcome(relative, bool((error <= bound[used]).all()), contained)

        return lambda: self.run(a, b, d, on_device), judge

    def drawn(
        self, device: str, seed: int
    ) -> tuple[Any, Any, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A and B; what D should be, and sums of magnitudes; the group of each row, and the layout on the device."""
        generator = torch.Generator().manual_seed(seed)
        form, groups = FORMATS[self.operands], len(self.rows)
        layout, owner = self.given_layout(generator)
        a, exact_a = operand(form, form.a, tuple(owner.shape), self.k, False, generator, device)
        b, exact_b = operand(form, form.b, (groups, self.n), self.k, self.layout == "nn", generator, device)
        exact, magnitude = (
            torch.zeros(*owner.shape, self.n, dtype=torch.float64, device=device) for _ in range(2)
        )
        for group in range(groups):
            own = (owner == group).to(device)
            exact[own] = exact_a[own] @ exact_b[group].T
            magnitude[own] = exact_a[own].abs() @ exact_b[group].abs().T
        return a, b, exact, magnitude, owner.to(device), layout.to(device)

    def given_layout(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What the operation takes as layout, and the group of each row of A, negative for rows of none."""
        sizes = torch.tensor(self.rows, dtype=torch.int32)
        groups = torch.arange(len(self.rows), dtype=torch.int32)
        if self.kind == "masked":
            return sizes, torch.where(torch.arange(self.m) < sizes[:, None], groups[:, None], -1)
        order = groups if self.kind == "prefix" else torch.randperm(len(groups), generator=generator)
        owner, ends, at = torch.full((self.m,), -1, dtype=torch.int32), torch.zeros_like(sizes), 0
        for group in order.tolist():
            ends[group] = at + self.rows[group]
            owner[at : at + self.rows[group]] = group
            at += self._aligned(self.rows[group])
        return (ends if self.kind == "prefix" else owner), owner

    def run(self, a: Any, b: Any, d: torch.Tensor, layout: torch.Tensor) -> None:
        """Call the operation."""
        by = recipe(self.operands)
        if self.kind == "masked":
            ops_grouped.m_grouped_gemm_nt_masked(a, b, d, layout, self.expected_m, recipe=by)
        elif self.layout == "nn":
            ops_grouped.m_grouped_gemm_nn_contiguous(a, b, d, layout, recipe=by, alignment=self.alignment)
        else:
            psum = self.kind == "prefix"
            ops_grouped.m_grouped_gemm_nt_contiguous(
                a, b, d, layout, recipe=by, alignment=self.alignment, use_psum_layout=psum
            )

    def _aligned(self, rows: int) -> int:
        return -(-rows // self.alignment) * self.alignment


@dataclass(frozen=True)
class QuantizedGroupedGemm(GroupedGemm):
    """(D, its scale factors) = quantize(the same) in MXFP8; kind is not "masked", and the layout "nt"."""

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"m_grouped_gemm_nt_{self.kind}_mxfp8 {self.operands}"

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        return replace(super().to_choose_for(), d_dtype="mxf8")

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        a, b, exact, magnitude, owner, layout = self.drawn(device, seed)
        out = Mxfp8Output(self.m, self.n, device)
        options: dict[str, Any] = {
            "recipe": recipe(self.operands),
            "alignment": self.alignment,
            "use_psum_layout": self.kind == "prefix",
        }
        gemm = ops_quantized.m_grouped_gemm_nt_contiguous_mxfp8
        return lambda: gemm(a, b, out.given, layout, **options), lambda: out.judge(
            exact, magnitude, owner >= 0
        )


def of_groups(product: Problem, kind: Kind, groups: int) -> GroupedGemm:
    """A problem whose first group is a product, and whose others have fewer rows each, the last of several none.

    Raises ArgumentError for a product that no groups have.
    """
    quantized = type(product) is QuantizedGemm
    if not isinstance(product, Gemm) or product.accumulate or (product.d_dtype != "bf16" and not quantized):
        raise ArgumentError("groups are of products to a BF16 or MXFP8 D without C")
    if product.layout not in ("nt", "nn") or (product.layout == "nn" and kind != "contiguous"):
        raise ArgumentError(f"the layout is {product.layout}; groups have nt, and contiguous ones nn")
    if quantized and kind == "masked":
        raise ArgumentError("groups whose D is MXFP8 are contiguous, or by prefix sums; they are not masked")
    if groups < 1:
        raise ArgumentError(f"there are {groups} groups; there must be one")
    rows = tuple(product.m - product.m * group // max(groups - 1, 1) for group in range(groups))
    made = QuantizedGroupedGemm if quantized else GroupedGemm
    return made(kind, rows, product.n, product.k, product.operands, layout=product.layout)
