"""What einsum refuses, with nothing launched and nothing written."""

from __future__ import annotations

import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend

B, H, D, R = 4, 2, 16, 24
EXPRESSION = "bhr,hdr->bhd"
POISON = 77.0


@pytest.fixture(autouse=True)
def backend(on_cpu, folder, device):
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def bf16(*shape):
    return torch.zeros(*shape, dtype=torch.bfloat16)


def given(**changed):
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
    "c": (given(c=torch.zeros(B, H, D)), "c is given; bhr,hdr->bhd takes none"),
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
def test_refusals(device, call, message):
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.einsum(*call.values())
    assert not device.launches
    assert bool((call["d"] == POISON).all())


def test_d_over_an_operand(device):
    memory = torch.full((B, H, 2 * R), POISON, dtype=torch.bfloat16)
    a, d = memory[..., :R], memory[..., 8 : 8 + D]
    with pytest.raises(ArgumentError, match="d shares memory with a"):
        cute_kernels.einsum(EXPRESSION, a, bf16(H, D, R), d)
    assert not device.launches


def test_sums(device):
    a, b = bf16(3, 8, 16), bf16(3, 8, 16)
    d = torch.full((8, 8), POISON)
    with pytest.raises(ArgumentError, match=r"c is bfloat16 .* must be alike"):
        cute_kernels.einsum("bmk,bnk->mn", a, b, d, bf16(8, 8))
    with pytest.raises(ArgumentError, match=r"d is float32 \[8, 8\].* takes bfloat16 or float32 \[8, 9\]"):
        cute_kernels.einsum("bmk,bnk->mn", a, bf16(3, 9, 16), d)
    assert not device.launches
    assert bool((d == POISON).all())
