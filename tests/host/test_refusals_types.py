"""Arguments of other types than the operations take, refused by name, with nothing launched.

Numbers that are tensors are refused as well: to read one on the device would be to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu, gemm_entry
from tests.host.gemm_calls import K, M, N, operand

G = 3


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    grouped = [{**gemm_entry(grouping=g), "name": f"by_{g}"} for g in ("indices", "sizes")]
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([gemm_entry(), *grouped])):
        yield device


def groups(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(*rows, K // 2, dtype=torch.uint8), pack(
        torch.full((*rows, K // 32), 127, dtype=torch.uint8)
    )


def fp8(mn: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(mn, 128).to(torch.float8_e4m3fn), pack(torch.full((mn, 1), 127, dtype=torch.uint8))


A, B = operand(M), operand(N)
BF16 = torch.zeros(M, 64, dtype=torch.bfloat16), torch.zeros(N, 64, dtype=torch.bfloat16)
D = torch.zeros(M, N)
SIZES = torch.zeros(G, dtype=torch.int32)
ROWS = torch.zeros(M, dtype=torch.int32)
ALONG_K = (
    torch.zeros(96, 24, dtype=torch.bfloat16),
    torch.zeros(96, 16, dtype=torch.bfloat16),
    torch.zeros(G, 24, 16),
)


def given(operation: Callable[..., object], *arguments: Any, **options: Any) -> Callable[..., Any]:
    """The call with these arguments; not `partial` itself, with which a type checker refuses them too."""
    return partial(operation, *arguments, **options)


plain = given(cute_kernels.gemm_nt, A, B)
split = given(cute_kernels.gemm_nt_skip_head_mid, A, B, head_splits=(32, 32, 64))
indexed = given(cute_kernels.m_grouped_gemm_nt_contiguous, groups(M), groups(G, N), None)
indexed_into = given(cute_kernels.m_grouped_gemm_nt_contiguous, groups(M), groups(G, N))
masked = given(cute_kernels.m_grouped_gemm_nt_masked, groups(G, M), groups(G, N), None)
along_k = cute_kernels.k_grouped_gemm_tn_contiguous
to_mxfp8 = given(cute_kernels.gemm_nt_mxfp8, A, B)

CASES = {
    "two numbers": (given(plain, recipe=(1, 32)), r"recipe is \(1, 32\); it must be \(rows of A, "),
    "a word": (given(plain, recipe="1x1x32"), "recipe is '1x1x32'; it must be"),
    "fractions": (given(plain, recipe=(1, 1, 32.0)), "it must be"),
    "a recipe of A alone": (
        given(cute_kernels.fp8_gemm_nt, fp8(M), fp8(N), D, recipe_a=(1, 128)), "give recipe alone, or the others"),
    "rows of A alone": (
        given(cute_kernels.fp8_gemm_nt, fp8(M), fp8(N), D, recipe_a=(1,), recipe_b=(1, 128)),
        r"recipe_a is \(1,\); it must be \(rows, elements of K\)"),
    "a recipe of groups": (given(indexed, ROWS, recipe=(1, 32)), "it must be"),
    "a recipe of heads": (given(split, recipe=32), "recipe is 32; it must be"),
    "a recipe along K": (given(along_k, *ALONG_K, None, SIZES, recipe=()), r"recipe is \(\); it must be"),
    "a recipe of quantized D": (given(to_mxfp8, recipe=[1, 1]), "it must be"),
    "a recipe of batches": (
        given(cute_kernels.einsum, "bhr,hdr->bhd", *BF16, D, recipe=(1, 1)), "it must be"),
    "d of numpy": (given(plain, D.numpy()), "d is a ndarray; it must be a tensor"),
    "c of numpy": (given(plain, None, D.numpy()), "c is a ndarray; it must be a tensor"),
    "d of heads": (given(split, 5), "d is a int; it must be a tensor"),
    "no d": (given(cute_kernels.fp8_gemm_nt, fp8(M), fp8(N), None), "d is a NoneType; it must be a tensor"),
    "no d in bf16": (given(cute_kernels.bf16_gemm_nt, *BF16, None), "d is a NoneType"),
    "no d of heads": (
        given(cute_kernels.fp8_gemm_nt_skip_head_mid, fp8(M), fp8(N), None, (32, 32, 64)), "d is a NoneType"),
    "no d of groups": (
        given(cute_kernels.m_grouped_fp8_gemm_nt_contiguous, groups(M), groups(G, N), None, ROWS), "d is a NoneType"),
    "no d of masked groups": (
        given(cute_kernels.m_grouped_fp8_gemm_nt_masked, groups(G, M), groups(G, N), None, SIZES, 4),
        "d is a NoneType"),
    "no d along K": (given(along_k, *ALONG_K[:2], None, None, SIZES), "d is a NoneType"),
    "busy by half": (given(plain, busy_sms=1.5), "busy_sms is 1.5; it must be an integer"),
    "no indices": (given(indexed, None), "m_indices is a NoneType; it must be a tensor"),
    "indices in a list": (given(indexed, [0] * M), "m_indices is a list"),
    "an alignment of floats": (given(indexed, ROWS, alignment=128.0), "alignment is 128.0; it must be an integer"),
    "a hint on the device": (
        given(masked, SIZES, torch.tensor(4)), r"expected_m is tensor\(4\); it must be an integer, on the host"),
    "no hint": (given(masked, SIZES, None), "expected_m is None; it must be an integer"),
    "a hint of words": (
        given(indexed, SIZES, use_psum_layout=True, expected_m_for_psum_layout="4"), "_psum_layout is '4'; it must"),
    "sizes in a list": (given(masked, [1, 2, 3], 4), "masked_m is a list; it must be a tensor"),
    "lengths on the device": (given(along_k, *ALONG_K, SIZES, SIZES), "ks is a tensor; it is a list"),
    "lengths of tensors": (given(along_k, *ALONG_K, list(SIZES), SIZES), "a length of ks is tensor"),
    "lengths of floats": (given(along_k, *ALONG_K, [32.0, 0.0, 64.0], SIZES), "a length of ks is 32.0"),
    "no lengths": (given(along_k, *ALONG_K, None, None), "ks_tensor is a NoneType; it must be a tensor"),
    "one output": (given(to_mxfp8, D), "out is a Tensor; it is a pair, D and its scale factors"),
    "half a pair": (given(to_mxfp8, (D,)), "out is 1 of them; it is a pair"),
    "a pair of None": (given(to_mxfp8, (None, None)), "d is a NoneType; it must be a tensor"),
    "one output of groups": (
        given(cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8, fp8(M), fp8(M), D, ROWS), "out is a Tensor; it is"),
}  # fmt: skip

# Tensors whose memory does not hold their elements: sparse ones, and those that are to be negated when they are read.
NEGATED = torch._neg_view
DIFFERENT = {
    "sparse a": (given(cute_kernels.gemm_nt, (A[0].to_sparse(), A[1]), B), r"a has the layout torch\.sparse_coo"),
    "sparse scales": (
        given(cute_kernels.gemm_nt, A, (B[0], B[1].to_sparse())), "b's scale factors has the layout .* be dense"),
    "sparse d": (given(plain, D.to_sparse()), "d has the layout"),
    "sparse c": (given(plain, None, D.to_sparse()), "c has the layout"),
    "sparse d of groups": (given(indexed_into, D.bfloat16().to_sparse(), ROWS), "d has the layout"),
    "sparse indices": (given(indexed, ROWS.to_sparse()), "m_indices has the layout"),
    "sparse groups": (
        given(cute_kernels.m_grouped_gemm_nt_contiguous, groups(M), (groups(G, N)[0].to_sparse(), groups(G, N)[1]),
                None, ROWS), "b has the layout"),
    "sparse along K": (
        given(along_k, ALONG_K[0].to_sparse(), *ALONG_K[1:], None, SIZES), "a has the layout"),
    "sparse flat": (
        given(cute_kernels.k_grouped_gemm_nt_contiguous, ALONG_K[0].flatten().to_sparse(), ALONG_K[1].flatten(),
                ALONG_K[2], None, SIZES), "a has the layout"),
    "sparse batches": (
        given(cute_kernels.einsum, "bhr,hdr->bhd", BF16[0].to_sparse(), BF16[1], D), "a has the layout"),
    "negative a": (given(cute_kernels.gemm_nt, NEGATED(BF16[0]), BF16[1]), "a has the negative bit"),
    "negative b": (given(cute_kernels.bf16_gemm_nt, BF16[0], NEGATED(BF16[1]), D), "b has the negative bit"),
    "negative scales": (
        given(cute_kernels.fp8_gemm_nt, (fp8(M)[0], NEGATED(torch.ones(M, 1))), fp8(N), D),
        "a's scale factors has the negative bit: .*resolve_neg"),
    "negative d": (given(plain, NEGATED(D)), "d has the negative bit"),
    "negative c": (given(plain, None, NEGATED(D)), "c has the negative bit"),
    "negative sizes": (given(masked, NEGATED(SIZES), 4), "masked_m has the negative bit"),
    "negative d of groups": (given(indexed_into, NEGATED(D.bfloat16()), ROWS), "d has the negative bit"),
    "negative c along K": (
        given(along_k, *ALONG_K, None, SIZES, NEGATED(ALONG_K[2])), "c has the negative bit"),
    "negative c of batches": (
        given(cute_kernels.einsum, "bhr,hdr->bhd", *BF16, D, NEGATED(D)), "c has the negative bit"),
    "conjugate d": (given(plain, D.to(torch.complex64).conj()), "d has the conjugate bit"),
    "sparse x": (
        given(cute_kernels.w4a16_gemm_nt, torch.zeros(2, 3, 128, dtype=torch.bfloat16).to_sparse(), None),
        "x has the layout"),
    "sparse codes": (
        given(cute_kernels.nvfp4_repack, A[0].to_sparse(), torch.zeros(M, K // 16).to(torch.float8_e4m3fn), 1.0),
        "codes has the layout"),
    "negative out of values": (
        given(cute_kernels.nvfp4_dequantize, A[0], torch.zeros(M, K // 16).to(torch.float8_e4m3fn), torch.ones(1),
                NEGATED(torch.zeros(M, K, dtype=torch.bfloat16))), "out has the negative bit"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_memory_that_does_not_hold_the_elements(
    device: FakeDevice, call: Callable[[], object], message: str
) -> None:
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            call()
    assert not device.launches


def test_a_negative_d_after_another(device: FakeDevice) -> None:
    """D is no part of what a call of the same shapes is remembered by."""
    d = D.bfloat16()
    plain(d)
    with pytest.raises(ArgumentError, match="d has the negative bit"):
        plain(NEGATED(d))
    assert len(device.launches) == 1


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_types(device: FakeDevice, call: Callable[[], object], message: str) -> None:
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(ArgumentError, match=message):
            call()
    assert not device.launches


def test_numbers_of_numpy_are_numbers(device: FakeDevice) -> None:
    plain(busy_sms=np.int64(1), recipe=(np.int32(1), 1, 32))
    assert len(device.launches) == 1
