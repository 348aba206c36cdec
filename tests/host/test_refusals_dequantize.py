"""Calls that nvfp4_dequantize refuses: each says what is wrong, and nothing is launched or written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels.runtime import ArgumentError, KernelNotFoundError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.runtime.gpu import GpuBackend
from tests.host.conftest import FakeDevice, FakeDriver, MakeFolder, OnCpu

ROWS, K = 6, 48
POISON = 77.0


class Call:
    """A call that would be fine; tests spoil one thing, with what may be of a wrong type."""

    def __init__(self) -> None:
        self.packed: Any = torch.zeros(ROWS, K // 2, dtype=torch.uint8)
        self.scales: Any = torch.ones(ROWS, K // 16).to(torch.float8_e4m3fn)
        self.global_scale: Any = torch.ones(1)
        self.out: Any = torch.full((ROWS, K), POISON, dtype=torch.bfloat16)

    def __call__(self) -> torch.Tensor:
        return cute_kernels.nvfp4_dequantize(self.packed, self.scales, self.global_scale, self.out)


@pytest.fixture
def call() -> Call:
    return Call()


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def refused(call: Call, device: FakeDevice, message: str, error: type[Exception] = ArgumentError) -> None:
    for _ in range(2):
        with pytest.raises(error, match=message):
            call()
    assert not device.seen
    if call.out is not None and call.out.device.type == "cpu" and call.out.is_floating_point():
        assert (call.out.float() == POISON).all()


def test_gpu_and_emulator_get_the_same_bytes(
    call: Call, device: FakeDevice, driver: FakeDriver, on_cpu: OnCpu, folder: MakeFolder
) -> None:
    assert call() is call.out
    with on_cpu(GpuBackend(0, driver, lambda _: 0), folder()):
        assert call() is call.out
    (emulated,), (on_gpu,) = device.launches, driver.launches
    pointers = [t.data_ptr() for t in (call.packed, call.scales, call.global_scale, call.out)]
    assert (
        emulated.params == on_gpu.params == [struct.pack("<Q", p) for p in pointers] + [struct.pack("<q", 18)]
    )
    assert emulated.grid == on_gpu.grid == (1, 1, 1)
    assert not on_gpu.dependent  # the kernel does not wait for the one before it


def test_a_group_for_each_global_scale(call: Call, device: FakeDevice) -> None:
    call.packed = torch.zeros(3, 100, 64, dtype=torch.uint8)
    call.scales = torch.ones(3, 100, 8).to(torch.float8_e4m3fn)
    call.out = None
    for scales, grid, blocks in ((torch.ones(()), (19, 1, 1), 2400), (torch.ones(3), (7, 3, 1), 800)):
        call.global_scale = scales
        out = call()
        assert (out.shape, out.dtype) == ((3, 100, 128), torch.bfloat16)
        assert device.launches[-1].grid == grid
        assert device.launches[-1].params[-1] == struct.pack("<q", blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float8_e4m3fn])
def test_wrong_packed_dtype(call: Call, device: FakeDevice, dtype: torch.dtype) -> None:
    call.packed = call.packed.to(dtype)
    refused(call, device, "packed is .*supported are uint8, int8 and float4_e2m1fn_x2")


def test_k_not_a_multiple_of_16(call: Call, device: FakeDevice) -> None:
    call.packed = torch.zeros(ROWS, 20, dtype=torch.uint8)
    refused(call, device, "K is 40 .*must be a multiple of 16")


@pytest.mark.parametrize(
    "scales",
    [
        torch.ones(ROWS, 3),
        torch.ones(ROWS, 3, dtype=torch.uint8),
        torch.ones(ROWS, 2).to(torch.float8_e4m3fn),
        torch.ones(ROWS * 3).to(torch.float8_e4m3fn),
        torch.ones(ROWS, 3).to(torch.float8_e8m0fnu),
    ],
)
def test_wrong_scales(call: Call, device: FakeDevice, scales: torch.Tensor) -> None:
    call.scales = scales
    refused(call, device, r"block_scales are .*takes float8_e4m3fn \[6, 3\]")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(1, dtype=torch.float64), "global_scale is float64.*must be float32"),
        (torch.ones(5), r"global_scale is .*takes one scale, or one for each"),
        (torch.ones(ROWS, K), r"global_scale is .*takes one scale, or one for each"),
        (0.5, "global_scale is a float; it must be a tensor, float32 on the device"),
        (torch.ones(1, device="meta"), "different devices: .*global_scale on meta"),
    ],
)
def test_wrong_global_scale(call: Call, device: FakeDevice, scale: Any, message: str) -> None:
    call.global_scale = scale
    refused(call, device, message)


def test_too_many_global_scales(call: Call, device: FakeDevice) -> None:
    call.packed = torch.zeros(65536, 8, dtype=torch.uint8)
    call.scales = torch.ones(65536, 1).to(torch.float8_e4m3fn)
    call.global_scale, call.out = torch.ones(65536), None
    refused(call, device, "there are 65536 global scales; at most 65535")


@pytest.mark.parametrize("name", ["packed", "scales", "global_scale", "out"])
def test_tensors_that_are_not_contiguous(call: Call, device: FakeDevice, name: str) -> None:
    if name == "global_scale":
        call.global_scale = torch.ones(ROWS, 2)[:, 0]
    else:
        given = getattr(call, name)
        setattr(
            call, name, torch.cat([given.view(torch.uint8)] * 2, 1).view(given.dtype)[:, : given.shape[1]]
        )
    refused(call, device, rf"{name} is .*must be contiguous")


@pytest.mark.parametrize(("name", "step", "multiple"), [("packed", 2, 4), ("out", 4, 16)])
def test_misaligned_tensors(call: Call, device: FakeDevice, name: str, step: int, multiple: int) -> None:
    given = getattr(call, name)
    memory = torch.full((given.numel() + 16,), 0 if name == "packed" else POISON).to(given.dtype)
    setattr(call, name, memory[step : step + given.numel()].view(given.shape))
    refused(call, device, rf"{name} starts at address .*must be a multiple of {multiple} bytes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16])
def test_wrong_out_dtype(call: Call, device: FakeDevice, dtype: torch.dtype) -> None:
    call.out = call.out.to(dtype)
    refused(call, device, r"out is .*takes bfloat16 \[6, 48\]")


def test_wrong_out_shape(call: Call, device: FakeDevice) -> None:
    call.out = torch.full((ROWS, K + 16), POISON, dtype=torch.bfloat16)
    refused(call, device, r"out is .*takes bfloat16 \[6, 48\]")


@pytest.mark.parametrize("name", ["packed", "scales", "global_scale"])
def test_out_shares_memory_with_an_input(call: Call, device: FakeDevice, name: str) -> None:
    given = getattr(call, name)
    start = 0 if name == "packed" else 32
    setattr(
        call,
        name,
        call.out.view(torch.uint8).view(-1)[start:][: given.nbytes].view(given.dtype).view(given.shape),
    )
    refused(call, device, "out shares memory with")


@pytest.mark.parametrize("name", ["packed", "scales"])
def test_operands_on_different_devices(call: Call, device: FakeDevice, name: str) -> None:
    setattr(call, name, getattr(call, name).to("meta"))
    refused(call, device, "different devices: ")


def test_an_architecture_without_the_kernel(
    call: Call, device: FakeDevice, on_cpu: OnCpu, folder: MakeFolder
) -> None:
    with on_cpu(EmulatorBackend("sm_75", device=device), folder()):
        refused(call, device, "nvfp4_dequantize has no kernel for sm_75", KernelNotFoundError)


@pytest.mark.parametrize("shape", [(0, 48), (4, 0), (0,), (3, 0, 16)])
def test_nothing_to_do(device: FakeDevice, shape: tuple[int, ...]) -> None:
    *lead, k = shape
    packed = torch.zeros(*lead, k // 2, dtype=torch.uint8)
    scales = torch.zeros(*lead, k // 16).to(torch.float8_e4m3fn)
    assert cute_kernels.nvfp4_dequantize(packed, scales, torch.ones(1)).shape == shape
    assert not device.seen
