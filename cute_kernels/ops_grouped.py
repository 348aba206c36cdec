"""The operations whose rows belong to groups, such as the tokens of experts, each of which has a B of its own."""

from __future__ import annotations

from typing import Any

import torch

from .ops import require_bf16
from .ops_layouts import transposed
from .recipes import of_operands, packed
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.gemm_grouped import GroupedGemmRequest
from .runtime.gemm_operands import Given, Scaled
from .runtime.grouping import Grouping, contiguous
from .runtime.tensors import output_key, require_tensor, tensor_key

_requests: BoundedCache[GroupedGemmRequest] = BoundedCache(1024)
Recipe = tuple[int, int, int] | None


def m_grouped_gemm_nt_contiguous(
    a: Given,
    b: Given,
    d: torch.Tensor | None,
    grouped_layout: torch.Tensor,
    *,
    recipe: Recipe = None,
    alignment: int = 128,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
) -> torch.Tensor:
    """D[r] = A[r] @ B[group of row r]^T with FP32 accumulation; returns D.

    a: A [M, K], and b: B [G, N, K], in the formats of `gemm_nt`, K-major; scale factors are int32 [M, words] of A and
        [G, N, words] of B, as `cute_kernels.scale_factors` packs them, or float32 [M, ceil(K/granularity)] and
        [G, ceil(N/rows), ceil(K/granularity)], by `recipe` as `gemm_nt` has it. NVFP4: the global scale of each is one
        float32, or float32 [G].
    d: bfloat16 [M, N], last stride 1, rows 16-byte aligned, apart from the inputs. Allocated if not given; then its row
        stride is N rounded up to 16 bytes. A given D whose N is not a multiple of 8 costs a temporary and two copies.
    grouped_layout: on the device, int32 [M]: the group of each row, -1 for rows of none, which are not written. Rows
        of a group begin at a multiple of `alignment`, and rows of none are behind them up to the next one. Groups come
        in any order.
    recipe: rows of A, rows of B and elements of K that share a scale factor; see `gemm_nt`.
    alignment: a multiple of 128; better of 256 where groups have more rows than that, since tiles of CTA pairs have so
        many; or of 32 for groups of few rows, whose tiles have no more.
    use_psum_layout: whether grouped_layout is int32 [G] instead, the end of each group's rows. These begin where the
        rows of the group before end, rounded up to a multiple of `alignment`, which is then any multiple of 4; others
        are not written. expected_m_for_psum_layout: rows that a group may have, for the choice of a kernel only.

    The launch depends on no value of grouped_layout: a captured graph serves others too. M = 0 does nothing.
    """
    grouping = contiguous(grouped_layout, alignment, use_psum_layout, expected_m_for_psum_layout)
    return _grouped("m_grouped_gemm_nt_contiguous", a, b, d, recipe, grouping)


def m_grouped_gemm_nt_masked(
    a: Given,
    b: Given,
    d: torch.Tensor | None,
    masked_m: torch.Tensor,
    expected_m: int,
    *,
    recipe: Recipe = None,
) -> torch.Tensor:
    """D[g] = A[g] @ B[g]^T for the first masked_m[g] rows, with FP32 accumulation; returns D.

    a: A [G, M, K], and b: B [G, N, K], with scale factors int32 [G, M, words] and [G, N, words]; otherwise as
        `m_grouped_gemm_nt_contiguous` has them.
    d: bfloat16 [G, M, N], last stride 1, rows and matrices 16-byte aligned, apart from the inputs. Allocated if not
        given. Rows from masked_m[g] on are neither computed nor written.
    masked_m: on the device, int32 [G], 0 to M. expected_m: how many it may be, for the choice of a kernel only.
    recipe: see `gemm_nt`.

    The launch depends on no value of masked_m: a captured graph serves others too. M = 0 does nothing.
    """
    grouping = Grouping("masked", masked_m, expected_m=expected_m)
    return _grouped("m_grouped_gemm_nt_masked", a, b, d, recipe, grouping)


def m_grouped_gemm_nn_contiguous(
    a: Given,
    b: Given,
    d: torch.Tensor | None,
    grouped_layout: torch.Tensor,
    *,
    recipe: Recipe = None,
    alignment: int = 128,
) -> torch.Tensor:
    """`m_grouped_gemm_nt_contiguous` with B given as [G, K, N], and its scale factors transposed likewise.

    Of BF16, FP8 or MXFP8, and with a group for each row.
    """
    return m_grouped_gemm_nt_contiguous(
        a, transposed("b", b, 3), d, grouped_layout, recipe=recipe, alignment=alignment
    )


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Recipe = None,
    *,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """`m_grouped_gemm_nt_contiguous` under DeepGEMM's name, for operands with scale factors."""
    m_grouped_gemm_nt_contiguous(
        *(a, b, require_tensor("d", d), grouped_layout),
        recipe=recipe,
        use_psum_layout=use_psum_layout,
        expected_m_for_psum_layout=expected_m_for_psum_layout,
    )


def m_grouped_fp8_fp4_gemm_nn_contiguous(
    a: Scaled, b: Scaled, d: torch.Tensor, grouped_layout: torch.Tensor, recipe: Recipe = None
) -> None:
    """`m_grouped_gemm_nn_contiguous` under DeepGEMM's name, for operands with scale factors."""
    m_grouped_gemm_nn_contiguous(a, b, require_tensor("d", d), grouped_layout, recipe=recipe)


def m_grouped_fp8_fp4_gemm_nt_masked(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Recipe = None,
) -> None:
    """`m_grouped_gemm_nt_masked` under DeepGEMM's name, for operands with scale factors."""
    m_grouped_gemm_nt_masked(a, b, require_tensor("d", d), masked_m, expected_m, recipe=recipe)


m_grouped_fp8_gemm_nt_contiguous = m_grouped_fp8_fp4_gemm_nt_contiguous
m_grouped_fp8_gemm_nn_contiguous = m_grouped_fp8_fp4_gemm_nn_contiguous
m_grouped_fp8_gemm_nt_masked = m_grouped_fp8_fp4_gemm_nt_masked


def m_grouped_bf16_gemm_nt_contiguous(
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    *,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """`m_grouped_gemm_nt_contiguous` for BF16 under DeepGEMM's name: A bfloat16 [M, K], B bfloat16 [G, N, K]."""
    require_bf16(a, b)
    m_grouped_gemm_nt_contiguous(
        *(a, b, require_tensor("d", d), grouped_layout),
        use_psum_layout=use_psum_layout,
        expected_m_for_psum_layout=expected_m_for_psum_layout,
    )


def m_grouped_bf16_gemm_nn_contiguous(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, grouped_layout: torch.Tensor
) -> None:
    """`m_grouped_gemm_nn_contiguous` for BF16 under DeepGEMM's name: A bfloat16 [M, K], B bfloat16 [G, K, N]."""
    require_bf16(a, b)
    m_grouped_gemm_nn_contiguous(a, b, require_tensor("d", d), grouped_layout)


def m_grouped_bf16_gemm_nt_masked(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int
) -> None:
    """`m_grouped_gemm_nt_masked` for BF16 under DeepGEMM's name: A bfloat16 [G, M, K], B bfloat16 [G, N, K]."""
    require_bf16(a, b)
    m_grouped_gemm_nt_masked(a, b, require_tensor("d", d), masked_m, expected_m)


def _grouped(
    operation: str, a: Given, b: Given, d: torch.Tensor | None, recipe: Recipe, grouping: Grouping
) -> torch.Tensor:
    """Run an operation; a request that was made for the same tensors serves again."""
    a, b, granularities, packing = packed(a, b, of_operands(recipe))
    key: Any
    try:
        key = (
            operation,
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            d is not None and output_key(d),
            granularities,
            grouping.key(),
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        wrong = GroupedGemmRequest(operation, a, b, d, grouping, granularities)  # which says what it is
        return wrong.run(d, packing)
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, GroupedGemmRequest(operation, a, b, d, grouping, granularities))
    return request.run(d, packing)
