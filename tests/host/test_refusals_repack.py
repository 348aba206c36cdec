"""Calls that nvfp4_repack refuses: each says what is wrong, and nothing is launched or written."""

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

N, K = 40, 272
POISON = 77


class Call:
    """A call that would be fine; tests spoil one thing."""

    def __init__(self) -> None:
        self.codes: Any = torch.zeros(N, K // 2, dtype=torch.uint8)
        self.scales: Any = torch.ones(N, K // 16).to(torch.float8_e4m3fn)
        self.global_scale: Any = torch.ones(1)
        self.out: Any = torch.full((3, 3, 1152), POISON, dtype=torch.uint8)

    def __call__(self) -> Any:
        return cute_kernels.nvfp4_repack(self.codes, self.scales, self.global_scale, self.out)


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
    if call.out is not None and call.out.device.type == "cpu" and call.out.dtype == torch.uint8:
        assert (call.out[0, 0] == POISON).all()


def test_gpu_and_emulator_get_the_same_bytes(
    call: Call, device: FakeDevice, driver: FakeDriver, on_cpu: OnCpu, folder: MakeFolder
) -> None:
    assert call().data is call.out
    with on_cpu(GpuBackend(0, driver, lambda _: 0), folder()):
        assert call().data is call.out
    (emulated,), (on_gpu,) = device.launches, driver.launches
    pointers = [struct.pack("<Q", t.data_ptr()) for t in (call.codes, call.scales, call.out)]
    assert emulated.params == on_gpu.params == [*pointers, struct.pack("<i", N), struct.pack("<i", K // 16)]
    assert emulated.grid == on_gpu.grid == (3, 1, 1)


def test_the_grid_covers_experts_and_units(call: Call, device: FakeDevice) -> None:
    call.codes = torch.zeros(5, 33, 1032, dtype=torch.uint8)
    call.scales = torch.ones(5, 33, 129).to(torch.float8_e4m3fn)
    call.global_scale, call.out = torch.ones(5), None
    weight = call()
    assert (weight.shape, weight.data.shape) == ((5, 33, 2064), (5, 3, 17, 1152))
    assert device.launches[-1].grid == (9, 5, 1)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("codes", torch.zeros(N, 20, dtype=torch.uint8), "K is 40 .*must be a multiple of 16"),
        ("codes", torch.zeros(N, K // 2), "codes are float32.*supported are uint8, int8"),
        ("codes", [1, 2], "codes is a list; it must be a tensor"),
        ("codes", torch.zeros(2 * N, K // 2, dtype=torch.uint8)[::2], "codes is .*must be contiguous"),
        ("codes", torch.zeros(N * K // 2 + 8, dtype=torch.uint8)[4:-4].view(N, -1), "a multiple of 8 bytes"),
        ("scales", torch.ones(N, K // 16), r"scales are float32.*take float8_e4m3fn \[40, 17\]"),
        ("scales", torch.ones(N, 16).to(torch.float8_e4m3fn), r"take float8_e4m3fn \[40, 17\]"),
        ("scales", torch.ones(17, N).to(torch.float8_e4m3fn).T, "scales is .*must be contiguous"),
        ("scales", torch.ones(N, 17, device="meta").to(torch.float8_e4m3fn), "different devices"),
        ("global_scale", torch.ones(2), r"\[40, 272\] takes float32 of one element"),
        ("global_scale", torch.ones(1, dtype=torch.float64), "global_scale is float64"),
        ("global_scale", torch.ones(1, device="meta"), "different devices"),
        ("out", torch.full((3, 3, 1152), POISON, dtype=torch.int8), r"this call takes uint8 \[3, 3, 1152\]"),
        ("out", torch.full((3, 2, 1152), POISON, dtype=torch.uint8), r"this call takes uint8 \[3, 3, 1152\]"),
        ("out", torch.full((3, 6, 1152), POISON, dtype=torch.uint8)[:, ::2], "out is .*must be contiguous"),
        (
            "out",
            torch.full((9 * 1152 + 16,), POISON, dtype=torch.uint8)[8:-8].view(3, 3, -1),
            "out starts at .*multiple of 16 bytes",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(call: Call, device: FakeDevice, name: str, given: Any, message: str) -> None:
    setattr(call, name, given)
    refused(call, device, message)


def test_too_many_experts(call: Call, device: FakeDevice) -> None:
    call.codes = torch.zeros(65536, 1, 8, dtype=torch.uint8)
    call.scales, call.out = torch.ones(65536, 1, 1).to(torch.float8_e4m3fn), None
    refused(call, device, "there are 65536 experts; at most 65535")


def test_out_shares_memory_with_the_codes(call: Call, device: FakeDevice) -> None:
    memory = torch.full((3 * 3 * 1152,), POISON, dtype=torch.uint8)
    call.out, call.codes = memory.view(3, 3, 1152), memory[2048 : 2048 + N * K // 2].view(N, K // 2)
    refused(call, device, "out shares memory with codes")


def test_an_architecture_without_the_kernel(
    call: Call, device: FakeDevice, on_cpu: OnCpu, folder: MakeFolder
) -> None:
    with on_cpu(EmulatorBackend("sm_75", device=device), folder()):
        refused(call, device, "nvfp4_repack has no kernel for sm_75", KernelNotFoundError)
