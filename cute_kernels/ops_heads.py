"""Products whose heads of columns lie further apart in D than in the product."""

from __future__ import annotations

from typing import Any

import torch

from .recipes import of_operands, packed
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.errors import ArgumentError
from .runtime.gemm_heads import HeadSplitGemmRequest, HeadSplits
from .runtime.gemm_operands import Given, Scaled
from .runtime.tensors import require_tensor, tensor_key

_requests: BoundedCache[HeadSplitGemmRequest] = BoundedCache(1024)


def gemm_nt_skip_head_mid(
    a: Given,
    b: Given,
    d: torch.Tensor | None = None,
    *,
    head_splits: HeadSplits,
    out_dtype: torch.dtype | None = None,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D = A @ B^T with a gap in every head, for what else a head holds (its rotary part); returns D.

    a, b, recipe: as `gemm_nt` has them, K-major: both FP8, MXFP8, MXFP4 or NVFP4. Columns of the product are heads of
        left + right.
    head_splits: (left, mid, right), multiples of 32; N is a multiple of left + right. Column j of the product, which
        is column o = j % (left + right) of head h = j // (left + right), goes to column h * (left + mid + right) + o
        of D, and mid columns further on if o >= left.
    d: bfloat16, or with FP8 operands also float32, [M, N / (left + right) * (left + mid + right)], last stride 1,
        rows 16-byte aligned, apart from A and B. Its gaps become zeros: torch writes that part of D ahead of the
        kernel. What is to be there is written afterwards. Allocated if not given.
    out_dtype: of D if it is not given, by default bfloat16.

    M = 0 or N = 0 does nothing; K = 0 gives zeros.
    """
    if d is not None:
        require_tensor("d", d)
    if d is not None and out_dtype not in (None, d.dtype):
        raise ArgumentError(f"out_dtype is {out_dtype}, but d is {d.dtype}; leave out one of them")
    dtype = d.dtype if d is not None else out_dtype or torch.bfloat16
    a, b, granularities, packing = packed(a, b, of_operands(recipe))
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            d is not None and tensor_key(d),
            (dtype, tuple(head_splits), granularities),
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        request = HeadSplitGemmRequest(a, b, d, dtype, head_splits, granularities)  # which says what is wrong
        return request.run(d, packing)
    found = _requests.get(key)
    if found is None:
        found = _requests.add(key, HeadSplitGemmRequest(a, b, d, dtype, head_splits, granularities))
    return found.run(d, packing)


def fp8_gemm_nt_skip_head_mid(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    head_splits: HeadSplits,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """`gemm_nt_skip_head_mid` under DeepGEMM's name and with its arguments."""
    gemm_nt_skip_head_mid(a, b, require_tensor("d", d), head_splits=head_splits, recipe=recipe)
