"""The emulated device: where kernels are launched (see docs of the package for the model)."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import clear_frames

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator import architecture as architectures
from cute_kernels.emulator import processes as forked
from cute_kernels.emulator import tensor_map
from cute_kernels.emulator.engine import SCHEDULES
from cute_kernels.emulator.errors import EmulationError, Report
from cute_kernels.emulator.global_order import GlobalOrder
from cute_kernels.emulator.global_shadow import GlobalShadow
from cute_kernels.emulator.grid import Grid, run_together
from cute_kernels.emulator.memory import GlobalMemory
from cute_kernels.emulator.program import Program
from cute_kernels.emulator.ptx import Kernel, Module, PtxError, parse
from cute_kernels.emulator.ptx_calls import inline
from cute_kernels.emulator.register_pool import REGISTER_FILE, fits, launch_registers
from cute_kernels.emulator.registers import LANES
from cute_kernels.emulator.setting import Dim3, LaunchShape, Setting
from cute_kernels.emulator.trace import Trace

_STEP_LIMIT = 200_000_000
_CACHED_PROGRAMS = 32
_OBJECTS_A_COLLECTION = 5000  # that are new, and may be part of a cycle
TOLERABLE = ("tcgen05.ld", "setmaxnreg", "clusterlaunchcontrol", "wgmma", "cp.async.bulk", "mbarrier.init")


@dataclass(frozen=True)
class Launch:
    """One of several launches side by side (`Device.launch_all`); the fields are the arguments of `Device.launch`.

    memory: (address, nbytes, name) of ranges that this launch alone may touch, beside those registered on the Device.
    """

    ptx: str
    entry: str | None
    grid: Dim3
    block: Dim3
    cluster: Dim3 = (1, 1, 1)
    dynamic_shared: int = 0
    params: Sequence[bytes] = ()
    memory: Sequence[tuple[int, int, str]] = ()
    registers: int | None = None


class _Made(threading.local):
    """The kernels that this thread has read and made ready, for all its devices: they hold no state of a launch."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}
        self._programs: dict[tuple[str, str, int, int], Program] = {}

    def module(self, ptx: str) -> Module:
        module = self._modules.get(ptx)
        if module is None:
            if len(self._modules) >= _CACHED_PROGRAMS:
                self._modules.clear()
                self._programs.clear()
            module = self._modules[ptx] = parse(ptx)
        return module

    def program(self, ptx: str, kernel: Kernel, dynamic_shared: int, reserved: int) -> Program:
        key = (ptx, kernel.name, dynamic_shared, reserved)
        if key not in self._programs:
            module = self._modules[ptx]
            self._programs[key] = Program(module, inline(kernel, module), dynamic_shared, reserved)
        return self._programs[key]


_made = _Made()


@contextmanager
def _collected_alone() -> Iterator[None]:
    """Frees what a launch has made, and spares the garbage collector the rest: all of a process takes as long as a
    kernel. Nobody else would free it: what is frozen and thawed counts as old, which hardly ever is looked at again.

    On the way it looks at what is new about once a cluster, whose memories are the garbage that counts.
    """
    freeze = gc.isenabled() and not gc.get_freeze_count()  # somebody else's stay frozen
    threshold = gc.get_threshold()
    if freeze:
        gc.freeze()
        gc.set_threshold(_OBJECTS_A_COLLECTION, 1)
    try:
        yield
    except EmulationError as fault:
        met: BaseException | None = fault
        while met is not None:  # else whoever keeps the fault keeps the launch
            clear_frames(met.__traceback__)
            met = met.__context__
        raise
    finally:
        if freeze:
            gc.set_threshold(*threshold)
            gc.collect()
            gc.unfreeze()


class Device:
    """One emulated GPU.

    arch: the target, "sm_80" to "sm_121a". num_sms: how many CTAs of a launch are resident at a time, from when they
    communicate (clusters take as many as they have CTAs). schedule: when asynchronous work completes and in which
    order warps run: "eager" (at once), "lazy" (as late as the memory model allows) or "random" (from `seed`).
    step_limit: warp instructions after which a launch is given up. trace: a file for each launch in turn to leave
    its course in, in the Chrome trace format (trace.py), also when it meets a fault.

    tolerate: practices that the ISA does not allow and other people's kernels rely on, which are to be warnings:
    "tcgen05.ld" (its results are used with no tcgen05.wait::ld, and a barrier tells of it with no tcgen05 fence; ptxas
    makes the hardware wait where a register is used); "setmaxnreg" (the warps of a warpgroup do not all
    execute the same one, with a barrier before the next); "clusterlaunchcontrol" (the cluster that a failed request
    cancelled is asked for, and its number not used; NVIDIA's compiler asks ahead of the branch); "wgmma" (a warp writes
    over what another warp's part of a wgmma has read, when it has waited for its own part); "cp.async.bulk" (a CTA ends
    before its bulk stores have read its shared memory); "mbarrier.init" (several threads initialise the same mbarrier
    alike, before any use of it).

    processes: over how many processes the clusters of one launch are spread, where that pays and they do not
    communicate (processes.py); results, reports and faults do not depend on it. None: as many as this process has
    CPUs, where forking is known to be safe (Linux, no other Python thread, NumPy with OpenBLAS); 1: never fork.

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
        tolerate: Collection[str] = (),
        processes: int | None = None,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}; supported are {', '.join(SCHEDULES)}")
        if num_sms < 1:
            raise ValueError(f"num_sms {num_sms}; a device has at least one SM")
        if unknown := set(tolerate) - set(TOLERABLE):
            raise ValueError(f"tolerate {', '.join(sorted(unknown))}; supported are {', '.join(TOLERABLE)}")
        self.arch = arch
        self.architecture = architectures.find(arch)
        self.num_sms = num_sms
        self.schedule = schedule
        self.seed = seed
        self.step_limit = step_limit
        self.trace = trace
        if processes is not None and processes < 1:
            raise ValueError(f"processes {processes}; at least one runs the launch")
        self.tolerate = frozenset(tolerate)
        self.processes = processes
        self._memory = GlobalMemory()
        self._variables: dict[tuple[str, int], dict[str, NDArray[np.uint8]]] = {}  # by module and rank

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
        registers: int | None = None,
    ) -> Report:
        """Runs a kernel to its end.

        ptx: the module's text. entry: the kernel's name (None: the only one). params: the bytes of each parameter,
        in order, as cuLaunchKernelEx would read them. registers: a thread's in the cubin, which setmaxnreg moves
        between warps; without, what ptxas makes of the kernel's directives. Raises EmulationError with the first fault
        of the program, or when the launch disagrees with the kernel; PtxError when the text cannot be read.
        """
        return self._run(
            [Launch(ptx, entry, grid, block, cluster, dynamic_shared, params or (), registers=registers)],
            alone=True,
        )[0]

    def launch_all(self, launches: Sequence[Launch]) -> list[Report]:
        """Runs kernels side by side to their ends, as the ranks of a kernel that runs on several GPUs.

        Each has `num_sms` SMs, its own __device__ variables and its own ranges of memory; what is registered on the
        Device they share, at one address. Only system scope orders accesses of different launches. Raises
        EmulationError with the first fault of one, whose place says which.
        """
        return self._run(list(launches), alone=False)

    def _run(self, launches: list[Launch], alone: bool) -> list[Report]:
        programs = [self._prepare(launch, rank) for rank, launch in enumerate(launches)]
        with np.errstate(all="ignore"), _collected_alone():
            return self._run_prepared(launches, programs, alone)

    def _run_prepared(self, launches: list[Launch], programs: list[Program], alone: bool) -> list[Report]:
        everything = self._memory.copy()
        for launch in launches:
            for address, nbytes, name in launch.memory:
                everything.register(address, nbytes, name)
        granule = min((program.global_granule for program in programs), default=1)
        shadow = GlobalShadow(everything, GlobalOrder(), granule)
        grids = [
            self._grid(launch, program, shadow, rank, alone)
            for rank, (launch, program) in enumerate(zip(launches, programs, strict=True))
        ]
        try:
            if alone:
                forked.run(grids[0], self.processes or forked.most_processes())
            else:
                run_together(grids)
        finally:
            for grid in grids:
                self._write_trace(grid.setting)
        return [grid.report for grid in grids]

    # --- preparation --------------------------------------------------------------------------------------------

    def _prepare(self, launch: Launch, rank: int) -> Program:
        """Checks a launch; gives its kernel made ready."""
        module = _made.module(launch.ptx)
        self._load_variables(launch.ptx, module, rank)
        kernel = self._kernel(module, launch.entry)
        self._check(module, kernel, launch)
        reserved = self.architecture.reserved_shared
        program = _made.program(launch.ptx, kernel, launch.dynamic_shared, reserved)
        used = program.shared_bytes - reserved
        if used > self.architecture.max_shared:
            raise EmulationError(
                "bad-launch",
                f"{used} bytes of shared memory a CTA; {self.arch} has {self.architecture.max_shared}",
            )
        return program

    def _grid(self, launch: Launch, program: Program, shadow: GlobalShadow, rank: int, alone: bool) -> Grid:
        memory = self._memory
        if launch.memory or not alone:
            memory = self._memory.copy()
            for address, nbytes, name in launch.memory:
                memory.register(address, nbytes, name)
        setting = Setting(
            program,
            LaunchShape(launch.grid, launch.block, launch.cluster),
            self._param_bytes(program, launch.params),
            memory,
            self.architecture,
            self.num_sms,
            self.schedule,
            self.seed + rank,
            self.step_limit,
            {name: data.ctypes.data for name, data in self._variables[launch.ptx, rank].items()},
            shadow,
            Trace() if self.trace is not None else None,
            None if alone else rank,
            self.tolerate,
            _registers_at_entry(program.kernel, launch),
        )
        return Grid(setting, alone)

    def _write_trace(self, setting: Setting) -> None:
        if self.trace is not None and setting.trace is not None:
            path = Path(self.trace)
            if setting.rank is not None:
                path = path.with_name(f"{path.stem}.{setting.rank}{path.suffix}")
            setting.trace.write(path)

    def _load_variables(self, ptx: str, module: Module, rank: int) -> None:
        """Gives launches of this rank their own copies of the module's variables."""
        if (ptx, rank) in self._variables:
            return
        memory = self._variables[ptx, rank] = {}
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

    def _check(self, module: Module, kernel: Kernel, launch: Launch) -> None:
        grid, block, cluster = launch.grid, launch.block, launch.cluster
        shared, params = launch.dynamic_shared, launch.params

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

        registers = _registers_at_entry(kernel, launch)
        uses = any(instruction.opcode == "setmaxnreg" for instruction in kernel.instructions)
        if registers is not None and (uses or launch.registers) and not fits(registers, -(-threads // LANES)):
            refuse(f"{registers} registers in each of {threads} threads; an SM has {REGISTER_FILE}")

    @staticmethod
    def _param_bytes(program: Program, params: Sequence[bytes]) -> NDArray[np.uint8]:
        data = np.zeros(program.param_bytes, dtype=np.uint8)
        for at, value in zip(program.param_offsets, params, strict=True):
            data[at : at + len(value)] = np.frombuffer(value, dtype=np.uint8)
        return data


def _registers_at_entry(kernel: Kernel, launch: Launch) -> int | None:
    """Registers a thread that the kernel starts with, as far as setmaxnreg may rely on it: where its directives say
    nothing, ptxas drops setmaxnreg, whatever the cubin has."""
    told = launch_registers(kernel)
    return told if told is None else launch.registers or told
