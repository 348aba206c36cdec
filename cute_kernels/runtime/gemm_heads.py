"""A call of a GEMM with a gap of zeros in every head of D, from its operands to a launch."""

from __future__ import annotations

from typing import Any

import torch

from cute_kernels.heuristics import GemmProblem

from .errors import ArgumentError
from .gemm import PARAMETERS, inputs_and_factors
from .gemm_operands import Given, d_dtype, kind, operand, require_output
from .plan import Ahead, Call, Plan
from .supported import HEADS, require_k_major, require_operands
from .tensors import require_one_device, require_rows, tiled

HeadSplits = tuple[int, int, int]
UNIT = 32  # columns that the kernel stores at a time, and never across a gap


class HeadSplitGemmRequest:
    """D = A @ B^T with `mid` columns of D behind the first `left` of every left + right of the product.

    Everything that can be refused is refused when it is made. It holds no tensor, as GemmRequest does not.
    """

    def __init__(
        self,
        a: Given,
        b: Given,
        d: torch.Tensor | None,
        dtype: torch.dtype,
        splits: HeadSplits,
        granularities: tuple[int | None, int | None],
    ) -> None:
        """Check a call and choose its kernel.

        d: like what every run writes, None if the runs allocate it.
        """
        left, right = operand("a", a, granularities[0]), operand("b", b, granularities[1])
        operands, d_type = kind(left, right), d_dtype(dtype)
        require_operands(operands, HEADS[d_type], f"gemm_nt_skip_head_mid to {dtype}")
        for given in (left, right):
            require_k_major(given, "gemm_nt_skip_head_mid")
        self._m, n, self._k = left.mn, right.mn, left.k
        self._n, self._dtype, self._splits = n, dtype, _checked(splits, n)
        self._device = require_one_device(
            dict([*left.tensors(), *right.tensors(), *([] if d is None else [("d", d)])])
        )
        self._columns = n // (splits[0] + splits[2]) * sum(splits)
        if d is not None:
            require_output("d", d, self._m, self._columns, dtype)
            require_rows(d, "d")
        self._plan = None
        if 0 in (self._m, n, self._k):
            return
        self._inputs, self._factors = inputs_and_factors(left, right)
        if d is not None:
            self._call(d)
        majors = left.major, right.major
        problem = GemmProblem(self._m, n, self._k, operands, d_type, False, *majors, heads=True)
        self._plan = Plan("gemm_nt_skip_head_mid", problem, self._device)

    def run(self, d: torch.Tensor | None, packing: Ahead | None = None) -> torch.Tensor:
        """Launch on the current stream, into `d` or a new tensor; return it. packing: what goes ahead of it."""
        if d is None:
            d = torch.empty((self._m, self._columns), dtype=self._dtype, device=self._device)
        if self._plan is None:
            return d.zero_()
        # Apart from the whole 16 bytes that the kernel writes: gaps are of UNIT columns.
        left, mid, _ = self._splits
        gaps = d.unflatten(1, (-1, sum(self._splits)))[:, :, left : left + mid]
        self._plan.launch(d, self._call, ahead=(packing, gaps.zero_))
        return d

    def _call(self, d: torch.Tensor) -> Call:
        result = tiled(d)
        inputs = {**self._inputs, **self._factors}
        for name, tensor in inputs.items():
            if tensor.overlaps(result):
                raise ArgumentError(f"d shares memory with {name} ({tensor} and {result}). Give another d")
        left, mid, right = self._splits
        maps = {PARAMETERS[name]: tensor for name, tensor in {**self._inputs, "d": result}.items()}
        numbers = {PARAMETERS[name]: factor.address for name, factor in self._factors.items()}
        numbers |= {"m": self._m, "n": self._n, "k": self._k}
        numbers |= {"head_width": left + right, "head_right": right, "head_mid": mid}
        return Call({**maps, **numbers}, {**inputs, "d": result})


def _checked(splits: Any, n: int) -> HeadSplits:
    """Return head splits of n columns. Refuse any that a store of the kernel would straddle."""
    whole = isinstance(splits, tuple | list) and len(splits) == 3 and all(type(x) is int for x in splits)
    if not whole or min(splits) < 0 or any(x % UNIT for x in splits) or 0 in (splits[0], splits[2]):
        raise ArgumentError(
            f"head_splits is {splits}; it must be (left, mid, right), columns in multiples of {UNIT}, of which only "
            "mid may be 0"
        )
    left, mid, right = splits
    if n % (left + right):
        raise ArgumentError(
            f"N is {n}, but head_splits {splits} means heads of {left + right} columns; N must be a multiple of that"
        )
    return left, mid, right
