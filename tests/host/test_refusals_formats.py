"""Formats that gemm_nt refuses together, and what NVFP4 and FP8 need beyond MXFP4."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from cute_kernels import ops
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu
from tests.host.gemm_calls import Call, K, M, N, operand, refused


@pytest.fixture
def call() -> Call:
    return Call()


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


MakeOperand = Callable[[int], tuple[torch.Tensor, ...]]  # of this many rows


def nvfp4(mn: int, k: int = K) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = pack(torch.full((mn, -(-k // 16)), 56, dtype=torch.uint8))
    return torch.zeros(mn, k // 2, dtype=torch.uint8), scales, torch.ones(())


def fp8(mn: int, k: int = K, granularity: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    scales = pack(torch.full((mn, -(-k // granularity)), 127, dtype=torch.uint8))
    return torch.zeros(mn, k).to(torch.float8_e4m3fn), scales


@pytest.mark.parametrize(("a", "b"), [(nvfp4, operand), (operand, nvfp4), (fp8, nvfp4)])
def test_formats_that_do_not_go_together(
    call: Call, device: FakeDevice, a: MakeOperand, b: MakeOperand
) -> None:
    call.a, call.b = a(M), b(N)
    refused(call, device, "a is .* and b is .*; supported are MXFP4 x MXFP4, NVFP4 x NVFP4, FP8 x FP8, MXFP8")


@pytest.mark.parametrize(
    "factor", [torch.ones(2), torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.bfloat16)]
)
def test_global_scales_that_are_not_one_float32(call: Call, device: FakeDevice, factor: torch.Tensor) -> None:
    call.a, call.b = nvfp4(M), (*nvfp4(N)[:2], factor)
    refused(call, device, "b's global scale is .*takes one float32")


def test_a_global_scale_elsewhere(call: Call, device: FakeDevice) -> None:
    call.a, call.b = nvfp4(M), (*nvfp4(N)[:2], torch.ones((), device="meta"))
    refused(call, device, "different devices: .*b's global scale on meta")


def test_nvfp4_scales_in_the_place_of_mxfp4_s(call: Call, device: FakeDevice) -> None:
    call.a, call.b = nvfp4(M)[:2], nvfp4(N)[:2]
    refused(call, device, r"a's scale factors have shape \(128, 5\).*\[..., 128, 3\]")


def test_k_of_nvfp4_not_a_multiple_of_16(call: Call, device: FakeDevice) -> None:
    call.a, call.b = nvfp4(M, 40), nvfp4(N, 40)
    refused(call, device, r"K is 40; NVFP4 needs a multiple of 16\. Pad")


def mn_major(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pair[0].t().contiguous().t(), pair[1]


@pytest.mark.parametrize("granularity", [32, 128])
@pytest.mark.parametrize("fp8_first", [False, True])
def test_mn_major_fp8_beside_mxfp4(call: Call, device: FakeDevice, fp8_first: bool, granularity: int) -> None:
    k = 256
    pair = mn_major(fp8(M if fp8_first else N, k, granularity)), operand(N if fp8_first else M, k)
    call.a, call.b = pair if fp8_first else pair[::-1]
    if granularity == 32:
        call.options["recipe"] = (1, 1, 32)
    name = "a" if fp8_first else "b"
    refused(call, device, rf"{name} is float8_e4m3fn .* MN-major\. M?X?FP8 must be K-major .* beside MXFP4")


@pytest.mark.parametrize("which", ["a", "b"])
def test_lines_of_mn_major_fp8_that_tma_cannot_take(call: Call, device: FakeDevice, which: str) -> None:
    call.a, call.b = fp8(M), fp8(N)
    elements, scales = getattr(call, which)
    wide = torch.zeros(K, elements.shape[0] + 8).to(elements.dtype)
    setattr(call, which, (wide[:, : elements.shape[0]].t(), scales))
    refused(call, device, rf"{which}, transposed, is float8_e4m3fn .*bytes apart, .* multiples of 16 bytes")


def test_a_granularity_that_the_scales_do_not_have(call: Call, device: FakeDevice) -> None:
    call.a, call.b = fp8(M), fp8(N)
    call.options["recipe"] = (1, 1, 32)
    refused(call, device, r"a's scale factors have shape \(128, 1\).*\[..., 128, 3\]")


@pytest.mark.parametrize(
    ("operands", "recipe", "message"),
    [
        (fp8, (1, 1, 64), "recipe of 64 elements a scale factor; .* FP8 has 2 and 128; MXFP8 has 2 and 32"),
        (operand, (1, 1, 16), "in 2 tensors with a recipe of 16 .* MXFP4 has 2 and 32; NVFP4 has 3 and 16"),
        (fp8, (1, 128, 128), r"the recipe is \(1, 128\) for a and \(128, 128\) for b"),
    ],
)
def test_recipes_that_no_format_has(
    call: Call, device: FakeDevice, operands: MakeOperand, recipe: tuple[int, int, int], message: str
) -> None:
    call.a, call.b = operands(M), operands(N)
    call.options["recipe"] = recipe
    refused(call, device, message)


def test_both_kinds_of_recipe() -> None:
    a, b, d = fp8(M), fp8(N), torch.zeros(M, N)
    with pytest.raises(ValueError, match="give recipe alone"):
        ops.fp8_gemm_nt(a, b, d, None, (1, 1, 128), (1, 128), (1, 128))
