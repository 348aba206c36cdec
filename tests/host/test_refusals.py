"""Operands and cubins that gemm_nt refuses: each error says what is wrong and what to do, and nothing is
launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels import ops
from cute_kernels.runtime import ArgumentError, KernelNotFoundError, ManifestError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, FakeDriver, MakeEntry, MakeFolder, OnCpu
from tests.host.gemm_calls import WORDS, Call, K, M, N, fresh_d, operand, refused


@pytest.fixture
def call() -> Call:
    return Call()


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def test_the_unspoilt_call_is_launched(call: Call, device: FakeDevice) -> None:
    assert call() is call.d
    assert len(device.launches) == 1


@pytest.mark.parametrize("k", [16, 48, 272])
def test_k_not_a_multiple_of_32(call: Call, device: FakeDevice, k: int) -> None:
    call.a, call.b = operand(M, k), operand(N, k)
    refused(call, device, rf"K is {k}; MXFP4 needs a multiple of 32\. Pad")


def test_k_of_a_and_b_differ(call: Call, device: FakeDevice) -> None:
    call.b = operand(N, 320)
    refused(call, device, r"so K = 288, but b is uint8 \[96, 160\].*so K = 320")


def test_sizes_beyond_int32(call: Call, device: FakeDevice) -> None:
    rows = 2**31
    call.a = (torch.zeros(1, K // 2, dtype=torch.uint8).expand(rows, -1), call.a[1][:1].expand(rows, -1))
    with pytest.raises(ArgumentError, match=r"M, N, K are 2147483648, 96, 288; each must be below 2\^31"):
        call()
    assert not device.seen


@pytest.mark.parametrize("which", ["a", "b"])
def test_mn_major_operands(call: Call, device: FakeDevice, which: str) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.t().contiguous().t(), scales))
    refused(call, device, rf"{which} is uint8 .* MN-major\. MXFP4 must be K-major")


@pytest.mark.parametrize("which", ["a", "b"])
def test_elements_that_are_strided_along_k(call: Call, device: FakeDevice, which: str) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.repeat(1, 2)[:, ::2], scales))
    refused(call, device, rf"{which} is .*last dimension must be contiguous")


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32, torch.bool])
def test_wrong_element_dtype(call: Call, device: FakeDevice, which: str, dtype: torch.dtype) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.to(dtype), scales))
    refused(call, device, rf"{which} is .*supported elements are MXFP4 as float4_e2m1fn_x2 or uint8 or int8")


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.int64]
)
def test_wrong_scale_dtype(call: Call, device: FakeDevice, which: str, dtype: torch.dtype) -> None:
    elements, _ = getattr(call, which)
    setattr(call, which, (elements, torch.ones(elements.shape[0], K // 32).to(dtype)))
    refused(call, device, rf"{which}'s scale factors are .*MXFP4 takes int32: .*pack_for_kernel\(\)")


SPOILT_SCALES = {
    "too few rows": lambda sf: sf[:-1],
    "too many words": lambda sf: pack(torch.zeros(sf.shape[0], 4 * WORDS + 1, dtype=torch.uint8)),
    "too few words": lambda sf: sf[:, :-1],
    "row-major": lambda sf: sf.contiguous(),
    "padded columns": lambda sf: torch.zeros(WORDS, sf.shape[0] + 4, dtype=torch.int32).t()[: sf.shape[0]],
    "strided rows": lambda sf: torch.zeros(WORDS, 2 * sf.shape[0], dtype=torch.int32).t()[::2],
}


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize("spoil", SPOILT_SCALES.values(), ids=SPOILT_SCALES.keys())
def test_wrong_scale_layout(call: Call, device: FakeDevice, which: str, spoil: Callable[..., Any]) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, spoil(scales)))
    refused(call, device, rf"{which}'s scale factors .*pack_for_kernel\(\)")


def test_scales_of_odd_rows_without_padding(call: Call, device: FakeDevice) -> None:
    call.a, call.d = operand(127), fresh_d(127)
    call.a = (call.a[0], torch.zeros(WORDS, 127, dtype=torch.int32).t())
    refused(call, device, r"a's scale factors .* have strides \(1, 127\)")


@pytest.mark.parametrize("which", ["a", "b"])
def test_scales_of_other_dimensions(call: Call, device: FakeDevice, which: str) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, scales[None]))
    refused(call, device, rf"{which}'s scale factors is .*matrices of two dimensions")


@pytest.mark.parametrize("which", ["a", "b"])
def test_scales_on_another_device(call: Call, device: FakeDevice, which: str) -> None:
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, scales.to("meta")))
    refused(call, device, rf"different devices: .*{which}'s scale factors on meta.*Move them to one device")


@pytest.mark.parametrize("which", ["a", "b", "c", "d"])
def test_operands_on_different_devices(call: Call, device: FakeDevice, which: str) -> None:
    call.c = fresh_d()
    given = getattr(call, which)
    setattr(
        call, which, given.to("meta") if isinstance(given, torch.Tensor) else (given[0].to("meta"), given[1])
    )
    refused(call, device, rf"different devices: .*{which} on meta")


def test_all_on_an_unsupported_device(call: Call, device: FakeDevice) -> None:
    call.a, call.b = ((e.to("meta"), s.to("meta")) for e, s in (call.a, call.b))
    call.d = call.d.to("meta")
    refused(call, device, "tensors on meta: operations run on CUDA tensors, and on CPU tensors")


@pytest.mark.parametrize("which", ["a", "b"])
def test_element_rows_that_tma_cannot_reach(call: Call, device: FakeDevice, which: str) -> None:
    elements, scales = getattr(call, which)
    mn = elements.shape[0]
    setattr(call, which, (torch.zeros(mn, K // 2 + 8, dtype=torch.uint8)[:, : K // 2], scales))
    refused(call, device, rf"{which} is .*rows are {K // 2 + 8} bytes apart")


@pytest.mark.parametrize("which", ["a", "b", "c", "d"])
def test_misaligned_addresses(call: Call, device: FakeDevice, which: str) -> None:
    call.c = fresh_d()
    given = getattr(call, which)
    tensor = given if isinstance(given, torch.Tensor) else given[0]
    step = 4 // tensor.element_size()
    moved = torch.zeros(tensor.numel() + 16, dtype=tensor.dtype)[step:][: tensor.numel()].view(tensor.shape)
    moved.copy_(tensor)
    setattr(call, which, moved if isinstance(given, torch.Tensor) else (moved, given[1]))
    refused(call, device, rf"{which} starts at address 0x.* TMA takes multiples of 16 bytes only")


@pytest.mark.parametrize("which", ["a", "b"])
def test_misaligned_scales(call: Call, device: FakeDevice, which: str) -> None:
    elements, _ = getattr(call, which)
    mn = elements.shape[0]
    moved = torch.zeros(WORDS * mn + 4, dtype=torch.int32)[1 : 1 + WORDS * mn].view(WORDS, mn).t()
    setattr(call, which, (elements, moved))
    refused(call, device, rf"{which}'s scale factors start at address 0x")


@pytest.mark.parametrize("a", [None, torch.zeros(4, 4), (torch.zeros(4, 4),), (1, 2), "ab"])
def test_operands_that_are_no_pairs(call: Call, device: FakeDevice, a: Any) -> None:
    with pytest.raises(ArgumentError, match=r"an operand is a pair of tensors|supported elements"):
        ops.gemm_nt(a, call.b, call.d)
    assert not device.launches


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120a", "sm_80", "sm_103a"])
def test_an_architecture_without_the_kernel(
    call: Call, device: FakeDevice, on_cpu: OnCpu, folder: MakeFolder, arch: str
) -> None:
    with on_cpu(EmulatorBackend(arch, device=device), folder()):
        refused(
            call, device, rf"no kernel for {arch} in .*cubins, which has it for sm_100a", KernelNotFoundError
        )


def test_a_gpu_without_the_kernel(
    call: Call, on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, device: FakeDevice
) -> None:
    from cute_kernels.runtime.gpu import GpuBackend

    driver.capability = (9, 0)
    with on_cpu(GpuBackend(0, driver, lambda _: 0), folder()):
        refused(call, device, "no kernel for sm_90a", KernelNotFoundError)
    assert not driver.launches
    assert "cuModuleLoadData" not in driver.calls


def test_a_folder_without_the_kernel(
    call: Call, device: FakeDevice, on_cpu: OnCpu, folder: MakeFolder, entry: MakeEntry
) -> None:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([], "empty")):
        refused(
            call,
            device,
            "no kernel for sm_100a in .*empty, which has it for no architecture",
            KernelNotFoundError,
        )
    other = folder([entry(d_dtype="bf16")], "other")
    with on_cpu(EmulatorBackend("sm_100a", device=device), other):
        refused(
            call,
            device,
            r"(?s)no kernel in .*other.*d_dtype is bf16, the problem needs f32",
            KernelNotFoundError,
        )


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
@pytest.mark.parametrize("spoil", [lambda path: path.write_text("other"), lambda path: path.unlink()])
def test_a_damaged_folder(
    call: Call, device: FakeDevice, on_cpu: OnCpu, folder: MakeFolder, kind: str, spoil: Callable[..., Any]
) -> None:
    path = folder(name="damaged")
    spoil(path / "sm_100a" / f"gemm_128_f32.{kind}")
    with on_cpu(EmulatorBackend("sm_100a", device=device), path):
        refused(call, device, rf"gemm_128_f32\.{kind}.*build it again", ManifestError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float4_e2m1fn_x2])
def test_every_packed_dtype_is_taken(call: Call, device: FakeDevice, dtype: torch.dtype) -> None:
    call.a = (call.a[0].view(dtype), call.a[1])
    call.b = (call.b[0].view(dtype), call.b[1])
    assert call() is call.d
    assert [int.from_bytes(p, "little") for p in device.launches[0].params[-3:]] == [M, N, K]


def test_deepgemms_name(call: Call, device: FakeDevice) -> None:
    cute_kernels.fp8_fp4_gemm_nt(call.a, call.b, call.d, recipe=(1, 1, 32))
    cute_kernels.fp8_fp4_gemm_nt(call.a, call.b, call.d, None, recipe_a=(1, 32), recipe_b=(1, 32))
    cute_kernels.fp8_fp4_gemm_nt(call.a, call.b, call.d, call.d)
    assert len(device.launches) == 3
    for options, message in (
        ({"recipe": (1, 128, 128)}, r"the recipe is \(1, 128\) for a and \(128, 128\) for b"),
        ({"recipe_a": (1, 32)}, "give recipe alone, or the others as a pair"),
        ({"recipe": (1, 1, 32), "recipe_a": (1, 32), "recipe_b": (1, 32)}, "give recipe alone"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.fp8_fp4_gemm_nt(call.a, call.b, call.d, **options)
    assert len(device.launches) == 3
