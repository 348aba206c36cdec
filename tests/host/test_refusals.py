"""Calls that gemm_nt refuses: each says what is wrong and what to do, and nothing is launched or written."""

from __future__ import annotations

import pytest
import torch

import cute_kernels
from cute_kernels import ops
from cute_kernels.runtime import ArgumentError, KernelNotFoundError, ManifestError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack

M, N, K = 128, 96, 288
WORDS = 3  # scale words along K
POISON = 77.0


def operand(mn, k=K):
    scales = torch.full((mn, -(-k // 32)), 127, dtype=torch.uint8)
    return torch.zeros(mn, k // 2, dtype=torch.uint8), pack(scales)


def fresh_d(m=M, n=N, dtype=torch.float32):
    return torch.full((m, n), POISON, dtype=dtype)


class Call:
    """A call that would be fine; tests spoil one thing."""

    def __init__(self):
        self.a, self.b = operand(M), operand(N)
        self.d = fresh_d()
        self.c = None
        self.options = {}

    def __call__(self):
        return ops.gemm_nt(self.a, self.b, self.d, self.c, **self.options)


@pytest.fixture
def call():
    return Call()


@pytest.fixture(autouse=True)
def backend(on_cpu, folder, device):
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        yield device


def refused(call, device, message, error=ArgumentError):
    """Check that a call is refused with a message, twice, and that it leaves no trace."""
    tensors = [
        t
        for t in (*call.a, *call.b, call.d, call.c)
        if isinstance(t, torch.Tensor) and t.device.type == "cpu"
    ]
    before = [t.clone() for t in tensors]
    for _ in range(2):  # a refusal must not be remembered as something else
        with pytest.raises(error, match=message):
            call()
    assert not device.launches
    assert not device.seen
    for tensor, kept in zip(tensors, before, strict=True):
        assert torch.equal(tensor, kept)


def test_the_unspoilt_call_is_launched(call, device):
    assert call() is call.d
    assert len(device.launches) == 1


@pytest.mark.parametrize("k", [16, 48, 272])
def test_k_not_a_multiple_of_32(call, device, k):
    call.a, call.b = operand(M, k), operand(N, k)
    refused(call, device, rf"K is {k}; MXFP4 needs a multiple of 32\. Pad")


def test_k_of_a_and_b_differ(call, device):
    call.b = operand(N, 320)
    refused(call, device, r"so K = 288, but b is uint8 \[96, 160\].*so K = 320")


def test_sizes_beyond_int32(call, device):
    rows = 2**31
    call.a = (torch.zeros(1, K // 2, dtype=torch.uint8).expand(rows, -1), call.a[1][:1].expand(rows, -1))
    with pytest.raises(ArgumentError, match=r"M, N, K are 2147483648, 96, 288; each must be below 2\^31"):
        call()
    assert not device.seen


@pytest.mark.parametrize("which", ["a", "b"])
def test_mn_major_operands(call, device, which):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.t().contiguous().t(), scales))
    refused(call, device, rf"{which} is uint8 .* MN-major\. MXFP4 must be K-major")


@pytest.mark.parametrize("which", ["a", "b"])
def test_elements_that_are_strided_along_k(call, device, which):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.repeat(1, 2)[:, ::2], scales))
    refused(call, device, rf"{which} is .*last dimension must be contiguous")


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32, torch.bool]
)
def test_wrong_element_dtype(call, device, which, dtype):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements.to(dtype), scales))
    refused(call, device, rf"{which} is .*supported elements are MXFP4 as float4_e2m1fn_x2 or uint8 or int8")


@pytest.mark.parametrize("which", ["a", "b"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.int64]
)
def test_wrong_scale_dtype(call, device, which, dtype):
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
def test_wrong_scale_layout(call, device, which, spoil):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, spoil(scales)))
    refused(call, device, rf"{which}'s scale factors .*pack_for_kernel\(\)")


def test_scales_of_odd_rows_without_padding(call, device):
    call.a, call.d = operand(127), fresh_d(127)
    call.a = (call.a[0], torch.zeros(WORDS, 127, dtype=torch.int32).t())
    refused(call, device, r"a's scale factors .* have strides \(1, 127\)")


@pytest.mark.parametrize("which", ["a", "b"])
def test_scales_of_other_dimensions(call, device, which):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, scales[None]))
    refused(call, device, rf"{which}'s scale factors is .*matrices of two dimensions")


@pytest.mark.parametrize("which", ["a", "b"])
def test_scales_on_another_device(call, device, which):
    elements, scales = getattr(call, which)
    setattr(call, which, (elements, scales.to("meta")))
    refused(call, device, rf"different devices: .*{which}'s scale factors on meta.*Move them to one device")


@pytest.mark.parametrize("which", ["a", "b", "c", "d"])
def test_operands_on_different_devices(call, device, which):
    call.c = fresh_d()
    given = getattr(call, which)
    setattr(
        call, which, given.to("meta") if isinstance(given, torch.Tensor) else (given[0].to("meta"), given[1])
    )
    refused(call, device, rf"different devices: .*{which} on meta")


def test_all_on_an_unsupported_device(call, device):
    call.a, call.b = ((e.to("meta"), s.to("meta")) for e, s in (call.a, call.b))
    call.d = call.d.to("meta")
    refused(call, device, "tensors on meta: operations run on CUDA tensors, and on CPU tensors")


def sharing_memory():
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
def test_d_shares_memory_with_an_input(call, device, name):
    refused(call, device, f"d shares memory with {name} ")


def test_column_slices_of_one_buffer_do_not_share_memory(call, device):
    memory = torch.zeros(M, 3 * N)
    call.c, call.d = memory[:, :N], memory[:, 2 * N :]
    assert call() is call.d
    call.c, call.d = memory[:, 2 * N :], memory[:, N : 2 * N]
    assert call() is call.d


def test_c_may_be_d_itself(call, device):
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
def test_c_overlaps_d_otherwise(call, device, views):
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
def test_non_contiguous_outputs(call, device, which, make, message):
    setattr(call, which, make())
    refused(call, device, rf"{which} is float32 \[128, 96\].*{message}")


@pytest.mark.parametrize("which", ["c", "d"])
@pytest.mark.parametrize(
    ("n", "dtype", "padded"), [(1001, torch.bfloat16, 1008), (97, torch.float32, 100), (4, torch.bfloat16, 8)]
)
def test_rows_that_tma_cannot_reach(call, device, which, n, dtype, padded):
    call.b = operand(n)
    call.d = fresh_d(M, padded, dtype)[:, :n]
    call.c = fresh_d(M, padded, dtype)[:, :n]
    setattr(call, which, fresh_d(M, n, dtype))
    refused(
        call, device, rf"{which} is .*rows are {n * dtype.itemsize} bytes apart.*rows of {padded} elements"
    )


def test_allocated_rows_are_padded(call, device):
    call.b, call.d = operand(1001), None
    d = call()
    assert (d.shape, d.stride(), d.dtype) == ((M, 1001), (1008, 1), torch.bfloat16)
    assert d.untyped_storage().nbytes() == M * 1008 * 2  # TMA writes whole 16 bytes, of the last row too
    call.b = operand(200)
    assert call().is_contiguous()


def test_a_d_of_ragged_rows_is_written_by_a_copy(call, device):
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


@pytest.mark.parametrize("which", ["a", "b"])
def test_element_rows_that_tma_cannot_reach(call, device, which):
    elements, scales = getattr(call, which)
    mn = elements.shape[0]
    setattr(call, which, (torch.zeros(mn, K // 2 + 8, dtype=torch.uint8)[:, : K // 2], scales))
    refused(call, device, rf"{which} is .*rows are {K // 2 + 8} bytes apart")


@pytest.mark.parametrize("which", ["a", "b", "c", "d"])
def test_misaligned_addresses(call, device, which):
    call.c = fresh_d()
    given = getattr(call, which)
    tensor = given if isinstance(given, torch.Tensor) else given[0]
    step = 4 // tensor.element_size()
    moved = torch.zeros(tensor.numel() + 16, dtype=tensor.dtype)[step:][: tensor.numel()].view(tensor.shape)
    moved.copy_(tensor)
    setattr(call, which, moved if isinstance(given, torch.Tensor) else (moved, given[1]))
    refused(call, device, rf"{which} starts at address 0x.* TMA takes multiples of 16 bytes only")


def test_every_d_is_checked(call, device):
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


@pytest.mark.parametrize("which", ["a", "b"])
def test_misaligned_scales(call, device, which):
    elements, _ = getattr(call, which)
    mn = elements.shape[0]
    moved = torch.zeros(WORDS * mn + 4, dtype=torch.int32)[1 : 1 + WORDS * mn].view(WORDS, mn).t()
    setattr(call, which, (elements, moved))
    refused(call, device, rf"{which}'s scale factors start at address 0x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_unsupported_result_dtypes(call, device, dtype):
    call.d = fresh_d(dtype=dtype)
    refused(call, device, r"d is to be .*supported are bfloat16 or float32")
    call.d, call.options = None, {"out_dtype": dtype}
    refused(call, device, r"d is to be .*supported are bfloat16 or float32")


def test_out_dtype_contradicts_d(call, device):
    call.options = {"out_dtype": torch.bfloat16}
    refused(call, device, r"out_dtype is torch\.bfloat16, but d is torch\.float32")


@pytest.mark.parametrize("shape", [(M, N + 4), (M - 1, N), (N, M), (M * N,), (1, M, N)])
def test_d_of_the_wrong_shape(call, device, shape):
    call.d = torch.full(shape, POISON)
    refused(call, device, r"d is float32 .*this call takes float32 \[128, 96\]")


@pytest.mark.parametrize(
    "c", [fresh_d(M, N + 4), fresh_d(1, N), fresh_d(dtype=torch.bfloat16), torch.full((N,), POISON)]
)
def test_c_unlike_d(call, device, c):
    call.c = c
    refused(call, device, r"c is .*this call takes float32 \[128, 96\]")


@pytest.mark.parametrize("a", [None, torch.zeros(4, 4), (torch.zeros(4, 4),), (1, 2), "ab"])
def test_operands_that_are_no_pairs(call, device, a):
    with pytest.raises(ArgumentError, match=r"an operand is a pair of tensors|supported elements"):
        ops.gemm_nt(a, call.b, call.d)
    assert not device.launches


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120a", "sm_80", "sm_103a"])
def test_an_architecture_without_the_kernel(call, device, on_cpu, folder, arch):
    with on_cpu(EmulatorBackend(arch, device=device), folder()):
        refused(
            call, device, rf"no kernel for {arch} in .*cubins, which has it for sm_100a", KernelNotFoundError
        )


def test_a_gpu_without_the_kernel(call, on_cpu, folder, driver, device):
    from cute_kernels.runtime.gpu import GpuBackend

    driver.capability = (9, 0)
    with on_cpu(GpuBackend(0, driver, lambda _: 0), folder()):
        refused(call, device, "no kernel for sm_90a", KernelNotFoundError)
    assert not driver.launches
    assert "cuModuleLoadData" not in driver.calls


def test_a_folder_without_the_kernel(call, device, on_cpu, folder, entry):
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
def test_a_damaged_folder(call, device, on_cpu, folder, kind, spoil):
    path = folder(name="damaged")
    spoil(path / "sm_100a" / f"gemm_128_f32.{kind}")
    with on_cpu(EmulatorBackend("sm_100a", device=device), path):
        refused(call, device, rf"gemm_128_f32\.{kind}.*build it again", ManifestError)


@pytest.mark.parametrize(("m", "n"), [(0, N), (M, 0), (0, 0)])
def test_empty_results_return_at_once(device, m, n):
    a, b = (
        (torch.zeros(m, K // 2, dtype=torch.uint8), None),
        (torch.zeros(n, K // 2, dtype=torch.uint8), None),
    )
    a, b = (
        (a[0], pack(torch.zeros(m, 9, dtype=torch.uint8))),
        (b[0], pack(torch.zeros(n, 9, dtype=torch.uint8))),
    )
    assert ops.gemm_nt(a, b).shape == (m, n)
    d = fresh_d(m, n)
    assert ops.gemm_nt(a, b, d) is d
    assert ops.gemm_nt(a, b, d, d) is d
    assert not device.launches


def test_empty_results_need_no_architecture(monkeypatch):
    monkeypatch.setattr(cute_kernels.runtime.context._settings, "emulation", None)
    monkeypatch.delenv("CUTE_KERNELS_ARCH", raising=False)
    ops._gemm_requests.clear()
    a, b = operand(M), (torch.zeros(0, K // 2, dtype=torch.uint8), pack(torch.zeros(0, 9, dtype=torch.uint8)))
    assert ops.gemm_nt(a, b).shape == (M, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_k_of_zero_gives_c_or_zeros(device, dtype):
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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float4_e2m1fn_x2])
def test_every_packed_dtype_is_taken(call, device, dtype):
    call.a = (call.a[0].view(dtype), call.a[1])
    call.b = (call.b[0].view(dtype), call.b[1])
    assert call() is call.d
    assert [int.from_bytes(p, "little") for p in device.launches[0].params[-3:]] == [M, N, K]


def test_deepgemms_name(call, device):
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
