"""Problems to try kernels on: made-up operands, and a judgement of the result against float64.

Operands use every code of their format and a random scale factor a block, because constant scales hide wrong
scale addresses. Outputs are poisoned with NaN first, and so is what surrounds them, which must stay as it was;
but for what TMA writes to fill the last 16 bytes of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cute_kernels import heuristics, nvfp4_weight, ops
from cute_kernels.formats import dequantize
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack_for_kernel

SCALE_EXPONENTS = (127 - 30, 127 + 30)  # UE8M0 bytes; far from where a float32 sum overflows or is subnormal
UNWRITTEN = 0xA5  # a byte of memory that an operation on bytes has not written
FLOAT32_SLACK = 1e-5  # of the sum of magnitudes: what accumulating in float32 may cost
BF16_ROUNDING = 2.0**-8  # of the value: one rounding to BF16, up or down


@dataclass(frozen=True)
class Outcome:
    """error: relative, Frobenius, against float64. right: every element is within its bound.
    contained: nothing outside D was written."""

    error: float
    right: bool
    contained: bool


class Problem(Protocol):
    """An operation on operands of certain sizes; str() names the sizes."""

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make operands on a device; return what runs the operation, and what judges its result."""

    def to_choose_for(self) -> heuristics.Problem:
        """The same as the heuristics see it."""


@dataclass(frozen=True)
class Gemm:
    """D [m, n] = A [m, k] @ B [n, k]^T (+ C) in MXFP4; d_dtype "bf16" or "f32"."""

    m: int
    n: int
    k: int
    d_dtype: str = "bf16"
    accumulate: bool = False

    operation = "gemm_nt MXFP4"

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}, {self.d_dtype}" + (" + C" if self.accumulate else "")

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        return heuristics.GemmProblem(self.m, self.n, self.k, "mxf4", self.d_dtype, self.accumulate)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        a, exact_a = mxfp4_operand(self.m, self.k, generator, device)
        b, exact_b = mxfp4_operand(self.n, self.k, generator, device)
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[self.d_dtype]
        exact = exact_a @ exact_b.T
        magnitude = exact_a.abs() @ exact_b.abs().T
        c = None
        if self.accumulate:
            deviation = exact.square().mean().sqrt().item()
            c = poisoned_rows(self.m, self.n, dtype, device)
            c.copy_(torch.randn(self.m, self.n, generator=generator) * deviation)
            exact, magnitude = exact + c.double(), magnitude + c.double().abs()
        d = poisoned_rows(self.m, self.n, dtype, device)

        def judge() -> Outcome:
            error = (d.double() - exact).abs()
            unit = BF16_ROUNDING if dtype is torch.bfloat16 else 0.0
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            right = bool((error <= unit * exact.abs() + FLOAT32_SLACK * magnitude).all())
            right &= dtype is torch.bfloat16 or relative < FLOAT32_SLACK
            return Outcome(relative, right, bool(beyond(d).isnan().all()))

        return lambda: ops.gemm_nt(a, b, d, c), judge


@dataclass(frozen=True)
class Dequantize:
    """BF16 [rows, columns] from NVFP4."""

    rows: int
    columns: int

    operation = "nvfp4_dequantize"

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"

    def to_choose_for(self) -> heuristics.DequantizeProblem:
        """The same as the heuristics see it."""
        return heuristics.DequantizeProblem(groups=1, blocks=self.rows * self.columns // 16)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        packed = torch.randint(0, 256, (self.rows, self.columns // 2), generator=generator, dtype=torch.uint8)
        codes = torch.randint(
            0, 0x7F, (self.rows, self.columns // 16), generator=generator, dtype=torch.uint8
        )
        scales = codes.view(torch.float8_e4m3fn)  # all that are numbers, and without a sign
        factor = torch.rand((), generator=generator) + 0.5
        values = dequantize(packed, scales, group=(1, 16), global_scale=factor)
        exact = dequantize(packed, scales, group=(1, 16), global_scale=factor, dtype=torch.float64)
        room = torch.full((self.rows + 2, self.columns), torch.nan, dtype=torch.bfloat16, device=device)
        out = room[1:-1]

        def judge() -> Outcome:
            found = out.cpu()
            error = ((found.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()
            right = torch.equal(found.view(torch.int16), values.to(torch.bfloat16).view(torch.int16))
            return Outcome(error, right, bool(room[0].isnan().all() and room[-1].isnan().all()))

        a, s, g = packed.to(device), scales.to(device), factor.to(device)
        return lambda: ops.nvfp4_dequantize(a, s, g, out), judge


@dataclass(frozen=True)
class Repack:
    """A packed weight [n, k] from a row-major one. An error is the share of bytes that are not the host's."""

    n: int
    k: int

    operation = "nvfp4_repack"

    def __str__(self) -> str:
        return f"{self.n} x {self.k}"

    def to_choose_for(self) -> heuristics.RepackProblem:
        """The same as the heuristics see it."""
        return heuristics.RepackProblem(1, self.n, self.k)

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(0, 256, (self.n, self.k // 2), generator=generator, dtype=torch.uint8)
        raw = torch.randint(0, 0x7F, (self.n, self.k // 16), generator=generator, dtype=torch.uint8)
        scales = raw.view(torch.float8_e4m3fn)
        expected = nvfp4_weight.pack(codes, scales, 1.0).data
        row_blocks, *unit = expected.shape
        room = torch.full((row_blocks + 2, *unit), UNWRITTEN, dtype=torch.uint8, device=device)
        out = room[1:-1]

        def judge() -> Outcome:
            error = (out.cpu() != expected).double().mean().item()
            return Outcome(error, error == 0.0, bool((room[[0, -1]] == UNWRITTEN).all()))

        a, s = codes.to(device), scales.to(device)
        return lambda: ops.nvfp4_repack(a, s, 1.0, out), judge


KERNELS = ("sm100.gemm_blockscaled", "sm80.nvfp4_dequantize", "sm80.nvfp4_repack")


def problem(
    kernel: str, m: int, n: int | None, k: int, d_dtype: str = "bf16", accumulate: bool = False
) -> Problem:
    """A problem of a kernel that KERNELS names: of a product, or of m rows of k elements to dequantize or pack.

    Raises ArgumentError for another kernel, for a product without n, and for sizes that no operands have.
    """
    if min(m, n or 0, k) < 0 or k % 2:
        raise ArgumentError(f"m is {m}, n {n}, k {k}; none may be negative, and k must be even")
    if kernel == "sm80.nvfp4_dequantize":
        return Dequantize(m, k)
    if kernel == "sm80.nvfp4_repack":
        return Repack(m, k)
    if kernel != "sm100.gemm_blockscaled":
        raise ArgumentError(f"the kernel is {kernel!r}; there are {', '.join(KERNELS)}")
    if n is None:
        raise ArgumentError(f"{kernel} multiplies [m, k] by [n, k]; n is missing")
    return Gemm(m, n, k, d_dtype, accumulate)


def mxfp4_operand(
    rows: int, k: int, generator: torch.Generator, device: str
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A random operand [rows, k] as kernels take it, and its values in float64."""
    low, high = SCALE_EXPONENTS
    data = torch.randint(0, 256, (rows, k // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(low, high + 1, (rows, -(-k // 32)), generator=generator, dtype=torch.uint8)
    values = dequantize(data, scales, group=(1, 32), dtype=torch.float64)
    # Packed on the device: a copy from one device to another drops the padding between its columns.
    return (data.to(device), pack_for_kernel(scales.to(device), rows, k)), values.to(device)


def poisoned_rows(m: int, n: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """[m, n] of NaN in rows of the next multiple of 16 bytes and 16 bytes more, NaN as well."""
    step = 16 // dtype.itemsize
    return torch.full((m, (-(-n // step) + 1) * step), torch.nan, dtype=dtype, device=device)[:, :n]


def beyond(d: torch.Tensor) -> torch.Tensor:
    """The part of `poisoned_rows` that nothing may write."""
    step = 16 // d.dtype.itemsize
    return d.as_strided((d.shape[0], d.stride(0)), d.stride())[:, -(-d.shape[1] // step) * step :]
