"""NVFP4 against exact arithmetic written out again here, and against torchao."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from cute_kernels import formats
from tests.host.format_reference import E2M1_VALUES, E4M3_VALUES, nearest_code, random_blocks


def test_nvfp4_by_the_book() -> None:
    x = random_blocks(9, 86, 16, spread=6)
    data, scales, global_scale = formats.quantize_nvfp4(x)
    assert (data.shape, scales.shape, global_scale.shape) == ((9, 43), (9, 6), ())
    assert global_scale.item() == np.float32(x.abs().max().item()) / np.float32(6 * 448)
    actual = formats.dequantize(data, scales, group=(1, 16), global_scale=global_scale, dtype=torch.float64)
    steps = [Fraction(float(v)) for v in E2M1_VALUES[:8]]
    for i, j in np.ndindex(9, 6):
        block = [Fraction(v) for v in x[i, j * 16 : (j + 1) * 16].tolist()]
        amax = np.float32(max(abs(v) for v in block))
        ideal = amax / np.float32(6) / np.float32(global_scale.item())
        byte = nearest_code(np.array([ideal]), E4M3_VALUES[:0x7F], 0x80)[0]
        assert scales.view(torch.uint8)[i, j] == byte
        scale = Fraction(float(E4M3_VALUES[byte])) * Fraction(global_scale.item())
        for value, got in zip(block, actual[i, j * 16 : (j + 1) * 16].tolist(), strict=True):
            distances = [abs(abs(value) - step * scale) for step in steps]
            best = min(range(8), key=lambda code: (distances[code], code % 2))
            expected = steps[best] * scale if scale else Fraction(0)
            assert abs(Fraction(got)) == expected
            assert got == 0 or (got < 0) == (value < 0)


def test_nvfp4_zero_and_tiny_blocks() -> None:
    x = torch.ones(2, 48)
    x[0, 16:32] = 0.0
    x[1, 32:] = -1e-9
    data, scales, global_scale = formats.quantize_nvfp4(x)
    assert scales.float().tolist() == [[448, 0, 448], [448, 448, 0]]
    values = formats.dequantize(data, scales, group=(1, 16), global_scale=global_scale, dtype=torch.float64)
    assert values[0, 16:32].tolist() == [0.0] * 16
    assert values[1, 32:].tolist() == [0.0] * 16
    assert data[1, 16:].tolist() == [0x88] * 8, "pairs of -0: no code is left over from a division by zero"


def test_nvfp4_of_zeros() -> None:
    data, scales, global_scale = formats.quantize_nvfp4(torch.zeros(1, 16))
    assert global_scale.item() == 1.0
    assert formats.dequantize(data, scales, group=(1, 16), global_scale=global_scale).tolist() == [[0.0] * 16]


def test_nvfp4_divides_exactly() -> None:
    """Next to a boundary, the float32 quotient would round onto it and fall on the wrong side."""
    generator = torch.Generator().manual_seed(1)
    global_scale = torch.rand(4096, generator=generator) + 1e-2
    x = torch.zeros(4096, 1, 16)
    x[:, 0, 0] = (global_scale.double() * 448 * 6).float()
    # The float32 nearest to the boundary between 0.5 and 1, which is at times above and at times below it.
    boundary = global_scale.double() * 448 * 0.75
    x[:, 0, 1] = boundary.float()
    data, scales, _ = formats.quantize_nvfp4(x, global_scale=global_scale)
    assert (scales.float() == 448).all()
    expected = torch.where(x[:, 0, 1].double() >= boundary, 2, 1)
    assert 0.3 < (expected == 2).float().mean() < 0.7
    assert torch.equal(formats.unpack_e2m1(data)[:, 0, 1].long(), expected)


def test_nvfp4_scales_of_experts() -> None:
    x = random_blocks(12, 64, 16, spread=3).reshape(3, 4, 64) * torch.tensor([1.0, 1e3, 1e-3])[:, None, None]
    scales = formats.nvfp4_global_scale(x.abs().amax(dim=(1, 2)))
    data, block_scales, kept = formats.quantize_nvfp4(x, global_scale=scales)
    assert kept is scales
    for expert in range(3):
        alone = formats.quantize_nvfp4(x[expert])
        assert torch.equal(data[expert], alone[0])
        assert torch.equal(block_scales[expert].view(torch.uint8), alone[1].view(torch.uint8))
        assert scales[expert] == alone[2]
    values = formats.dequantize(data, block_scales, group=(1, 16), global_scale=scales)
    assert (values - x).norm() < 0.1 * x.norm()


def test_nvfp4_equals_torchao() -> None:
    nvfp4_tensor = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = random_blocks(64, 512, 16, spread=3)
    data, scales, global_scale = formats.quantize_nvfp4(x)
    theirs = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
    assert theirs == global_scale
    their_scales, their_data = nvfp4_tensor.nvfp4_quantize(x, 16, theirs)
    # They keep the smallest scale away from zero; a block of zeros is zero either way.
    kept = scales.float() >= 2**-6
    assert kept.float().mean() > 0.9
    assert torch.equal(scales.float()[kept], their_scales.float()[kept])
    differing = (formats.unpack_e2m1(data) != formats.unpack_e2m1(their_data)) & kept.repeat_interleave(
        16, dim=1
    )
    # They multiply by a rounded reciprocal, so a quotient next to a boundary may fall on its other side.
    assert differing.float().mean() < 1e-4
