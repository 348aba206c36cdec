"""Operands, layouts and sizes that operations have no kernel for, whatever is built: refused, with what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.runtime import ArgumentError, supported
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu

POISON = 77.0
HUGE = 2**31


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def test_the_lists_are_what_is_built() -> None:
    shapes = [v.shape for v in sm100.variants("sm_100a")]

    def built(**fields: Any) -> set[str]:
        found = [s for s in shapes if all(getattr(s, name) == value for name, value in fields.items())]
        return {s.family_dtype for s in found}

    for d, operands in supported.QUANTIZED.items():
        assert built(d_dtype=d, grouping="") == set(operands)
    for d, operands in supported.HEADS.items():
        assert built(d_dtype=d, heads=True) == set(operands)
    assert built(d_dtype="mxf8", grouping="sizes") == set(supported.QUANTIZED_GROUPS)
    assert built(grouping="indices", b_major="mn") == set(supported.N_MAJOR_GROUPS)
    assert built(grouping="sizes", b_major="mn") == set()
    assert {s.a_major for s in shapes if s.grouped} == {"k"}


def mx(
    *rows: int, k: int = 128, fp4: bool = False, block: int = 32, by_columns: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    elements = (
        torch.zeros(*rows, k // 2, dtype=torch.uint8)
        if fp4
        else torch.zeros(*rows, k).to(torch.float8_e4m3fn)
    )
    scales = pack(torch.full((*rows, -(-k // block)), 127, dtype=torch.uint8))
    return (elements.mT.contiguous().mT if by_columns else elements), scales


def nothing(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full(shape, POISON, dtype=dtype)


MX = (1, 1, 32)
INDICES, SIZES = torch.zeros(256, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
HEADS = (32, 32, 32)
MANY = torch.full((1, 8, 16), POISON, dtype=torch.bfloat16).expand(HUGE, -1, -1)
CALLS = {
    "quantized operands": (
        lambda d: cute_kernels.gemm_nt_mxfp8(mx(16, fp4=True), mx(64, block=128)),
        "a and b are MXFP4 x FP8; gemm_nt_mxfp8 takes MXFP4 x MXFP4, NVFP4 x NVFP4",
    ),
    "quantized by columns": (
        lambda d: cute_kernels.gemm_nt_mxfp8(mx(16, by_columns=True), mx(64), recipe=MX),
        "a is .* MN-major. gemm_nt_mxfp8 takes it K-major",
    ),
    "quantized bf16": (
        lambda d: cute_kernels.gemm_nt_nvfp4(nothing(16, 64), nothing(64, 64), torch.ones(())),
        "a and b are BF16 x BF16; gemm_nt_nvfp4 takes NVFP4 x NVFP4, MXFP8 x MXFP8",
    ),
    "heads of mixed operands": (
        lambda d: cute_kernels.gemm_nt_skip_head_mid(mx(16, block=128), mx(64, fp4=True), head_splits=HEADS),
        "a and b are FP8 x MXFP4; gemm_nt_skip_head_mid to torch.bfloat16 takes MXFP4 x MXFP4",
    ),
    "heads in FP32": (
        lambda d: cute_kernels.gemm_nt_skip_head_mid(
            mx(16), mx(64), recipe=MX, out_dtype=torch.float32, head_splits=HEADS
        ),
        "a and b are MXFP8 x MXFP8; gemm_nt_skip_head_mid to torch.float32 takes FP8 x FP8",
    ),
    "heads by columns": (
        lambda d: cute_kernels.gemm_nt_skip_head_mid(mx(16), mx(64, by_columns=True), recipe=MX, head_splits=HEADS),
        "b is .* MN-major. gemm_nt_skip_head_mid takes it K-major",
    ),
    "rows of groups by columns": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous(mx(256, by_columns=True), mx(3, 64), d, INDICES, recipe=MX),
        "a is .* MN-major. m_grouped_gemm_nt_contiguous takes it K-major",
    ),
    "masked groups by columns": (
        lambda d: cute_kernels.m_grouped_gemm_nt_masked(
            mx(3, 256), mx(3, 64, by_columns=True), None, SIZES, 4, recipe=MX
        ),
        r"b\[0\] is .* MN-major. m_grouped_gemm_nt_masked takes it K-major",
    ),
    "prefix sums by columns": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous(
            mx(256), mx(3, 64, by_columns=True), d, SIZES, recipe=MX, use_psum_layout=True
        ),
        r"b\[0\] is .* MN-major. m_grouped_gemm_nt_contiguous takes it K-major",
    ),
    "quantized groups of MXFP4": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8(
            mx(256, fp4=True), mx(3, 64, fp4=True), None, INDICES
        ),
        "a and b are MXFP4 x MXFP4; m_grouped_gemm_nt_contiguous_mxfp8 takes MXFP8 x MXFP8, FP8 x FP8",
    ),
    "quantized groups by columns": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8(
            mx(256), mx(3, 64, by_columns=True), None, INDICES, recipe=MX
        ),
        r"b\[0\] is .* MN-major. m_grouped_gemm_nt_contiguous_mxfp8 takes it K-major",
    ),
    "K of mixed groups": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous(
            mx(256, k=96, fp4=True), mx(3, 64, k=96, block=128), d, INDICES
        ),
        "K is 96; MXFP4 x FP8 needs a multiple of 128, because TMA",
    ),
    "rows of mixed groups": (
        lambda d: cute_kernels.m_grouped_gemm_nt_contiguous(
            (torch.zeros(256, 80, dtype=torch.uint8)[:, :64], mx(256)[1]), mx(3, 64, block=128), d, INDICES
        ),
        "a is .* rows are 80 bytes apart, and TMA takes multiples of 32 bytes",
    ),
    "huge groups": (
        lambda d: cute_kernels.m_grouped_gemm_nt_masked(
            (mx(3, 4)[0][:, :1].expand(-1, HUGE, -1), mx(3, 4)[1][:, :1].expand(-1, HUGE, -1)), mx(3, 64), None,
            SIZES, 4, recipe=MX
        ),
        r"M, N, K are 2147483648, 64, 128; each must be below 2\^31",
    ),
    "huge groups along K": (
        lambda d: cute_kernels.k_grouped_gemm_tn_contiguous(
            nothing(1, 16).expand(HUGE, -1), nothing(1, 16).expand(HUGE, -1), d, None, SIZES
        ),
        r"2147483648.* must be below 2\^31",
    ),
    "a huge sum": (
        lambda d: cute_kernels.einsum("bmk,bnk->mn", MANY, MANY, nothing(8, 8)),
        r"the sizes are \(2147483648, 8, 16, 8\); each must be below 2\^31",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CALLS.values(), ids=CALLS.keys())
def test_refusals(device: FakeDevice, call: Callable[[torch.Tensor], object], message: str) -> None:
    d = nothing(256, 64)
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(ArgumentError, match=message):
            call(d)
    assert not device.launches
    assert bool((d == POISON).all())
