"""The operations that multiply and quantize the product, in one kernel."""

from __future__ import annotations

from typing import Any

import torch

from .formats import Rule
from .recipes import of_operands, packed
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.gemm_grouped_quantized import QuantizedGroupedGemmRequest
from .runtime.gemm_operands import Given, Scaled
from .runtime.gemm_quantized import TO_MXFP8, TO_NVFP4, Quantized, QuantizedGemmRequest, Target
from .runtime.grouping import contiguous
from .runtime.scale_outputs import SfLayout
from .runtime.tensors import tensor_key

_requests: BoundedCache[QuantizedGemmRequest] = BoundedCache(1024)
_grouped_requests: BoundedCache[QuantizedGroupedGemmRequest] = BoundedCache(1024)


def gemm_nt_mxfp8(
    a: Given,
    b: Given,
    out: Quantized | None = None,
    *,
    recipe: tuple[int, int, int] | None = None,
    rule: Rule = "ceil",
    sf_layout: SfLayout = "packed",
) -> Quantized:
    """(D, its scale factors) = quantize_mxfp8(A @ B^T), from the FP32 sums: what the next product takes as its A.

    a, b, recipe: as `gemm_nt` has them, K-major: both MXFP4, NVFP4, FP8 or MXFP8, or A MXFP8 and B MXFP4. N is a
        multiple of 16.
    out: D, float8_e4m3fn [M, N], last stride 1, rows 16-byte aligned; and scale factors in UE8M0, one for 32 columns
        of a row: int32 [M, ceil(N/128)] with strides (1, M rounded up to 4) where sf_layout is "packed", uint8
        [128 * ceil(M/128) * 4 * ceil(N/128)] where it is "blocked" (`scale_factors.to_blocked`). Apart from each
        other, A and B. Allocated if not given.
    rule: of the scale factors, as `formats.quantize_mxfp8` has it: the same bits as quantizing the FP32 product. A
        group of 32 that holds an infinity or NaN becomes NaN.

    M = 0 or N = 0 does nothing; K = 0 gives zeros, with scale factors of 2^-127.
    """
    return _quantized(a, b, out, recipe, rule, sf_layout, TO_MXFP8, None)


def gemm_nt_nvfp4(
    a: Given,
    b: Given,
    global_scale: torch.Tensor,
    out: Quantized | None = None,
    *,
    recipe: tuple[int, int, int] | None = None,
    sf_layout: SfLayout = "packed",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(D, its scale factors, global_scale) = quantize_nvfp4(A @ B^T), from the FP32 sums: the next product's A.

    a, b, recipe: as `gemm_nt` has them, K-major: both NVFP4 or MXFP8. N is a multiple of 32.
    global_scale: D's, a multiplier: one float32 on the device, from 2^-64 to 2^100, which the kernel reads. It is known
        beforehand, from a calibration: amax / (6 * 448) uses the formats' whole range.
    out: D, uint8, int8 or float4_e2m1fn_x2 [M, N/2], two elements a byte (the low nibble is the even column), last
        stride 1, rows 16-byte aligned; and UE4M3 scale factors, one for 16 columns of a row: int32 [M, ceil(N/64)]
        with strides (1, M rounded up to 4) where sf_layout is "packed", uint8 [128 * ceil(M/128) * 4 * ceil(N/64)]
        where it is "blocked". Apart from each other, A, B and all scales. Allocated (uint8) if not given.

    The same bits as `formats.quantize_nvfp4` of the FP32 product with this global scale. A block of 16 that holds an
    infinity or NaN gets the scale factor NaN. M = 0 or N = 0 does nothing; K = 0 gives zeros.
    """
    d, scales = _quantized(a, b, out, recipe, "ceil", sf_layout, TO_NVFP4, global_scale)
    return d, scales, global_scale


def _quantized(
    a: Given,
    b: Given,
    out: Quantized | None,
    recipe: tuple[int, int, int] | None,
    rule: Rule,
    sf_layout: SfLayout,
    target: Target,
    global_scale: torch.Tensor | None,
) -> Quantized:
    """Run an operation; a request that was made for the same tensors serves again."""
    a, b, granularities, packing = packed(a, b, of_operands(recipe))
    made = a, b, out, granularities, rule, sf_layout, target, global_scale
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            out is not None and (*map(tensor_key, out),),
            (granularities, rule, sf_layout, target.d_dtype),
            target is TO_NVFP4 and tensor_key(global_scale),  # type: ignore[arg-type]
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        return QuantizedGemmRequest(*made).run(out, packing)  # which says what is wrong
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, QuantizedGemmRequest(*made))
    return request.run(out, packing)


def fp8_gemm_nt_mxfp8out(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    d_sf: torch.Tensor,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """`gemm_nt_mxfp8` into a given D [M, N] and packed scale factors, int32 [M, ceil(N/128)], MN-major."""
    gemm_nt_mxfp8(a, b, (d, d_sf), recipe=recipe)


def m_grouped_gemm_nt_contiguous_mxfp8(
    a: Given,
    b: Given,
    out: Quantized | None,
    grouped_layout: torch.Tensor,
    *,
    recipe: tuple[int, int, int] | None = None,
    alignment: int = 128,
    use_psum_layout: bool = False,
    expected_m_for_psum_layout: int | None = None,
    rule: Rule = "ceil",
    sf_layout: SfLayout = "packed",
) -> Quantized:
    """(D, its scale factors) = quantize_mxfp8(A[r] @ B[group of row r]^T), from the FP32 sums.

    a, b, grouped_layout, recipe, alignment, use_psum_layout, expected_m_for_psum_layout: as
        `m_grouped_gemm_nt_contiguous` has them, both FP8 or MXFP8. N is a multiple of 16.
    out, rule, sf_layout: as `gemm_nt_mxfp8` has them. Of rows of none neither D nor scale factors are written, nor is
        what the layout "blocked" has beyond M rows.

    The launch depends on no value of grouped_layout: a captured graph serves others too. M = 0 does nothing.
    """
    a, b, granularities, packing = packed(a, b, of_operands(recipe))
    grouping = contiguous(grouped_layout, alignment, use_psum_layout, expected_m_for_psum_layout)
    made = "m_grouped_gemm_nt_contiguous_mxfp8", a, b, out, grouping, granularities, rule, sf_layout
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            out is not None and (*map(tensor_key, out),),
            (granularities, rule, sf_layout, grouping.key()),
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        return QuantizedGroupedGemmRequest(*made).run_quantized(out, packing)  # which says what is wrong
    request = _grouped_requests.get(key)
    if request is None:
        request = _grouped_requests.add(key, QuantizedGroupedGemmRequest(*made))
    return request.run_quantized(out, packing)


def m_grouped_fp8_gemm_nt_contiguous_mxfp8out(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    d_sf: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """`m_grouped_gemm_nt_contiguous_mxfp8` into a given D [M, N] and packed scale factors, int32 [M, ceil(N/128)]."""
    m_grouped_gemm_nt_contiguous_mxfp8(a, b, (d, d_sf), grouped_layout, recipe=recipe)
