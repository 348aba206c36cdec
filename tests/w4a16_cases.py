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
        return Case(self.x.to(device), self.weight.to(device), self.product.to(device), self.size.to(device))


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


class Grouped(NamedTuple):
    """A case of experts: x [M, K] or [E, M, K], their packed weights, product and size for every row by its expert.

    layout: int32, what the operation takes. used: rows of D that are to be written, bool.
    """

    x: torch.Tensor
    weight: PackedNvfp4Weight
    product: torch.Tensor
    size: torch.Tensor
    layout: torch.Tensor
    used: torch.Tensor

    def to(self, device: str) -> Grouped:
        return Grouped(
            *Case(self.x, self.weight, self.product, self.size).to(device),
            self.layout.to(device),
            self.used.to(device),
        )


def _experts(
    rows: list[int], n: int, k: int, dtype: torch.dtype, seed: int
) -> tuple[list[Case], PackedNvfp4Weight]:
    cases = [random_case(max(m, 1), n, k, dtype, seed + 100 * i) for i, m in enumerate(rows)]
    data = torch.stack([case.weight.data for case in cases])
    factors = torch.cat([case.weight.global_scale for case in cases])
    return cases, PackedNvfp4Weight(data, n, k, factors)


def contiguous_case(
    rows: list[int], alignment: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Grouped:
    """Experts' rows one after another, each from a multiple of `alignment` on; NaN in rows of none."""
    cases, weight = _experts(rows, n, k, dtype, seed)
    starts = [0]
    for m in rows:
        starts.append(starts[-1] + -(-m // alignment) * alignment)
    x = torch.full((starts[-1], k), torch.nan, dtype=dtype)
    product, size = (
        torch.zeros(starts[-1], n, dtype=torch.float64),
        torch.zeros(starts[-1], n, dtype=torch.float64),
    )
    layout = torch.full((starts[-1],), -1, dtype=torch.int32)
    for expert, (case, m, start) in enumerate(zip(cases, rows, starts, strict=False)):
        part = slice(start, start + m)
        x[part], product[part], size[part], layout[part] = case.x[:m], case.product[:m], case.size[:m], expert
    return Grouped(x, weight, product, size, layout, layout >= 0)


def masked_case(
    rows: list[int], room: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Grouped:
    """A matrix of `room` rows for each expert; NaN in those that are not in use."""
    cases, weight = _experts(rows, n, k, dtype, seed)
    x = torch.full((len(rows), room, k), torch.nan, dtype=dtype)
    product = torch.zeros(len(rows), room, n, dtype=torch.float64)
    size = torch.zeros_like(product)
    for expert, (case, m) in enumerate(zip(cases, rows, strict=True)):
        x[expert, :m], product[expert, :m], size[expert, :m] = case.x[:m], case.product[:m], case.size[:m]
    layout = torch.tensor(rows, dtype=torch.int32)
    return Grouped(x, weight, product, size, layout, torch.arange(room) < layout[:, None])


def wrong_groups(result: torch.Tensor, case: Grouped) -> str:
    """What of a result in memory that held POISON is not the product in rows in use, or was written in others."""
    if not (result[~case.used] == POISON).all():
        return "wrote rows that are nobody's"
    used = case.used
    return wrong(result[used], Case(case.x[used], case.weight, case.product[used], case.size[used]))
