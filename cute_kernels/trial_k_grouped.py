"""Products of groups along K to try kernels on: groups of any lengths, none included, and a judgement of every D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cute_kernels import heuristics, ops_k_grouped
from cute_kernels.device.umma_formats import FORMATS, Operand
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.k_grouped import MAJORS
from cute_kernels.scale_layout import packed_stride
from cute_kernels.trial_operands import operand, recipe
from cute_kernels.trial_problems import FLOAT32_SLACK, Gemm, Outcome, Problem

LINE = 16  # elements that rows of A and B are a multiple of: 16 bytes at least


@dataclass(frozen=True)
class KGroupedGemm:
    """D[g] = A_g @ B_g^T (+ C[g]), float32 [m, n] for each of the groups `ks`, which are lengths along K.

    operands: what kernels call their formats, "bf16", "mxf8" or "mxf8_k128".
    layout: "tn" where groups are of rows of A and B, "nt" where each has K-major matrices of its own.
    """

    m: int
    n: int
    ks: tuple[int, ...]
    operands: str = "bf16"
    accumulate: bool = False
    layout: str = "tn"

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"k_grouped_gemm_{self.layout} {self.operands}"

    def __str__(self) -> str:
        c = " + C" if self.accumulate else ""
        return f"{self.m} x {self.n} x {'+'.join(map(str, self.ks))}{c}"

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        major = MAJORS[self.layout]
        return heuristics.GemmProblem(
            *(self.m, self.n, -(-sum(self.ks) // len(self.ks)), self.operands, "f32"),
            accumulate=True,
            a_major=major,
            b_major=major,
            batches=len(self.ks),
            k_grouped=True,
        )

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator, form = torch.Generator().manual_seed(seed), FORMATS[self.operands]
        a, exact_a = self._operand(form.a, self.m, generator, device)
        b, exact_b = self._operand(form.b, self.n, generator, device)
        exact = torch.stack([x @ y.T for x, y in zip(exact_a, exact_b, strict=True)])
        magnitude = torch.stack([x.abs() @ y.abs().T for x, y in zip(exact_a, exact_b, strict=True)])
        c = None
        if self.accumulate:
            c = self._poisoned(device)
            c.copy_(torch.randn(exact.shape, generator=generator) * exact.square().mean().sqrt().item())
            exact, magnitude = exact + c.double(), magnitude + c.double().abs()
        d = self._poisoned(device)

        def judge() -> Outcome:
            error = (d.double() - exact).abs()
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            right = bool((error <= FLOAT32_SLACK * magnitude).all())
            assert d._base is not None
            return Outcome(relative, right, bool(d._base[..., self.n :].isnan().all()))

        lengths, by = torch.tensor(self.ks, dtype=torch.int32).to(device), recipe(self.operands)
        gemm = getattr(ops_k_grouped, f"k_grouped_gemm_{self.layout}_contiguous")
        return lambda: gemm(a, b, d, self.ks, lengths, c, recipe=by), judge

    def _operand(
        self, of: Operand, rows: int, generator: torch.Generator, device: str
    ) -> tuple[Any, list[torch.Tensor]]:
        """A or B as the operation takes it, and the values [rows, k] of each group."""
        form = FORMATS[self.operands]
        parts = [operand(form, of, (rows,), k, True, generator, "cpu") for k in self.ks]
        values = [exact.to(device) for _, exact in parts]
        matrices = [given[0] if of.granularity else given for given, _ in parts]
        if self.layout == "nt":
            elements = torch.cat([x.t().flatten().view(torch.uint8) for x in matrices])
            elements = elements.view(matrices[0].dtype).to(device)
        else:
            elements = _in_lines(matrices, LINE).to(device)[:, :rows]
        if not of.granularity:
            return elements, values
        words = _in_lines([given[1] for given, _ in parts], packed_stride(rows))
        return (elements, words.to(device)[:, :rows]), values

    def _poisoned(self, device: str) -> torch.Tensor:
        """NaN [G, m, n] inside of rows that are longer."""
        room = torch.full((len(self.ks), self.m, self.n + 4), torch.nan, device=device)
        return room[..., : self.n]


def _in_lines(parts: list[torch.Tensor], step: int) -> torch.Tensor:
    """The rows of all parts one after another, in a matrix whose width is a multiple of `step`."""
    rows = torch.cat([part.contiguous().view(torch.int8) for part in parts])
    dtype = parts[0].dtype
    width = rows.shape[1] // dtype.itemsize
    wide = torch.zeros(len(rows), -(-width // step) * step * dtype.itemsize, dtype=torch.int8)
    wide[:, : rows.shape[1]] = rows
    return wide.view(dtype)


def of_groups_along_k(product: Problem, groups: int) -> KGroupedGemm:
    """A problem whose first group is a product, and whose others have less of K each, the last of several nothing.

    Raises ArgumentError for a product that no groups along K have.
    """
    if type(product) is not Gemm or product.d_dtype != "f32" or product.layout not in MAJORS:
        raise ArgumentError(
            "groups along K are of products to a float32 D, of operands in the layout tn or nt"
        )
    if groups < 1:
        raise ArgumentError(f"there are {groups} groups; there must be one")
    step = FORMATS[product.operands].k_multiple
    ks = tuple(product.k * (groups - g) // groups // step * step for g in range(1, groups - 1))
    ks = (product.k, *ks, *[0] * (groups > 1))
    return KGroupedGemm(product.m, product.n, ks, product.operands, product.accumulate, product.layout)
