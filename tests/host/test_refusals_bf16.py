"""What the BF16 GEMMs and the transposed layouts refuse, with nothing launched and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu
from tests.host.gemm_calls import POISON, operand

M, N, K = 128, 96, 64
LAYOUTS = ("nt", "nn", "tn", "tt")


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.bfloat16)


def refused(device: FakeDevice, message: str, call: Callable[[], object], d: torch.Tensor) -> None:
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            call()
    assert not device.launches
    assert bool((d == POISON).all())


def fresh(m: int = M, n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((m, n), POISON, dtype=dtype)


CASES = {
    "k differs": (bf16(M, K), bf16(N, K + 8), "so K = 64, but b is .* so K = 72"),
    "fp16": (
        bf16(M, K),
        torch.zeros(N, K, dtype=torch.float16),
        "b is torch.float16; bf16_gemm takes bfloat16",
    ),
    "a pair": (bf16(M, K), operand(N, K), "b is tuple; bf16_gemm takes bfloat16"),
    "three dimensions": (bf16(1, M, K), bf16(N, K), r"a is bfloat16 \[1, 128, 64\].* two dimensions"),
    "strided": (bf16(M, 2 * K)[:, ::2], bf16(N, K), "a is .* last dimension must be contiguous"),
    "rows": (bf16(M, K + 4)[:, :K], bf16(N, K), "a is .* rows are 136 bytes apart"),
    "lines": (bf16(M, K), bf16(K, N + 4)[:, :N].t(), "b, transposed, is .* rows are 200 bytes apart"),
    "address": (bf16(M * K + 4)[4:].view(M, K), bf16(N, K), "a starts at address .* multiples of 16 bytes"),
    "device": (bf16(M, K).to("meta"), bf16(N, K), "different devices: a on meta"),
}


@pytest.mark.parametrize(
    ("scheduling", "a", "b", "with_c"),
    [
        ("dynamic", bf16(M, K), bf16(N, K), False),
        ("clc", bf16(M, K), bf16(N, K), True),
        ("clc", bf16(M, K), bf16(K, N).t(), False),
        ("clc", operand(M, K), operand(N, K), True),
        ("dynamic", bf16(M, 0), bf16(N, 0), False),
    ],
)
def test_an_order_of_tiles_that_no_kernel_has(
    device: FakeDevice, scheduling: str, a: Any, b: Any, with_c: bool
) -> None:
    d = fresh()

    def call() -> None:
        cute_kernels.gemm_nt(a, b, d, d if with_c else None, scheduling=scheduling)

    refused(device, f"scheduling is '{scheduling}' for gemm_.* without c. Leave it out", call, d)


@pytest.mark.parametrize(
    ("busy_sms", "message"),
    [
        (-1, "busy_sms is -1; it is a number of"),
        (1000, r"busy_sms is 1000, and the device has \d+; leave some"),
    ],
)
def test_busy_multiprocessors(device: FakeDevice, busy_sms: int, message: str) -> None:
    d = fresh()
    call: dict[str, Any] = {"scheduling": "auto", "busy_sms": busy_sms}
    refused(device, message, lambda: cute_kernels.gemm_nt(bf16(M, K), bf16(N, K), d, **call), d)


@pytest.mark.parametrize(("a", "b", "message"), CASES.values(), ids=CASES.keys())
def test_operands(device: FakeDevice, a: Any, b: Any, message: str) -> None:
    d = fresh()
    refused(device, message, lambda: cute_kernels.bf16_gemm_nt(a, b, d), d)


def test_outputs(device: FakeDevice) -> None:
    a, b, d = bf16(M, K), bf16(N, K), fresh()
    refused(
        device, "c is float32 .* this call", lambda: cute_kernels.bf16_gemm_nt(a, b, d, fresh(M, N + 8)), d
    )
    refused(device, "c is bfloat16 .* this call", lambda: cute_kernels.bf16_gemm_nt(a, b, d, bf16(M, N)), d)
    half = fresh(dtype=torch.float16)
    refused(device, "d is to be float16; supported", lambda: cute_kernels.bf16_gemm_nt(a, b, half), half)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("gemm", ["gemm", "fp8_fp4_gemm"])
def test_fp4_that_is_not_k_major(device: FakeDevice, gemm: str, layout: str) -> None:
    def given(pair: tuple[torch.Tensor, torch.Tensor], transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        elements, scales = pair
        return (elements.t().contiguous(), scales.t()) if transposed else pair

    d = fresh()
    a, b = given(operand(M, K), layout[0] == "t"), given(operand(N, K), layout[1] == "n")
    call = getattr(cute_kernels, f"{gemm}_{layout}")
    refused(device, "MN-major. MXFP4 must be K-major .* share a byte; unpack", lambda: call(a, b, d), d)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_vector(device: FakeDevice, layout: str) -> None:
    d = fresh()
    refused(device, "dimensions", lambda: getattr(cute_kernels, f"gemm_{layout}")(bf16(K), bf16(K), d), d)
