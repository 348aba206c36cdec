"""A few entry points of libcuda.so.1 through ctypes, for the programs here that record what hardware does."""

from __future__ import annotations

import ctypes
import pathlib
import re
from collections.abc import Sequence
from typing import Any

COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor
MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute


class DriverError(RuntimeError):
    """A CUDA driver call that did not return CUDA_SUCCESS; `code` is its CUresult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned CUresult {code}")
        self.code = code


class Driver:
    """One device, its primary context made current, and the calls on it. Sizes are bytes, pointers integers."""

    def __init__(self, ordinal: int = 0) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.device = device.value
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls one entry point; raises DriverError where it fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise DriverError(name, code)

    def versions(self) -> dict[str, str]:
        """GPU, its architecture, the CUDA version of the driver, and the version of the kernel module where shown."""
        name, cuda = ctypes.create_string_buffer(256), ctypes.c_int()
        self.call("cuDeviceGetName", name, 256, self.device)
        self.call("cuDriverGetVersion", ctypes.byref(cuda))
        parts = []
        for attribute in COMPUTE_CAPABILITY:
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self.device)
            parts.append(value.value)
        module = pathlib.Path("/proc/driver/nvidia/version")
        found = re.search(r"\d+\.\d+(\.\d+)?", module.read_text()) if module.exists() else None
        return {
            "gpu": name.value.decode(),
            "arch": f"sm_{parts[0]}{parts[1]}",
            "cuda": f"{cuda.value // 1000}.{cuda.value % 1000 // 10}",
            "driver": found.group(0) if found else "unknown",
        }

    def allocate(self, nbytes: int) -> int:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        return pointer.value

    def upload(self, pointer: int, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), data, ctypes.c_size_t(len(data)))

    def download(self, pointer: int, nbytes: int) -> bytes:
        data = ctypes.create_string_buffer(nbytes)
        self.call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(pointer), ctypes.c_size_t(nbytes))
        return data.raw

    def load(self, ptx: str) -> ctypes.c_void_p:
        """Compiles PTX text with the driver's own compiler."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ptx.encode() + b"\0")
        return module

    def kernel(self, module: ctypes.c_void_p, name: str, dynamic_shared: int) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, dynamic_shared)
        return function

    def launch(
        self,
        kernel: ctypes.c_void_p,
        threads: int,
        dynamic_shared: int,
        parameters: Sequence[bytes],
        blocks: int = 1,
    ) -> None:
        """Launches blocks of `threads` and waits for them; `parameters` as cuLaunchKernel would read them."""
        held = [ctypes.create_string_buffer(p, max(len(p), 1)) for p in parameters]
        table = (ctypes.c_void_p * len(held))(*[ctypes.addressof(h) for h in held])
        self.call("cuLaunchKernel", kernel, blocks, 1, 1, threads, 1, 1, dynamic_shared, None, table, None)
        self.call("cuCtxSynchronize")

    def encode_tiled(
        self,
        dtype: int,
        rank: int,
        address: int,
        dims: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
        element_strides: Sequence[int],
        interleave: int,
        swizzle: int,
        l2_promotion: int,
        oob_fill: int,
    ) -> tuple[int, bytes]:
        """cuTensorMapEncodeTiled: (CUresult, the 128 bytes, or b"" where it refuses). Enumerations as integers."""
        room = ctypes.create_string_buffer(128 + 64)
        start = -(-ctypes.addressof(room) // 64) * 64  # the descriptor has to be 64-byte aligned
        code = self.library.cuTensorMapEncodeTiled(
            ctypes.c_void_p(start),
            dtype,
            ctypes.c_uint32(rank),
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * max(len(dims), 1))(*dims),
            (ctypes.c_uint64 * max(len(strides), 1))(*strides),
            (ctypes.c_uint32 * max(len(box), 1))(*box),
            (ctypes.c_uint32 * max(len(element_strides), 1))(*element_strides),
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
        )
        return code, ctypes.string_at(start, 128) if code == 0 else b""
