"""Formats and scale layouts give the same bytes on a GPU as on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import casts, formats, scale_factors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def every_bfloat16() -> torch.Tensor:
    """All finite bfloat16, neighbours in magnitude sharing groups, so that scales cover their whole range."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    return values[torch.isfinite(values)].reshape(-1, 32)


def random_float32() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-30, 31, (515, 17), generator=generator).float().repeat_interleave(32, dim=1)
    return torch.randn(515, 544, generator=generator) * torch.exp2(exponents)


def assert_same_bytes(on_host: Any, on_gpu: Any) -> None:
    for host, gpu in zip(on_host, on_gpu, strict=True):
        assert gpu.is_cuda
        # float64 results are compared by value: bytes of NaN may differ.
        if host.dtype in (torch.float32, torch.float64):
            assert torch.equal(host.nan_to_num(nan=12345.0), gpu.cpu().nan_to_num(nan=12345.0))
        else:
            assert torch.equal(host.contiguous().view(torch.uint8), gpu.cpu().contiguous().view(torch.uint8))


@pytest.mark.parametrize("make", [every_bfloat16, random_float32])
def test_quantizers(make: Any) -> None:
    x = make()
    for rule in ("ceil", "floor"):
        for quantize in (formats.quantize_mxfp4, formats.quantize_mxfp8):
            host, gpu = quantize(x, rule=rule), quantize(x.cuda(), rule=rule)
            assert_same_bytes(host, gpu)
            for dtype in (torch.float32, torch.float64):
                values = [formats.dequantize(*pair, group=(1, 32), dtype=dtype) for pair in (host, gpu)]
                assert_same_bytes(values[:1], values[1:])
    assert_same_bytes(formats.quantize_nvfp4(x), formats.quantize_nvfp4(x.cuda()))
    scale = torch.tensor(0.37)
    assert_same_bytes(
        formats.quantize_nvfp4(x, global_scale=scale),
        formats.quantize_nvfp4(x.cuda(), global_scale=scale.cuda()),
    )


@pytest.mark.parametrize("group", [(1, 128), (128, 1), (128, 128), (32, 32)])
def test_casts(group: tuple[int, int]) -> None:
    x = random_float32()
    for cast in (casts.cast_to_fp8, casts.cast_to_fp4):
        assert_same_bytes(cast(x, group=group), cast(x.cuda(), group=group))


def test_scale_layouts() -> None:
    scales = formats.quantize_mxfp4(random_float32())[1]
    host, gpu = scales, scales.cuda()
    packed = scale_factors.pack(gpu)
    scale_factors.require_packed(packed, *scales.shape)
    assert_same_bytes([scale_factors.pack(host)], [packed])
    assert_same_bytes([scale_factors.unpack(packed.cpu(), 17)], [scale_factors.unpack(packed, 17)])
    rows = slice(0, 512)
    assert_same_bytes(
        [scale_factors.to_utccp(scale_factors.pack(host[rows]))],
        [scale_factors.to_utccp(scale_factors.pack(gpu[rows]))],
    )
    assert_same_bytes([scale_factors.to_blocked(host)], [scale_factors.to_blocked(gpu)])
    floats = formats.decode_ue8m0(gpu)
    assert_same_bytes([host.view(torch.uint8)], [scale_factors.encode_scales(floats)])
    ks = [17 * 32]
    assert_same_bytes(
        [scale_factors.pack_k_grouped(host.view(torch.uint8).T, ks, 32)],
        [scale_factors.pack_k_grouped(gpu.view(torch.uint8).T, ks, 32)],
    )
