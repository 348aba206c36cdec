"""A call of a GEMM whose rows belong to groups, each with a B of its own, from its operands to a launch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cute_kernels.heuristics import GemmProblem

from .arguments import Argument, Tiled
from .errors import ArgumentError
from .gemm import PARAMETERS, SWAPPED
from .gemm_operands import UNPACKED_ALIGNMENT, Given, Operand, kind, names, operand, tiled_scales
from .grouping import Grouping
from .plan import Ahead, Call, Plan
from .supported import N_MAJOR_GROUPS, QUANTIZED_GROUPS, require_k_major, require_operands
from .tensors import (
    TMA_ALIGNMENT,
    describe,
    flat,
    require_one_device,
    require_tensor,
    round_up,
    tiled_matrices,
)

SCALE_ROWS = TMA_ALIGNMENT // torch.int32.itemsize  # what the first row of a tile is a multiple of


class GroupedGemmRequest:
    """D[r] = A[r] @ B[group of r]^T in BF16, or as a subclass has it, for given A, B and grouping, any D of one shape.


    Everything that can be refused is refused when it is made, but for what depends on D's address. It holds
    addresses, not tensors, as GemmRequest does. No value of the grouping is read: a launch that is captured in a graph
    is good for whatever sizes the same memory holds at each replay.
    """

    # Of D: what kernels call it, its dtype, what N is a multiple of, and the bytes that strides are counted in.
    _d_dtype, _dtype, _columns, _unit = "bf16", torch.bfloat16, 1, 2

    def __init__(
        self,
        operation: str,
        a: Given,
        b: Given,
        d: torch.Tensor | None,
        grouping: Grouping,
        granularities: tuple[int | None, int | None] = (None, None),
    ) -> None:
        """Check a call and choose its kernel. d: like that of every run, None if the runs allocate it."""
        dims = 3 if grouping.kind == "masked" else 2
        left, right = _matrices("a", a, dims, granularities[0]), _matrices("b", b, 3, granularities[1])
        self._groups, self._m, self._n, self._k = right.count, left.first.mn, right.first.mn, left.first.k
        operands = kind(left.first, right.first)
        require_k_major(left.first, operation)
        if self._d_dtype == "mxf8":
            require_operands(operands, QUANTIZED_GROUPS, operation)
        if grouping.kind != "contiguous" or operands not in N_MAJOR_GROUPS or self._d_dtype == "mxf8":
            require_k_major(right.first, operation)
        if dims == 3 and left.count != self._groups:
            raise ArgumentError(
                f"a holds {left.count} matrices and b {self._groups}; each group has one of both"
            )
        tensors = {**left.tensors(), **right.tensors(), grouping.name: grouping.layout}
        self._device = require_one_device(tensors if d is None else {**tensors, "d": d})
        grouping.require(self._m, self._groups)
        if 0 in (self._n, self._k) or self._n % self._columns:
            raise ArgumentError(
                f"N is {self._n} and K {self._k}; neither may be 0, and N must be a multiple of {self._columns}. "
                "Pad b with rows of zeros"
            )
        if grouping.kind == "prefix" and grouping.alignment % SCALE_ROWS:
            raise ArgumentError(
                f"alignment is {grouping.alignment}; groups must begin at multiples of {SCALE_ROWS} rows, the scale "
                "words of which are the 16 bytes that TMA loads from"
            )
        self._shape = (*([self._groups] if dims == 3 else []), self._m, self._n)
        if d is not None and (d.dtype != self._dtype or tuple(d.shape) != self._shape):
            raise ArgumentError(
                f"d is {describe(d)}; this call takes {names((self._dtype,))} {list(self._shape)}"
            )
        self._plan = None
        if self._m == 0:
            return
        self._by_sizes = grouping.kind != "contiguous"
        self._inputs = {**left.maps(right, 3 if self._by_sizes else 2), **right.maps(left, 3)}
        self._factors = {**left.factors(self._groups), **right.factors(self._groups)}
        self._layout = flat(grouping.layout, grouping.name)
        if d is not None:
            self._output(d)
        self._alignment = grouping.alignment if grouping.kind == "prefix" else 0
        problem = GemmProblem(
            *(self._m, self._n, self._k, operands, self._d_dtype),
            a_major=left.first.major,
            b_major=right.first.major,
            groups=self._groups,
            grouping="sizes" if self._by_sizes else "indices",
            alignment=grouping.alignment,
            expected_m=min(grouping.expected_m or -(-self._m // self._groups), self._m),
        )
        self._plan = Plan(operation, problem, self._device)

    def run(self, d: torch.Tensor | None, packing: Ahead | None = None) -> torch.Tensor:
        """Launch on the current stream, into `d` or a new tensor; return it. packing: what goes ahead of it."""
        result = self._allocate() if d is None or self._ragged else d
        if self._plan is None:
            return result if d is None else d
        begin = None
        if d is not None and result is not d:
            self._output(d)
            begin = partial(result.copy_, d)  # since rows of none are to stay as they are
        self._plan.launch(result, self._call, ahead=(packing, begin))
        return result if d is None or result is d else d.copy_(result)

    @property
    def _ragged(self) -> bool:
        """Whether rows of D end inside 16 bytes: the kernel writes them whole, and what follows D is not ours."""
        return self._n * self._dtype.itemsize % TMA_ALIGNMENT != 0

    def _allocate(self) -> torch.Tensor:
        """Return a new D, its rows padded to whole 16 bytes."""
        *outer, n = self._shape
        columns = round_up(n, TMA_ALIGNMENT // self._dtype.itemsize)
        return torch.empty((*outer, columns), dtype=self._dtype, device=self._device)[..., :n]

    def _output(self, d: torch.Tensor) -> Tiled:
        """Return D as matrices. Refuse one that TMA cannot take or that lies over an input."""
        result = tiled_matrices(_with_dims(d, 3), "d")
        for name, tensor in {**self._inputs, **self._factors, "the layout": self._layout}.items():
            if tensor.overlaps(result):
                raise ArgumentError(f"d shares memory with {name} ({tensor} and {result}). Give another d")
        return result

    def _call(self, d: torch.Tensor) -> Call:
        assert self._plan is not None
        swapped = self._plan.record.config["swap_ab"]
        names, m, n = (SWAPPED, self._n, self._m) if swapped else (PARAMETERS, self._m, self._n)
        result = self._output(d)
        row, matrix = (stride // self._unit for stride in result.strides)
        if not self._by_sizes:
            result = replace(result, outer=result.outer[:1], strides=result.strides[:1])
        arguments: dict[str, Argument] = {
            **{names[name]: tensor for name, tensor in {**self._inputs, "d": result}.items()},
            **{names[name]: factor.address for name, factor in self._factors.items()},
            **{f"{names[name]}_step": int(factor.nbytes > 4) for name, factor in self._factors.items()},
            "m": m,
            "n": n,
            "k": self._k,
            "layout": self._layout.address,
            "groups": self._groups,
            "alignment": self._alignment,
            "d": result.address,
            "row_stride": row,
            "matrix_stride": matrix,
        }
        written = replace(result, row_bytes=round_up(result.row_bytes, TMA_ALIGNMENT))
        return Call(arguments, {**self._inputs, **self._factors, "layout": self._layout, "d": written})


@dataclass(frozen=True)
class _Matrices:
    """An operand of one matrix, or of one for each group: then the first stands for all where formats are checked."""

    name: str
    first: Operand
    elements: torch.Tensor
    scales: torch.Tensor | None
    global_scale: torch.Tensor | None

    @property
    def count(self) -> int:
        """Matrices."""
        return self.elements.shape[0] if self.elements.dim() == 3 else 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names for messages."""
        named = {
            self.name: self.elements,
            f"{self.name}'s scale factors": self.scales,
            f"{self.name}'s global scale": self.global_scale,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def maps(self, other: _Matrices, dims: int) -> dict[str, Tiled]:
        """Return elements and scale factors as tensor maps of two or three dimensions see them.

        Raises ArgumentError for what TMA cannot take.
        """
        mn_major, unpacked = self.first.major == "mn", self.first.format.packed > other.first.format.packed
        lines = self.elements.transpose(-1, -2) if mn_major else self.elements
        name = f"{self.name}, transposed," if mn_major else self.name
        alignment = UNPACKED_ALIGNMENT if unpacked else TMA_ALIGNMENT
        result = {self.name: tiled_matrices(_with_dims(lines, dims), name, alignment)}
        if self.scales is not None and self.first.scales is not None:
            one = tiled_scales(self.first, self.first.scales)
            matrix = one.outer[0] * one.strides[0]
            if self.count > 1 and self.scales.stride(0) * self.scales.element_size() != matrix:
                raise ArgumentError(
                    f"{self.name}'s scale factors are {describe(self.scales)}: those of a group must follow those of "
                    f"the one before, {matrix} bytes on. {self.first.format.scale_hint}"
                )
            outer, strides = (*one.outer, self.count), (*one.strides, matrix)
            result[f"{self.name}'s scale factors"] = replace(
                one, outer=outer[: dims - 1], strides=strides[: dims - 1]
            )
        return result

    def factors(self, groups: int) -> dict[str, Tiled]:
        """Return the global scales, if there are any: one, or one a group."""
        scales = self.global_scale
        if scales is None:
            return {}
        name = f"{self.name}'s global scale"
        if scales.numel() not in (1, groups):
            raise ArgumentError(
                f"{name} is {describe(scales)}; it must be one number, or {groups}, one a group"
            )
        return {name: flat(scales, name)}


def _matrices(name: str, given: Any, dims: int, granularity: int | None) -> _Matrices:
    """Recognise an operand whose tensors have so many dimensions. Raises ArgumentError for what no format has."""
    parts = (given,) if isinstance(given, torch.Tensor) else given
    if not isinstance(parts, tuple | list) or not all(isinstance(part, torch.Tensor) for part in parts):
        first = operand(name, given, granularity)  # which says what is wrong
        return _Matrices(name, first, first.elements, None, None)
    for what, part in zip((name, f"{name}'s scale factors", f"{name}'s global scale"), parts, strict=False):
        require_tensor(what, part)
    for part in parts[:2]:
        if part.dim() != dims or (dims == 3 and not part.shape[0] == parts[0].shape[0] > 0):
            shape = (
                "[groups, rows, columns], as many groups in each and one at least"
                if dims == 3
                else "matrices"
            )
            raise ArgumentError(f"{name} has {describe(part)}; elements and scale factors must be {shape}")
    firsts = [part[0] if dims == 3 else part for part in parts[:2]]
    firsts += [part.reshape(-1)[:1] for part in parts[2:]]
    first = operand(f"{name}[0]" if dims == 3 else name, tuple(firsts), granularity)
    return _Matrices(name, first, *parts[:1], *(*parts[1:], None, None)[:2])


def _with_dims(tensor: torch.Tensor, dims: int) -> torch.Tensor:
    """Return a matrix as a tensor of one, if there are to be three dimensions."""
    return tensor[None] if tensor.dim() < dims else tensor
