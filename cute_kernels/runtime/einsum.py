"""Calls of batched products, by the expressions that name their dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cute_kernels.heuristics import GemmProblem
from cute_kernels.heuristics.split_k import depth_of_sum
from cute_kernels.scale_factors import require_packed
from cute_kernels.scale_layout import packed_stride

from . import context
from .arguments import Tiled
from .errors import ArgumentError
from .gemm import PARAMETERS
from .gemm_operands import D_DTYPES, FP8, INT32_MAX, KINDS, MXFP8, OperandFormat, d_dtype
from .plan import Ahead, Call, Plan
from .tensors import (
    TMA_ALIGNMENT,
    begin_with,
    describe,
    require_aligned,
    require_one_device,
    require_whole_rows,
    round_up,
    tiled_batches,
)

Order = tuple[int, int, int]


@dataclass(frozen=True)
class Expression:
    """How the dimensions of an expression become those of products.

    a, b, d: order of each tensor's dimensions as [batch, M, K], [batch, N, K] and [batch, M, N]; d is None where
        the sum is over the batches too.
    a_major, b_major: the dimension of A and of B that comes last in the tensor.
    adds: whether C may be added where operands are FP8.
    """

    a: Order
    b: Order
    d: Order | None
    a_major: str = "k"
    b_major: str = "k"
    adds: bool = False


EXPRESSIONS = {
    "bhr,hdr->bhd": Expression((1, 0, 2), (0, 1, 2), (1, 0, 2), adds=True),
    "bhd,hdr->bhr": Expression((1, 0, 2), (0, 2, 1), (1, 0, 2), b_major="mn"),
    "bhd,bhr->hdr": Expression((1, 2, 0), (1, 2, 0), (0, 1, 2), "mn", "mn", adds=True),
    "bmk,bnk->mn": Expression((0, 1, 2), (0, 1, 2), None),
}


class EinsumRequest:
    """D by an expression, for given tensors; checked when it is made, and good for the same memory ever after."""

    def __init__(
        self,
        expression: str,
        a: Any,
        b: Any,
        d: torch.Tensor,
        c: torch.Tensor | None,
        granularity: int | None = None,
    ) -> None:
        """Check a call and choose its kernel. granularity: elements to a scale factor, where the call says so."""
        if expression not in EXPRESSIONS:
            known = ", ".join(EXPRESSIONS)
            raise ArgumentError(f"the expression is {expression!r}; supported are {known}")
        e = EXPRESSIONS[expression]
        (a, sfa), (b, sfb) = (_parts(name, given) for name, given in (("a", a), ("b", b)))
        fp8, form = sfa is not None, _scaled_format(granularity)
        if fp8 != (sfb is not None):
            raise ArgumentError(
                f"a is {describe(a)} and b {describe(b)}; einsum takes both in BF16 or both in FP8"
            )
        if granularity is not None and not fp8:
            raise ArgumentError(
                f"the recipe has {granularity} elements a scale factor, but a and b are BF16; leave it out"
            )
        left, right = a.permute(e.a), b.permute(e.b)
        self._sizes = *left.shape, right.shape[1]
        batch, m, k, n = self._sizes
        if (right.shape[0], right.shape[2]) != (batch, k):
            raise ArgumentError(f"a is {describe(a)} and b {describe(b)}; they do not fit {expression}")
        if max(self._sizes) > INT32_MAX:
            raise ArgumentError(f"the sizes are {self._sizes}; each must be below 2^31. Split the problem")
        self._summed = e.d is None
        self._loads_c = d.dtype != torch.float32  # of which D holds C, to which products are added
        scales = {f"{name}'s scale factors": of for name, of in (("a", sfa), ("b", sfb)) if of is not None}
        given = {"a": a, "b": b, "d": d, **scales} | ({} if c is None else {"c": c})
        device = require_one_device(given)
        self._require_outputs(expression, d, c, (m, n) if e.d is None else (batch, m, n), e.d, fp8)
        self._plan = None
        if 0 in self._sizes:
            return
        self._inputs = {
            "a": tiled_batches("a", left, e.a_major),
            "b": tiled_batches("b", right, e.b_major),
        }
        for (name, packed), mn in zip(scales.items(), (m, n), strict=fp8):
            self._inputs[name] = _tiled_scales(name, packed, form, batch, mn, k)
        kind = "f32" if self._summed else d_dtype(d.dtype)
        self._depth = 1
        if self._summed:
            self._depth = depth_of_sum(m, n, batch, context.backend_for(device).num_sms)
        self._batches = -(-batch // self._depth)
        problem = GemmProblem(
            *(m, n, k, KINDS[form, form] if fp8 else "bf16", kind),
            accumulate=c is not None and not self._summed,
            a_major=e.a_major,
            b_major=e.b_major,
            batches=self._batches,
            depth=self._depth,
        )
        if e.d is not None:
            self._output = tiled_batches("d", d.permute(e.d), "k")
            if c is not None:
                self._inputs["c"] = tiled_batches("c", c.permute(e.d), "k")
            self._require_apart(d)
        self._plan = Plan("einsum", problem, device)

    def run(self, d: torch.Tensor, c: torch.Tensor | None, packing: Ahead | None = None) -> None:
        """Launch on the current stream, into `d`. packing: what goes ahead of it."""
        if self._plan is None:
            begin_with(d, c)
        elif self._summed:
            m, n = d.shape
            parts = torch.empty(
                (self._batches, m, round_up(n, TMA_ALIGNMENT // 4)), dtype=torch.float32, device=d.device
            )[:, :, :n]
            self._plan.launch(parts, self._call, ahead=(packing,))
            total = parts.sum(0)
            d.copy_(total if c is None else total + c)
        else:
            begin = partial(begin_with, d, c) if c is not None and not self._loads_c else None
            self._plan.launch(d, self._call, ahead=(packing, begin))

    def _require_outputs(
        self,
        expression: str,
        d: torch.Tensor,
        c: torch.Tensor | None,
        shape: tuple[int, ...],
        order: Order | None,
        fp8: bool,
    ) -> None:
        """Refuse a D that no kernel writes, or not in this shape, and a C that is not like D."""
        if order is not None:
            shape = tuple(shape[order.index(i)] for i in range(3))
        if d.dtype not in D_DTYPES or tuple(d.shape) != shape:
            wanted = " or ".join(str(t).removeprefix("torch.") for t in D_DTYPES)
            raise ArgumentError(f"d is {describe(d)}; {expression} takes {wanted} {list(shape)}")
        gradient = fp8 and expression == "bhd,bhr->hdr"
        if fp8 and order is None:
            raise ArgumentError(f"a and b are FP8; {expression} takes BF16")
        if gradient and d.dtype != torch.float32:
            raise ArgumentError(f"d is {describe(d)}; {expression} of FP8 takes float32")
        if c is not None and order is not None and not (fp8 and EXPRESSIONS[expression].adds):
            operands = "FP8" if fp8 else "BF16"
            raise ArgumentError(f"c is given; {expression} of {operands} takes none: add it to d afterwards")
        if c is not None and (c.dtype != d.dtype or c.shape != d.shape):
            raise ArgumentError(f"c is {describe(c)}, but d is {describe(d)}; they must be alike")

    def _require_apart(self, d: torch.Tensor) -> None:
        require_whole_rows("d", d, self._output)
        for name, tensor in self._inputs.items():
            if tensor.overlaps(self._output) and not (name == "c" and tensor == self._output):
                raise ArgumentError(f"d shares memory with {name}; give another d")

    def _call(self, out: torch.Tensor) -> Call:
        result = tiled_batches("parts", out, "k") if self._summed else self._output
        written = replace(result, row_bytes=round_up(result.row_bytes, TMA_ALIGNMENT))
        _, m, k, n = self._sizes
        numbers = {"m": m, "n": n, "k": k, "batches": self._batches}
        if "a's scale factors" not in self._inputs:
            numbers["depth"] = self._depth
        inputs = {name: tensor for name, tensor in self._inputs.items() if name != "c" or self._loads_c}
        maps = {PARAMETERS[name]: tensor for name, tensor in {**inputs, "d": result}.items()}
        return Call({**maps, **numbers}, {**inputs, "d": written})


def _parts(name: str, given: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return an operand's elements, and its scale factors where it is FP8. Refuse other dtypes and dimensions."""
    parts = (given,) if isinstance(given, torch.Tensor) else tuple(given)
    fitting = (torch.bfloat16,), (torch.float8_e4m3fn, torch.int32)
    if tuple(part.dtype for part in parts) not in fitting or any(part.dim() != 3 for part in parts):
        raise ArgumentError(
            f"{name} is {' with '.join(map(describe, parts))}; einsum takes bfloat16 of three dimensions, or "
            f"float8_e4m3fn with scale factors in int32 likewise: {FP8.scale_hint.split(';')[0]}"
        )
    return parts[0], parts[1] if len(parts) == 2 else None


def _scaled_format(granularity: int | None) -> OperandFormat:
    """Return the format of FP8 operands with so many elements to a scale factor, by default 128."""
    for form in (FP8, MXFP8):
        if granularity in (None, form.granularity):
            return form
    raise ArgumentError(
        f"the recipe has {granularity} elements a scale factor; einsum takes 128 (FP8) or 32 (MXFP8)"
    )


def _tiled_scales(
    name: str, scales: torch.Tensor, form: OperandFormat, batches: int, mn: int, k: int
) -> Tiled:
    """Return packed scale factors [batch, MN, words] as a tensor map sees them. Refuse another layout."""
    columns = -(-k // form.granularity)
    try:
        require_packed(scales, mn, columns, name)
    except ValueError as error:
        raise ArgumentError(f"{error}. {form.scale_hint.split(';')[0]}") from None
    words, column = scales.shape[2], packed_stride(mn) * 4
    if scales.shape[0] != batches:
        raise ArgumentError(f"{name} are {describe(scales)}; there are {batches} batches")
    result = Tiled(scales.data_ptr(), mn * 4, (words, batches), (column, column * words))
    require_aligned(result, name, TMA_ALIGNMENT)
    return result
