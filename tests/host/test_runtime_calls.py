"""Repeated, concurrent and differently configured calls."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import cute_kernels
from cute_kernels import ops
from cute_kernels.runtime import ArgumentError, BoundedCache, Library, ManifestError, context
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.runtime.gpu import GpuBackend
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, FakeDriver, MakeEntry, MakeFolder, OnCpu


def operand(mn: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.full((mn, -(-k // 32)), 127, dtype=torch.uint8)
    return torch.zeros(mn, k // 2, dtype=torch.uint8), pack(scales)


@pytest.fixture
def backend(driver: FakeDriver) -> GpuBackend:
    return GpuBackend(0, driver, lambda _: 0)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's settings, restored after the test."""
    monkeypatch.setattr(context._settings, "library", None)
    monkeypatch.setattr(context._settings, "emulation", None)
    monkeypatch.delenv("CUTE_KERNELS_CUBINS", raising=False)
    monkeypatch.delenv("CUTE_KERNELS_ARCH", raising=False)


def test_a_repeated_call_only_launches(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, backend: GpuBackend
) -> None:
    a, b, d = operand(128, 64), operand(128, 64), torch.zeros(128, 128)
    with on_cpu(backend, folder()):
        ops.gemm_nt(a, b, d)
        driver.calls.clear()
        for _ in range(3):
            ops.gemm_nt(a, b, d)
    assert driver.calls.count("cuLaunchKernelEx") == 3
    assert set(driver.calls) <= {"cuLaunchKernelEx", "cuCtxGetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent"}
    assert driver.launches[0] == driver.launches[-1]


def test_whatever_changes_is_noticed(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, backend: GpuBackend
) -> None:
    a, b, d = operand(256, 128), operand(128, 128), torch.zeros(256, 128)
    smaller = (a[0][:128], pack(torch.zeros(128, 4, dtype=torch.uint8)))
    c, d_bf16 = (torch.zeros(256, 128, dtype=torch.bfloat16) for _ in range(2))
    calls = [
        lambda: ops.gemm_nt(a, b, d),
        lambda: ops.gemm_nt((a[0].clone(), a[1]), b, d),
        lambda: ops.gemm_nt(a, (b[0], pack(torch.zeros(128, 4, dtype=torch.uint8))), d),
        lambda: ops.gemm_nt(smaller, b, d[:128]),
        lambda: ops.gemm_nt(a, b, torch.zeros(256, 256)[:, :128]),
        lambda: ops.gemm_nt(a, b, torch.zeros(256, 128)),
        lambda: ops.gemm_nt(a, b, d_bf16, c),
        lambda: ops.gemm_nt(a, b, d_bf16, d_bf16),
        lambda: ops.gemm_nt(a, b, d, d),
        lambda: ops.gemm_nt(a, b, out_dtype=torch.float32),
        lambda: ops.gemm_nt(a, b, out_dtype=torch.bfloat16),
    ]
    with on_cpu(backend, folder()):
        results = [call() for call in calls]
        first = list(driver.launches)
        for call in (calls[0], calls[7]):
            call()
    assert [d.dtype for d in results[-2:]] == [torch.float32, torch.bfloat16]
    addresses = [
        int.from_bytes(launch.params[-4][:8], "little") for launch in first
    ]  # of D, before m, n and k
    assert addresses == [d.data_ptr() for d in results]
    seen = [(launch.entry, *launch.params) for launch in first]
    assert len(set(seen)) == len(seen)
    assert [(launch.entry, *launch.params) for launch in driver.launches[-2:]] == [seen[0], seen[7]]


def test_the_stream_is_the_one_of_the_call(on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver) -> None:
    streams = iter([7, 8, 7])
    a, b, d = operand(128, 64), operand(128, 64), torch.zeros(128, 128)
    with on_cpu(GpuBackend(0, driver, lambda _: next(streams)), folder()):
        for _ in range(3):
            ops.gemm_nt(a, b, d)
    assert [launch.stream for launch in driver.launches] == [7, 8, 7]


def test_the_same_memory_with_other_shapes_is_another_problem(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, backend: GpuBackend
) -> None:
    memory = torch.zeros(4096, dtype=torch.uint8)
    scales = torch.zeros(1024, dtype=torch.int32)
    b, d = operand(16, 64), torch.zeros(128, 16)
    with on_cpu(backend, folder()):
        for m in (32, 64, 32):
            a = memory[: m * 32].view(m, 32), scales[:m].view(1, m).t()
            ops.gemm_nt(a, b, d[:m])
    assert [int.from_bytes(launch.params[5], "little") for launch in driver.launches] == [32, 64, 32]


def test_threads_share_plans(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, backend: GpuBackend
) -> None:
    problems = [(operand(m, 64), operand(n, 64), torch.zeros(m, n)) for m in (16, 128, 144) for n in (16, 64)]
    failures = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        try:
            start.wait()
            order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(seed)).tolist()
            for i in order * 5:
                ops.gemm_nt(*problems[i])
        except BaseException as error:
            failures.append(error)

    with on_cpu(backend, folder()):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(driver.launches) == 8 * 5 * len(problems)
    assert driver.calls.count("cuModuleLoadData") == 1
    by_problem: dict[bytes, set[tuple[bytes, ...]]] = {}
    for launch in driver.launches:
        by_problem.setdefault(launch.params[4], set()).add(tuple(launch.params))
    assert [len(different) for different in by_problem.values()] == [1] * len(problems)


def test_requests_hold_no_tensors(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver, backend: GpuBackend
) -> None:
    import weakref

    a, b, d = operand(128, 64), operand(128, 64), torch.zeros(128, 128)
    with on_cpu(backend, folder()):
        ops.gemm_nt(a, b, d)
        alive = [weakref.ref(t) for t in (*a, *b, d)]
        del a, b, d
        assert [ref() for ref in alive] == [None] * 5


def test_a_bounded_cache_drops_the_oldest() -> None:
    cache: BoundedCache[str] = BoundedCache(2)
    for key in "abc":
        cache.add(key, key.upper())
    assert [cache.get(key) for key in "abc"] == [None, "B", "C"]
    assert cache.add("b", "other") == "B"
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
    assert cache.get("b") is None


def test_requests_are_bounded(
    on_cpu: OnCpu,
    folder: MakeFolder,
    driver: FakeDriver,
    backend: GpuBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops._gemm_requests, "capacity", 3)
    a, b = operand(128, 64), operand(128, 64)
    with on_cpu(backend, folder()):
        outputs = [torch.zeros(128, 128 + 4 * i)[:, :128] for i in range(6)]
        for d in outputs:
            ops.gemm_nt(a, b, d)
        assert len(ops._gemm_requests) == 3
        ops.gemm_nt(a, b, outputs[0])
    assert driver.launches[0] == driver.launches[-1]


def test_emulate_restores_what_was_set(settings: None) -> None:
    with cute_kernels.emulate("sm_100a", schedule="lazy", seed=3, num_sms=2) as outer:
        assert context.backend_for(torch.device("cpu")) is outer
        assert (outer.archs, outer.schedule, outer.seed, outer.num_sms) == (("sm_100a",), "lazy", 3, 2)
        with cute_kernels.emulate("sm_90a") as inner:
            assert context.backend_for(torch.device("cpu")) is inner
        assert context.backend_for(torch.device("cpu")) is outer
    with pytest.raises(ArgumentError, match="no architecture is set"):
        context.backend_for(torch.device("cpu"))


def test_emulate_sets_at_once(settings: None) -> None:
    cute_kernels.emulate("sm_80")
    assert context.backend_for(torch.device("cpu")).archs == ("sm_80",)


def test_the_environment_names_the_architecture(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTE_KERNELS_ARCH", "sm_90a")
    backend = context.backend_for(torch.device("cpu"))
    assert backend.archs == ("sm_90a",)
    assert context.backend_for(torch.device("cpu")) is backend
    with cute_kernels.emulate("sm_100a"):
        assert context.backend_for(torch.device("cpu")).archs == ("sm_100a",)


def test_an_unknown_schedule_is_refused(settings: None) -> None:
    with pytest.raises(ArgumentError, match="'fast'; there are eager, lazy, random"):
        cute_kernels.emulate("sm_100a", schedule="fast")


def test_a_change_of_architecture_or_folder_reaches_the_next_call(
    settings: None, folder: MakeFolder, entry: MakeEntry, device: FakeDevice
) -> None:
    a, b, d = operand(128, 64), operand(128, 64), torch.zeros(128, 128, dtype=torch.bfloat16)
    ops._gemm_requests.clear()
    cute_kernels.set_cubins(folder([entry(128)]))
    for tile_n, arch in ((128, "sm_100a"), (64, "sm_100a"), (64, "sm_103a")):
        if tile_n == 64:
            cute_kernels.set_cubins(folder([entry(64), entry(64, arch="sm_103a")], "other"))
        context._settings.emulation = EmulatorBackend(arch, device=device)
        ops.gemm_nt(a, b, d)
        assert device.launches[-1].entry == f"gemm_{tile_n}_bf16_0"


def test_where_cubins_are_looked_for(
    settings: None, folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder())  # the current directory plays no part
    monkeypatch.setattr(context, "__file__", str(tmp_path / "cute_kernels" / "runtime" / "context.py"))
    with pytest.raises(ManifestError, match=r"CUTE_KERNELS_CUBINS is not set and .*build holds no manifest"):
        context.library()
    monkeypatch.setenv("CUTE_KERNELS_CUBINS", str(folder()))
    assert context.library().folder == tmp_path / "cubins"
    cute_kernels.set_cubins(folder(name="others"))
    assert context.library().folder == tmp_path / "others"
    with pytest.raises(ManifestError):
        cute_kernels.set_cubins(tmp_path)
    assert context.library().folder == tmp_path / "others"
    cute_kernels.set_cubins(None)
    assert context.library().folder == tmp_path / "cubins"
    assert isinstance(context.library(), Library)


def test_other_devices_are_refused(settings: None) -> None:
    with pytest.raises(ArgumentError, match="tensors on meta"):
        context.backend_for(torch.device("meta"))


def test_cpu_tensors_need_neither_the_dsl_nor_kernel_packages_nor_cuda_python() -> None:
    code = (
        "import sys, cute_kernels\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'the package itself must stay light'\n"
        "for name in ('cutlass', 'cuda', 'sm80', 'sm100', 'sm120'): sys.modules[name] = None\n"
        "import cute_kernels.runtime, cute_kernels.heuristics\n"
        "cute_kernels.gemm_nt, cute_kernels.emulate('sm_100a')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
