"""What einsum refuses, of BF16 and of FP8, with nothing launched and nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels import scale_factors
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu

B, H, D, R = 4, 2, 16, 24
EXPRESSION = "bhr,hdr->bhd"
POISON = 77.0


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def given(**changed: Any) -> dict[str, Any]:
    call = {
        "expression": EXPRESSION,
        "a": bf16(B, H, R),
        "b": bf16(H, D, R),
        "d": torch.full((B, H, D), POISON),
    }
    return {**call, "c": None, **changed}


CASES = {
    "expression": (
        given(expression="ij,jk->ik"),
        "the expression is 'ij,jk->ik'; supported are bhr,hdr->bhd, bhd,hdr",
    ),
    "fp32": (given(a=torch.zeros(B, H, R)), r"a is float32 .* einsum takes bfloat16 of three dimensions"),
    "matrix": (given(b=bf16(D, R)), r"b is bfloat16 \[16, 24\].* three dimensions"),
    "no tensor": (given(b=3), "b is a int; einsum takes tensors"),
    "r differs": (given(b=bf16(H, D, R + 8)), "they do not fit bhr,hdr->bhd"),
    "h differs": (given(b=bf16(H + 1, D, R)), "they do not fit bhr,hdr->bhd"),
    "d's shape": (
        given(d=torch.full((B, D, H), POISON)),
        r"d is float32 .* takes bfloat16 or float32 \[4, 2, 16\]",
    ),
    "d's dtype": (
        given(d=torch.full((B, H, D), POISON, dtype=torch.float16)),
        "d is float16 .* takes bfloat16 or",
    ),
    "c": (given(c=torch.zeros(B, H, D)), "c is given; bhr,hdr->bhd of BF16 takes none"),
    "device": (given(a=bf16(B, H, R).to("meta")), "different devices: a on meta"),
    "strided": (given(a=bf16(B, H, 2 * R)[..., ::2]), "a has strides .* last dimension must be contiguous"),
    "rows": (given(a=bf16(B, H, R + 4)[..., :R]), "a has rows or batches 56 bytes apart, .* 16 bytes only"),
    "address": (
        given(a=bf16(B * H * R + 4)[4:].view(B, H, R)),
        "a starts at address .* multiples of 16 bytes",
    ),
    "d's rows": (
        given(b=bf16(H, 18, R), d=torch.full((B, H, 20), POISON)[..., :18]),
        "d is float32 .* last dimension must be a multiple of 4. Pad b",
    ),
    "d overlaps itself": (
        given(d=torch.full((H, D), POISON).expand(B, H, D)),
        "d is .* its elements overlap",
    ),
}


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_refusals(device: FakeDevice, call: dict[str, Any], message: str) -> None:
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.einsum(*call.values())
    assert not device.launches
    assert bool((call["d"] == POISON).all())


def test_d_over_an_operand(device: FakeDevice) -> None:
    memory = torch.full((B, H, 2 * R), POISON, dtype=torch.bfloat16)
    a, d = memory[..., :R], memory[..., 8 : 8 + D]
    with pytest.raises(ArgumentError, match="d shares memory with a"):
        cute_kernels.einsum(EXPRESSION, a, bf16(H, D, R), d)
    assert not device.launches


def test_sums(device: FakeDevice) -> None:
    a, b = bf16(3, 8, 16), bf16(3, 8, 16)
    d = torch.full((8, 8), POISON)
    with pytest.raises(ArgumentError, match=r"c is bfloat16 .* must be alike"):
        cute_kernels.einsum("bmk,bnk->mn", a, b, d, bf16(8, 8))
    with pytest.raises(ArgumentError, match=r"d is float32 \[8, 8\].* takes bfloat16 or float32 \[8, 9\]"):
        cute_kernels.einsum("bmk,bnk->mn", a, bf16(3, 9, 16), d)
    assert not device.launches
    assert bool((d == POISON).all())


def fp8(
    batch: int, mn: int, k: int, order: tuple[int, int, int] = (0, 1, 2)
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Zeros [batch, MN, K], its dimensions permuted; scale factors)."""
    elements = torch.zeros(batch, mn, k).to(torch.float8_e4m3fn).permute(order).contiguous()
    return elements, scale_factors.pack(torch.zeros(batch, mn, -(-k // 128), dtype=torch.uint8))


def scaled(**changed: Any) -> dict[str, Any]:
    return given(**{"a": fp8(H, B, 32, (1, 0, 2)), "b": fp8(H, D, 32), **changed})


GRADIENT: dict[str, Any] = {
    "expression": "bhd,bhr->hdr",
    "a": fp8(H, D, B, (2, 0, 1)),
    "b": fp8(H, 32, B, (2, 0, 1)),
}
FP8_CASES = {
    "one in FP8": (scaled(b=bf16(H, D, 32)), r"a is float8_e4m3fn .* both in BF16 or both in FP8"),
    "no scale factors": (
        scaled(a=fp8(H, B, 32, (1, 0, 2))[0]),
        "einsum takes bfloat16 .* or float8_e4m3fn with",
    ),
    "three parts": (scaled(a=(*fp8(H, B, 32, (1, 0, 2)), torch.zeros(1))), "einsum takes bfloat16"),
    "scales' dtype": (
        scaled(a=(fp8(H, B, 32, (1, 0, 2))[0], torch.zeros(H, B, 1).half())),
        r"a is float8.* with float16 \[2, 4, 1\].* einsum takes bfloat16 .*pack_for_kernel\(\)",
    ),
    "scales of another K": (scaled(b=(fp8(H, D, 32)[0], fp8(H, D, 640)[1])), r"b's scale factors have shape"),
    "scales of other batches": (
        scaled(b=(fp8(H, D, 32)[0], fp8(H + 1, D, 32)[1])),
        "b's scale factors are .* there are 2 batches",
    ),
    "scales' strides": (
        scaled(b=(fp8(H, D, 640)[0], fp8(H, D, 640)[1].contiguous()), a=fp8(H, B, 640, (1, 0, 2))),
        "b's scale factors of shape .* packed layout is MN-major",
    ),
    "sums": (
        given(expression="bmk,bnk->mn", a=fp8(3, 8, 16), b=fp8(3, 8, 16), d=torch.full((8, 8), POISON)),
        "a and b are FP8; bmk,bnk->mn takes BF16",
    ),
    "c of FP8": (
        given(
            expression="bhd,hdr->bhr",
            a=fp8(H, B, D, (1, 0, 2)),
            b=fp8(H, 32, D, (0, 2, 1)),
            c=torch.zeros(B, H, 32),
            d=torch.full((B, H, 32), POISON),
        ),
        "c is given; bhd,hdr->bhr of FP8 takes none",
    ),
    "c of another shape": (scaled(c=torch.zeros(B, H, D + 1)), "c is .* they must be alike"),
    "c of another dtype": (scaled(c=bf16(B, H, D)), "c is bfloat16 .* they must be alike"),
    "gradient in BF16": (
        given(**GRADIENT, d=torch.full((H, D, 32), POISON, dtype=torch.bfloat16)),
        "d is bfloat16 .* of FP8 takes float32",
    ),
    "gradient with another C": (
        given(**GRADIENT, d=torch.full((H, D, 32), POISON), c=torch.zeros(H, D, 24)),
        "they must be alike",
    ),
    "FP8 rows": (scaled(a=fp8(H, B, 24, (1, 0, 2)), b=fp8(H, D, 24)), "a has rows or batches 24 bytes apart"),
}


@pytest.mark.parametrize(("call", "message"), FP8_CASES.values(), ids=FP8_CASES.keys())
def test_refusals_of_fp8(device: FakeDevice, call: dict[str, Any], message: str) -> None:
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.einsum(*call.values())
    assert not device.launches
    assert bool((call["d"] == POISON).all())


def test_fp8_by_name(device: FakeDevice) -> None:
    call = scaled()
    with pytest.raises(
        ArgumentError,
        match=r"\(128, 128\) for b, but b has no .* float32; packed scale factors are one a row",
    ):
        cute_kernels.fp8_einsum(**call, recipe=(1, 128, 128))
    with pytest.raises(
        ArgumentError, match=r"64 elements a scale factor; einsum takes 128 \(FP8\) or 32 \(MXFP8\)"
    ):
        cute_kernels.fp8_einsum(**call, recipe=(1, 1, 64))
    with pytest.raises(ArgumentError, match="a and b are BF16; leave it out"):
        cute_kernels.einsum(**given(), recipe=(1, 1, 32))
    with pytest.raises(ArgumentError, match="a is a tensor; fp8_einsum takes pairs"):
        cute_kernels.fp8_einsum(**given())
    c = torch.full((H + 1, D, 32), POISON)
    with pytest.raises(ArgumentError, match="d shares memory with c"):
        cute_kernels.fp8_einsum(**GRADIENT, d=c[1:], c=c[:-1])
    assert not device.launches
