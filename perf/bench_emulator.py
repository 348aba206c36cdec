"""How long the emulator takes: `python -m perf.bench_emulator [--cubins DIR] [--repeats N]`.

The MXFP4 GEMM of SM100 at 512 x 512 x 2048 in BF16, all hazard checks on, under each schedule: wall-clock seconds of
one launch, the median of several after a first one that decodes the kernel. The result is checked each time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time

import torch

import cute_kernels
from cute_kernels.formats import dequantize, quantize_mxfp4
from cute_kernels.scale_factors import pack_for_kernel

SHAPE = (512, 512, 2048)
SCHEDULES = ("eager", "lazy", "random")


def operand(rows: int, k: int, seed: int) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A random MXFP4 operand whose blocks differ in magnitude, and its exact values."""
    random = torch.Generator().manual_seed(seed)
    magnitude = torch.exp2(torch.randint(-6, 7, (rows, k // 32), generator=random).float())
    values = torch.randn(rows, k, generator=random) * magnitude.repeat_interleave(32, 1)
    data, scales = quantize_mxfp4(values)
    return (data, pack_for_kernel(scales, rows, k)), dequantize(
        data, scales, group=(1, 32), dtype=torch.float64
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.bench_emulator", description=__doc__)
    parser.add_argument("--cubins", help="folder of cubins (default: where the runtime looks)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.cubins:
        cute_kernels.set_cubins(options.cubins)
    m, n, k = SHAPE
    (a, exact_a), (b, exact_b) = operand(m, k, 1), operand(n, k, 2)
    exact = exact_a @ exact_b.T
    print(f"MXFP4 GEMM {m} x {n} x {k}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for schedule in SCHEDULES:
        seconds = []
        for _ in range(options.repeats + 1):
            with cute_kernels.emulate("sm_100a", schedule):
                start = time.perf_counter()
                d = cute_kernels.gemm_nt(a, b)
                seconds.append(time.perf_counter() - start)
            error = float((d.double() - exact).norm() / exact.norm())
            if error > 3e-3:
                print(f"{schedule}: wrong, relative error {error:.1e}")
                return 1
        print(f"{schedule:8s} first {seconds[0]:.2f} s, then median {statistics.median(seconds[1:]):.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
