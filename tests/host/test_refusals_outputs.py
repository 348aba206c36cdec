"""C and D that gemm_nt refuses, and those that it takes without a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels import ops
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu
from tests.host.gemm_calls import POISON, Call, K, M, N, fresh_d, operand, refused


@pytest.fixture
def call() -> Call:
    return Call()


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def sharing_memory() -> list[Any]:
    """Return (what shares, call) where D lies over an input."""
    cases = []
    for which in ("a", "b"):
        for part, name in ((0, which), (1, f"{which}'s scale factors")):
            for offset in (0, 16, -16):
                call = Call()
                source = getattr(call, which)[part]
                size = source.nbytes if part == 0 else source.t().contiguous().nbytes
                # Room for a D that starts where the input does, or in its last bytes, or ends in its first.
                start = M * N * 4
                memory = torch.zeros(start + size + M * N * 4, dtype=torch.uint8)
                moved = memory[start : start + size].view(source.dtype)
                moved = moved.view(source.shape) if part == 0 else moved.view(source.shape[::-1]).t()
                moved.copy_(source)
                pair = list(getattr(call, which))
                pair[part] = moved
                setattr(call, which, tuple(pair))
                at = {0: start, 16: start + size - 16, -16: start + 16 - M * N * 4}[offset]
                call.d = memory[at : at + M * N * 4].view(torch.float32).view(M, N)
                cases.append(pytest.param(name, call, id=f"{name} {offset}"))
    return cases


@pytest.mark.parametrize(("name", "call"), sharing_memory())
def test_d_shares_memory_with_an_input(call: Call, device: FakeDevice, name: str) -> None:
    refused(call, device, f"d shares memory with {name} ")


def test_column_slices_of_one_buffer_do_not_share_memory(call: Call, device: FakeDevice) -> None:
    memory = torch.zeros(M, 3 * N)
    call.c, call.d = memory[:, :N], memory[:, 2 * N :]
    assert call() is call.d
    call.c, call.d = memory[:, 2 * N :], memory[:, N : 2 * N]
    assert call() is call.d


def test_c_may_be_d_itself(call: Call, device: FakeDevice) -> None:
    call.c = call.d
    assert call() is call.d
    call.c = call.d.view(M, N)  # another tensor object on the same memory
    assert call() is call.d
    assert len(device.launches) == 2


@pytest.mark.parametrize(
    "views",
    [
        lambda memory: (memory[4:, :N], memory[:-4, :N]),
        lambda memory: (memory[:-4, 4 : N + 4], memory[:-4, :N]),
        lambda memory: (memory.view(-1)[: M * N].view(M, N), memory[:M, :N]),
    ],
)
def test_c_overlaps_d_otherwise(
    call: Call, device: FakeDevice, views: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> None:
    call.c, call.d = views(torch.full((M + 4, 2 * N), POISON))
    refused(call, device, r"d shares memory with c .*Only c may be d, and then as a whole")


NON_CONTIGUOUS = {
    "transposed": (lambda: fresh_d(N, M).t(), "last dimension must be contiguous"),
    "every other column": (lambda: fresh_d(M, 2 * N)[:, ::2], "last dimension must be contiguous"),
    "one row for all": (lambda: fresh_d(1, N).expand(M, N), "its rows overlap"),
    "overlapping rows": (lambda: fresh_d(M, N).as_strided((M, N), (4, 1)), "its rows overlap"),
}


@pytest.mark.parametrize("which", ["c", "d"])
@pytest.mark.parametrize(("make", "message"), NON_CONTIGUOUS.values(), ids=NON_CONTIGUOUS.keys())
def test_non_contiguous_outputs(
    call: Call, device: FakeDevice, which: str, make: Callable[[], torch.Tensor], message: str
) -> None:
    setattr(call, which, make())
    refused(call, device, rf"{which} is float32 \[128, 96\].*{message}")


@pytest.mark.parametrize("which", ["c", "d"])
@pytest.mark.parametrize(
    ("n", "dtype", "padded"), [(1001, torch.bfloat16, 1008), (97, torch.float32, 100), (4, torch.bfloat16, 8)]
)
def test_rows_that_tma_cannot_reach(
    call: Call, device: FakeDevice, which: str, n: int, dtype: torch.dtype, padded: int
) -> None:
    call.b = operand(n)
    call.d = fresh_d(M, padded, dtype)[:, :n]
    call.c = fresh_d(M, padded, dtype)[:, :n]
    setattr(call, which, fresh_d(M, n, dtype))
    refused(
        call, device, rf"{which} is .*rows are {n * dtype.itemsize} bytes apart.*rows of {padded} elements"
    )


def test_allocated_rows_are_padded(call: Call, device: FakeDevice) -> None:
    call.b, call.d = operand(1001), None
    d = call()
    assert (d.shape, d.stride(), d.dtype) == ((M, 1001), (1008, 1), torch.bfloat16)
    assert d.untyped_storage().nbytes() == M * 1008 * 2  # TMA writes whole 16 bytes, of the last row too
    call.b = operand(200)
    assert call().is_contiguous()


def test_a_d_of_ragged_rows_is_written_by_a_copy(call: Call, device: FakeDevice) -> None:
    call.b, wide = operand(1001), fresh_d(M, 1016, torch.bfloat16)
    call.d = call.c = wide[:, :1001]
    assert call() is call.d
    assert (wide[:, 1001:] == POISON).all()
    (launch,) = device.launches
    written = int.from_bytes(launch.params[5][:8], "little")
    assert launch.params[4][:8] == call.c.data_ptr().to_bytes(8, "little")
    assert written != call.d.data_ptr()
    call.b = (wide.view(torch.uint8).view(-1)[: 1001 * K // 2].view(1001, K // 2), call.b[1])
    with pytest.raises(ArgumentError, match="d shares memory with b "):
        call()
    assert len(device.launches) == 1


def test_every_d_is_checked(call: Call, device: FakeDevice) -> None:
    good = call()
    memory = torch.full((M * N + 4,), POISON)
    call.d = memory[1 : 1 + M * N].view(M, N)
    with pytest.raises(ArgumentError, match="d starts at address 0x"):
        call()
    call.b = (good.view(torch.uint8).view(-1)[: N * K // 2].view(N, K // 2), call.b[1])
    call.d = memory[: M * N].view(M, N)
    assert call() is call.d
    call.d = good
    with pytest.raises(ArgumentError, match="d shares memory with b "):
        call()
    assert len(device.launches) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_unsupported_result_dtypes(call: Call, device: FakeDevice, dtype: torch.dtype) -> None:
    call.d = fresh_d(dtype=dtype)
    refused(call, device, r"d is to be .*supported are bfloat16 or float32")
    call.d, call.options = None, {"out_dtype": dtype}
    refused(call, device, r"d is to be .*supported are bfloat16 or float32")


def test_out_dtype_contradicts_d(call: Call, device: FakeDevice) -> None:
    call.options = {"out_dtype": torch.bfloat16}
    refused(call, device, r"out_dtype is torch\.bfloat16, but d is torch\.float32")


@pytest.mark.parametrize("shape", [(M, N + 4), (M - 1, N), (N, M), (M * N,), (1, M, N)])
def test_d_of_the_wrong_shape(call: Call, device: FakeDevice, shape: tuple[int, ...]) -> None:
    call.d = torch.full(shape, POISON)
    refused(call, device, r"d is float32 .*this call takes float32 \[128, 96\]")


@pytest.mark.parametrize(
    "c", [fresh_d(M, N + 4), fresh_d(1, N), fresh_d(dtype=torch.bfloat16), torch.full((N,), POISON)]
)
def test_c_unlike_d(call: Call, device: FakeDevice, c: torch.Tensor) -> None:
    call.c = c
    refused(call, device, r"c is .*this call takes float32 \[128, 96\]")


@pytest.mark.parametrize(("m", "n"), [(0, N), (M, 0), (0, 0)])
def test_empty_results_return_at_once(device: FakeDevice, m: int, n: int) -> None:
    a, b = (
        (torch.zeros(m, K // 2, dtype=torch.uint8), pack(torch.zeros(m, 9, dtype=torch.uint8))),
        (torch.zeros(n, K // 2, dtype=torch.uint8), pack(torch.zeros(n, 9, dtype=torch.uint8))),
    )
    assert ops.gemm_nt(a, b).shape == (m, n)
    d = fresh_d(m, n)
    assert ops.gemm_nt(a, b, d) is d
    assert ops.gemm_nt(a, b, d, d) is d
    assert not device.launches


def test_empty_results_need_no_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cute_kernels.runtime.context._settings, "emulation", None)
    monkeypatch.delenv("CUTE_KERNELS_ARCH", raising=False)
    ops._gemm_requests.clear()
    a, b = operand(M), (torch.zeros(0, K // 2, dtype=torch.uint8), pack(torch.zeros(0, 9, dtype=torch.uint8)))
    assert ops.gemm_nt(a, b).shape == (M, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_k_of_zero_gives_c_or_zeros(device: FakeDevice, dtype: torch.dtype) -> None:
    a, b = operand(M, 0), operand(N, 0)
    c = torch.randn(M, N, generator=torch.Generator().manual_seed(0)).to(dtype)
    d = fresh_d(dtype=dtype)
    assert ops.gemm_nt(a, b, d, c) is d
    assert torch.equal(d, c)
    assert ops.gemm_nt(a, b, d) is d
    assert torch.equal(d, torch.zeros_like(d))
    kept = c.clone()
    assert ops.gemm_nt(a, b, c, c) is c
    assert torch.equal(c, kept)
    assert torch.equal(ops.gemm_nt(a, b, out_dtype=dtype), torch.zeros_like(d))
    assert not device.launches
