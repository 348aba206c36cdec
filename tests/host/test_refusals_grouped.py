"""What grouped products refuse, with nothing launched and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError, KernelNotFoundError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu, gemm_entry

G, M, N, K = 3, 256, 96, 288
POISON = 77.0


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    entries = []
    for grouping in ("indices", "sizes"):
        name = f"by_{grouping}"
        entries.append({**gemm_entry(grouping=grouping), "name": name})
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder(entries)):
        yield device


def operand(*rows: int, k: int = K, block: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.full((*rows, -(-k // block)), 127, dtype=torch.uint8)
    return torch.zeros(*rows, k // 2, dtype=torch.uint8), pack(scales)


def nvfp4(*rows: int, factors: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *operand(*rows, block=16), torch.ones(factors)


def poisoned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full(shape, POISON, dtype=dtype)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


GivenCall = tuple[Callable[..., Any], dict[str, Any]]  # an operation, and its arguments by name


def contiguous(**changed: Any) -> GivenCall:
    call = {
        "a": operand(M),
        "b": operand(G, N),
        "d": poisoned(M, N),
        "grouped_layout": torch.zeros(M, dtype=torch.int32),
    }
    return cute_kernels.m_grouped_gemm_nt_contiguous, {**call, **changed}


def prefix(**changed: Any) -> GivenCall:
    return contiguous(**{"grouped_layout": int32(5, 133, 200), "use_psum_layout": True, **changed})


def masked(**changed: Any) -> GivenCall:
    call = {
        "a": operand(G, M),
        "b": operand(G, N),
        "d": poisoned(G, M, N),
        "masked_m": int32(1, 0, 9),
        "expected_m": 4,
    }
    return cute_kernels.m_grouped_gemm_nt_masked, {**call, **changed}


def scales_apart(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    elements, words = operand(*rows)
    wide = torch.zeros(2 * rows[0], words.shape[2], rows[1], dtype=torch.int32)
    return elements, wide[::2].mT


CASES = {
    "a of groups": (contiguous(a=operand(G, M)), r"a has uint8 \[3, 256, 144\].* must be matrices"),
    "b without groups": (contiguous(b=operand(N)), r"b has uint8 \[96, 144\].* must be \[groups, rows, columns\]"),
    "no group": (contiguous(b=operand(0, N)), "b has uint8 .* one at least"),
    "no tensor": (contiguous(b=3), "b is a int; an operand is a pair of tensors"),
    "scales of fewer groups": (contiguous(b=(operand(G, N)[0], operand(2, N)[1])), "b has int32 .* as many groups"),
    "k differs": (contiguous(b=operand(G, N, k=320)), "so K = 288, but b.* so K = 320"),
    "n of zero": (contiguous(b=operand(G, 0), d=poisoned(M, 0)), "N is 0 and K 288; neither may be 0"),
    "rows of ragged n": (contiguous(b=operand(G, 100), d=poisoned(M, 100)), "d is .* rows are 200 bytes apart"),
    "scales": (contiguous(a=(operand(M)[0], operand(M + 4)[1])), "a's scale factors have shape"),
    "scales of a group": (masked(b=scales_apart(G, N)), "b's scale factors are .* those of a group must follow"),
    "mn-major": (contiguous(b=(operand(G, N)[0].mT.contiguous().mT, operand(G, N)[1])), r"b\[0\] is .* MN-major"),
    "bf16 with mxfp4": (contiguous(a=torch.zeros(M, K, dtype=torch.bfloat16)), "a is BF16 and b is MXFP4"),
    "bf16": (
        (cute_kernels.m_grouped_bf16_gemm_nt_masked, masked()[1]),
        "a is tuple; bf16_gemm takes bfloat16 tensors",
    ),
    "fp4 by columns": (
        (cute_kernels.m_grouped_gemm_nn_contiguous, contiguous(b=tuple(t.mT.contiguous() for t in operand(G, N)))[1]),
        "MN-major. MXFP4 must be K-major",
    ),
    "a matrix by columns": (
        (cute_kernels.m_grouped_gemm_nn_contiguous, contiguous(b=operand(N))[1]),
        "b has 2 dimensions; this operation takes 3 of them",
    ),
    "global scales": (contiguous(a=nvfp4(M), b=nvfp4(G, N, factors=2)), "b's global scale is .* or 3, one a group"),
    "recipe": (contiguous(recipe=(1, 128, 32)), r"recipe is \(1, 32\) for a and \(128, 32\) for b"),
    "d's shape": (contiguous(d=poisoned(M, N + 8)), r"d is bfloat16 .* takes bfloat16 \[256, 96\]"),
    "d's dtype": (contiguous(d=poisoned(M, N, dtype=torch.float32)), "d is float32 .* takes bfloat16"),
    "d's rows": (contiguous(d=poisoned(M, N + 4)[:, :N]), "d is .* rows are 200 bytes apart"),
    "d's columns": (contiguous(d=poisoned(N, M).t()), "d is .* last dimension must be contiguous"),
    "d's matrices": (masked(d=poisoned(M, G, N).transpose(0, 1)), "d is .* matrices are 192 bytes apart"),
    "layout's dtype": (contiguous(grouped_layout=torch.zeros(M)), r"m_indices is float32 .* int32 \[256\]"),
    "layout's length": (contiguous(grouped_layout=int32(1, 2, 3)), r"m_indices is int32 \[3\].* int32 \[256\]"),
    "layout's stride": (
        contiguous(grouped_layout=torch.zeros(2 * M, dtype=torch.int32)[::2]),
        r"m_indices is .* contiguous int32 \[256\]",
    ),
    "layout's device": (contiguous(grouped_layout=int32(5).to("meta")), "different devices: .* m_indices on meta"),
    "alignment of none": (contiguous(alignment=0), "alignment is 0; it must be positive"),
    "ends between scale words": (prefix(alignment=6), "alignment is 6; groups must begin at multiples of 4 rows"),
    "expected": (contiguous(expected_m_for_psum_layout=4), "expected_m_for_psum_layout is 4 and use_psum_layout False"),
    "expected none": (prefix(expected_m_for_psum_layout=0), "expected_m_for_psum_layout is 0 .* must be positive"),
    "ends": (prefix(grouped_layout=int32(5, 133)), r"grouped_layout is int32 \[2\].* int32 \[3\]"),
    "masked_m": (masked(masked_m=int32(1, 2)), r"masked_m is int32 \[2\].* int32 \[3\]"),
    "expected_m": (masked(expected_m=0), "expected_m is 0; it must be positive, and is a hint only"),
    "groups differ": (masked(a=operand(2, M), d=poisoned(2, M, N)), "a holds 2 matrices and b 3"),
    "d of one matrix": (masked(d=poisoned(M, N)), r"d is .* takes bfloat16 \[3, 256, 96\]"),
}  # fmt: skip


def refused(
    device: FakeDevice, call: GivenCall, message: str, error: type[Exception] = ArgumentError
) -> None:
    operation, arguments = call
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(error, match=message):
            operation(**arguments)
    assert not device.launches
    assert bool((arguments["d"] == POISON).all())


@pytest.mark.parametrize(("call", "message"), CASES.values(), ids=CASES.keys())
def test_operands(device: FakeDevice, call: GivenCall, message: str) -> None:
    refused(device, call, message)


def test_rows_of_a_tile_are_of_one_group(device: FakeDevice) -> None:
    call = contiguous(alignment=64)
    refused(device, call, "groups begin at multiples of 64, tiles have 128 rows", KernelNotFoundError)


@pytest.mark.parametrize("kind", [contiguous, prefix, masked])
def test_d_over_an_input(device: FakeDevice, kind: Callable[[], GivenCall]) -> None:
    operation, arguments = kind()
    d = arguments["d"]
    size = d.shape[-2] * K // 2
    elements = d.view(torch.uint8).flatten()[: size * (G if d.dim() == 3 else 1)].view(*d.shape[:-1], K // 2)
    call = operation, {**arguments, "a": (elements, arguments["a"][1])}
    refused(device, call, "d shares memory with a .* Give another d")


def test_d_over_the_layout(device: FakeDevice) -> None:
    operation, arguments = masked()
    layout = arguments["d"].view(torch.int32).flatten()[:G]
    refused(device, (operation, {**arguments, "masked_m": layout}), "d shares memory with the layout")
