"""Runs one example script of the CuTe DSL on the emulator: `python -m tests.vendor.example FILE [ARGS]`.

The script, written for a GPU, is executed as it is. Torch's "cuda" device means the CPU, streams mean nothing, and
calling a compiled DSL function goes through the emulator's front door. The script's own check decides whether the
result is right. CUTE_DSL_ARCH names the architecture, VENDOR_SCHEDULE the emulator's schedule.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import runpy
import sys
import types
from typing import Any

os.environ.setdefault("CUTE_DSL_ARCH", "sm_100a")
os.environ["CUTE_DSL_KEEP_PTX"] = "1"
os.environ["CUTE_DSL_LINEINFO"] = "1"

from cute_kernels.emulator import front_door

front_door.connect()  # before the DSL, which loads the real entry points where it finds them

import cuda.bindings.driver as driver
import cutlass.cute as cute
import cutlass.cute.testing
import cutlass.torch
import cutlass.utils
import torch
from cutlass.cute.runtime import from_dlpack
from cutlass.cutlass_dsl.cuda_jit_executor import CudaDialectJitCompiledFunction
from torch.overrides import TorchFunctionMode

from cute_kernels.emulator.architecture import find
from cute_kernels.emulator.device import TOLERABLE
from cute_kernels.emulator.errors import Report
from tests.vendor.scaled_mm import scaled_mm

SMS = 4
_LAUNCHES: list[str] = []
_WARNINGS: dict[str, None] = {}


class OnTheCpu(TorchFunctionMode):
    """Takes "cuda" for the CPU in whatever torch function is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: _cpu(value) for name, value in (kwargs or {}).items()}
        return _aligned(func(*[_cpu(value) for value in args], **kwargs))


def _aligned(value: Any) -> Any:
    """A fresh tensor at a multiple of 256 bytes, as a GPU's allocator gives it."""
    if type(value) is not torch.Tensor or value._base is not None or not value.numel():
        return value
    if value.data_ptr() % 256 == 0 or value.storage_offset() or value.requires_grad:
        return value
    nbytes = value.untyped_storage().nbytes()
    with torch._C.DisableTorchFunction():
        room = torch.empty(nbytes + 256, dtype=torch.uint8)
        room = room[-room.data_ptr() % 256 :][:nbytes]
        moved = room.view(value.dtype).as_strided(value.shape, value.stride())
        moved.copy_(value)
    return moved


def _cpu(value: Any) -> Any:
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class Deferred:
    """What `cute.compile` gives here: compiled when it is called first, or, where it is given fake tensors, for the
    very tensors that it is called with: scripts then pass torch tensors by TVM FFI, which needs the CUDA runtime."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.compiled: Any = None

    def __call__(self, *given: Any, **named: Any) -> None:
        if not any(_fake(value) for value in (*self.args, *self.kwargs.values())):
            self.compiled = self.compiled or _COMPILE(self.function, *self.args, **self.kwargs)
            _call(self.compiled, *given, **named)
            return
        left = list(given)
        args, passed = [], []
        for declared, static in zip(self.args, _static(self.function, len(self.args)), strict=True):
            if type(declared).__name__ == "_FakeStream":
                args.append(declared)
                passed.append(driver.CUstream(0))
                if left and not isinstance(left[0], torch.Tensor):
                    left.pop(0)
            elif left and not static:
                args.append(_given(left.pop(0), declared))
                passed.append(args[-1])
            else:
                args.append(declared)
        kwargs = {name: named.get(name, value) for name, value in self.kwargs.items()}
        _call(_COMPILE(self.function, *args, **kwargs), *passed, **named)


def _static(function: Any, count: int) -> list[bool]:
    """Which of the first `count` parameters of a DSL function are known when it is compiled."""
    called = function if inspect.isroutine(function) else type(function).__call__
    parameters = list(inspect.signature(called).parameters.values())
    if called is not function or inspect.ismethod(function):
        parameters = [p for p in parameters if p.name != "self"]
    return ["Constexpr" in str(p.annotation) for p in parameters[:count]]


def _fake(value: Any) -> bool:
    """Whether a value only describes what is given at the call."""
    if isinstance(value, (tuple, list)):
        return any(_fake(item) for item in value)
    return type(value).__name__.startswith(("_Fake", "SymInt"))


def _given(value: Any, declared: Any) -> Any:
    """What is passed for one argument that was declared so, tuples of arguments included."""
    if isinstance(value, tuple) and isinstance(declared, tuple):
        items = [_given(item, fake) for item, fake in zip(value, declared, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, torch.Tensor):
        align = getattr(declared, "_assumed_align", None) or 16
        return from_dlpack(front_door.DeviceTensor(value), assumed_align=align)
    return driver.CUstream(0) if type(value).__name__ in ("Stream", "CUstream") else value


def _on_the_gpu(value: Any, *args: Any, enable_tvm_ffi: bool = False, **kwargs: Any) -> Any:
    """from_dlpack, which takes torch tensors for tensors of global memory; none go through TVM FFI."""
    given = front_door.DeviceTensor(value) if isinstance(value, torch.Tensor) else value
    return from_dlpack(given, *args, **kwargs)


_COMPILE = cute.compile
_ORIGINAL_CALL = CudaDialectJitCompiledFunction.__call__
_ORIGINAL_RUN = CudaDialectJitCompiledFunction.run_compiled_program


class Compile:
    """Stands for cute.compile, with and without options in brackets."""

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Deferred:
        options = str(kwargs.pop("options", "")).replace("--enable-tvm-ffi", "").strip()
        if options:
            kwargs["options"] = options
        return Deferred(function, args, kwargs)

    def __getitem__(self, options: Any) -> Compile:
        return self


def _call(compiled: Any, *args: Any, **kwargs: Any) -> Any:
    if "num_devices" in vars(compiled):  # the front door's own
        return _ORIGINAL_CALL(compiled, *args, **kwargs)
    schedule = os.environ.get("VENDOR_SCHEDULE", "random")
    reports = front_door.run(
        compiled,
        *args,
        *kwargs.values(),
        schedule=schedule,
        num_sms=SMS,
        memory=_tensors(),
        tolerate=TOLERABLE,
    )
    _note(reports)
    return 0


def _run_program(compiled: Any, exe_args: Any) -> Any:
    """A DSL function called with no cute.compile before: its host code is in this process already."""
    if "num_devices" in vars(compiled):
        return _ORIGINAL_RUN(compiled, exe_args)
    compiled.num_devices = 1
    schedule = os.environ.get("VENDOR_SCHEDULE", "random")
    try:
        text = compiled.__ptx__ or ""
        if "\n" not in text and not os.path.exists(text):  # a function of the host alone
            return _ORIGINAL_RUN(compiled, exe_args)
        reports = front_door.serve(
            compiled,
            lambda: _ORIGINAL_RUN(compiled, exe_args),
            _tensors(),
            schedule=schedule,
            num_sms=SMS,
            tolerate=TOLERABLE,
        )
    finally:
        del compiled.num_devices
    _note(reports)
    return 0


def _note(reports: list[Report]) -> None:
    _LAUNCHES.extend(report.kernel for report in reports)
    _WARNINGS.update(dict.fromkeys(warning for report in reports for warning in report.warnings))


def _tensors() -> list[torch.Tensor]:
    """Every tensor that is alive: scripts pass bare pointers to some."""
    return [o for o in gc.get_objects() if type(o) is torch.Tensor and o.device.type == "cpu" and o.numel()]


def _benchmark(
    function: Any, *_: Any, workspace_generator: Any = None, kernel_arguments: Any = None, **__: Any
) -> float:
    """Times nothing; runs what is to be timed once, where that is the script's only launch."""
    if not _LAUNCHES:
        given = kernel_arguments or workspace_generator()
        function(*given.args, **given.kwargs)
    return 1.0


def pretend() -> None:
    """Makes torch and the driver's bindings look as on a machine with a GPU."""
    arch = find(os.environ["CUTE_DSL_ARCH"])
    success = driver.CUresult.CUDA_SUCCESS
    named = driver.CUdevice_attribute
    attributes = {
        named.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: arch.major,
        named.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: arch.minor,
        named.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: SMS,
        named.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: arch.max_shared,
    }

    class Stream:
        cuda_stream = stream_id = device_index = device_type = 0
        device = torch.device("cpu")

        def synchronize(self) -> None:
            return None

    class Event:
        """Times nothing."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, *_: Any) -> None: ...

        def synchronize(self) -> None: ...

        def elapsed_time(self, *_: Any) -> float:
            return 1.0

    torch_itself: Any = torch  # whose functions and classes a type checker would keep as they are
    cuda = torch_itself.cuda
    cuda.is_available = lambda: True
    cuda.synchronize = lambda *_: None
    cuda.current_stream = cuda.default_stream = lambda *_: Stream()
    cuda.stream = lambda *_: contextlib.nullcontext()
    # What a graph would record is executed at once, and not again when it is replayed.
    cuda.CUDAGraph = lambda *_, **__: types.SimpleNamespace(replay=lambda: None)
    cuda.graph = lambda *_, **__: contextlib.nullcontext()
    cutlass.cuda.initialize_cuda_context = lambda *_, **__: None
    cuda.Event = Event
    cuda.get_device_capability = lambda *_: (arch.major, arch.minor)
    cuda.current_device = lambda: 0
    cuda.init = lambda: None
    cuda.Stream = lambda *_, **__: Stream()
    properties = types.SimpleNamespace(
        major=arch.major, minor=arch.minor, multi_processor_count=SMS, name="emulated", total_memory=1 << 34
    )
    cuda.get_device_properties = lambda *_: properties
    torch_itself._scaled_mm = scaled_mm
    torch_itself.Tensor.cuda = lambda self, *_, **__: self
    driver.cuInit = driver.cuEventRecord = driver.cuEventSynchronize = driver.cuEventDestroy = lambda *_: (
        success,
    )
    driver.cuEventCreate = lambda *_: (success, driver.CUevent(0))
    driver.cuEventElapsedTime = lambda *_: (success, 1.0)
    driver.cuDeviceGetCount = lambda *_: (success, 1)
    driver.cuDeviceGet = lambda *_: (success, driver.CUdevice(0))
    driver.cuDeviceGetAttribute = lambda attribute, *_: (success, attributes.get(attribute, 0))
    driver.cuCtxGetCurrent = lambda *_: (success, driver.CUcontext(0))
    driver.cuStreamCreate = lambda *_: (success, driver.CUstream(0))
    driver.cuStreamSynchronize = driver.cuCtxSynchronize = lambda *_: (success,)
    hardware = cutlass.utils.HardwareInfo
    hardware.__init__ = lambda self, *_: None
    hardware.get_max_active_clusters = lambda self, cluster_size, *_, **__: max(1, SMS // cluster_size)
    hardware.get_device_multiprocessor_count = lambda self: SMS
    hardware.get_l2_cache_size_in_bytes = lambda self: 1 << 25
    cute.compile = Compile()
    modules: list[types.ModuleType | None] = list(sys.modules.values())
    for module in modules:
        if (
            module is not None
            and module.__name__ != __name__
            and vars(module).get("from_dlpack") is from_dlpack
        ):
            vars(module)["from_dlpack"] = _on_the_gpu
    for name in ("cutlass.testing", "cutlass.cute.testing"):
        vars(sys.modules[name])["benchmark"] = _benchmark
    CudaDialectJitCompiledFunction.__call__ = _call
    CudaDialectJitCompiledFunction.run_compiled_program = _run_program


def main() -> None:
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(script))
    pretend()
    try:
        with OnTheCpu():
            runpy.run_path(script, run_name="__main__")
    finally:
        for warning in _WARNINGS:
            print(f"emulator warns: {warning}")
    print(f"launches: {len(_LAUNCHES)}")


if __name__ == "__main__":
    main()
