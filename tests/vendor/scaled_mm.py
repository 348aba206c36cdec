"""What torch._scaled_mm computes for block-scaled operands, which torch has for GPUs alone: a reference of scripts."""

from __future__ import annotations

from typing import Any

import torch

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ON_THE_GPU = torch._scaled_mm


def scaled_mm(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """a [M, K] times b [K, N], with a scale for each 16 (E4M3) or 32 (E8M0) elements along K, in blocks of 128 x 4."""
    if scale_a.dtype not in (torch.float8_e4m3fn, torch.float8_e8m0fnu):
        return _ON_THE_GPU(a, b, scale_a, scale_b, *args, **kwargs)
    result = _dequantized(a, scale_a) @ _dequantized(b.transpose(0, 1), scale_b).T
    return result.to(kwargs.get("out_dtype") or torch.float32)


def _dequantized(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    if rows.dtype == torch.float4_e2m1fn_x2:
        packed = rows.view(torch.uint8)
        codes = torch.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).long()
        values = torch.tensor(_E2M1, dtype=torch.float64)[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
    else:
        values = rows.to(torch.float64)
    vector = 16 if scales.dtype == torch.float8_e4m3fn else 32
    m, count = values.shape[0], values.shape[1] // vector
    row_blocks = -(-m // 128)
    blocks = scales.to(torch.float64).reshape(-1, 32, 4, 4).transpose(1, 2).reshape(row_blocks, -1, 128, 4)
    plain = blocks.permute(0, 2, 1, 3).reshape(row_blocks * 128, -1)[:m, :count]
    return values * plain.repeat_interleave(vector, 1)
