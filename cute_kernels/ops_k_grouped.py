"""The operations that are grouped along K: weight gradients of experts, whose tokens are the K of a product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .recipes import along_k, both, packed_k_grouped
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.errors import ArgumentError
from .runtime.gemm_operands import Given, Scaled
from .runtime.k_grouped import KGroupedRequest
from .runtime.tensors import require_tensor, tensor_key

_requests: BoundedCache[KGroupedRequest] = BoundedCache(1024)


def k_grouped_gemm_tn_contiguous(
    a: Given,
    b: Given,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D[g] = A_g^T @ B_g (+ C[g]) with FP32 accumulation, A_g and B_g being the rows of group g; returns D.

    a: A [K, M], row-major, rows 16-byte aligned, K that of all groups: bfloat16, or float8_e4m3fn with scale factors
        in UE8M0, one for 128 elements of K (FP8), or for 32 with recipe (1, 1, 32) (MXFP8). The rows of group 0 come
        first, those of each later one right behind. Scale factors are int32 [words, M] with strides
        (M rounded up to 4, 1), words of four for each group by itself: `scale_factors.pack_k_grouped` makes them. Or
        float32 [ceil(K/128 or 32), M], which each call packs as `gemm_nt` does.
    b: B [K, N] likewise, in the same format.
    d: float32 [G, M, N], last stride 1, N and the other strides multiples of 16 bytes. Apart from A, B and their scale
        factors.
    ks_tensor: int32 [G] on the device, rows of each group: 0, or a multiple of 16 (BF16), 32 (MXFP8) or 128 (FP8),
        together no more than K. Values are not checked; the kernel reads nothing outside A and B whatever they are.
    ks: the same lengths on the host, which are checked; None if the host does not know them. Then K, and the words of
        scale factors, may be more than the groups need: what lies behind the last group is not read.
    c: float32 [G, M, N] like d, and may be d itself. D is set to C first, or to zeros without it, and added to.
    recipe: rows of A, rows of B and elements of K that share a scale factor.

    A group without rows has D[g] = C[g], or zeros. The launch depends on no value of ks_tensor: a captured graph
    serves others too.
    """
    return _run("tn", a, b, d, ks, ks_tensor, c, recipe)


def k_grouped_gemm_nt_contiguous(
    a: Given,
    b: Given,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D[g] = A_g @ B_g^T (+ C[g]) with FP32 accumulation, each group having K-major matrices of its own; returns D.

    a: the A_g, [M, ks[g]] row-major, one right behind another, in one dimension of M * K elements, K that of all
        groups; 16-byte aligned. Formats, and scale factors int32 [words, M], are as in `k_grouped_gemm_tn_contiguous`.
    b: the B_g, [N, ks[g]], likewise, in the same format.
    d, ks, ks_tensor, c, recipe: as in `k_grouped_gemm_tn_contiguous`; d says what M and N are. Without ks, a and b may
        have room for more K than the groups need.

    A group of no K has D[g] = C[g], or zeros. The launch depends on no value of ks_tensor: a captured graph serves
    others too. Source: DeepGEMM's k_grouped_fp8_gemm_nt_contiguous.
    """
    return _run("nt", a, b, d, ks, ks_tensor, c, recipe)


def _run(
    layout: str,
    a: Given,
    b: Given,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None,
    recipe: tuple[int, int, int] | None,
) -> torch.Tensor:
    """Check a call and launch it, or launch one like it that has been checked before."""
    granularity = along_k(recipe)
    require_tensor("d", d)
    if isinstance(ks, torch.Tensor):
        raise ArgumentError(
            "ks is a tensor; it is a list of the lengths on the host, or None, and ks_tensor the tensor"
        )
    host = None if ks is None else tuple(ks)
    (a, of_a), (b, of_b) = (
        packed_k_grouped(given, _extents(layout, given, d, dim), host, ks_tensor, granularity, name)
        for name, given, dim in (("a", a, 1), ("b", b, 2))
    )
    packing = both(of_a, of_b)
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            *map(tensor_key, (d, ks_tensor)),
            c is not None and tensor_key(c),
            (layout, host, granularity),
            context.token(d.device),
        )
    except (TypeError, AttributeError):
        # Which says what is wrong with the operands.
        return KGroupedRequest(layout, a, b, d, host, ks_tensor, c, granularity).run(d, c, packing)
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, KGroupedRequest(layout, a, b, d, host, ks_tensor, c, granularity))
    return request.run(d, c, packing)


def _extents(layout: str, given: Any, d: torch.Tensor, dim: int) -> tuple[int | None, int] | None:
    """Return K (None where no elements tell) and MN of an operand with scale factors, None if it is none that there may
    be. dim: that of D it has."""
    elements = given[0] if isinstance(given, tuple | list) and given else None
    if not isinstance(elements, torch.Tensor) or elements.dim() != (2 if layout == "tn" else 1):
        return None
    if layout == "tn":
        return elements.shape[0], elements.shape[1]
    if d.dim() != 3:
        return None
    rows, count = d.shape[dim], elements.numel()
    if rows == 0:
        return (None, 0) if count == 0 else None
    return (count // rows, rows) if count % rows == 0 else None


def k_grouped_fp8_gemm_tn_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 128),
) -> None:
    """`k_grouped_gemm_tn_contiguous` under DeepGEMM's name, for FP8, or MXFP8 with recipe (1, 1, 32)."""
    k_grouped_gemm_tn_contiguous(a, b, d, ks, ks_tensor, c, recipe=recipe)


def k_grouped_fp8_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] = (1, 1, 128),
) -> None:
    """`k_grouped_gemm_nt_contiguous` under DeepGEMM's name, for FP8, or MXFP8 with recipe (1, 1, 32)."""
    k_grouped_gemm_nt_contiguous(a, b, d, ks, ks_tensor, c, recipe=recipe)


def k_grouped_bf16_gemm_tn_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    ks: Sequence[int] | None,
    ks_tensor: torch.Tensor,
    c: torch.Tensor | None = None,
) -> None:
    """`k_grouped_gemm_tn_contiguous` under DeepGEMM's name, for BF16."""
    for name, tensor in (("a", a), ("b", b)):
        given = getattr(tensor, "dtype", type(tensor).__name__)
        if given != torch.bfloat16:
            raise ArgumentError(f"{name} is {given}; k_grouped_bf16_gemm takes bfloat16 tensors")
    k_grouped_gemm_tn_contiguous(a, b, d, ks, ks_tensor, c)
