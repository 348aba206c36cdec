"""What tests of number formats share: decoding from bit fields, rounding by search, and random blocks.

Nothing here comes from the library under test.
"""

from __future__ import annotations

import math

import numpy as np
import torch


def value_of(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """The number that a code of sign, exponent and mantissa means, from its fields."""
    mantissa = code & (1 << mantissa_bits) - 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    if exponent == 0:
        magnitude = math.ldexp(mantissa, 1 - bias - mantissa_bits)
    else:
        magnitude = math.ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits)
    return -magnitude if code >> mantissa_bits + exponent_bits else magnitude


E2M1_VALUES = np.array([value_of(code, 2, 1, 1) for code in range(16)])
E4M3_VALUES = np.array([value_of(code, 4, 3, 7) for code in range(256)])
E4M3_VALUES[[0x7F, 0xFF]] = np.nan


def nearest_code(x: np.ndarray, positive_values: np.ndarray, sign_bit: int) -> np.ndarray:
    """Round to the nearest of ascending values (whose codes are their indices), ties to even codes;
    saturating."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), positive_values[-1])
    above = np.searchsorted(positive_values, magnitude)
    below = np.maximum(above - 1, 0)
    # Exact: neighbours and inputs have few bits, or the difference of near numbers is exact.
    to_above, to_below = positive_values[above] - magnitude, magnitude - positive_values[below]
    tie_to_above = (to_above == to_below) & (above % 2 == 0)
    code = np.where((to_above < to_below) | tie_to_above, above, below)
    return np.where(np.signbit(x), code + sign_bit, code).astype(np.uint8)


def random_blocks(rows: int, columns: int, group: int, spread: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers whose blocks have scales 2^-spread .. 2^spread, with a block of zeros and one of -0."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-columns // group)
    exponents = torch.randint(-spread, spread + 1, (rows, blocks), generator=generator)
    factors = torch.exp2(exponents.float()).repeat_interleave(group, dim=1)[:, :columns]
    x = torch.randn(rows, columns, generator=generator) * factors
    x[0, :group] = 0.0
    x[rows // 2, -group:] = -0.0
    return x
