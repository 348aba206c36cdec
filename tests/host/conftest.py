"""Stand-ins for what the runtime drives: a CUDA driver, an emulated device, and a folder of cubins.

The fake driver replaces only the functions that need a GPU; types and enumerations are cuda-python's own.
Both stand-ins write descriptors by the same rule, so a test can compare the bytes that the two backends send.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver as cuda_driver

from tests.host.gemm_configs import config as config_of

OnCpu = Callable[[Any, Path], contextlib.AbstractContextManager[None]]  # what the fixtures give: `on_cpu`,
MakeFolder = Callable[..., Path]  # `folder`
MakeEntry = Callable[..., dict[str, Any]]  # and `entry`

MAPS = {"map_a": "u8", "map_b": "u8", "map_sfa": "i32", "map_sfb": "i32"}


def descriptor(dtype: str, address: int, dims: Any, strides: Any, box: Any, swizzle: str) -> bytes:
    """128 bytes that differ whenever one of the properties does."""
    head = struct.pack("<Q", address)
    return head + (f"{dtype} {tuple(dims)} {tuple(strides)} {tuple(box)} {swizzle}".encode()).ljust(
        120, b"\0"
    )


@dataclass
class Launch:
    """What a launch was given."""

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared: int
    params: list[bytes]
    stream: int = 0
    context: int = 0
    dependent: bool = False


@dataclass
class FakeDriver:
    """cuda.bindings.driver without a GPU: functions are methods, everything else is the real module's."""

    capability: tuple[int, int] = (10, 0)
    sms: int = 148
    shared: int = 232448
    param_sizes: dict[str, list[int]] = field(default_factory=dict)  # by entry
    calls: list[str] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)  # function -> CUresult
    shared_attributes: dict[str, int] = field(default_factory=dict)
    capture_modes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._contexts = threading.local()
        self._capture_mode = cuda_driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL

    def __getattr__(self, name: str) -> Any:
        return getattr(cuda_driver, name)

    def _status(self, name: str) -> int:
        self.calls.append(name)
        return self.failures.get(name, 0)

    @property
    def context_stack(self) -> list[int]:
        """Contexts that the calling thread has pushed."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        return self._contexts.stack

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        return (self._status("cuInit"),)

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"made to fail"

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:  # noqa: N802
        return self._status("cuDeviceGet"), ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, Any]:  # noqa: N802
        return self._status("cuDevicePrimaryCtxRetain"), cuda_driver.CUcontext(0xC000 + device)

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int, int]:  # noqa: N802
        value = {
            "COMPUTE_CAPABILITY_MAJOR": self.capability[0],
            "COMPUTE_CAPABILITY_MINOR": self.capability[1],
            "MULTIPROCESSOR_COUNT": self.sms,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": self.shared,
        }[attribute.name.removeprefix("CU_DEVICE_ATTRIBUTE_")]
        return self._status("cuDeviceGetAttribute"), value

    def cuCtxGetCurrent(self) -> tuple[int, Any]:  # noqa: N802
        return self._status("cuCtxGetCurrent"), cuda_driver.CUcontext(([0] + self.context_stack)[-1])

    def cuCtxPushCurrent(self, context: Any) -> tuple[int]:  # noqa: N802
        self.context_stack.append(int(context))
        return (self._status("cuCtxPushCurrent"),)

    def cuCtxPopCurrent(self) -> tuple[int, Any]:  # noqa: N802
        return self._status("cuCtxPopCurrent"), self.context_stack.pop()

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> tuple[int, Any]:  # noqa: N802
        former, self._capture_mode = self._capture_mode, mode
        return self._status("cuThreadExchangeStreamCaptureMode"), former

    def cuModuleLoadData(self, image: bytes) -> tuple[int, Any]:  # noqa: N802
        self.capture_modes.append(self._capture_mode.name)
        assert self.context_stack, "a module is loaded into the current context, and there is none"
        return self._status("cuModuleLoadData"), ("module", image)

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[int, Any]:  # noqa: N802
        return self._status("cuModuleGetFunction"), ("function", name.decode(), self.context_stack[-1])

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: int) -> tuple[int]:  # noqa: N802
        assert attribute.name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.shared_attributes[function[1]] = value
        return (self._status("cuFuncSetAttribute"),)

    def cuTensorMapEncodeTiled(  # noqa: N802
        self, dtype: Any, rank: int, address: int, dims: Any, strides: Any, box: Any, steps: Any, *rest: Any
    ) -> tuple[int, Any]:
        assert len(dims) == len(box) == len(steps) == rank == len(strides) + 1
        assert all(isinstance(value, cuda_driver.cuuint64_t) for value in [*dims, *strides])
        assert all(isinstance(value, cuda_driver.cuuint32_t) for value in [*box, *steps])
        interleave, swizzle, promotion, fill = (value.name for value in rest)
        assert interleave.endswith("_NONE")
        assert promotion.endswith("_L2_256B")
        assert fill.endswith("_NONE")
        names = {"UINT8": "u8", "INT32": "i32", "BFLOAT16": "bf16", "FLOAT32": "f32", "16U4_ALIGN8B": "b4x16"}
        data = descriptor(
            names[dtype.name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_")],
            address,
            [int(value) for value in dims],
            [int(value) for value in strides],
            [int(value) for value in box],
            swizzle.removeprefix("CU_TENSOR_MAP_SWIZZLE_").replace("NONE", "none"),
        )
        encoded = cuda_driver.CUtensorMap()
        ctypes.memmove(int(encoded.getPtr()), data, 128)
        return self._status("cuTensorMapEncodeTiled"), encoded

    def cuLaunchKernelEx(self, config: Any, function: Any, pointers: int, extra: int) -> tuple[int]:  # noqa: N802
        _, entry, context = function
        assert self.context_stack[-1:] == [context], "launched outside the function's context"
        sizes = self.param_sizes[entry]
        addresses = (ctypes.c_void_p * len(sizes)).from_address(pointers)
        attributes = {attribute.id.name: attribute.value for attribute in config.attrs}
        cluster = attributes.get("CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION")
        dependent = attributes.get("CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION")
        self.launches.append(
            Launch(
                entry,
                (config.gridDimX, config.gridDimY, config.gridDimZ),
                (config.blockDimX, config.blockDimY, config.blockDimZ),
                (cluster.clusterDim.x, cluster.clusterDim.y, cluster.clusterDim.z) if cluster else (1, 1, 1),
                config.sharedMemBytes,
                [ctypes.string_at(a, size) for a, size in zip(addresses, sizes, strict=True)],
                int(config.hStream),
                context,
                bool(dependent and dependent.programmaticStreamSerializationAllowed),
            )
        )
        return (self._status("cuLaunchKernelEx"),)


@dataclass
class FakeDevice:
    """An emulator device that records what it is given and computes nothing."""

    launches: list[Launch] = field(default_factory=list)
    registered: dict[int, tuple[int, str]] = field(default_factory=dict)
    seen: list[dict[int, tuple[int, str]]] = field(default_factory=list)  # what was registered at each launch
    fail: Exception | None = None

    def register(self, address: int, nbytes: int, name: str = "") -> None:
        for start, (size, _) in self.registered.items():
            assert address + nbytes <= start or start + size <= address, "registered ranges overlap"
        self.registered[address] = (nbytes, name)

    def unregister(self, address: int) -> None:
        del self.registered[address]

    def encode_tensor_map(
        self, dtype: str, address: int, dims: Any, strides: Any, box: Any, swizzle: str, **rest: Any
    ) -> bytes:
        return descriptor(dtype, address, dims, strides, box, swizzle)

    def launch(
        self,
        ptx: str,
        entry: str,
        grid: Any,
        block: Any,
        cluster: Any,
        shared: int,
        params: list[bytes],
        registers: int,
    ) -> str:
        assert ptx == f"ptx of {entry}"
        assert registers == 128
        self.seen.append(dict(self.registered))
        if self.fail:
            raise self.fail
        self.launches.append(Launch(entry, grid, block, cluster, shared, params))
        return f"report {len(self.launches)}"


def gemm_entry(
    tile_n: int = 128, d_dtype: str = "bf16", accumulate: bool = False, arch: str = "sm_100a", **config: Any
) -> dict[str, Any]:
    """A manifest entry of the block-scaled GEMM."""
    name = f"gemm_{tile_n}_{d_dtype}" + ("_c" if accumulate else "")
    loaded = {"map_c": d_dtype} if accumulate and d_dtype == "bf16" else {}
    maps = {**MAPS, **loaded, "map_d": d_dtype}
    params = [
        {
            "name": key,
            "kind": "tensor_map",
            "nbytes": 128,
            "tensor_map": {
                "dtype": dtype,
                "box": [32, 64],
                "swizzle": "128B" if dtype == "u8" else "none",
                "l2_promotion": "256B",
                "oob_fill": "zero",
                "element_strides": [],
            },
        }
        for key, dtype in maps.items()
    ]
    params += [{"name": key, "kind": "i32", "nbytes": 4, "tensor_map": None} for key in "mnk"]
    return {
        "kernel": "gemm_blockscaled",
        "name": name,
        "arch": arch,
        "config": {**config_of(tile_n, d_dtype, accumulate), "pdl": True, **config},
        "entry": name + "_0",
        "params": params,
        "block": [224, 1, 1],
        "cluster": [1, 1, 1],
        "dynamic_shared": 200000,
        "cubin": f"{arch}/{name}.cubin",
        "cubin_sha256": hashlib.sha256(f"cubin of {name}_0".encode()).hexdigest(),
        "ptx": f"{arch}/{name}.ptx",
        "ptx_sha256": hashlib.sha256(f"ptx of {name}_0".encode()).hexdigest(),
        "registers": 128,
        "spill_bytes": 0,
        "local_bytes": 0,
    }


def dequantize_entry(arch: str = "sm_100a") -> dict[str, Any]:
    """A manifest entry of the NVFP4 dequantize kernel."""
    params = [(name, "pointer", 8) for name in ("packed", "scales", "global_scale", "out")] + [
        ("blocks", "i64", 8)
    ]
    return {
        **gemm_entry(arch=arch),
        "kernel": "nvfp4_dequantize",
        "name": "dequantize",
        "config": {"threads": 128, "words_per_thread": 2, "blocks_per_cta": 128},
        "entry": "dequantize_0",
        "params": [{"name": n, "kind": k, "nbytes": size, "tensor_map": None} for n, k, size in params],
        "block": [128, 1, 1],
        "dynamic_shared": 0,
        "cubin": f"{arch}/dequantize.cubin",
        "cubin_sha256": hashlib.sha256(b"cubin of dequantize_0").hexdigest(),
        "ptx": f"{arch}/dequantize.ptx",
        "ptx_sha256": hashlib.sha256(b"ptx of dequantize_0").hexdigest(),
    }


def repack_entry(arch: str = "sm_100a") -> dict[str, Any]:
    """A manifest entry of the NVFP4 repack kernel."""
    params = [(name, "pointer", 8) for name in ("codes", "scales", "packed")]
    params += [("n", "u32", 4), ("blocks", "u32", 4)]
    return {
        **dequantize_entry(arch),
        "kernel": "nvfp4_repack",
        "name": "repack",
        "config": {"warps": 8, "threads": 256},
        "entry": "repack_0",
        "params": [{"name": n, "kind": k, "nbytes": size, "tensor_map": None} for n, k, size in params],
        "block": [256, 1, 1],
        "cubin": f"{arch}/repack.cubin",
        "cubin_sha256": hashlib.sha256(b"cubin of repack_0").hexdigest(),
        "ptx": f"{arch}/repack.ptx",
        "ptx_sha256": hashlib.sha256(b"ptx of repack_0").hexdigest(),
    }


ENTRIES = [gemm_entry(128, d, c) for d in ("bf16", "f32") for c in (False, True)] + [
    dequantize_entry(),
    repack_entry(),
]


def write_folder(folder: Path, entries: list[dict[str, Any]]) -> Path:
    """Write a cubin folder whose files hold no code."""
    for entry in entries:
        for kind in ("cubin", "ptx"):
            if entry[kind] is not None:
                path = folder / entry[kind]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{kind} of {entry['entry']}")
    folder.mkdir(exist_ok=True)
    content = {"format": 1, "dsl_version": "0", "kernels": entries}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def entry() -> MakeEntry:
    """`gemm_entry`."""
    return gemm_entry


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """Writer of cubin folders: entries (by default a GEMM for each kind of D, dequantize and repack) -> path."""

    def write(entries: list[dict[str, Any]] | None = None, name: str = "cubins") -> Path:
        return write_folder(tmp_path / name, ENTRIES if entries is None else entries)

    return write


@pytest.fixture
def driver() -> FakeDriver:
    """A fake CUDA driver that knows the parameters of the kernels."""
    sizes = {e["entry"]: [p["nbytes"] for p in e["params"]] for e in ENTRIES}
    return FakeDriver(param_sizes=sizes)


@pytest.fixture
def device() -> FakeDevice:
    """A fake emulator device."""
    return FakeDevice()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> OnCpu:
    """Run operations on CPU tensors on a given backend and with the cubins of a folder."""
    from cute_kernels.runtime import context

    @contextlib.contextmanager
    def use(backend: Any, cubins: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(context._settings, "emulation", backend)
            patch.setattr(context._settings, "library", None)
            context.set_cubins(cubins)  # whose identity keeps what other tests have cached apart
            yield

    return use
