"""Runs one example script of the CuTe DSL on the emulator: `python -m tests.vendor.example FILE [ARGS]`.

The script, written for a GPU, is executed as it is. Torch's "cuda" device means the CPU, streams mean nothing, and
calling a compiled DSL function goes through the emulator's front door. The script's own check decides whether the
result is right. CUTE_DSL_ARCH names the architecture, VENDOR_SCHEDULE the emulator's schedule.
"""

from __future__ import annotations

import gc
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
import torch
from cutlass.cute.runtime import from_dlpack
from cutlass.cutlass_dsl.cuda_jit_executor import CudaDialectJitCompiledFunction
from torch.overrides import TorchFunctionMode

from cute_kernels.emulator.architecture import find

_LAUNCHES: list[str] = []


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
    """What `cute.compile` gives here: compiled when it is called, for the very tensors that it is called with.

    Scripts compile for fake tensors and pass torch tensors by TVM FFI, which needs the CUDA runtime."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs

    def __call__(self, *given: Any) -> None:
        left = list(given)
        args, passed = [], []
        for declared in self.args:
            name = type(declared).__name__
            if name == "_FakeStream":
                args.append(declared)
                passed.append(driver.CUstream(0))
                if left and not isinstance(left[0], torch.Tensor):
                    left.pop(0)
            elif left and (_dynamic(declared) or len(left) == len(self.args) - len(args)):
                args.append(_tensor(left.pop(0), declared))
                passed.append(args[-1])
            else:
                args.append(declared)
        _call(_COMPILE(self.function, *args, **self.kwargs), *passed)


def _dynamic(declared: Any) -> bool:
    """Whether a value for this argument is given at the call."""
    if isinstance(declared, (tuple, list)):
        return any(_dynamic(item) for item in declared)
    return type(declared).__name__.startswith(("_Fake", "SymInt", "Int", "Float32", "_Pointer"))


def _tensor(value: Any, declared: Any) -> Any:
    if isinstance(value, torch.Tensor):
        align = getattr(declared, "_assumed_align", None) or 16
        return from_dlpack(front_door.DeviceTensor(value), assumed_align=align)
    return driver.CUstream(0) if type(value).__name__ in ("Stream", "CUstream") else value


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
        compiled, *args, *kwargs.values(), schedule=schedule, num_sms=4, memory=_tensors()
    )
    _LAUNCHES.extend(report.kernel for report in reports)
    return 0


def _run_program(compiled: Any, exe_args: Any) -> Any:
    """A DSL function called with no cute.compile before: its host code is in this process already."""
    if "num_devices" in vars(compiled):
        return _ORIGINAL_RUN(compiled, exe_args)
    compiled.num_devices = 1
    schedule = os.environ.get("VENDOR_SCHEDULE", "random")
    try:
        reports = front_door.serve(
            compiled, lambda: _ORIGINAL_RUN(compiled, exe_args), _tensors(), schedule=schedule, num_sms=4
        )
    finally:
        del compiled.num_devices
    _LAUNCHES.extend(report.kernel for report in reports)
    return 0


def _tensors() -> list[torch.Tensor]:
    """Every tensor that is alive: scripts pass bare pointers to some."""
    return [o for o in gc.get_objects() if type(o) is torch.Tensor and o.device.type == "cpu" and o.numel()]


def pretend() -> None:
    """Makes torch and the driver's bindings look as on a machine with a GPU."""
    arch = find(os.environ["CUTE_DSL_ARCH"])
    success = driver.CUresult.CUDA_SUCCESS

    class Stream:
        cuda_stream = 0

        def synchronize(self) -> None:
            return None

    torch.cuda.is_available = lambda: True
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_stream = lambda *_: Stream()
    torch.cuda.get_device_capability = lambda *_: (arch.major, arch.minor)
    torch.cuda.current_device = lambda: 0
    torch.cuda.init = lambda: None
    torch.cuda.Stream = lambda *_, **__: Stream()
    properties = types.SimpleNamespace(
        major=arch.major, minor=arch.minor, multi_processor_count=4, name="emulated", total_memory=1 << 34
    )
    torch.cuda.get_device_properties = lambda *_: properties
    torch.Tensor.cuda = lambda self, *_, **__: self
    driver.cuInit = lambda *_: (success,)
    driver.cuStreamCreate = lambda *_: (success, driver.CUstream(0))
    driver.cuStreamSynchronize = driver.cuCtxSynchronize = lambda *_: (success,)
    cute.compile = Compile()
    CudaDialectJitCompiledFunction.__call__ = _call
    CudaDialectJitCompiledFunction.run_compiled_program = _run_program


def main() -> None:
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(script))
    pretend()
    with OnTheCpu():
        runpy.run_path(script, run_name="__main__")
    print(f"launches: {len(_LAUNCHES)}")


if __name__ == "__main__":
    main()
