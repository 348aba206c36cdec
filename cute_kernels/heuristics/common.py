"""From a problem to a configuration: what every architecture shares.

A supplier for each architecture turns (problem, configuration, number of multiprocessors) into an estimate,
or says why the configuration does not serve. Here they are ranked and printed. Everything is plain Python on
plain values, so that a choice can be replayed and explained anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class GemmProblem:
    """D[m, n] = A[m, k] @ B[n, k]^T (+ C).

    operands: the kernels' name for the operand types, "mxf4", ...; d_dtype: "bf16" or "f32".
    accumulate: whether C is added.
    a_major, b_major: the dimension of A, and of B, that is contiguous, "k" or "mn".
    heads: whether D has a gap in every head.
    batches: number of Ds, each of which sums the products of `depth` As and Bs; 0 where there are no batches.
    k_grouped: whether each D has a slice of the K of one A and one B instead, on the average of `k` elements.
    groups: of rows, each with a B of its own, 0 where there are none. grouping: how the kernel knows whose rows are
        whose, "indices" or "sizes"; m counts the rows of A, or of each of its matrices, in use or not.
    alignment: of the first row of a group, by indices. expected_m: rows in use of a group, by sizes.
    scheduling: "static", "clc" for CTAs that ask for their tiles, or "auto" for what costs less.
    busy_sms: multiprocessors that other kernels are expected to hold for as long as this one runs.
    """

    m: int
    n: int
    k: int
    operands: str
    d_dtype: str
    accumulate: bool = False
    a_major: str = "k"
    b_major: str = "k"
    batches: int = 0
    depth: int = 1
    heads: bool = False
    k_grouped: bool = False
    groups: int = 0
    grouping: str = ""
    alignment: int = 1
    expected_m: int = 1
    scheduling: str = "static"
    busy_sms: int = 0

    @property
    def kernel(self) -> str:
        """The kernel family that multiplies such operands."""
        return "gemm_bf16" if self.operands == "bf16" else "gemm_blockscaled"

    @property
    def layout(self) -> str:
        """The name of the operands' majorness: "nt" where both are K-major."""
        return ("n" if self.a_major == "k" else "t") + ("t" if self.b_major == "k" else "n")

    def __str__(self) -> str:
        c = (" + C" if self.accumulate else "") + (" with head splits" if self.heads else "")
        c += "" if self.scheduling == "static" else f", {self.scheduling} scheduling"
        c += f", beside {self.busy_sms} busy multiprocessors" if self.busy_sms else ""
        batches = f"{self.batches} batches of {self.depth} x " if self.batches else ""
        if self.k_grouped:
            batches = f"{self.batches} groups along K of "
        groups = f"{self.groups} groups by {self.grouping}, " if self.groups else ""
        return (
            f"{self.kernel} {self.operands} {self.layout}, {groups}{batches}M={self.m} N={self.n} K={self.k}, "
            f"D {self.d_dtype}{c}"
        )


@dataclass(frozen=True)
class DequantizeProblem:
    """BF16 from packed NVFP4: `groups` runs, each of `blocks` blocks of 16 elements and with a global
    scale.
    """

    groups: int
    blocks: int
    kernel: str = "nvfp4_dequantize"

    def __str__(self) -> str:
        return f"{self.kernel}, {self.groups} x {self.blocks} blocks of 16"


@dataclass(frozen=True)
class RepackProblem:
    """Packed NVFP4 weights from row-major ones: `experts` matrices [n, k]."""

    experts: int
    n: int
    k: int
    kernel: str = "nvfp4_repack"

    def __str__(self) -> str:
        return f"{self.kernel}, {self.experts} x [{self.n}, {self.k}]"


@dataclass(frozen=True)
class W4a16Problem:
    """D[m, n] = X[m, k] @ W[n, k]^T with packed NVFP4 weights; x_dtype "bf16" or "f16", of X and D.

    layout: "dense"; "contiguous", rows of several experts in one matrix, each from a multiple of `alignment` on; or
        "masked", a matrix for each expert, of which `m` rows are expected to be in use.
    """

    m: int
    n: int
    k: int
    x_dtype: str
    layout: str = "dense"
    experts: int = 1
    alignment: int = 1
    kernel: str = "gemm_w4a16"

    def __str__(self) -> str:
        groups = "" if self.layout == "dense" else f", {self.layout}, {self.experts} experts"
        return f"{self.kernel} {self.x_dtype}, M={self.m} N={self.n} K={self.k}{groups}"


Problem = GemmProblem | DequantizeProblem | RepackProblem | W4a16Problem


@dataclass(frozen=True)
class Estimate:
    """What a supplier says of a configuration that serves a problem.

    cycles: of the whole launch by the supplier's model; only comparisons mean anything.
    grid: CTAs, (x, y, z). figures: what the estimate was made of, by name, in the order to print.
    arguments: launch arguments that belong to the choice, by the kernel's names.
    """

    cycles: float
    grid: tuple[int, int, int]
    figures: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, int] = field(default_factory=dict)


class Unsuitable(Exception):  # noqa: N818 - an answer of a supplier, not a failure
    """Why a configuration does not serve a problem."""


Supplier = Callable[[Any, Config, int], Estimate]
"""(problem, configuration, multiprocessors) -> estimate; raises Unsuitable."""


@dataclass(frozen=True)
class Candidate:
    """A configuration with its estimate, or with the reason why it has none."""

    name: str
    estimate: Estimate | None
    unsuitable: str = ""


def rank(
    problem: Problem, num_sms: int, configs: Mapping[str, Config], supplier: Supplier
) -> list[Candidate]:
    """Return a candidate for every configuration: the best first, unsuitable ones last; ties in order of
    name.
    """
    candidates = []
    for name, config in sorted(configs.items()):
        try:
            candidates.append(Candidate(name, supplier(problem, config, num_sms)))
        except Unsuitable as why:
            candidates.append(Candidate(name, None, str(why)))
        except KeyError as missing:
            if missing.args[0] in config:
                raise
            why_not = f"its manifest does not say {missing}: another version of cute_kernels built it; build it again"
            candidates.append(Candidate(name, None, why_not))
    return sorted(candidates, key=lambda c: c.estimate.cycles if c.estimate else float("inf"))


def table(problem: Problem, num_sms: int, candidates: list[Candidate]) -> str:
    """Return ranked candidates as text: one line each, then the reasons of those that do not serve."""
    lines = [f"{problem}, on {num_sms} multiprocessors"]
    suitable = [(c.name, c.estimate) for c in candidates if c.estimate]
    width = max((len(name) for name, _ in suitable), default=0)
    best = suitable[0][1].cycles if suitable else 0.0
    for place, (name, estimate) in enumerate(suitable):
        figures = "  ".join(f"{k} {_number(v)}" for k, v in estimate.figures.items())
        more = "chosen" if place == 0 else f"+{100 * (estimate.cycles / best - 1):.0f} %"
        lines.append(f"  {name:{width}}  {estimate.cycles:>12,.0f} cycles  {more:>7}  {figures}")
    if not suitable:
        lines.append("  no configuration serves this problem:")
    lines += [f"  {c.name}: {c.unsuitable}" for c in candidates if not c.estimate]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
