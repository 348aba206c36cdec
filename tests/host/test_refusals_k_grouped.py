"""What products grouped along K refuse, with nothing launched and nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack_k_grouped
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu

KS, M, N, K = [32, 0, 96], 24, 20, 128
POISON = 77.0
FP8_KS = [128, 0, 256]


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def bf16(k: int, mn: int) -> torch.Tensor:
    return torch.zeros(k, -(-mn // 8) * 8, dtype=torch.bfloat16)[:, :mn]


def fp8(ks: list[int], mn: int, granularity: int) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.full((sum(ks) // granularity, mn), 127, dtype=torch.uint8)
    wide = torch.zeros(sum(ks), -(-mn // 16) * 16).to(torch.float8_e4m3fn)
    return wide[:, :mn], pack_k_grouped(scales, ks, granularity)


def lengths(ks: list[int] | list[list[int]]) -> torch.Tensor:
    return torch.tensor(ks, dtype=torch.int32)


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, POISON, dtype=dtype)


def given(**changed: Any) -> dict[str, Any]:
    call = {
        "a": bf16(K, M),
        "b": bf16(K, N),
        "d": filled(3, M, N),
        "ks": KS,
        "ks_tensor": lengths(KS),
        "c": None,
    }
    return {**call, "recipe": None, **changed}


def scaled(granularity: int = 128, **changed: Any) -> dict[str, Any]:
    a, b = fp8(FP8_KS, M, granularity), fp8(FP8_KS, N, granularity)
    call = given(a=a, b=b, ks=FP8_KS, ks_tensor=lengths(FP8_KS), recipe=(1, 1, granularity))
    return {**call, **changed}


PACKED = torch.zeros(K, M // 2, dtype=torch.uint8)
CASES = {
    "no tensor": (given(a=3), "a is a int; an operand is"),
    "vector": (given(a=bf16(K, M)[:, 0]), r"a has bfloat16 \[128\].* takes matrices"),
    "fp32": (given(a=torch.zeros(K, M)), "a is float32 .* supported elements"),
    "fp4": (
        given(a=(PACKED, torch.zeros(1, M, dtype=torch.int32))),
        "a is MXFP4; k_grouped_gemm_tn_contiguous takes BF16, MXFP8, FP8",
    ),
    "mixed": (given(a=fp8([K], M, 128)), "a is FP8 and b is BF16; supported"),
    "K differs": (given(a=bf16(K + 16, M)), "K = 144.* K = 128"),
    "K-major": (given(a=bf16(M, K).t()), r"a is bfloat16 \[128, 24\].* make it row-major"),
    "rows": (given(b=bf16(K, 40)[:, :20].clone()), "b, transposed, is .* rows are 40 bytes apart"),
    "address": (given(b=bf16(K, 24)[:, 4:]), "b, transposed, starts at address .* multiples of 16 bytes"),
    "too few lengths": (given(ks=[32, 96]), "ks has 2 lengths and ks_tensor 3"),
    "odd lengths": (given(ks=[24, 8, 96]), r"ks are \[24, 8, 96\]; BF16 takes multiples of 16"),
    "negative": (given(ks=[144, -16, 0]), "none below 0"),
    "the wrong sum": (given(ks=[32, 16, 96]), "144 together, but a and b have K = 128"),
    "lengths' dtype": (given(ks_tensor=lengths(KS).long()), r"ks_tensor is int64 .* takes int32 \[groups\]"),
    "lengths of a matrix": (given(ks_tensor=lengths([KS])), r"takes int32 \[groups\]"),
    "strided lengths": (given(ks_tensor=lengths([0] * 6)[::2]), "ks_tensor is .* must be contiguous"),
    "lengths elsewhere": (given(ks_tensor=lengths(KS).to("meta")), "different devices: .*ks_tensor on meta"),
    "d's shape": (given(d=filled(2, M, N)), r"d is float32 \[2, 24, 20\].* takes float32 \[3, 24, 20\]"),
    "d's dtype": (given(d=filled(3, M, N, dtype=torch.bfloat16)), "d is bfloat16 .* takes float32"),
    "d's rows": (
        given(b=bf16(K, 18), d=filled(3, M, 20)[..., :18]),
        "last dimension must be a multiple of 4",
    ),
    "d overlaps itself": (given(d=filled(1, M, N).expand(3, M, N)), "d is .* its elements overlap"),
    "c's dtype": (given(c=filled(3, M, N, dtype=torch.bfloat16)), "c is bfloat16 .* takes float32"),
    "c's shape": (given(c=filled(3, N, M)), "c is float32 .* takes float32"),
    "recipe": (given(recipe=(1, 128, 128)), "recipe is .* one a row, so"),
    "granularity": (scaled(recipe=(1, 1, 64)), "recipe of 64 elements"),
    "MXFP8's lengths": (
        scaled(32, ks=[112, 16, 256]),
        r"ks are \[112, 16, 256\]; MXFP8 takes multiples of 32",
    ),
    "FP8's lengths": (scaled(ks=[96, 32, 256]), "FP8 takes multiples of 128"),
    "words": (
        scaled(a=(fp8(FP8_KS, M, 128)[0], fp8(FP8_KS + [128], M, 128)[1])),
        r"a's scale factors are int32 \[3, 24\].* takes int32 \[2, 24\]",
    ),
    "words of another width": (
        scaled(a=(fp8(FP8_KS, M, 128)[0], fp8(FP8_KS, N, 128)[1])),
        r"a's scale factors are int32 \[2, 20\].* takes int32 \[2, 24\]",
    ),
    "words' strides": (
        scaled(a=(fp8(FP8_KS, M, 128)[0], fp8(FP8_KS, M, 128)[1].t().contiguous().t())),
        r"has strides \(24, 1\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_refusals(device: FakeDevice, call: dict[str, Any], message: str) -> None:
    options = dict(call)
    recipe = options.pop("recipe")
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.k_grouped_gemm_tn_contiguous(*options.values(), recipe=recipe)
    assert not device.launches
    assert bool((call["d"] == POISON).all())


def test_d_over_an_operand(device: FakeDevice) -> None:
    memory = filled(K, 4 * M * N, dtype=torch.bfloat16)
    a, d = memory[:, :M], memory[:, 8:].view(torch.float32)[:3, : M * N].unflatten(1, (M, N))
    with pytest.raises(ArgumentError, match="d shares memory with a"):
        cute_kernels.k_grouped_gemm_tn_contiguous(a, bf16(K, N), d, KS, lengths(KS))
    c = filled(4, M, N)
    with pytest.raises(ArgumentError, match="d shares memory with c"):
        cute_kernels.k_grouped_gemm_tn_contiguous(bf16(K, M), bf16(K, N), c[1:], KS, lengths(KS), c[:3])
    assert not device.launches


def test_bf16_alone(device: FakeDevice) -> None:
    call = scaled()
    with pytest.raises(ArgumentError, match="a is tuple; k_grouped_bf16_gemm takes bfloat16"):
        cute_kernels.k_grouped_bf16_gemm_tn_contiguous(*list(call.values())[:6])
    assert not device.launches


def flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()


def nt(**changed: Any) -> dict[str, Any]:
    call = {"a": flat(bf16(K, 24)), "b": flat(bf16(K, 24)[:, :N].clone())}
    return given(**{**call, **changed})


FLAT_FP8 = flat(fp8(FP8_KS, 32, 128)[0])[: 384 * M]
NT_CASES = {
    "no tensor": (nt(a=3), "a is a int; an operand is"),
    "a matrix": (nt(a=bf16(K, M)), r"a has bfloat16 \[128, 24\].* one behind another in one dimension"),
    "strided": (nt(a=torch.zeros(2 * K * M, dtype=torch.bfloat16)[::2]), "a has .* with strides \\(2,\\)"),
    "fp4": (
        nt(a=(torch.zeros(K * M // 2, dtype=torch.uint8), torch.zeros(1, M, dtype=torch.int32))),
        "a is MXFP4; k_grouped_gemm_nt_contiguous takes BF16, MXFP8, FP8",
    ),
    "mixed": (
        nt(a=(FLAT_FP8[: K * M], fp8([K], M, 128)[1])),
        "a is FP8 and b is BF16; supported",
    ),
    "rows": (nt(a=torch.zeros(K * M + 8, dtype=torch.bfloat16)), "a has 3080 elements, which d's 24 rows"),
    "K differs": (nt(a=torch.zeros(144 * M, dtype=torch.bfloat16)), "a has 144 elements of K .* and b 128"),
    "odd K": (
        nt(a=torch.zeros(120 * M, dtype=torch.bfloat16), ks=None),
        "a has 120 elements for each of d's 24 rows or columns; BF16 takes multiples of 16",
    ),
    "address": (
        nt(a=torch.zeros(K * M + 4, dtype=torch.bfloat16)[4:]),
        "a starts at address .* multiples of 16 bytes",
    ),
    "d is a matrix": (nt(d=filled(M, N)), r"d is float32 \[24, 20\].* takes float32 \[groups, M, N\]"),
    "d's dtype": (nt(d=filled(3, M, N, dtype=torch.bfloat16)), "d is bfloat16 .* takes float32"),
    "c's shape": (nt(c=filled(3, N, M)), "c is float32 .* takes float32"),
    "odd lengths": (nt(ks=[24, 8, 96]), r"ks are \[24, 8, 96\]; BF16 takes multiples of 16"),
    "the wrong sum": (nt(ks=[32, 16, 96]), "144 together, but a and b have K = 128"),
    "words": (
        nt(
            a=(FLAT_FP8, fp8(FP8_KS + [128], M, 128)[1]),
            b=(FLAT_FP8[: 384 * N], fp8(FP8_KS, N, 128)[1]),
            ks=FP8_KS,
            ks_tensor=lengths(FP8_KS),
        ),
        r"a's scale factors are int32 \[3, 24\].* takes int32 \[2, 24\]",
    ),
    "granularity": (
        nt(a=(FLAT_FP8, fp8(FP8_KS, M, 128)[1]), recipe=(1, 1, 64)),
        "recipe of 64 elements",
    ),
}


@pytest.mark.parametrize(("call", "message"), NT_CASES.values(), ids=NT_CASES.keys())
def test_refusals_of_flat_operands(device: FakeDevice, call: dict[str, Any], message: str) -> None:
    options = dict(call)
    recipe = options.pop("recipe")
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.k_grouped_gemm_nt_contiguous(*options.values(), recipe=recipe)
    assert not device.launches
    assert bool((call["d"] == POISON).all())


def test_d_over_a_flat_operand(device: FakeDevice) -> None:
    memory = filled(K * M + 2 * 3 * M * N, dtype=torch.bfloat16)
    a, d = memory[: K * M], memory[K * M - 16 :][: 2 * 3 * M * N].view(torch.float32).view(3, M, N)
    with pytest.raises(ArgumentError, match="d shares memory with a"):
        cute_kernels.k_grouped_gemm_nt_contiguous(
            a, torch.zeros(K * N, dtype=torch.bfloat16), d, KS, lengths(KS)
        )
    assert not device.launches
