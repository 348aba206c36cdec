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

from cute_kernels import heuristics, nvfp4_weight, ops, ops_layouts, ops_quantized
from cute_kernels.device.umma_formats import FORMATS
from cute_kernels.formats import decode_ue8m0, dequantize, nvfp4_global_scale
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import unpack
from cute_kernels.trial_operands import operands, recipe

UNWRITTEN = 0xA5  # a byte of memory that an operation on bytes has not written
FLOAT32_SLACK = 1e-5  # of the sum of magnitudes: what accumulating in float32 may cost
E4M3_ROUNDING = 2.0**-4  # of the value: one rounding to E4M3
E4M3_LEAST = 2.0**-10  # of the scale factor: half the least E4M3
E2M1_ROUNDING = 2.0**-2  # of the value, and of the scale factor: one rounding to E2M1, or saturation
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
    """D [m, n] = A @ B (+ C), summed over k; d_dtype "bf16" or "f32".

    operands: what kernels call their formats, "mxf4", ..., "bf16". layout: "nt", "nn", "tn" or "tt".
    scheduling: "static", or "clc" or "auto" in the layout "nt", where busy_sms are held by other kernels.
    """

    m: int
    n: int
    k: int
    d_dtype: str = "bf16"
    accumulate: bool = False
    operands: str = "mxf4"
    layout: str = "nt"
    scheduling: str = "static"
    busy_sms: int = 0

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"gemm_{self.layout} {self.operands}"

    def __str__(self) -> str:
        return f"{self.m} x {self.n} x {self.k}, {self.d_dtype}" + (" + C" if self.accumulate else "")

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        majors = ("k" if self.layout[0] == "n" else "mn", "k" if self.layout[1] == "t" else "mn")
        return heuristics.GemmProblem(
            *(self.m, self.n, self.k, self.operands, self.d_dtype, self.accumulate, *majors),
            scheduling=self.scheduling,
            busy_sms=self.busy_sms,
        )

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        a, b, exact_a, exact_b = operands(
            self.operands, self.m, self.n, self.k, self.layout, generator, device
        )
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

        home = ops if self.layout == "nt" else ops_layouts
        gemm = getattr(home, f"gemm_{self.layout}")
        chosen = {"scheduling": self.scheduling, "busy_sms": self.busy_sms}
        more = chosen if (self.scheduling, self.busy_sms) != ("static", 0) else {}
        return lambda: gemm(a, b, d, c, recipe=recipe(self.operands), **more), judge


class Mxfp8Output:
    """A poisoned D [m, n] in MXFP8 with packed scale factors, and memory around both."""

    def __init__(self, m: int, n: int, device: str) -> None:
        self._d = torch.full((m, n + 16), UNWRITTEN, dtype=torch.uint8, device=device)
        self._words = torch.full((-(-n // 128), -(-m // 4) * 4), -1, dtype=torch.int32, device=device)
        self.given = self._d.view(torch.float8_e4m3fn)[:, :n], self._words[:, :m].T

    def judge(
        self, exact: torch.Tensor, magnitude: torch.Tensor, used: torch.Tensor | None = None
    ) -> Outcome:
        """Hold it against values; used: bool [m], the rows that are to be written, by default all."""
        m, n = exact.shape
        own = torch.ones(m, dtype=torch.bool, device=exact.device) if used is None else used
        # Found bytes of scale factors and their values; a poisoned one is NaN, and so within no bound.
        d, scales = self.given
        found = unpack(scales, -(-n // 32))[own]
        values = dequantize(d[own], found, group=(1, 32), dtype=torch.float64)
        unit = decode_ue8m0(found, torch.float64).repeat_interleave(32, 1)[:, :n]
        exact, magnitude = exact[own], magnitude[own]
        error = (values - exact).abs()
        bound = E4M3_ROUNDING * exact.abs() + E4M3_LEAST * unit + FLOAT32_SLACK * magnitude
        relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
        untouched = (
            *(self._d[:, n:] == UNWRITTEN, self._words[:, m:] == -1),
            *(self._d[:m][~own] == UNWRITTEN, self._words[:, :m][:, ~own] == -1),
        )
        return Outcome(relative, bool((error <= bound).all()), all(bool(x.all()) for x in untouched))


@dataclass(frozen=True)
class QuantizedGemm(Gemm):
    """(D, its scale factors) = quantize(A @ B^T) in MXFP8, and a next product could take them."""

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"gemm_nt_mxfp8 {self.operands}"

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        a, b, exact_a, exact_b = operands(self.operands, self.m, self.n, self.k, "nt", generator, device)
        exact, magnitude = exact_a @ exact_b.T, exact_a.abs() @ exact_b.abs().T
        out = Mxfp8Output(self.m, self.n, device)
        by = recipe(self.operands)
        return lambda: ops_quantized.gemm_nt_mxfp8(a, b, out.given, recipe=by), lambda: out.judge(
            exact, magnitude
        )


@dataclass(frozen=True)
class Nvfp4Gemm(Gemm):
    """(D, its scale factors, their global scale) = quantize(A @ B^T) in NVFP4, and a next product could take them."""

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"gemm_nt_nvfp4 {self.operands}"

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator = torch.Generator().manual_seed(seed)
        a, b, exact_a, exact_b = operands(self.operands, self.m, self.n, self.k, "nt", generator, device)
        exact, magnitude = exact_a @ exact_b.T, exact_a.abs() @ exact_b.abs().T
        factor = nvfp4_global_scale(exact.abs().amax() if exact.numel() else exact.new_zeros(()))
        poison = torch.full((self.m, self.n // 2 + 16), UNWRITTEN, dtype=torch.uint8, device=device)
        d = poison[:, : self.n // 2]
        groups, stride = -(-self.n // 16), -(-self.m // 4) * 4
        words = torch.full((-(-self.n // 64), stride), -1, dtype=torch.int32, device=device)
        scales = words[:, : self.m].T

        def judge() -> Outcome:
            # A scale factor that nothing wrote is NaN, and so within no bound.
            found = unpack(scales, groups).view(torch.float8_e4m3fn)
            contained = bool(
                (poison[:, self.n // 2 :] == UNWRITTEN).all() and (words[:, self.m :] == -1).all()
            )
            if (found.view(torch.uint8) > 127).any():
                return Outcome(float("nan"), False, contained)
            values = dequantize(d, found, group=(1, 16), global_scale=factor, dtype=torch.float64)
            unit = found.double().repeat_interleave(16, 1) * factor.double()
            error = (values - exact).abs()
            bound = E2M1_ROUNDING * (exact.abs() + unit) + E4M3_LEAST * 6 * factor.double()
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            right = bool((error <= bound + FLOAT32_SLACK * magnitude).all())
            return Outcome(relative, right, contained)

        return (
            lambda: ops_quantized.gemm_nt_nvfp4(a, b, factor, (d, scales), recipe=recipe(self.operands)),
            judge,
        )


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


KERNELS = ("sm100.gemm_blockscaled", "sm100.gemm_bf16", "sm80.nvfp4_dequantize", "sm80.nvfp4_repack")


def problem(
    kernel: str,
    m: int,
    n: int | None,
    k: int,
    d_dtype: str = "bf16",
    accumulate: bool = False,
    operands: str | None = None,
    layout: str = "nt",
    scheduling: str = "static",
    busy_sms: int = 0,
) -> Problem:
    """A problem of a kernel that KERNELS names: of a product, or of m rows of k elements to dequantize or pack.

    operands: of a product, by default MXFP4 or what else the kernel takes; the operation refuses what it does not.
    Raises ArgumentError for another kernel, for a product without n, and for sizes that no operands have.
    """
    if min(m, n or 0, k) < 0 or (k % 2 and kernel != "sm100.gemm_bf16"):
        raise ArgumentError(f"m is {m}, n {n}, k {k}; none may be negative, and k must be even")
    if kernel == "sm80.nvfp4_dequantize":
        return Dequantize(m, k)
    if kernel == "sm80.nvfp4_repack":
        return Repack(m, k)
    if kernel not in ("sm100.gemm_blockscaled", "sm100.gemm_bf16"):
        raise ArgumentError(f"the kernel is {kernel!r}; there are {', '.join(KERNELS)}, sm80.gemm_w4a16")
    if n is None:
        raise ArgumentError(f"{kernel} multiplies [m, k] by [n, k]; n is missing")
    bf16 = kernel == "sm100.gemm_bf16"
    operands = operands or ("bf16" if bf16 else "mxf4")
    known = [kind for kind in FORMATS if (kind == "bf16") == bf16]
    if operands not in known:
        raise ArgumentError(f"the operands are {operands!r}; {kernel} multiplies {', '.join(known)}")
    if (scheduling, busy_sms) != ("static", 0) and (layout != "nt" or d_dtype not in ("bf16", "f32")):
        raise ArgumentError(
            f"scheduling {scheduling!r} beside {busy_sms} busy multiprocessors is for a BF16 or FP32 D of operands in "
            "the layout nt"
        )
    if d_dtype in ("mxf8", "nvf4"):
        if accumulate or layout != "nt":
            raise ArgumentError("an MXFP8 or NVFP4 D has no C, and operands in the layout nt")
        quantized = QuantizedGemm if d_dtype == "mxf8" else Nvfp4Gemm
        return quantized(m, n, k, d_dtype, operands=operands)
    return Gemm(m, n, k, d_dtype, accumulate, operands, layout, scheduling, busy_sms)


def poisoned_rows(m: int, n: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """[m, n] of NaN in rows of the next multiple of 16 bytes and 16 bytes more, NaN as well."""
    step = 16 // dtype.itemsize
    return torch.full((m, (-(-n // step) + 1) * step), torch.nan, dtype=dtype, device=device)[:, :n]


def beyond(d: torch.Tensor) -> torch.Tensor:
    """The part of `poisoned_rows` that nothing may write."""
    step = 16 // d.dtype.itemsize
    return d.as_strided((d.shape[0], d.stride(0)), d.stride())[:, -(-d.shape[1] // step) * step :]
