"""Products with packed NVFP4 weights to try kernels on: one weight, or those of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cute_kernels import heuristics, nvfp4_weight, ops
from cute_kernels.formats import dequantize
from cute_kernels.nvfp4_weight import PackedNvfp4Weight
from cute_kernels.runtime import ArgumentError
from cute_kernels.trial_grouped import GroupedGemm, Kind
from cute_kernels.trial_problems import FLOAT32_SLACK, Outcome, Problem

KERNEL = "sm80.gemm_w4a16"
X_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of the value: one rounding
LEAST = {
    torch.bfloat16: 0.0,
    torch.float16: 2.0**-25,
}  # half the least number, below which roundings are as large


@dataclass(frozen=True)
class W4a16:
    """D [m, n] = X [m, k] @ W [n, k]^T; x_dtype "bf16" or "f16", of X and D."""

    m: int
    n: int
    k: int
    x_dtype: str = "bf16"

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"w4a16_gemm_nt {self.x_dtype}"

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}"

    def to_choose_for(self) -> heuristics.W4a16Problem:
        """The same as the heuristics see it."""
        return heuristics.W4a16Problem(self.m, self.n, self.k, self.x_dtype)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        x, weight, values = _drawn((self.m,), (self.n,), self.k, self.x_dtype, generator, device)
        out, judge = _output(x.double() @ values.T, x.double().abs() @ values.abs().T, x.dtype)
        return lambda: ops.w4a16_gemm_nt(x, weight, out), judge


@dataclass(frozen=True)
class GroupedW4a16(GroupedGemm):
    """D[r] = X[r] @ W[expert of r]^T; operands is X's and D's type, "bf16" or "f16"; kind is not "prefix"."""

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"m_grouped_w4a16_gemm_nt_{self.kind} {self.operands}"

    def to_choose_for(self) -> heuristics.W4a16Problem:  # type: ignore[override]  # another kernel's problem
        """The same as the heuristics see it."""
        rows = min(self.expected_m, self.m) if self.kind == "masked" else self.m
        sizes = rows, self.n, self.k, self.operands, self.kind, len(self.rows)
        return heuristics.W4a16Problem(*sizes, self.alignment if self.kind == "contiguous" else 1)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        given, owner = self.given_layout(generator)
        layout, used, experts = given.to(device), (owner >= 0).to(device), (len(self.rows), self.n)
        x, weight, values = _drawn(tuple(owner.shape), experts, self.k, self.operands, generator, device)
        of_row = values[owner.clamp_min(0).to(device)]  # [..., n, k]
        exact, magnitude = (
            torch.einsum("...k,...nk->...n", x_, w)
            for x_, w in ((x.double(), of_row), (x.double().abs(), of_row.abs()))
        )
        out, judge = _output(exact, magnitude, x.dtype, used)
        if self.kind == "masked":
            return lambda: ops.m_grouped_w4a16_gemm_nt_masked(x, weight, layout, self.expected_m, out), judge
        return lambda: ops.m_grouped_w4a16_gemm_nt_contiguous(x, weight, layout, out, self.alignment), judge


def product(m: int, n: int | None, k: int, x_dtype: str | None) -> W4a16:
    """The problem of one weight. Raises ArgumentError for an X of another type, without n, and for bad sizes."""
    if n is None:
        raise ArgumentError(f"{KERNEL} multiplies [m, k] by [n, k]; n is missing")
    if min(m, n, k) < 0 or k % 16:
        raise ArgumentError(f"m is {m}, n {n}, k {k}; none may be negative, and k must be a multiple of 16")
    if (x_dtype or "bf16") not in X_DTYPES:
        raise ArgumentError(f"the operands are {x_dtype!r}; weights in NVFP4 are multiplied by bf16 or f16")
    return W4a16(m, n, k, x_dtype or "bf16")


def of_experts(one: W4a16, kind: Kind, experts: int) -> Problem:
    """A problem whose first expert has the rows of `one`, the others fewer each, and the last of several none.

    Raises ArgumentError for prefix sums, which no such kernel takes, and without an expert.
    """
    if kind not in ("contiguous", "masked"):
        raise ArgumentError(f"experts are {kind!r}; with weights in NVFP4 they are contiguous or masked")
    if experts < 1:
        raise ArgumentError(f"there are {experts} groups; there must be one")
    rows = tuple(one.m - one.m * expert // max(experts - 1, 1) for expert in range(experts))
    return replace(GroupedW4a16(kind, rows, one.n, one.k), operands=one.x_dtype)


def _drawn(
    rows: tuple[int, ...],
    of_weight: tuple[int, ...],
    k: int,
    x_dtype: str,
    generator: torch.Generator,
    device: str,
) -> tuple[torch.Tensor, PackedNvfp4Weight, torch.Tensor]:
    """X [*rows, k]; weights [*of_weight, k], a random scale factor a block, packed; and their values in float64."""
    codes = torch.randint(0, 256, (*of_weight, k // 2), generator=generator, dtype=torch.uint8)
    raw = torch.randint(0, 0x7F, (*of_weight, k // 16), generator=generator, dtype=torch.uint8)
    scales = raw.view(torch.float8_e4m3fn)  # all that are numbers, and without a sign
    factors = torch.rand(of_weight[:-1], generator=generator) * 0.01 + 0.001
    packed = nvfp4_weight.pack(codes.to(device), scales.to(device), factors.to(device))
    values = dequantize(codes, scales, group=(1, 16), global_scale=factors, dtype=torch.float64)
    x = torch.randn(*rows, k, generator=generator).to(X_DTYPES[x_dtype])
    return x.to(device), packed, values.to(device)


def _output(
    exact: torch.Tensor, magnitude: torch.Tensor, dtype: torch.dtype, used: torch.Tensor | None = None
) -> tuple[torch.Tensor, Callable[[], Outcome]]:
    """A poisoned D of `exact`'s shape with room around it, and what holds it against that; used: rows to be written."""
    n = exact.shape[-1]
    room = torch.full((*exact.shape[:-1], n + 8), torch.nan, dtype=dtype, device=exact.device)
    d = room[..., :n]
    own = torch.ones(exact.shape[:-1], dtype=torch.bool, device=exact.device) if used is None else used

    def judge() -> Outcome:
        error = (d.double() - exact)[own].abs()
        relative = (error.norm() / exact[own].norm().clamp_min(1e-300)).item()
        bound = ROUNDING[dtype] * exact.abs() + LEAST[dtype] + FLOAT32_SLACK * magnitude
        contained = bool(room[..., n:].isnan().all() and d[~own].isnan().all())
        return Outcome(relative, bool((error <= bound[own]).all()), contained)

    return d, judge
