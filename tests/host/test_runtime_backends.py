"""Both backends, driven as operations drive them: what reaches the driver and the emulator."""

from __future__ import annotations

import json
import struct
import threading

import pytest
import torch

from cute_kernels import ops
from cute_kernels.runtime import DriverError, Library, ManifestError, Region
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.runtime.gpu import GpuBackend, loadable_archs
from cute_kernels.scale_factors import pack
from tests.host.conftest import FakeDevice, FakeDriver, MakeEntry, MakeFolder, OnCpu

STREAM = 0x51


def gpu(driver: FakeDriver, ordinal: int = 0) -> GpuBackend:
    return GpuBackend(ordinal, driver, lambda _: STREAM)


def operand(mn: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.full((mn, -(-k // 32)), 127, dtype=torch.uint8)
    return torch.zeros(mn, k // 2, dtype=torch.uint8), pack(scales)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpu_and_emulator_get_the_same_bytes(
    on_cpu: OnCpu,
    folder: MakeFolder,
    driver: FakeDriver,
    device: FakeDevice,
    dtype: torch.dtype,
    accumulate: bool,
) -> None:
    a, b = operand(130, 288), operand(96, 288)
    d = torch.zeros(130, 96, dtype=dtype)
    c = torch.zeros(130, 160, dtype=dtype)[:, :96] if accumulate else None
    with on_cpu(gpu(driver), folder()):
        assert ops.gemm_nt(a, b, d, c) is d
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        assert ops.gemm_nt(a, b, d, c) is d
    (on_gpu,), (emulated,) = driver.launches, device.launches
    assert on_gpu.params == emulated.params
    assert (
        on_gpu.entry
        == emulated.entry
        == f"gemm_128_{'bf16' if dtype == torch.bfloat16 else 'f32'}" + ("_c_0" if accumulate else "_0")
    )
    assert on_gpu.block == emulated.block == (224, 1, 1)
    assert on_gpu.shared == emulated.shared == 200000


def test_descriptors_describe_the_tensors(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> None:
    (_, sfa), (b, sfb) = operand(130, 288), operand(96, 288)
    wide = torch.zeros(130, 512, dtype=torch.uint8)
    a_view = wide[:, :144]
    d = torch.zeros(130, 104)[:, :96]
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        ops.gemm_nt((a_view, sfa), (b, sfb), d)
    params = device.launches[0].params
    texts = [p[8:].rstrip(b"\0").decode() for p in params[:5]]
    assert texts == [
        "u8 (144, 130) (512,) (32, 64) 128B",  # 144 bytes of K, rows of the wide tensor apart
        "u8 (144, 96) (144,) (32, 64) 128B",
        "i32 (130, 3) (528,) (32, 64) none",  # 3 words of scales, MN innermost, columns of 132 words
        "i32 (96, 3) (384,) (32, 64) none",
        "f32 (96, 130) (416,) (32, 64) none",
    ]
    addresses = [struct.unpack_from("<Q", p)[0] for p in params[:5]]
    assert addresses == [t.data_ptr() for t in (a_view, b, sfa, sfb, d)]
    assert [struct.unpack("<i", p)[0] for p in params[5:]] == [130, 96, 288]


def test_the_stride_of_a_single_row_is_made_valid(
    on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice
) -> None:
    a, b = operand(1, 64), operand(3, 64)
    d = torch.zeros(1, 3).as_strided((1, 3), (3, 1))
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        ops.gemm_nt((a[0].as_strided((1, 32), (1, 1)), a[1]), b, d)
    texts = [p[8:].rstrip(b"\0").decode() for p in device.launches[0].params]
    assert texts[0].startswith("u8 (32, 1) (32,)")
    assert texts[4].startswith("f32 (3, 1) (16,)")


def test_gpu_launch_configuration(
    on_cpu: OnCpu, folder: MakeFolder, entry: MakeEntry, driver: FakeDriver
) -> None:
    entries = [entry(128, "bf16", tile_m=256, cta_group=2)]
    entries[0]["cluster"] = [2, 1, 1]
    with on_cpu(gpu(driver), folder(entries)):
        ops.gemm_nt(operand(300, 64), operand(256, 64))
    (launch,) = driver.launches
    assert launch.grid == (8, 1, 1)  # 2 rows of tiles times 2, a pair of CTAs each
    assert launch.cluster == (2, 1, 1)
    assert launch.stream == STREAM
    assert launch.dependent
    assert driver.shared_attributes == {"gemm_128_bf16_0": 200000}


def test_a_kernel_that_does_not_wait_is_not_launched_early(
    on_cpu: OnCpu, folder: MakeFolder, entry: MakeEntry, driver: FakeDriver
) -> None:
    with on_cpu(gpu(driver), folder([entry(128, "bf16", pdl=False)])):
        ops.gemm_nt(operand(128, 64), operand(128, 64))
    assert not driver.launches[0].dependent


def test_the_grid_is_no_larger_than_the_device(on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver) -> None:
    driver.sms = 7
    with on_cpu(gpu(driver), folder()):
        ops.gemm_nt(operand(512, 64), operand(512, 64))
    assert driver.launches[0].grid == (7, 1, 1)


def test_a_thread_without_context_borrows_the_devices(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver
) -> None:
    with on_cpu(gpu(driver, 3), folder()):
        driver.context_stack.append(0xC003)
        ops.gemm_nt(operand(128, 64), operand(128, 64))
        assert driver.context_stack == [0xC003]
        pushes = driver.calls.count("cuCtxPushCurrent")
        failures = []

        def work() -> None:
            try:
                ops.gemm_nt(operand(128, 64), operand(128, 64))
                assert driver.context_stack == []
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not failures
        assert driver.calls.count("cuCtxPushCurrent") == pushes + 1
        driver.context_stack[:] = [0xC001]  # another device is current
        ops.gemm_nt(operand(128, 64), operand(128, 64))
        assert driver.context_stack == [0xC001]
    assert [launch.context for launch in driver.launches] == [0xC003] * 3


def test_each_device_loads_its_own_module(on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver) -> None:
    path = folder()
    library = Library(path)
    record = library.records[0]
    first, second = gpu(driver, 0), gpu(driver, 1)
    assert first.load(library, record).function[2] == 0xC000
    assert second.load(library, record).function[2] == 0xC001
    assert first.load(library, record) is first.load(library, record)
    assert driver.calls.count("cuModuleLoadData") == 2


def test_loading_relaxes_the_capture_mode_for_itself_only(folder: MakeFolder, driver: FakeDriver) -> None:
    library = Library(folder())
    gpu(driver).load(library, library.records[0])
    assert driver.capture_modes == ["CU_STREAM_CAPTURE_MODE_RELAXED"]
    driver.failures["cuModuleLoadData"] = 209
    with pytest.raises(DriverError):
        gpu(driver).load(library, library.records[1])
    assert driver._capture_mode.name == "CU_STREAM_CAPTURE_MODE_GLOBAL"


@pytest.mark.parametrize("function", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"])
def test_a_driver_error_names_function_kernel_and_device(
    folder: MakeFolder, driver: FakeDriver, function: str
) -> None:
    library = Library(folder())
    driver.failures[function] = 209
    with pytest.raises(
        DriverError, match=rf"{function} for gemm_128_bf16 \(sm_100a\) on CUDA device 2: made to"
    ) as e:
        gpu(driver, 2).load(library, library.records[0])
    assert e.value.status == 209
    assert driver.context_stack == []


def test_a_failed_launch_raises(on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver) -> None:
    driver.failures["cuLaunchKernelEx"] = 700
    with (
        on_cpu(gpu(driver), folder()),
        pytest.raises(DriverError, match="cuLaunchKernelEx for gemm_128_bf16"),
    ):
        ops.gemm_nt(operand(128, 64), operand(128, 64))
    assert driver.context_stack == []


def test_too_much_shared_memory_is_refused(folder: MakeFolder, driver: FakeDriver) -> None:
    driver.shared = 101376
    library = Library(folder())
    with pytest.raises(DriverError, match="needs 200000 bytes of shared memory, this device gives 101376"):
        gpu(driver).load(library, library.records[0])
    assert "cuModuleLoadData" not in driver.calls


def test_nothing_is_loaded_from_a_damaged_folder(
    on_cpu: OnCpu, folder: MakeFolder, driver: FakeDriver
) -> None:
    path = folder()
    (path / "sm_100a" / "gemm_128_bf16.cubin").write_bytes(b"other")
    with on_cpu(gpu(driver), path), pytest.raises(ManifestError, match="SHA-256"):
        ops.gemm_nt(operand(128, 64), operand(128, 64))
    assert "cuModuleLoadData" not in driver.calls
    assert not driver.launches


def test_the_emulator_may_touch_the_operands_and_nothing_else(
    on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice
) -> None:
    (a, sfa), (b, sfb) = operand(130, 288), operand(96, 288)
    d = torch.zeros(130, 104, dtype=torch.bfloat16)[:, :96]
    c = torch.zeros(130, 96, dtype=torch.bfloat16)
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder()):
        ops.gemm_nt((a, sfa), (b, sfb), d, c)
    sizes = {name: size for size, name in device.seen[0].values()}
    assert sizes == {
        "a": 130 * 144,
        "b": 96 * 144,
        "a's scale factors": (2 * 132 + 130) * 4,  # up to the last row of the last column
        "b's scale factors": 3 * 96 * 4,
        "c": 130 * 96 * 2,
        "d": (129 * 104 + 96) * 2,
    }
    assert device.registered == {}


def test_memory_is_released_when_the_emulator_finds_an_error(
    on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice
) -> None:
    device.fail = RuntimeError("hazard")
    with (
        on_cpu(EmulatorBackend("sm_100a", device=device), folder()),
        pytest.raises(RuntimeError, match="hazard"),
    ):
        ops.gemm_nt(operand(128, 64), operand(128, 64))
    assert device.seen[0]
    assert device.registered == {}


def test_regions_that_meet_are_registered_as_one(folder: MakeFolder, device: FakeDevice) -> None:
    backend = EmulatorBackend("sm_100a", device=device)
    library = Library(folder())
    handle = backend.load(library, library.records[0])
    regions = [
        Region(400, 50, "c"),
        Region(100, 50, "a"),
        Region(150, 10, "b"),
        Region(120, 20, "x"),
        Region(9, 0, ""),
    ]
    backend.bind(handle, (1, 1, 1), [], regions, 0)()
    assert device.seen == [{100: (60, "a, x, b"), 400: (50, "c")}]


def test_reports_are_kept(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> None:
    backend = EmulatorBackend("sm_100a", device=device)
    with on_cpu(backend, folder()):
        ops.gemm_nt(operand(128, 64), operand(128, 64))
        ops.gemm_nt(operand(128, 64), operand(128, 64))
    assert list(backend.reports) == ["report 1", "report 2"]


def test_an_argument_list_of_another_version_is_refused(
    on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice
) -> None:
    path = folder() / "manifest.json"
    content = json.loads(path.read_text())
    for kernel in content["kernels"]:
        kernel["params"][-1]["name"] = "depth"
    path.write_text(json.dumps(content))
    with (
        on_cpu(EmulatorBackend("sm_100a", device=device), path.parent),
        pytest.raises(ManifestError, match=r"'depth'.*build the cubins again"),
    ):
        ops.gemm_nt(operand(128, 64), operand(128, 64))


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        ((10, 0), ("sm_100a", "sm_100")),
        ((9, 0), ("sm_90a", "sm_90")),
        ((8, 9), ("sm_89a", *(f"sm_8{m}" for m in range(9, -1, -1)))),
        ((12, 1), ("sm_121a", "sm_121", "sm_120")),
    ],
)
def test_loadable_architectures(capability: tuple[int, int], archs: tuple[str, ...]) -> None:
    assert loadable_archs(*capability) == archs


def test_workspaces_of_the_emulator_are_aligned_and_kept() -> None:
    backend = EmulatorBackend("sm_100a")
    first = backend.workspace("slots", 0, 100)
    assert backend.workspace("slots", 0, 60) == first
    regions = [first, *(backend.workspace("slots", 0, 1000 * i) for i in range(1, 20))]
    assert {region.address % 256 for region in regions} == {0}
    assert len({region.address for region in regions}) == len(regions)
    assert [region.nbytes for region in regions] == [100, *(1000 * i for i in range(1, 20))]
