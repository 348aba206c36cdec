"""Runs what `cute.compile` returned as a GPU would: `run(compiled, *args)`, with CPU tensors for arguments.

The DSL compiles two programs, the kernels and the host code that launches them. The host code is exported as an
object whose undefined symbols are entry points of the CUDA runtime; front_door.c stands in for those. The DSL then
loads the object and calls it with its own conversion of arguments, and every launch that the host code makes,
descriptors and all, goes to an emulated Device, with the number of registers that ptxas gave the kernel.

Needs the DSL and a C compiler (`cc`, or what the environment's CC names); the rest of the emulator needs neither.
"""

from __future__ import annotations

import atexit
import copyreg
import ctypes
import functools
import importlib.resources
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from cute_kernels.emulator import architecture, cubin, tensor_map
from cute_kernels.emulator.device import Device
from cute_kernels.emulator.errors import EmulationError, Report
from cute_kernels.emulator.ptx import Module, parse

_CLUSTER_DIMENSION = 4  # cudaLaunchAttributeClusterDimension
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # cudaDeviceAttr
_SHARED_OPT_IN = (81, 97)
_INVALID_VALUE = 1


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

    def sizes(self) -> tuple[int, int, int]:
        return self.x, self.y, self.z


class _Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16)]


class _Config(ctypes.Structure):
    """cudaLaunchConfig_t."""

    _fields_ = [
        ("grid", _Dim3),
        ("block", _Dim3),
        ("dynamic_shared", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


_U32, _U64 = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint64)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(_Config), ctypes.c_char_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
)
_ENCODE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, _U64, _U64, _U32, _U32,
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int,
)  # fmt: skip
_ATTRIBUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


def run(
    compiled: Any,
    *args: Any,
    arch: str | None = None,
    schedule: str = "random",
    seed: int = 0,
    num_sms: int = 8,
    memory: Iterable[Any] = (),
    tolerate: Collection[str] = (),
) -> list[Report]:
    """Calls a compiled DSL function on an emulated GPU; gives the report of each kernel that it launched.

    compiled: what cute.compile returned; compile with options="--keep-ptx" (and "--generate-line-info" for faults that
        name Python lines), and "--gpu-arch" where the machine has no GPU.
    args: as for calling it: CPU tensors (torch, or made from them by from_dlpack), pointers, numbers, a stream.
    arch: the GPU to emulate, by default the one that the PTX is for.
    memory: torch tensors or arrays behind bare pointers among the arguments; tensors among the arguments need no
        mention.
    schedule, seed, num_sms, tolerate: as for Device.

    Raises EmulationError with the first fault of a kernel.
    """
    function, library = _load(compiled)
    return serve(
        compiled, lambda: function(*args), [*args, *memory], arch, schedule, seed, num_sms, library, tolerate
    )


def serve(
    compiled: Any,
    call: Callable[[], int | None],
    memory: Iterable[Any],
    arch: str | None = None,
    schedule: str = "random",
    seed: int = 0,
    num_sms: int = 8,
    library: ctypes.CDLL | None = None,
    tolerate: Collection[str] = (),
) -> list[Report]:
    """Runs the launches that `call` makes through host code of `compiled`; the rest is as for `run`.

    library: the front door that the host code goes through, by default the one that `connect` loaded.
    """
    ptx = _ptx(compiled)
    module = parse(ptx)
    door = _Door(ptx, module, Device(arch or module.target, num_sms, schedule, seed, tolerate=tolerate))
    for address, nbytes in _ranges(memory):
        door.device.register(address, nbytes)
    (library or connect()).front_door_connect(*door.callbacks)
    try:
        code = call()
    except Exception:
        if door.fault is None:
            raise
        code = 0
    if door.fault is not None:
        raise door.fault
    if code:
        raise EmulationError("bad-launch", f"the host function returned {code}, a CUDA error code")
    return door.reports


class DeviceTensor:
    """A CPU tensor that says it lies in a GPU's memory, so that from_dlpack makes a tensor of global memory of it.

    Without it the DSL compiles for generic addresses, which some instructions do not take.
    """

    _CUDA = 2  # DLDeviceType
    _DEVICE_TYPE_OFFSET = 8  # in DLTensor, behind the data pointer

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._CUDA, 0

    def __dlpack__(self, **_: object) -> Any:
        capsule = self._tensor.__dlpack__()
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        at = pointer_of(capsule, b"dltensor")
        ctypes.c_int32.from_address(at + self._DEVICE_TYPE_OFFSET).value = self._CUDA
        return capsule


def _ptx(compiled: Any) -> str:
    text = getattr(compiled, "__ptx__", None)
    if not text:
        raise ValueError('the compiled function holds no PTX; compile it with options="--keep-ptx"')
    return str(text) if "\n" in text else Path(text).read_text()


class _Door:
    """Takes what the host code asks of the CUDA runtime."""

    def __init__(self, ptx: str, module: Module, device: Device) -> None:
        self.ptx, self.module, self.device = ptx, module, device
        self.reports: list[Report] = []
        self.fault: Exception | None = None
        self.callbacks = (_LAUNCH(self._launch), _ENCODE(self._encode), _ATTRIBUTE(self._attribute))

    def _launch(self, config: Any, name: bytes, code: int, arguments: Any) -> int:
        """code: where the fat binary lies. An exception may not cross the host code, so it is kept for `run`."""
        if self.fault is not None:
            return _INVALID_VALUE
        try:
            c = config.contents
            kernel = self.module.kernels[name.decode()]
            cluster = (1, 1, 1)
            for attribute in c.attributes[: c.attribute_count]:
                if attribute.id == _CLUSTER_DIMENSION:
                    cluster = tuple(max(1, size) for size in attribute.value[:3])
            self.reports.append(
                self.device.launch(
                    self.ptx,
                    kernel.name,
                    c.grid.sizes(),
                    c.block.sizes(),
                    cluster,
                    c.dynamic_shared,
                    [ctypes.string_at(arguments[i], p.nbytes) for i, p in enumerate(kernel.params)],
                    registers=_registers(code).get(kernel.name),
                )
            )
        except Exception as fault:
            self.fault = fault
            return _INVALID_VALUE
        return 0

    def _encode(
        self, target: int, dtype: int, rank: int, address: int, dims: Any, strides: Any, box: Any, steps: Any,
        interleave: int, swizzle: int, promotion: int, fill: int,
    ) -> int:  # fmt: skip
        try:
            data = tensor_map.encode(
                tensor_map.DTYPES[dtype],
                address,
                tuple(dims[:rank]),
                tuple(strides[: rank - 1]),
                tuple(box[:rank]),
                tuple(steps[:rank]),
                tensor_map.INTERLEAVES[interleave],
                tensor_map.SWIZZLES[swizzle],
                tensor_map.L2_PROMOTIONS[promotion],
                tensor_map.OOB_FILLS[fill],
            )
        except Exception as fault:
            self.fault = self.fault or fault
            return _INVALID_VALUE
        ctypes.memmove(target, data, len(data))
        return 0

    def _attribute(self, attribute: int) -> int:
        emulated = architecture.find(self.device.arch)
        if attribute in _SHARED_OPT_IN:
            return emulated.max_shared
        known = {_MULTIPROCESSORS: self.device.num_sms, _MAJOR: emulated.major, _MINOR: emulated.minor}
        return known.get(attribute, 0)


def _registers(code: int) -> dict[str, int]:
    """Registers a thread of each kernel in a fat binary."""
    machine_code = cubin.of_fat_binary(code)
    return cubin.registers(machine_code) if machine_code else {}


def _compile(*objects: str) -> str:
    """front_door.c, linked with objects that are to find their entry points in it; removed when the process ends."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise RuntimeError("running compiled DSL functions needs a C compiler; install one, or name it in CC")
    folder = tempfile.mkdtemp(prefix="cute_kernels_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = str(Path(folder, "front_door.so"))
    with importlib.resources.as_file(
        importlib.resources.files("cute_kernels.emulator") / "front_door.c"
    ) as source:
        options = ["-shared", "-fPIC", "-O1", "-Wl,-Bsymbolic"]
        command = [compiler, *options, "-o", library, str(source), *objects]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return library


@functools.cache
def connect() -> ctypes.CDLL:
    """Loads front_door.c for all of the process. For `serve`, call it before the DSL is imported, since whoever defines
    an entry point first is found first."""
    return ctypes.CDLL(_compile(), mode=ctypes.RTLD_GLOBAL)


def _load(compiled: Any) -> tuple[Any, ctypes.CDLL]:
    """The function's host code, and the front door that it is linked with."""
    import cutlass.cute as cute
    from cuda.bindings.driver import CUstream

    # The object holds the defaults of arguments, and a stream does not pickle by itself.
    copyreg.pickle(CUstream, lambda stream: (CUstream, (int(stream),)))
    connect()  # the DSL resolves the entry points before it gives the object away, whether or not it has a runtime
    name = "front_door"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.o")
        path.write_bytes(compiled.dump_to_object(name))
        library = _compile(str(path))
    function = getattr(cute.runtime.load_module(library), name)
    function.num_devices = 1  # instead of asking the CUDA runtime
    return function, ctypes.CDLL(library)


def _ranges(values: Iterable[Any]) -> list[tuple[int, int]]:
    """Addresses and sizes of the memory behind tensors among the values, overlapping ones joined."""
    found: list[tuple[int, int]] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _ranges(value)
        elif hasattr(value, "untyped_storage"):  # torch
            storage = value.untyped_storage()
            found.append((storage.data_ptr(), storage.nbytes()))
        elif hasattr(value, "__array_interface__"):
            found.append((value.ctypes.data, value.nbytes))
        elif hasattr(value, "load_dltensor"):  # the DSL's view of a tensor
            found.append(_extent(value))
    joined: list[tuple[int, int]] = []
    for address, nbytes in sorted(found):
        if joined and address < sum(joined[-1]):
            first = joined[-1][0]
            joined[-1] = (first, max(sum(joined[-1]), address + nbytes) - first)
        elif nbytes:
            joined.append((address, nbytes))
    return joined


def _extent(tensor: Any) -> tuple[int, int]:
    """The bytes between the first and the last element of a DSL tensor."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride, strict=True))
    return tensor.data_ptr, -(-elements * tensor.element_type.width // 8)
