"""Kernels on a CUDA device through the driver API.

A kernel is loaded once for each device, into the primary context, which is torch's. A launcher holds
everything that does not change between launches (parameter bytes, launch configuration), so that launching is
one driver call: nothing is allocated on the device, nothing synchronises, and CUDA graphs capture it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from cute_kernels.build.variant import TensorMapSpec

from .arguments import Tiled
from .backend import Region
from .errors import DriverError, ManifestError
from .manifest import KernelRecord, Library

_TYPES = {
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "i32": "INT32",
    "u64": "UINT64",
    "i64": "INT64",
    "f16": "FLOAT16",
    "bf16": "BFLOAT16",
    "f32": "FLOAT32",
    "f64": "FLOAT64",
    "b4x16": "16U4_ALIGN8B",
    "b4x16_p64": "16U4_ALIGN16B",
}
_L2 = {"none": "NONE", "64B": "L2_64B", "128B": "L2_128B", "256B": "L2_256B"}
_OOB = {"zero": "NONE", "nan": "NAN_REQUEST_ZERO_FMA"}

_DEFAULT_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel gets without asking
_PARAM_ALIGNMENT = 64  # of a tensor map; more than any other parameter needs


_T = TypeVar("_T")


class Handle(NamedTuple):
    """A kernel loaded on a device."""

    record: KernelRecord
    function: Any  # CUfunction
    module: Any  # CUmodule; never unloaded, as graphs may hold its functions


def loadable_archs(major: int, minor: int) -> tuple[str, ...]:
    """Return the architectures whose cubins a device of this compute capability loads, the most specific
    first.

    A cubin runs on its own major version and on minor versions not below its own; with the suffix "a", on
    exactly its own.
    """
    plain = [f"sm_{major}{m}" for m in range(minor, -1, -1)]
    return (f"sm_{major}{minor}a", *plain)


class GpuBackend:
    """Runs kernels on one CUDA device.

    ordinal: the device's index, as in torch.device("cuda", ordinal).
    driver: the module cuda.bindings.driver, or one with its functions.
    current_stream: device index -> handle of the current stream; torch's unless given.
    """

    def __init__(
        self, ordinal: int, driver: Any = None, current_stream: Callable[[int], int] | None = None
    ) -> None:
        if driver is None:
            from cuda.bindings import driver as cuda_driver

            driver = cuda_driver
        if current_stream is None:
            import torch

            # What torch.cuda.current_stream(i).cuda_stream gives, without building a Stream object at every
            # launch.
            current_stream = torch._C._cuda_getCurrentRawStream
        self._driver = driver
        self._ordinal = ordinal
        self._current_stream = current_stream
        self._lock = threading.Lock()
        self._handles: dict[KernelRecord, Handle] = {}
        self._workspaces: dict[tuple[str, int], Region] = {}

        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        # torch holds the primary context for good once it has a tensor on the device; retaining it again
        # never creates another, and gives its handle.
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        major, minor = (
            self._attribute("COMPUTE_CAPABILITY_MAJOR"),
            self._attribute("COMPUTE_CAPABILITY_MINOR"),
        )
        self.archs = loadable_archs(major, minor)
        self.num_sms = self._attribute("MULTIPROCESSOR_COUNT")
        self._max_shared = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")

    def stream(self) -> int:
        """Return the handle of the current stream."""
        return self._current_stream(self._ordinal)

    def load(self, library: Library, record: KernelRecord) -> Handle:
        """Load a kernel into this device's context at the first call; the same handle afterwards.

        Raises ManifestError for a file that is missing or is not the manifest's, DriverError if the driver
        refuses it.
        """
        with self._lock:
            if record not in self._handles:
                cubin = library.read_cubin(record)
                self._handles[record] = self._in_context(lambda: self._load(cubin, record))
            return self._handles[record]

    def encode_tensor_map(self, spec: TensorMapSpec, tensor: Tiled) -> bytes:
        """Return the descriptor that cuTensorMapEncodeTiled makes. Raises DriverError if it refuses."""
        driver = self._driver
        rank = len(spec.box)
        dims = tensor.dims(spec.dtype)
        if len(dims) != rank:
            raise ManifestError(
                f"the kernel's tensor map has {rank} dimensions, the tensor {len(dims)}; build the cubins "
                "again"
            )
        swizzle = driver.CUtensorMapSwizzle
        encoded = self._call(
            "cuTensorMapEncodeTiled",
            getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{_TYPES[spec.dtype]}"),
            rank,
            tensor.address,
            [driver.cuuint64_t(extent) for extent in dims],
            [driver.cuuint64_t(stride) for stride in tensor.strides],
            [driver.cuuint32_t(extent) for extent in spec.box],
            [driver.cuuint32_t(stride) for stride in spec.element_strides or (1,) * rank],
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(swizzle, f"CU_TENSOR_MAP_SWIZZLE_{spec.swizzle.upper()}"),
            getattr(driver.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{_L2[spec.l2_promotion]}"),
            getattr(driver.CUtensorMapFloatOOBfill, f"CU_TENSOR_MAP_FLOAT_OOB_FILL_{_OOB[spec.oob_fill]}"),
        )
        return ctypes.string_at(int(encoded.getPtr()), 128)

    def workspace(self, name: str, stream: int, nbytes: int) -> Region:
        """Return zeroed memory of a stream. What was given out before stays valid, as graphs may hold its address.

        Allocated by the driver and not by torch, since in a stream capture torch would take it from the graph's pool.
        """
        with self._lock:
            held = self._workspaces.get((name, stream))
            if held is None or held.nbytes < nbytes:
                held = Region(self._in_context(lambda: self._zeros(nbytes)), nbytes, name)
                self._workspaces[name, stream] = held
            return held

    def _zeros(self, nbytes: int) -> int:
        relaxed = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        former = self._call("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            address = self._call("cuMemAlloc", nbytes)
            own = self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self._call("cuMemsetD8Async", address, 0, nbytes, own)
            self._call("cuStreamSynchronize", own)
            self._call("cuStreamDestroy", own)
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", former)
        return int(address)

    def bind(
        self,
        handle: Handle,
        grid: tuple[int, int, int],
        params: Sequence[bytes],
        memory: Sequence[Region],
        stream: int,
    ) -> GpuLauncher:
        """Return a launcher; `memory` is for the emulator."""
        record = handle.record
        config = _launch_config(self._driver, record, grid, stream)
        return GpuLauncher(self._driver, self._context, handle, config, params, self._raise)

    def _load(self, cubin: bytes, record: KernelRecord) -> Handle:
        if record.dynamic_shared > self._max_shared:
            raise DriverError(
                f"{record.name} needs {record.dynamic_shared} bytes of shared memory, this device gives "
                f"{self._max_shared} to a block. Use a kernel built for this device",
                0,
            )
        relaxed = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        # Loading allocates, which a thread in the midst of a stream capture may not do in the default mode.
        former = self._call("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            module = self._call("cuModuleLoadData", cubin, about=record)
            function = self._call("cuModuleGetFunction", module, record.entry.encode(), about=record)
            if record.dynamic_shared > _DEFAULT_SHARED:
                attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call("cuFuncSetAttribute", function, attribute, record.dynamic_shared, about=record)
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", former)
        return Handle(record, function, module)

    def _in_context(self, action: Callable[[], _T]) -> _T:
        self._call("cuCtxPushCurrent", self._context)
        try:
            return action()
        finally:
            self._call("cuCtxPopCurrent")

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._device))

    def _call(self, name: str, *arguments: Any, about: KernelRecord | None = None) -> Any:
        """Call a driver function; return its one result, or None. Raises DriverError."""
        status, *results = getattr(self._driver, name)(*arguments)
        if status != 0:
            self._raise(name, status, about)
        return results[0] if results else None

    def _raise(self, name: str, status: Any, record: KernelRecord | None) -> None:
        found, text = self._driver.cuGetErrorString(status)
        what = text.decode() if found == 0 else f"CUresult {int(status)}"
        of = f" for {record.name} ({record.arch})" if record else ""
        raise DriverError(f"{name}{of} on CUDA device {self._ordinal}: {what}", int(status))


class GpuLauncher:
    """One launch, ready to go. It never changes, so threads may share it."""

    __slots__ = (
        "_buffer",
        "_config",
        "_context",
        "_driver",
        "_function",
        "_pointers",
        "_raise",
        "_record",
        "_table",
    )

    def __init__(
        self,
        driver: Any,
        context: Any,
        handle: Handle,
        config: Any,
        params: Sequence[bytes],
        on_error: Callable[[str, Any, KernelRecord | None], None],
    ) -> None:
        self._driver = driver
        self._context = int(context)
        self._record = handle.record
        self._function = handle.function
        self._config = config
        self._raise = on_error
        self._buffer, addresses = _laid_out(params)
        self._table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._pointers = ctypes.addressof(self._table)

    def __call__(self) -> None:
        driver = self._driver
        # The thread may have no context yet, or another device's.
        if int(driver.cuCtxGetCurrent()[1]) == self._context:
            (status,) = driver.cuLaunchKernelEx(self._config, self._function, self._pointers, 0)
        else:
            (status, *_) = driver.cuCtxPushCurrent(self._context)
            if status == 0:
                (status,) = driver.cuLaunchKernelEx(self._config, self._function, self._pointers, 0)
                driver.cuCtxPopCurrent()
        if status != 0:
            self._raise("cuLaunchKernelEx", status, self._record)


def _laid_out(params: Sequence[bytes]) -> tuple[ctypes.Array[ctypes.c_char], list[int]]:
    """Copy parameters to memory, each on its own aligned slot; return the memory and the address of each."""
    offsets, end = [], 0
    for param in params:
        offsets.append(end)
        end += -(-len(param) // _PARAM_ALIGNMENT) * _PARAM_ALIGNMENT
    buffer = ctypes.create_string_buffer(end + _PARAM_ALIGNMENT)
    base = -(-ctypes.addressof(buffer) // _PARAM_ALIGNMENT) * _PARAM_ALIGNMENT
    for offset, param in zip(offsets, params, strict=True):
        ctypes.memmove(base + offset, param, len(param))
    return buffer, [base + offset for offset in offsets]


def _launch_config(driver: Any, record: KernelRecord, grid: tuple[int, int, int], stream: int) -> Any:
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = record.block
    config.sharedMemBytes = record.dynamic_shared
    config.hStream = stream
    attributes = []
    if record.cluster != (1, 1, 1):
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster = attribute.value.clusterDim
        cluster.x, cluster.y, cluster.z = record.cluster
        attributes.append(attribute)
    # Only for a kernel that waits for its predecessor itself (griddepcontrol.wait): any other would start too
    # early.
    if record.config.get("pdl", False):
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    config.attrs = attributes
    config.numAttrs = len(attributes)
    return config
