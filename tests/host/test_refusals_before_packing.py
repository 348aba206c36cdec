"""Calls with scale factors in float32 that are refused, or have nothing to compute: nothing runs for them, by torch or
by a kernel. What torch runs is recorded; views of tensors and memory that nobody has written yet are nothing.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cute_kernels
from cute_kernels.ops import nvfp4_repack
from cute_kernels.runtime import ArgumentError, KernelNotFoundError, ManifestError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import pack, pack_for_kernel
from tests.host.conftest import FakeDevice, gemm_entry, repack_entry

M, N, K = 64, 128, 256
POISON = 77
GROUPS = 2
Folder = Callable[..., Path]
OnCpu = Callable[[Any, Path], AbstractContextManager[None]]


class Recorder(TorchDispatchMode):
    """Names of the operations that torch ran, but for views and empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ("empty", "empty_strided", "new_empty"):
            self.ran.append(name)
        return func(*args, **(kwargs or {}))


@dataclass
class Call:
    """A call that would be fine. output: the argument that is D, or D and its scale factors."""

    operation: Callable[..., object]
    arguments: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    output: str = "d"

    def __call__(self) -> object:
        return self.operation(**self.arguments)

    def with_d(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The call with another D."""
        given = self.arguments[self.output]
        d = (change(given[0]), given[1]) if isinstance(given, tuple) else change(given)
        return self.with_arguments(**{self.output: d})

    def with_arguments(self, **changed: Any) -> Call:
        return Call(self.operation, {**self.arguments, **changed}, self.config, self.output)

    def outputs(self) -> list[torch.Tensor]:
        given = self.arguments[self.output]
        return list(given) if isinstance(given, tuple) else [given]


def fp8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


def operand(*shape: int, rows: int = 1, elements: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., MN, K] with a float32 scale factor for each block."""
    *lead, mn, k = shape
    return fp8(*shape), torch.ones(*lead, -(-mn // rows), -(-k // elements))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, POISON).to(dtype)


def quantized(m: int, n: int, group: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    scales = pack(torch.full((m, n // group), POISON, dtype=torch.uint8))
    return poisoned(m, n, dtype=torch.float8_e4m3fn), scales


def dense(m: int = M, n: int = N, k: int = K) -> Call:
    given = {"a": operand(m, k), "b": operand(n, k, rows=128)}
    arguments = {**given, "d": poisoned(m, n), "c": torch.ones(m, n)}
    return Call(cute_kernels.gemm_nt, arguments, {"d_dtype": "f32", "accumulate": True})


def ragged(m: int = M, n: int = N - 2, k: int = K) -> Call:
    """With a D whose rows are not whole 16 bytes: the kernel writes another one."""
    call = dense(m, n, k)
    d, c = (torch.full((m, -(-n // 4) * 4), float(value))[:, :n] for value in (POISON, 1))
    return call.with_arguments(d=d, c=c)


def heads(m: int = M, n: int = N, k: int = K) -> Call:
    given = {"a": operand(m, k), "b": operand(n, k, rows=128)}
    d = poisoned(m, n // 128 * 160, dtype=torch.bfloat16)
    arguments = {**given, "d": d, "head_splits": (64, 32, 64)}
    return Call(cute_kernels.gemm_nt_skip_head_mid, arguments, {"heads": True})


def to_mxfp8(m: int = M, n: int = N, k: int = K) -> Call:
    arguments = {"a": operand(m, k), "b": operand(n, k, rows=128), "out": quantized(m, n)}
    return Call(cute_kernels.gemm_nt_mxfp8, arguments, {"d_dtype": "mxf8"}, "out")


def to_nvfp4(m: int = M, n: int = N, k: int = K) -> Call:
    d, scales = poisoned(m, n // 2, dtype=torch.uint8), quantized(m, n, 16)[1]
    given = {x: operand(mn, k, elements=32) for x, mn in (("a", m), ("b", n))}
    arguments = {**given, "out": (d, scales), "global_scale": torch.ones(1), "recipe": (1, 1, 32)}
    return Call(cute_kernels.gemm_nt_nvfp4, arguments, {"d_dtype": "nvf4", "family_dtype": "mxf8"}, "out")


def indexed(m: int = M, n: int = N, k: int = K) -> Call:
    given = {"a": operand(m, k), "b": operand(GROUPS, n, k, rows=128)}
    d = torch.full((m, -(-n // 8) * 8), float(POISON), dtype=torch.bfloat16)[:, :n]
    arguments = {**given, "d": d, "grouped_layout": torch.zeros(m, dtype=torch.int32)}
    return Call(cute_kernels.m_grouped_gemm_nt_contiguous, arguments, {"grouping": "indices"})


def ragged_groups(m: int = M, n: int = N - 2, k: int = K) -> Call:
    return indexed(m, n, k)


def indexed_to_mxfp8(m: int = M, n: int = N, k: int = K) -> Call:
    call = indexed(m, n, k)
    arguments = {name: given for name, given in call.arguments.items() if name != "d"}
    operation = cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8
    return Call(operation, {**arguments, "out": quantized(m, n)}, {**call.config, "d_dtype": "mxf8"}, "out")


def masked(m: int = M, n: int = N, k: int = K) -> Call:
    given = {"a": operand(GROUPS, m, k), "b": operand(GROUPS, n, k, rows=128)}
    sizes = torch.zeros(GROUPS, dtype=torch.int32)
    d = poisoned(GROUPS, m, n, dtype=torch.bfloat16)
    arguments = {**given, "d": d, "masked_m": sizes, "expected_m": 4}
    return Call(cute_kernels.m_grouped_gemm_nt_masked, arguments, {"grouping": "sizes"})


def along_k(m: int = M, n: int = N, k: int = K) -> Call:
    given = {x: (fp8(k, mn), torch.ones(k // 128, mn)) for x, mn in (("a", m), ("b", n))}
    ks = [0, k]
    lengths = {"ks": ks, "ks_tensor": torch.tensor(ks, dtype=torch.int32)}
    arguments = {**given, **lengths, "d": poisoned(2, m, n), "c": torch.ones(2, m, n)}
    config = {"d_dtype": "f32", "accumulate": True, "k_grouped": True, "a_major": "mn", "b_major": "mn"}
    return Call(cute_kernels.k_grouped_gemm_tn_contiguous, arguments, config)


def along_k_flat(m: int = M, n: int = N, k: int = K) -> Call:
    call = along_k(m, n, k)
    flat = {x: (call.arguments[x][0].flatten(), call.arguments[x][1]) for x in "ab"}
    config = {**call.config, "a_major": "k", "b_major": "k"}
    return Call(cute_kernels.k_grouped_gemm_nt_contiguous, {**call.arguments, **flat}, config)


def batches(m: int = M, n: int = N, k: int = K) -> Call:
    a, b = operand(m, 2, k), operand(2, n, k, rows=128)
    arguments = {"a": a, "b": b, "d": poisoned(m, 2, n), "c": torch.ones(m, 2, n)}
    config = {"d_dtype": "f32", "accumulate": True, "batched": True}
    return Call(cute_kernels.einsum, {"expression": "bhr,hdr->bhd", **arguments}, config)


def gradients(m: int = M, n: int = N, k: int = K) -> Call:
    """Summed up over what comes first."""
    given = {x: (fp8(k, 2, mn), torch.ones(k // 128, 2, mn)) for x, mn in (("a", m), ("b", n))}
    arguments = {**given, "d": poisoned(2, m, n), "c": torch.ones(2, m, n)}
    majors = {"a_major": "mn", "b_major": "mn"}
    config = {"d_dtype": "f32", "accumulate": True, "batched": True, **majors}
    return Call(cute_kernels.einsum, {"expression": "bhd,bhr->hdr", **arguments}, config)


GROUPED = (indexed, ragged_groups, indexed_to_mxfp8, masked)
PLAIN = (dense, ragged, heads, to_mxfp8, to_nvfp4, along_k, along_k_flat, batches, gradients)
OPERATIONS = {make.__name__: make for make in (*PLAIN, *GROUPED)}


def entry(call: Call) -> dict[str, Any]:
    """Of a kernel that serves a call."""
    return gemm_entry(**{"family_dtype": "mxf8_k128", **call.config})


def over_a(call: Call) -> Call:
    """With D in the memory of A."""
    a, scales = call.arguments["a"]
    d = call.outputs()[0]
    memory = torch.zeros(max(a.nbytes, d.stride(0) * d.shape[0] * d.element_size()), dtype=torch.uint8)
    moved = memory[: a.nbytes].view(a.dtype).view(a.shape)
    return call.with_arguments(a=(moved, scales)).with_d(
        lambda old: memory.view(old.dtype).as_strided(old.shape, old.stride())
    )


# What is wrong with a call, or with the cubins, and what it is refused with. A kernel that takes other parameters is
# noticed last of all, where its launch is bound.
SPOILT: dict[str, tuple[Callable[[Call], Call], type[Exception], str]] = {
    "dtype": (lambda call: call.with_d(torch.Tensor.half), ArgumentError, "^d is (to be )?float16"),
    "shape": (lambda call: call.with_d(lambda d: d[..., None, :]), ArgumentError, "^d is .* takes"),
    "over a": (over_a, ArgumentError, "^d shares memory with a[ ;]"),
    "another granularity": (
        lambda call: call.with_arguments(recipe=(1, 1, 64)),
        ArgumentError,
        "recipe|granularity|scale factors are",
    ),
    "no pair": (lambda call: call.with_arguments(b=3), ArgumentError, "^b is a int"),
    "no kernel": (lambda call: call, KernelNotFoundError, "build"),
    "other parameters": (lambda call: call, ManifestError, "build the cubins again"),
}


def refused(call: Call, device: FakeDevice, error: type[Exception], message: str) -> None:
    """Check that a call is refused, twice, with nothing run and nothing written."""
    before = [output.clone() for output in call.outputs()]
    for _ in range(2):
        with Recorder() as recorder, pytest.raises(error, match=message):
            call()
        assert recorder.ran == []
    assert not device.launches
    for output, kept in zip(call.outputs(), before, strict=True):
        assert torch.equal(output.double(), kept.double())


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_refused(on_cpu: OnCpu, folder: Folder, device: FakeDevice, name: str, spoilt: str) -> None:
    change, error, message = SPOILT[spoilt]
    call = change(OPERATIONS[name]())
    served = {**entry(call), "params": []} if spoilt == "other parameters" else entry(call)
    entries = [gemm_entry(d_dtype="bf16")] if spoilt == "no kernel" else [served]
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder(entries)):
        refused(call, device, error, message)


ARGUMENTS: dict[str, tuple[Callable[[], Call], dict[str, Any], str]] = {
    "scheduling": (dense, {"scheduling": "dynamic"}, "scheduling is 'dynamic'"),
    "busy_sms": (dense, {"busy_sms": 10**6}, "busy_sms is 1000000"),
    "c": (dense, {"c": torch.ones(M, N + 4)}, "c is float32"),
    "splits": (heads, {"head_splits": (64, 32, 32)}, "N must be a multiple"),
    "rule": (to_mxfp8, {"rule": "round"}, "rule is 'round'"),
    "layout": (to_mxfp8, {"sf_layout": "plain"}, "sf_layout 'plain'"),
    "scales of d": (to_mxfp8, {"out": (quantized(M, N)[0], torch.zeros(M, 4))}, "d's scale factors are"),
    "global scale": (to_nvfp4, {"global_scale": torch.ones(2)}, "d's global scale"),
    "indices": (indexed, {"grouped_layout": torch.zeros(M, dtype=torch.int64)}, "m_indices is int64"),
    "ends": (indexed, {"use_psum_layout": True}, r"grouped_layout is int32 \[64\]"),
    "alignment": (indexed, {"alignment": 0}, "alignment is 0"),
    "rule of groups": (indexed_to_mxfp8, {"rule": "round"}, "rule is 'round'"),
    "sizes": (masked, {"masked_m": torch.zeros(3, dtype=torch.int32)}, "masked_m is int32"),
    "hint": (masked, {"expected_m": 0}, "expected_m is 0"),
    "lengths": (along_k, {"ks": [K, K]}, "512 together"),
    "fractions of a scale factor": (along_k_flat, {"ks": [64, K - 64]}, "multiples of 128"),
    "c along k": (along_k, {"c": torch.ones(2, M, N + 4)}, "c is float32"),
    "expression": (batches, {"expression": "bhr,hdr->hdb"}, "the expression is"),
    "c of batches": (batches, {"c": torch.ones(M, 2, N).bfloat16()}, "must be alike"),
    "elsewhere": (dense, {"b": (fp8(N, K).to("meta"), torch.ones(1, 2, device="meta"))}, "different devices"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_other_arguments(on_cpu: OnCpu, folder: Folder, device: FakeDevice, case: str) -> None:
    make, changed, message = ARGUMENTS[case]
    call = make().with_arguments(**changed)
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([entry(call)])):
        refused(call, device, ArgumentError, message)


EMPTY = {"M": (0, N, K), "N": (M, 0, K), "K": (M, N, 0)}
TAKES = {**dict.fromkeys(GROUPED, "M"), along_k_flat: "K"}  # of what is empty, by default all


@pytest.mark.parametrize(
    ("name", "empty"), [(name, of) for name, make in OPERATIONS.items() for of in TAKES.get(make, "MNK")]
)
def test_nothing_to_multiply(
    on_cpu: OnCpu, folder: Folder, device: FakeDevice, name: str, empty: str
) -> None:
    """D becomes C, or zeros; groups leave it as it is."""
    call = OPERATIONS[name](*EMPTY[empty])
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([entry(call)])), Recorder() as recorder:
        call()
    assert set(recorder.ran) <= {"zero_", "copy_"} and len(recorder.ran) <= 2
    assert not device.launches


def test_packs_ahead_of_the_launch(
    on_cpu: OnCpu, folder: Folder, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And copies C, when all is checked and bound; again for what scale factors hold by then."""
    call, random = dense(), torch.Generator().manual_seed(1)
    scales = [call.arguments[x][1] for x in "ab"]
    packed: list[bytes] = []
    recorder = Recorder()

    def launch(*_: Any) -> str:
        recorder.ran.append("launch")
        assert (call.arguments["d"].numpy() == call.arguments["c"].numpy()).all()
        regions = {name: (address, size) for address, (size, name) in device.registered.items()}
        packed.extend(ctypes.string_at(*regions[f"{x}'s scale factors"]) for x in "ab")
        return ""

    monkeypatch.setattr(device, "launch", launch)
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([entry(call)])):
        for _ in range(2):
            call.arguments["d"].fill_(POISON)
            for of in scales:
                of.copy_(torch.exp2(torch.randint(-9, 9, of.shape, generator=random)))
            with recorder:
                call()
            wanted = [
                pack_for_kernel(of, mn, K, gran_mn=rows, gran_k=128)
                for of, mn, rows in zip(scales, (M, N), (1, 128), strict=True)
            ]
            assert packed == [words.t().numpy().tobytes() for words in wanted]
            assert recorder.ran[-1] == "launch" and recorder.ran.count("launch") == 1
            packed.clear()
            recorder.ran.clear()


def test_global_scales_of_repacked_weights(on_cpu: OnCpu, folder: Folder, device: FakeDevice) -> None:
    """A number becomes a tensor when the rest is checked."""
    codes, scales = torch.zeros(16, 64, dtype=torch.uint8), torch.ones(16, 8).to(torch.float8_e4m3fn)
    memory = torch.zeros(1152, dtype=torch.uint8)
    inside = memory[:1024].view(16, 64)
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([repack_entry()])):
        with Recorder() as recorder, pytest.raises(ArgumentError, match=re.escape("out shares memory")):
            nvfp4_repack(inside, scales, 0.5, memory.view(1, 1, 1152))
        assert recorder.ran == []
        nvfp4_repack(codes, scales, 0.5, memory.view(1, 1, 1152))
    assert len(device.launches) == 1
