"""A call of products that are grouped along K, from its operands to a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from cute_kernels.heuristics import GemmProblem
from cute_kernels.scale_layout import packed_group_starts, packed_stride

from .arguments import Tiled
from .errors import ArgumentError
from .gemm import PARAMETERS
from .gemm_operands import BF16, FP8, MXFP8, Given, Operand, kind, operand
from .plan import Ahead, Call, Plan
from .tensors import (
    TMA_ALIGNMENT,
    begin_with,
    describe,
    flat,
    require_aligned,
    require_number,
    require_one_device,
    require_rows,
    require_tensor,
    require_whole_rows,
    tiled,
    tiled_batches,
)

# Elements of K that the length of a group is a multiple of: whole MMAs, and whole scale factors.
K_MULTIPLES = {BF16: 16, MXFP8: 32, FP8: 128}
# By layout: the dimension of A and of B that is contiguous. MN-major, A is [K, M] and B [K, N], groups being of rows;
# K-major, both are flat: [M, ks[g]] and [N, ks[g]] of each group, one behind another.
MAJORS = {"tn": "mn", "nt": "k"}


class KGroupedRequest:
    """D[g] = A_g @ B_g^T (+ C[g]) for given tensors; checked when it is made, and good for the same memory after."""

    def __init__(
        self,
        layout: str,
        a: Given,
        b: Given,
        d: torch.Tensor,
        ks: Sequence[int] | None,
        ks_tensor: torch.Tensor,
        c: torch.Tensor | None,
        granularity: int | None,
    ) -> None:
        """layout: a key of MAJORS. granularity: elements of K that share a scale factor, where the call says so."""
        operation, major = f"k_grouped_gemm_{layout}_contiguous", MAJORS[layout]
        if major == "k":
            left, right = _flat_operands(operation, a, b, d, ks, granularity)
        else:
            left, right = (_operand(operation, name, x, granularity) for name, x in (("a", a), ("b", b)))
        operands = kind(left, right)
        k = left.k
        given = dict([*left.tensors(), *right.tensors()]) | {"d": d, "ks_tensor": ks_tensor}
        given |= {} if c is None else {"c": c}
        device = require_one_device(given)
        groups = _require_lengths(operation, ks, ks_tensor, left)
        shape = groups, left.mn, right.mn
        for name, tensor in (("d", d), ("c", c)):
            if tensor is not None and (tensor.dtype != torch.float32 or tuple(tensor.shape) != shape):
                raise ArgumentError(f"{name} is {describe(tensor)}; this call takes float32 {list(shape)}")
        self._plan = None
        self._empty = 0 in shape
        if self._empty or k == 0:
            return

        for side in (left, right):
            require_rows(side.lines, f"{side.name}, transposed," if major == "mn" else side.name)
        lengths = flat(ks_tensor, "ks_tensor")
        self._output = tiled_batches("d", d, "k")
        require_whole_rows("d", d, self._output)
        self._inputs = {"a": tiled(left.lines), "b": tiled(right.lines), "ks_tensor": lengths}
        self._inputs |= {
            f"{side.name}'s scale factors": _tiled_scales(side, ks)
            for side in (left, right)
            if side.scales is not None
        }
        addend = {} if c is None else {"c": tiled_batches("c", c, "k")}
        for name, read in {**self._inputs, **addend}.items():
            if read.overlaps(self._output) and not (name == "c" and read == self._output):
                raise ArgumentError(
                    f"d shares memory with {name} ({read} and {self._output}). Only c may be d, and then as a "
                    "whole; give another d"
                )
        self._numbers = {"m": left.mn, "n": right.mn, "k": k, "batches": groups, "ks": lengths.address}
        if major == "k":  # whose maps of each group the kernel makes itself
            self._numbers |= {side.name: side.elements.data_ptr() for side in (left, right)}
        problem = GemmProblem(
            *(left.mn, right.mn, -(-k // groups), operands, "f32"),
            accumulate=True,
            a_major=major,
            b_major=major,
            batches=groups,
            k_grouped=True,
        )
        self._plan = Plan(operation, problem, device)

    def run(self, d: torch.Tensor, c: torch.Tensor | None, packing: Ahead | None = None) -> torch.Tensor:
        """Launch on the current stream, into `d`, to which products are added; return it.

        packing: what goes ahead of it.
        """
        if self._plan is None:
            return begin_with(d, c)
        self._plan.launch(d, self._call, ahead=(packing, partial(begin_with, d, c)))
        return d

    def _call(self, d: torch.Tensor) -> Call:
        maps = {PARAMETERS[name]: self._inputs[name] for name in self._inputs if name != "ks_tensor"}
        maps["map_d"] = self._output
        return Call({**maps, **self._numbers}, {**self._inputs, "d": self._output})


def _operand(operation: str, name: str, given: Any, granularity: int | None) -> Operand:
    """Recognise an operand that is given as [K, MN], with scale factors [words, MN]; K is that of all groups."""
    parts = (given,) if isinstance(given, torch.Tensor) else given
    for part in parts if isinstance(parts, tuple | list) else ():
        if isinstance(part, torch.Tensor) and part.dim() != 2:
            raise ArgumentError(f"{name} has {describe(part)}; {operation} takes matrices [K, M] and [K, N]")
    result = _of_groups(operation, operand(name, given, granularity))
    result = replace(result, elements=result.elements.t())
    if result.major != "mn" and result.k and result.mn:
        raise ArgumentError(
            f"{name} is {describe(result.lines.t())}; {operation} takes rows of M or N, one for each element of K: "
            "make it row-major [K, M] or [K, N]"
        )
    return result


def _flat_operands(
    operation: str,
    a: Any,
    b: Any,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    granularity: int | None,
) -> tuple[Operand, Operand]:
    """Recognise operands that are given flat, with scale factors [words, MN], as [M, K] and [N, K]."""
    if d.dim() != 3:
        raise ArgumentError(f"d is {describe(d)}; {operation} takes float32 [groups, M, N]")
    left, right = (
        _flat_operand(operation, name, given, rows, granularity)
        for name, given, rows in (("a", a, d.shape[1]), ("b", b, d.shape[2]))
    )
    # What has no rows says nothing of K.
    if left.mn == 0:
        k = right.k if right.mn else sum(ks or ())
        left = replace(left, elements=left.elements.new_empty(0, k))
    if right.mn == 0:
        right = replace(right, elements=right.elements.new_empty(0, left.k))
    if left.k != right.k:
        raise ArgumentError(
            f"a has {left.k} elements of K for each of d's {left.mn} rows, and b {right.k} for each of its {right.mn} "
            "columns; they have as many"
        )
    return left, right


def _flat_operand(operation: str, name: str, given: Any, rows: int, granularity: int | None) -> Operand:
    """Recognise one of them, of so many rows; K is that of all groups."""
    parts = (given,) if isinstance(given, torch.Tensor) else given
    if not (isinstance(parts, tuple | list) and parts and isinstance(parts[0], torch.Tensor)):
        return operand(name, given, granularity)  # which refuses it
    elements, *scales = parts
    require_tensor(name, elements)
    if elements.dim() != 1 or not elements.is_contiguous():
        raise ArgumentError(
            f"{name} has {describe(elements)}; {operation} takes the matrices of all groups one behind another in one "
            "dimension, as torch.cat([of_group.flatten() for of_group in ...]) makes them"
        )
    k, more = divmod(elements.numel(), rows) if rows else (0, elements.numel())
    if more:
        raise ArgumentError(
            f"{name} has {elements.numel()} elements, which d's {rows} rows or columns do not divide"
        )
    matrix = elements.view(rows, k)
    result = _of_groups(operation, operand(name, (matrix, *scales) if scales else matrix, granularity))
    multiple = K_MULTIPLES[result.format]
    if k % multiple:
        raise ArgumentError(
            f"{name} has {k} elements for each of d's {rows} rows or columns; {result.format.name} takes multiples of "
            f"{multiple}"
        )
    return result


def _of_groups(operation: str, given: Operand) -> Operand:
    """Return an operand with its scale factors as [MN, words]. Refuse formats that no groups along K have."""
    if given.format not in K_MULTIPLES:
        known = ", ".join(form.name for form in K_MULTIPLES)
        raise ArgumentError(f"{given.name} is {given.format.name}; {operation} takes {known}")
    return given if given.scales is None else replace(given, scales=given.scales.t())


def _require_lengths(operation: str, ks: Sequence[int] | None, ks_tensor: torch.Tensor, left: Operand) -> int:
    """Refuse lengths that no kernel takes, as far as the host knows them; return how many there are."""
    if ks_tensor.dtype != torch.int32 or ks_tensor.dim() != 1:
        raise ArgumentError(f"ks_tensor is {describe(ks_tensor)}; {operation} takes int32 [groups]")
    require_aligned(flat(ks_tensor, "ks_tensor"), "ks_tensor", 4)
    groups = ks_tensor.shape[0]
    if ks is None:
        return groups
    if len(ks) != groups:
        raise ArgumentError(f"ks has {len(ks)} lengths and ks_tensor {groups}; they are the same lengths")
    for length in ks:
        require_number("a length of ks", length)
    multiple = K_MULTIPLES[left.format]
    if any(length < 0 or length % multiple for length in ks):
        raise ArgumentError(
            f"ks are {list(ks)}; {left.format.name} takes multiples of {multiple}, and none below 0. Pad groups along "
            "K with zeros"
        )
    if sum(ks) != left.k:
        raise ArgumentError(
            f"ks are {list(ks)}, {sum(ks)} together, but a and b have K = {left.k}; they are the same"
        )
    return groups


def _tiled_scales(side: Operand, ks: Sequence[int] | None) -> Tiled:
    """Return scale factors as a tensor map sees them. Refuse those not as `pack_k_grouped` makes them."""
    assert side.scales is not None
    words = side.scales.t()
    stride = packed_stride(side.mn)
    wanted = None if ks is None else packed_group_starts(list(ks), side.format.granularity)[-1]
    if wanted not in (None, words.shape[0]) or words.shape[1] != side.mn:
        count = "words" if wanted is None else wanted
        raise ArgumentError(
            f"{side.name}'s scale factors are {describe(words)}; this call takes int32 [{count}, {side.mn}], as "
            "scale_factors.pack_k_grouped() makes them"
        )
    if (side.mn > 1 and words.stride(1) != 1) or (words.shape[0] > 1 and words.stride(0) != stride):
        raise ArgumentError(
            f"{side.name}'s scale factors are {describe(words)}; the packed layout has strides ({stride}, 1), as "
            "scale_factors.pack_k_grouped() makes them"
        )
    result = Tiled(words.data_ptr(), side.mn * 4, (words.shape[0],), (stride * 4,))
    require_aligned(result, f"{side.name}'s scale factors", TMA_ALIGNMENT)
    return result
