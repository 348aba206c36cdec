"""The emulated device: where kernels are launched (see docs of the package for the model)."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import architecture as architectures
from cute_kernels.emulator import tensor_map
from cute_kernels.emulator.engine import SCHEDULES
from cute_kernels.emulator.errors import EmulationError, Report
from cute_kernels.emulator.machine import LaunchShape, Machine
from cute_kernels.emulator.memory import GlobalMemory
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.ptx import Kernel, Module, PtxError, parse
from cute_kernels.emulator.trace import Trace

Dim3 = tuple[int, int, int]

_STEP_LIMIT = 200_000_000
_CACHED_PROGRAMS = 32


class Device:
    """One emulated GPU.

    arch: the target, "sm_80" to "sm_121a". num_sms: how many CTAs of a launch are resident at a time (clusters
    take as many as they have CTAs). schedule: when asynchronous work completes and in which order warps run:
    "eager" (at once), "lazy" (as late as the memory model allows) or "random" (from `seed`). step_limit: warp
    instructions after which a launch is given up. trace: a file for each launch in turn to leave its course in, in the
    Chrome trace format (trace.py), also when it meets a fault.

    Global memory is this process's memory: register every range that kernels may touch, and keep it alive.
    """

    def __init__(
        self,
        arch: str,
        num_sms: int = 8,
        schedule: str = "random",
        seed: int = 0,
        step_limit: int = _STEP_LIMIT,
        trace: str | os.PathLike[str] | None = None,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}; supported are {', '.join(SCHEDULES)}")
        if num_sms < 1:
            raise ValueError(f"num_sms {num_sms}; a device has at least one SM")
        self.arch = arch
        self.architecture = architectures.find(arch)
        self.num_sms = num_sms
        self.schedule = schedule
        self.seed = seed
        self.step_limit = step_limit
        self.trace = trace
        self._memory = GlobalMemory()
        self._modules: dict[str, Module] = {}
        self._programs: dict[tuple[str, str, int], Program] = {}
        self._variables: dict[str, dict[str, NDArray[np.uint8]]] = {}

    def register(self, address: int, nbytes: int, name: str = "") -> None:
        """Makes [address, address + nbytes) of this process's memory accessible to kernels."""
        self._memory.register(address, nbytes, name)

    def unregister(self, address: int) -> None:
        """Takes the range that was registered at `address` out again."""
        self._memory.unregister(address)

    # The 128 bytes that cuTensorMapEncodeTiled writes, or TensorMapError where it refuses.
    encode_tensor_map = staticmethod(tensor_map.encode)

    def launch(
        self,
        ptx: str,
        entry: str | None,
        grid: Dim3,
        block: Dim3,
        cluster: Dim3 = (1, 1, 1),
        dynamic_shared: int = 0,
        params: list[bytes] | None = None,
    ) -> Report:
        """Runs a kernel to its end.

        ptx: the module's text. entry: the kernel's name (None: the only one). params: the bytes of each parameter,
        in order, as cuLaunchKernelEx would read them. Raises EmulationError with the first fault of the program, or
        when the launch disagrees with the kernel; PtxError when the text cannot be read.
        """
        module = self._module(ptx)
        kernel = self._kernel(module, entry)
        self._check(module, kernel, grid, block, cluster, dynamic_shared, params or [])
        program = self._program(ptx, module, kernel, dynamic_shared)
        reserved = self.architecture.reserved_shared
        if program.shared_bytes - reserved > self.architecture.max_shared:
            raise EmulationError(
                "bad-launch",
                f"{program.shared_bytes - reserved} bytes of shared memory a CTA; {self.arch} has "
                f"{self.architecture.max_shared}",
            )
        machine = Machine(
            program,
            LaunchShape(grid, block, cluster),
            self._param_bytes(program, params or []),
            self._memory,
            self.architecture,
            self.num_sms,
            self.schedule,
            self.seed,
            self.step_limit,
            self._variables[ptx],
            Trace() if self.trace is not None else None,
        )
        try:
            with np.errstate(all="ignore"):
                return machine.run()
        finally:
            if self.trace is not None and machine.trace is not None:
                machine.trace.write(self.trace)

    # --- preparation --------------------------------------------------------------------------------------------

    def _module(self, ptx: str) -> Module:
        module = self._modules.get(ptx)
        if module is None:
            if len(self._modules) >= _CACHED_PROGRAMS:
                self._modules.clear()
                self._programs.clear()
            module = self._modules[ptx] = parse(ptx)
            self._load_variables(ptx, module)
        return module

    def _load_variables(self, ptx: str, module: Module) -> None:
        if ptx in self._variables:
            return
        memory = self._variables[ptx] = {}
        for variable in module.variables.values():
            if variable.space not in ("global", "const") or not variable.nbytes:
                continue
            data = np.zeros(variable.nbytes, dtype=np.uint8)
            if variable.initial is not None:
                data[:] = np.frombuffer(variable.initial, dtype=np.uint8)
            if variable.addresses:
                raise PtxError(f"{variable.name} is initialised with addresses, which is not modelled")
            memory[variable.name] = data
            self._memory.register(data.ctypes.data, variable.nbytes, variable.name)

    @staticmethod
    def _kernel(module: Module, entry: str | None) -> Kernel:
        if entry is None and len(module.kernels) == 1:
            return next(iter(module.kernels.values()))
        if entry not in module.kernels:
            raise EmulationError(
                "bad-launch",
                f"no kernel {entry!r} in the module; it has {', '.join(module.kernels) or 'none'}",
            )
        return module.kernels[entry]

    def _program(self, ptx: str, module: Module, kernel: Kernel, dynamic_shared: int) -> Program:
        key = (ptx, kernel.name, dynamic_shared)
        if key not in self._programs:
            self._programs[key] = Program(module, kernel, dynamic_shared, self.architecture.reserved_shared)
        return self._programs[key]

    def _check(
        self,
        module: Module,
        kernel: Kernel,
        grid: Dim3,
        block: Dim3,
        cluster: Dim3,
        shared: int,
        params: list[bytes],
    ) -> None:
        def refuse(message: str) -> None:
            raise EmulationError("bad-launch", f"{kernel.name}: {message}")

        if not architectures.runs_on(module.target, self.architecture):
            refuse(f"built for {module.target}, which does not run on {self.arch}")
        if min(*grid, *block, *cluster) < 1 or shared < 0:
            refuse(
                f"grid {grid}, block {block}, cluster {cluster}, {shared} bytes of shared memory; all must be positive"
            )
        threads = block[0] * block[1] * block[2]
        if threads > 1024:
            refuse(f"{threads} threads a CTA; 1024 at most")
        if kernel.reqntid is not None and tuple(block) != kernel.reqntid:
            refuse(f"block {block}; the kernel requires {kernel.reqntid}")
        if kernel.maxntid is not None and threads > int(np.prod(kernel.maxntid)):
            refuse(f"block {block}; the kernel allows {kernel.maxntid}")
        size = cluster[0] * cluster[1] * cluster[2]
        if size > self.architecture.max_cluster:
            refuse(f"clusters of {size} CTAs; {self.arch} allows {self.architecture.max_cluster}")
        if any(g % c for g, c in zip(grid, cluster, strict=True)):
            refuse(f"grid {grid} is not a multiple of the cluster {cluster}")
        if kernel.cluster is not None and tuple(cluster) != kernel.cluster:
            refuse(f"cluster {cluster}; the kernel requires {kernel.cluster}")
        if len(params) != len(kernel.params):
            refuse(f"{len(params)} parameters; the kernel has {len(kernel.params)}")
        for i, (given, declared) in enumerate(zip(params, kernel.params, strict=True)):
            if len(given) != declared.nbytes:
                refuse(f"parameter {i} has {len(given)} bytes; {declared.name} takes {declared.nbytes}")

    @staticmethod
    def _param_bytes(program: Program, params: list[bytes]) -> NDArray[np.uint8]:
        data = np.zeros(program.param_bytes, dtype=np.uint8)
        for at, value in zip(program.param_offsets, params, strict=True):
            data[at : at + len(value)] = np.frombuffer(value, dtype=np.uint8)
        return data
