"""How long the emulator takes: `python -m perf.bench_emulator [--cubins DIR ...] [--baseline REV] [--repeats N]`.

Two GEMMs in BF16, all hazard checks on, under each schedule: MXFP4 on SM100 at 512 x 512 x 2048 (tcgen05, TMA), and
NVFP4 weights with the sm80 family at 64 x 1024 x 1024 (mma.sync, arithmetic in every lane), on 8 SMs. Wall-clock
seconds and CPU seconds, those of forked processes included, of one call of the operation on a new Device: `first` is
the first call under a schedule, of the first schedule also the one that reads the kernel; the others are medians of
the repeats. `one process` never forks, `now` is what a user gets. Every result is checked.

--baseline takes the emulator of another commit out of git and runs it in the same process, in turn with this one; the
ratios are those of its medians to these.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch

import cute_kernels
from cute_kernels import nvfp4_weight
from cute_kernels.emulator import Device, helpers
from cute_kernels.formats import dequantize, quantize_mxfp4, quantize_nvfp4
from cute_kernels.scale_factors import pack_for_kernel

SCHEDULES = ("eager", "lazy", "random")
EMULATOR = "cute_kernels.emulator"
NUM_SMS = 8


@dataclass
class Problem:
    """One call of an operation: where it runs, what it computes, how far from it the result may be."""

    name: str
    arch: str
    call: Callable[[], torch.Tensor]
    exact: torch.Tensor
    tolerance: float


def mxfp4_operand(rows: int, k: int, seed: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A random MXFP4 operand whose blocks differ in magnitude, and its exact values."""
    data, scales = quantize_mxfp4(_varied(rows, k, 32, seed))
    exact = dequantize(data, scales, group=(1, 32), dtype=torch.float64)
    return (data, pack_for_kernel(scales, rows, k)), exact


def _varied(rows: int, k: int, block: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    magnitude = torch.exp2(torch.randint(-6, 7, (rows, k // block), generator=random).float())
    return torch.randn(rows, k, generator=random) * magnitude.repeat_interleave(block, 1)


def mxfp4_gemm(m: int, n: int, k: int) -> Problem:
    (a, exact_a), (b, exact_b) = mxfp4_operand(m, k, 1), mxfp4_operand(n, k, 2)
    exact = exact_a @ exact_b.T
    return Problem(f"MXFP4 {m} x {n} x {k}", "sm_100a", lambda: cute_kernels.gemm_nt(a, b), exact, 3e-3)


def w4a16_gemm(m: int, n: int, k: int) -> Problem:
    x = _varied(m, k, 16, 3).to(torch.bfloat16)
    codes, scales, global_scale = quantize_nvfp4(_varied(n, k, 16, 4))
    weight = nvfp4_weight.pack(codes, scales, global_scale)
    values = dequantize(codes, scales, group=(1, 16), dtype=torch.float64) * global_scale.double()
    exact = x.double() @ values.T
    return Problem(
        f"W4A16 {m} x {n} x {k}", "sm_100a", lambda: cute_kernels.w4a16_gemm_nt(x, weight), exact, 3e-3
    )


PROBLEMS = (lambda: mxfp4_gemm(512, 512, 2048), lambda: w4a16_gemm(64, 1024, 1024))


def device_of(revision: str, folder: Path) -> type[Any]:
    """The Device of another commit, imported beside this one's."""
    command = ["git", "archive", revision, EMULATOR.replace(".", "/")]
    root = Path(cute_kernels.__file__).parent.parent
    archive = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith(EMULATOR)}
    path = cute_kernels.__path__
    try:
        cute_kernels.__path__ = [str(folder / "cute_kernels")]
        device: type[Any] = importlib.import_module(f"{EMULATOR}.device").Device
    finally:
        cute_kernels.__path__ = path
        for name in [name for name in sys.modules if name.startswith(EMULATOR)]:
            del sys.modules[name]
        sys.modules.update(kept)
    return _with_fewer_arguments(device)


def _with_fewer_arguments(device: type[Any]) -> type[Any]:
    """A Device whose `launch` leaves out the last arguments that it gets, where it is too old to know them."""
    known = len(inspect.signature(device.launch).parameters) - 1  # without self

    def launch(self: Any, *arguments: Any) -> Any:
        return device.launch(self, *arguments[:known])

    return type("Device", (device,), {"launch": launch})


def seconds_of(problem: Problem, device: type[Any], schedule: str) -> tuple[float, float]:
    """How long one call takes on a new device of this class: by the clock, and of the CPU."""
    with cute_kernels.emulate(problem.arch, schedule, num_sms=NUM_SMS) as backend:
        backend._given = device(problem.arch, num_sms=NUM_SMS, schedule=schedule)
        start, busy = time.perf_counter(), cpu_seconds()
        d = problem.call()
        seconds = time.perf_counter() - start, cpu_seconds() - busy
    error = float((d.double() - problem.exact).norm() / problem.exact.norm())
    if not error <= problem.tolerance:
        raise SystemExit(f"{problem.name}, {schedule}: wrong, relative error {error:.1e}")
    return seconds


def cpu_seconds() -> float:
    """What this process has taken of the CPU, and those that it forked."""
    return time.process_time() + helpers.seconds()


def compare(problem: Problem, devices: dict[str, type[Any]], repeats: int) -> None:
    """Prints a line for each schedule; the devices take turns."""
    for schedule in SCHEDULES:
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in devices}
        for _ in range(repeats + 1):
            for name, device in devices.items():
                taken[name].append(seconds_of(problem, device, schedule))
        print(f"{problem.name}, {schedule}", flush=True)
        before: tuple[float, ...] = ()
        for name, times in taken.items():
            clock, busy = (statistics.median(one) for one in zip(*times[1:], strict=True))
            before = before or (clock, busy)
            ratios = f"; {before[0] / clock:.1f} x, CPU {before[1] / busy:.1f} x"
            told = f"    {name:12s} {clock:.3f} s, CPU {busy:.3f} (first {times[0][0]:.2f}, CPU {times[0][1]:.2f})"
            print(f"{told}{ratios}", flush=True)


def cpu() -> str:
    """The processor's name, as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m perf.bench_emulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cubins", help="folder of cubins (default: where the runtime looks)")
    parser.add_argument(
        "--baseline", metavar="REV", help="a commit whose emulator to run in turn with this one"
    )
    parser.add_argument("--problem", default="", help="only problems whose names begin so")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.cubins:
        cute_kernels.set_cubins(options.cubins)
    load = os.getloadavg()[0]
    print(f"{cpu()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        devices: dict[str, type[Any]] = {}
        if options.baseline:
            devices[options.baseline] = device_of(options.baseline, Path(folder))
        devices["one process"] = type(
            "Device", (Device,), {"__init__": partialmethod(Device.__init__, processes=1)}
        )
        devices["now"] = Device
        for problem in (make() for make in PROBLEMS):
            if problem.name.startswith(options.problem):
                compare(problem, devices, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
