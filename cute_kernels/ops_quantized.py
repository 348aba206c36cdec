"""The operations that multiply and quantize the product, in one kernel."""

from __future__ import annotations

from typing import Any

import torch

from .formats import Rule
from .ops import tensor_key
from .runtime import context
from .runtime.cache import BoundedCache
from .runtime.errors import ArgumentError
from .runtime.gemm_operands import Given, Scaled
from .runtime.gemm_quantized import Quantized, QuantizedGemmRequest, SfLayout

_requests: BoundedCache[QuantizedGemmRequest] = BoundedCache(1024)


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
    granularities: tuple[int | None, int | None] = (None, None)
    if recipe is not None:
        if recipe[:2] != (1, 1):
            raise ArgumentError(
                f"recipe is {recipe}; packed scale factors are one a row, so (1, 1, granularity)"
            )
        granularities = recipe[2], recipe[2]
    key: Any
    try:
        key = (
            *map(tensor_key, (a,) if isinstance(a, torch.Tensor) else a),
            *map(tensor_key, (b,) if isinstance(b, torch.Tensor) else b),
            out is not None and (*map(tensor_key, out),),
            (granularities, rule, sf_layout),
            context.token((a if isinstance(a, torch.Tensor) else a[0]).device),
        )
    except (TypeError, AttributeError, IndexError):
        return QuantizedGemmRequest(a, b, out, granularities, rule, sf_layout).run(
            out
        )  # which says what is wrong
    request = _requests.get(key)
    if request is None:
        request = _requests.add(key, QuantizedGemmRequest(a, b, out, granularities, rule, sf_layout))
    return request.run(out)


def fp8_gemm_nt_mxfp8out(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    d_sf: torch.Tensor,
    recipe: tuple[int, int, int] | None = None,
) -> None:
    """`gemm_nt_mxfp8` into a given D [M, N] and packed scale factors, int32 [M, ceil(N/128)], MN-major."""
    gemm_nt_mxfp8(a, b, (d, d_sf), recipe=recipe)
