"""DeepGEMM's casts to FP8 and FP4 with float32 scales that are powers of two.

`group` (rows, columns) is a group's extent along the last two dimensions of x as it is stored; leading
dimensions are kept:

| cast | x | group |
| --- | --- | --- |
| per token | [M, K] | (1, gran_k) |
| per channel | [K, M] | (gran_k, 1) |
| per block | [N, K] | (gran_k, gran_k) |

Rows and columns that do not fill a group count as padded with zeros. The scale is amax / 448 (E4M3) or amax /
6 (E2M1), with amax at least 1e-4, rounded up to a power of two; the element is x / scale, rounded to nearest
even. DeepGEMM's own FP4 cast breaks ties towards zero and drops the sign of zero, so it differs there.

`formats.dequantize(data, scales, group=group)` turns them back.
"""

from __future__ import annotations

import torch

from cute_kernels.formats import (
    E2M1,
    E4M3,
    ElementFormat,
    decode_ue8m0,
    encode_e2m1,
    encode_e4m3,
    pack_e2m1,
    require_matrix,
    scale_by_powers_of_two,
)

_AMAX_FLOOR = 1e-4


def cast_to_fp8(
    x: torch.Tensor, *, group: tuple[int, int] = (1, 128), check_finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast [..., R, C] (float32, bfloat16 or float16) to E4M3 in groups of `group` rows and columns.

    Returns (float8_e4m3fn [..., R, C], float32 scales [..., ceil(R/rows), ceil(C/columns)]). `check_finite`
    as in `formats.quantize_mxfp4`.
    """
    scaled, scales = _scale(x, E4M3, group, check_finite)
    return encode_e4m3(scaled), scales


def cast_to_fp4(
    x: torch.Tensor, *, group: tuple[int, int] = (1, 32), check_finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast [..., R, C] (float32, bfloat16 or float16), C even, to E2M1 in groups of `group` rows and columns.

    Returns (uint8 [..., R, C/2], two a byte along C, and float32 scales [..., ceil(R/rows),
    ceil(C/columns)]). `check_finite` as in `formats.quantize_mxfp4`.
    """
    scaled, scales = _scale(x, E2M1, group, check_finite)
    return pack_e2m1(encode_e2m1(scaled)), scales


def _scale(
    x: torch.Tensor, element: ElementFormat, group: tuple[int, int], check_finite: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if min(group) < 1:
        raise ValueError(f"group is {group}; it must be (rows, columns), both at least 1")
    require_matrix(x, check_finite)
    scaled, scales = scale_by_powers_of_two(x, element, group, "ceil", amax_floor=_AMAX_FLOOR)
    return scaled, decode_ue8m0(scales)
