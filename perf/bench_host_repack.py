"""Time packing and unpacking of NVFP4 weights on the host: `python -m perf.bench_host_repack`.

The bandwidth counts what is read and what is written. Output memory comes fresh from the system each time, as when
a model is loaded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from cute_kernels import nvfp4_weight, table

SIZES = ((4096, 4096), (14336, 4096), (21504, 5376), (28672, 8192))


def best(action: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    rows: list[list[Any]] = []
    for n, k in SIZES:
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
        scales = torch.randint(0, 127, (n, k // 16), dtype=torch.uint8).view(torch.float8_e4m3fn)
        weight = nvfp4_weight.pack(codes, scales, 1.0)
        moved = codes.nbytes + scales.nbytes + weight.data.nbytes
        row: list[Any] = [f"{n} x {k}"]
        for action in (
            lambda: nvfp4_weight.pack(codes, scales, 1.0, threads=given.threads),  # noqa: B023 - called here
            lambda: nvfp4_weight.unpack(weight, threads=given.threads),  # noqa: B023
        ):
            seconds = best(action, given.repeats)
            row += [f"{seconds * 1e3:.1f}", f"{moved / seconds / 1e9:.2f}"]
        rows.append(row)
    print(f"{given.threads} threads, the fastest of {given.repeats}")
    print(table.render(["N x K", "pack ms", "GB/s", "unpack ms", "GB/s"], rows))


if __name__ == "__main__":
    main()
