"""The runtime on real devices: what stand-ins cannot show. Cubins of CUTE_KERNELS_CUBINS or build/."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels.emulator import Device
from cute_kernels.runtime import DriverError, KernelNotFoundError, Library, ManifestError, Tiled, context
from cute_kernels.runtime.gpu import GpuBackend
from cute_kernels.scale_factors import pack
from tests.nvfp4_cases import Operands, differing, random_operands

FAMILY = "nvfp4_dequantize"


def _missing() -> str:
    """Why these tests cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        found = context.library().find(FAMILY, GpuBackend(0).archs)
    except ManifestError as error:
        return str(error)
    return "" if found else f"the cubin folder has no {FAMILY} for {torch.cuda.get_device_name(0)}"


MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The cubins, none of them loaded yet."""
    library = Library(context.library().folder)
    monkeypatch.setattr(context._settings, "library", library)
    return library


def test_the_first_call_can_be_captured(unloaded: Library) -> None:
    given = random_operands(64, 1024).to("cuda")
    out = torch.zeros(64, 1024, dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cute_kernels.nvfp4_dequantize(*given, out=out)
    assert not out.any()
    graph.replay()
    assert differing(out, given) == ""


def test_a_call_neither_waits_nor_allocates() -> None:
    given = random_operands(64, 1024).to("cuda")
    out = torch.empty(64, 1024, dtype=torch.bfloat16, device="cuda")
    cute_kernels.nvfp4_dequantize(*given, out=out)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda._sleep(200_000_000)  # about 0.1 s
    for _ in range(10):
        cute_kernels.nvfp4_dequantize(*given, out=out)
    assert not torch.cuda.current_stream().query()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    torch.cuda.synchronize()
    assert differing(out, given) == ""


def test_threads_that_never_used_cuda(unloaded: Library) -> None:
    problems = [random_operands(64 + i, 512, seed=i).to("cuda") for i in range(8)]
    outputs = [torch.empty(64 + i, 512, dtype=torch.bfloat16, device="cuda") for i in range(8)]
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(i: int) -> None:
        try:
            start.wait()
            for _ in range(50):
                cute_kernels.nvfp4_dequantize(*problems[i], out=outputs[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert not failures
    assert [differing(out, given) for out, given in zip(outputs, problems, strict=True)] == [""] * 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_every_device_whichever_is_current(unloaded: Library) -> None:
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    given = random_operands(64, 1024)
    for current in (0, 1):
        torch.cuda.set_device(current)
        for device in devices:
            there = given.to(device)
            out = cute_kernels.nvfp4_dequantize(*there)
            assert out.device == torch.device(device)
            assert differing(out, given) == ""
        assert torch.cuda.current_device() == current
    torch.cuda.set_device(0)
    mixed = Operands(
        given.packed.to(devices[0]), given.scales.to(devices[1]), given.global_scale.to(devices[0])
    )
    with pytest.raises(ValueError, match=r"different devices: .*block_scales on cuda:1"):
        cute_kernels.nvfp4_dequantize(*mixed)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 10,
    reason="this GPU has the kernel",
)
def test_a_gemm_that_this_gpu_lacks_is_refused() -> None:
    a = (
        torch.zeros(128, 64, dtype=torch.uint8, device="cuda"),
        pack(torch.zeros(128, 4, dtype=torch.uint8)).cuda(),
    )
    d = torch.full((128, 128), 77.0, device="cuda")
    with pytest.raises(KernelNotFoundError, match="gemm_nt has no kernel for sm_"):
        cute_kernels.gemm_nt(a, a, d)
    assert bool((d == 77).all())


def test_the_driver_refuses_what_is_no_cubin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cubins"
    shutil.copytree(context.library().folder, folder)
    content = json.loads((folder / "manifest.json").read_text())
    for entry in content["kernels"]:
        (folder / entry["cubin"]).write_bytes(b"not a cubin")
        entry["cubin_sha256"] = hashlib.sha256(b"not a cubin").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content))
    monkeypatch.setattr(context._settings, "library", Library(folder))
    with pytest.raises(DriverError, match=r"cuModuleLoadData for .* on CUDA device 0: "):
        cute_kernels.nvfp4_dequantize(*random_operands(4, 64).to("cuda"))


def test_driver_and_emulator_encode_alike() -> None:
    """Every tensor map of every kernel in the folder, over several tensors."""
    backend, memory = GpuBackend(0), torch.zeros(1 << 20, dtype=torch.uint8, device="cuda")
    compared = 0
    for record in context.library().records:
        for spec in (p.tensor_map for p in record.params if p.tensor_map):
            for row_bytes, rows, stride in ((144, 130, 144), (1024, 7, 2048), (16, 1, 16), (4000, 200, 4000)):
                further = range(
                    len(spec.box) - 2
                )  # dimensions of 3, each as far apart as all of the one before
                outer = (rows, *(3 for _ in further))
                strides = (stride, *(stride * rows * 3**i for i in further))
                tensor = Tiled(memory.data_ptr(), row_bytes, outer, strides)
                dims = tensor.dims(spec.dtype)
                emulated = Device.encode_tensor_map(
                    spec.dtype,
                    tensor.address,
                    dims,
                    tensor.strides,
                    spec.box,
                    spec.element_strides,
                    swizzle=spec.swizzle,
                    l2_promotion=spec.l2_promotion,
                    oob_fill=spec.oob_fill,
                )
                assert backend.encode_tensor_map(spec, tensor) == emulated
                compared += 1
    if not compared:
        pytest.skip("no kernel in the folder has a tensor map")
