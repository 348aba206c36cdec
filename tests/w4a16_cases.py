"""W4A16: random operands and the exact product, and how far from it a kernel may be. For CPU and CUDA tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cute_kernels import nvfp4_weight
from cute_kernels.nvfp4_weight import PackedNvfp4Weight
from tests.nvfp4_cases import E2M1

POISON = 1234.0


class Case(NamedTuple):
    """x [M, K]; weight packed; product float64 [M, N], exact but for float64's rounding; size: how large its sums grow.

    size: root of the sum of squares of what is added up, float64 [M, N].
    """

    x: torch.Tensor
    weight: PackedNvfp4Weight
    product: torch.Tensor
    size: torch.Tensor

    def to(self, device: str) -> Case:
        return Case(*(part.to(device) for part in self))


def random_case(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Case:
    """Every code, a scale of its own for every block, zeros and the largest among them."""
    random = torch.Generator().manual_seed(seed + m + n + k)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=random)
    scales = torch.randint(0, 0x7F, (n, k // 16), dtype=torch.uint8, generator=random)
    scales[torch.rand(scales.shape, generator=random) < 0.05] = 0
    scales = scales.view(torch.float8_e4m3fn)
    factor = float(torch.rand((), generator=random)) * 0.01 + 0.001
    x = torch.randn((m, k), generator=random).to(dtype)
    weight = nvfp4_weight.pack(codes, scales, factor)

    table = torch.tensor(E2M1 + tuple(-v for v in E2M1), dtype=torch.float64)
    values = table[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()]
    values = values * scales.double().repeat_interleave(16, -1) * weight.global_scale.double()
    return Case(x, weight, x.double() @ values.T, (x.double() ** 2 @ (values**2).T).sqrt())


def wrong(result: torch.Tensor, case: Case) -> str:
    """What of a result is not the product rounded once, but for an error of FP32 accumulation; "" if nothing.

    Tensor cores cut off what they add below 2^-23 of it, 16 elements of K at a time; sums of K warps and of CTAs are
    added in FP32. With random signs, sums are about as large as `size`, and twice that leaves room.
    """
    digits, least = (8, -126) if result.dtype == torch.bfloat16 else (11, -14)
    exponent = case.product.frexp().exponent.clamp(min=least + 1)
    half_ulp = torch.ones_like(case.product).ldexp(exponent - digits - 1)
    error = (result.double() - case.product).abs()
    additions = case.x.shape[1] // 16 + 32
    allowed = half_ulp + case.size * (2 * additions * 2.0**-23)
    places = (~(error <= allowed)).nonzero()
    if not len(places):
        return ""
    first = tuple(places[0].tolist())
    return f"{len(places)} of {result.numel()}, first at {first}: {result[first]} not {case.product[first]}"
