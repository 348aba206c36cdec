"""Products of batches, and their sums, by expressions to try kernels on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cute_kernels import heuristics, ops_einsum
from cute_kernels.device.umma_formats import FORMATS, Operand
from cute_kernels.heuristics.split_k import depth_of_sum
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.einsum import EXPRESSIONS, Order
from cute_kernels.trial_operands import operand, recipe
from cute_kernels.trial_problems import BF16_ROUNDING, FLOAT32_SLACK, Gemm, Outcome, Problem

OPERANDS = ("bf16", "mxf8_k128", "mxf8")
LINE_BYTES = 16  # that rows of tensors are a multiple of


@dataclass(frozen=True)
class Einsum:
    """An expression of so many batches of A [m, k] and B [n, k] (+ C); d_dtype "bf16" or "f32".

    operands: what kernels call their formats. num_sms: of the device, by which a sum over batches is divided.
    """

    expression: str
    batches: int
    m: int
    n: int
    k: int
    operands: str = "bf16"
    d_dtype: str = "bf16"
    accumulate: bool = False
    num_sms: int = 8

    @property
    def operation(self) -> str:
        """Name of the operation in tables."""
        return f"einsum {self.expression} {self.operands}"

    def __str__(self) -> str:
        c = " + C" if self.accumulate else ""
        return f"{self.batches} of {self.m} x {self.n} x {self.k}, {self.d_dtype}{c}"

    def to_choose_for(self) -> heuristics.GemmProblem:
        """The same as the heuristics see it."""
        e = EXPRESSIONS[self.expression]
        summed = e.d is None
        depth = depth_of_sum(self.m, self.n, self.batches, self.num_sms) if summed else 1
        return heuristics.GemmProblem(
            *(self.m, self.n, self.k, self.operands, "f32" if summed else self.d_dtype),
            accumulate=self.accumulate and not summed,
            a_major=e.a_major,
            b_major=e.b_major,
            batches=-(-self.batches // depth),
            depth=depth,
        )

    def prepare(self, device: str, seed: int) -> tuple[Callable[[], Any], Callable[[], Outcome]]:
        """Make the operands; return what runs the operation, and what judges its result."""
        generator, e, form = (
            torch.Generator().manual_seed(seed),
            EXPRESSIONS[self.expression],
            FORMATS[self.operands],
        )
        a, exact_a = self._operand(form.a, self.m, e.a, generator, device)
        b, exact_b = self._operand(form.b, self.n, e.b, generator, device)
        exact, magnitude = exact_a @ exact_b.mT, exact_a.abs() @ exact_b.abs().mT
        if e.d is None:
            exact, magnitude = exact.sum(0), magnitude.sum(0)
        else:
            exact, magnitude = (in_order(x, e.d) for x in (exact, magnitude))
        dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[self.d_dtype]
        c = None
        if self.accumulate:
            c = torch.randn(exact.shape, generator=generator) * exact.square().mean().sqrt().item()
            c = in_rows(c.to(device, dtype))
            exact, magnitude = exact + c.double(), magnitude + c.double().abs()
        room = torch.full((*exact.shape[:-1], exact.shape[-1] + 16), torch.nan, dtype=dtype, device=device)
        d = room[..., : exact.shape[-1]]

        def judge() -> Outcome:
            error = (d.double() - exact).abs()
            unit = BF16_ROUNDING if dtype is torch.bfloat16 else 0.0
            relative = (error.norm() / exact.norm().clamp_min(1e-300)).item()
            right = bool((error <= unit * exact.abs() + FLOAT32_SLACK * magnitude).all())
            return Outcome(relative, right, bool(room[..., exact.shape[-1] :].isnan().all()))

        by = recipe(self.operands)
        return lambda: ops_einsum.einsum(self.expression, a, b, d, c, recipe=by), judge

    def _operand(
        self, of: Operand, rows: int, order: Order, generator: torch.Generator, device: str
    ) -> tuple[Any, torch.Tensor]:
        """A or B in the expression's order of dimensions, and its values [batches, rows, k]."""
        form, shape = FORMATS[self.operands], (self.batches, rows)
        given, values = operand(form, of, shape, self.k, False, generator, device)
        if not of.granularity:
            return in_rows(in_order(given, order)), values
        return (in_rows(in_order(given[0], order)), given[1]), values


def in_order(batches: torch.Tensor, order: Order) -> torch.Tensor:
    """[batch, rows, columns] with its dimensions where an expression has them: `order` is that of the result's."""
    return batches.permute([order.index(i) for i in range(3)])


def in_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, row-major, with rows as far apart as TMA wants them."""
    step = LINE_BYTES // tensor.element_size()
    *outer, width = tensor.shape
    wide = torch.zeros(*outer, -(-width // step) * step, dtype=tensor.dtype, device=tensor.device)
    wide[..., :width] = tensor
    return wide[..., :width]


def by_expression(product: Problem, expression: str, batches: int, num_sms: int) -> Einsum:
    """A problem of so many products by an expression. Raises ArgumentError for products that einsum does not have."""
    if expression not in EXPRESSIONS:
        raise ArgumentError(f"the expression is {expression!r}; supported are {', '.join(EXPRESSIONS)}")
    if type(product) is not Gemm or (product.layout, product.scheduling) != ("nt", "static"):
        raise ArgumentError(
            "an expression states the operands' layout, and is of products to a BF16 or FP32 D"
        )
    if product.operands not in OPERANDS:
        raise ArgumentError(f"the operands are {product.operands!r}; einsum multiplies {', '.join(OPERANDS)}")
    if batches < 1:
        raise ArgumentError(f"there are {batches} batches; there must be one")
    sizes = product.m, product.n, product.k
    return Einsum(expression, batches, *sizes, product.operands, product.d_dtype, product.accumulate, num_sms)
