"""NVFP4 dequantization: operands that reach every case of the decoding, and what must come out, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NAN_BITS = 0x7FFF  # what the hardware's conversions to BF16 make of every NaN

# One of each kind of product: normal, tiny (float32 and BF16 subnormals, underflow), huge (overflow), the rest.
GLOBAL_SCALES = (
    1.0,
    0.0123,
    -1.5,
    2.0**-149,
    3e-39,
    -(2.0**-126),
    2.0**120,
    3e38,
    0.0,
    -0.0,
    float("inf"),
    float("nan"),
)


class Operands(NamedTuple):
    """packed uint8 [..., K/2], scales float8_e4m3fn [..., K/16], global_scale float32 [] or [E]."""

    packed: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor

    def to(self, device: str) -> Operands:
        return Operands(*(tensor.to(device) for tensor in self))


def every_code(global_scale: float) -> Operands:
    """All 16 codes under each of the 256 scale codes, [256, 16]."""
    low, high = torch.arange(0, 16, 2, dtype=torch.uint8), torch.arange(1, 16, 2, dtype=torch.uint8)
    return Operands(
        (low | high << 4).expand(256, 8).contiguous(),
        torch.arange(256, dtype=torch.uint8).view(256, 1).view(torch.float8_e4m3fn),
        torch.tensor(global_scale),
    )


def random_operands(*shape: int, experts: bool = False, seed: int = 0) -> Operands:
    """Random codes and a scale of its own for every block, NaN among them; [..., K]."""
    random = torch.Generator().manual_seed(seed)
    *lead, k = shape

    def draw(columns: int) -> torch.Tensor:
        return torch.randint(0, 256, (*lead, columns), dtype=torch.uint8, generator=random)

    global_scale = torch.rand(shape[:1] if experts else (), generator=random) + 0.001
    return Operands(draw(k // 2), draw(k // 16).view(torch.float8_e4m3fn), global_scale)


def expected_bits(operands: Operands) -> torch.Tensor:
    """The result's bits, int16 [..., K], from the definition: the exact product, rounded to float32, then to BF16."""
    packed, scales, global_scale = operands.to("cpu")
    codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    table = torch.tensor(E2M1 + tuple(-x for x in E2M1), dtype=torch.float64)
    # 2 + 4 + 24 significant bits: float64 holds the product exactly.
    values = table[codes.int()] * scales.double().repeat_interleave(16, dim=-1)
    values = values * global_scale.double().view(-1, *[1] * (values.ndim - 1))
    result = values.float().to(torch.bfloat16)
    return torch.where(result.isnan(), NAN_BITS, result.view(torch.int16)).to(torch.int16)


def differing(result: torch.Tensor, operands: Operands) -> str:
    """The first elements that are wrong, for a failing test to show; "" if there are none."""
    got, wanted = result.cpu().view(torch.int16), expected_bits(operands)
    if got.shape != wanted.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(wanted.shape)}"
    places = (got != wanted).nonzero()[:5].tolist()
    return "; ".join(
        f"{place}: {int(got[tuple(place)]) & 0xFFFF:04x} instead of {int(wanted[tuple(place)]) & 0xFFFF:04x}"
        for place in places
    )


def packable(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random codes uint8 [..., K/2] and block scales float8_e4m3fn [..., K/16], none of them negative or NaN."""
    random = torch.Generator().manual_seed(seed)
    *lead, k = shape
    codes = torch.randint(0, 256, (*lead, k // 2), dtype=torch.uint8, generator=random)
    scales = torch.randint(0, 127, (*lead, k // 16), dtype=torch.uint8, generator=random)
    return codes, scales.view(torch.float8_e4m3fn)
