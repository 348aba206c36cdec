"""DeepGEMM's casts against the rule written out a group at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cute_kernels.casts import cast_to_fp4, cast_to_fp8
from cute_kernels.formats import dequantize

GROUPS = [(1, 128), (1, 32), (128, 1), (32, 1), (128, 128), (32, 32), (3, 5)]
SHAPES = [(1, 2), (130, 258), (128, 128), (33, 96)]


def random_matrix(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 12, shape, generator=generator)
    return torch.randn(shape, generator=generator) * torch.exp2(exponents.float())


def expected_scale(block: torch.Tensor, largest: float) -> float:
    """amax (at least 1e-4) over the format's maximum, in float32, rounded up to a power of two."""
    amax = max(np.float32(block.abs().max().item()), np.float32(1e-4))
    fraction, exponent = math.frexp(float(amax / np.float32(largest)))
    return math.ldexp(1.0, exponent - (fraction == 0.5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [8, 4])
def test_groups(bits: int, group: tuple[int, int], shape: tuple[int, int]) -> None:
    x = random_matrix(shape)
    data, scales = cast_to_fp8(x, group=group) if bits == 8 else cast_to_fp4(x, group=group)
    assert scales.dtype == torch.float32
    assert scales.shape == (-(-shape[0] // group[0]), -(-shape[1] // group[1]))
    values = dequantize(data, scales, group=group, dtype=torch.float64)
    assert values.shape == shape
    # Half a step: relative in a binade, absolute next to zero.
    relative, absolute = (2**-4, 2**-10) if bits == 8 else (1 / 5, 0.25)
    for i, j in np.ndindex(*scales.shape):
        rows = slice(i * group[0], (i + 1) * group[0])
        columns = slice(j * group[1], (j + 1) * group[1])
        block, scale = x[rows, columns], scales[i, j].item()
        assert scale == expected_scale(block, 448.0 if bits == 8 else 6.0)
        error = (values[rows, columns] - block).abs()
        assert (error <= torch.maximum(block.abs() * relative, torch.tensor(absolute * scale))).all()


def test_small_numbers_become_zero() -> None:
    """The floor of 1e-4 under amax keeps a group of tiny numbers from being blown up."""
    x = torch.tensor([[1e-12, -1e-12]])
    for cast, largest in ((cast_to_fp8, 448.0), (cast_to_fp4, 6.0)):
        data, scales = cast(x)
        assert scales.item() == 2.0 ** math.ceil(math.log2(1e-4 / largest))
        assert dequantize(data, scales, group=(1, 32)).tolist() == [[0.0, 0.0]]


def test_leading_dimensions_are_kept() -> None:
    x = random_matrix((3, 40, 64))
    data, scales = cast_to_fp8(x, group=(32, 32))
    assert scales.shape == (3, 2, 2)
    for index in range(3):
        alone_data, alone_scales = cast_to_fp8(x[index], group=(32, 32))
        assert torch.equal(data[index].view(torch.uint8), alone_data.view(torch.uint8))
        assert torch.equal(scales[index], alone_scales)


def test_refusals() -> None:
    x = torch.ones(4, 5)
    with pytest.raises(ValueError, match=r"group is \(1, 0\)"):
        cast_to_fp8(x, group=(1, 0))
    with pytest.raises(ValueError, match="K must be even; K is 5"):
        cast_to_fp4(x)
    with pytest.raises(TypeError, match=r"x is torch.int32"):
        cast_to_fp8(x.int())
    x[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"first at \(2, 3\)"):
        cast_to_fp8(x)
