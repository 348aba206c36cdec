"""A function of the CuTe DSL on the emulator, host code and all: first right, then one CTA too many.

Nothing in it is of this project but `run` and `DeviceTensor`; any kernel that `cute.compile` takes will do.

    python examples/emulate_dsl_kernel.py
"""

from __future__ import annotations

import tempfile

import cutlass
import cutlass.cute as cute
import torch
from cutlass.cute.runtime import from_dlpack

from cute_kernels.emulator import DeviceTensor, EmulationError, run

N, THREADS = 256, 64


@cute.kernel
def axpy(x: cute.Tensor, y: cute.Tensor, a: cutlass.Float32) -> None:
    index = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
    y[index] = a * x[index] + y[index]


@cute.jit
def host(x: cute.Tensor, y: cute.Tensor, a: cutlass.Float32, blocks: cutlass.Constexpr[int]) -> None:
    axpy(x, y, a).launch(grid=(blocks, 1, 1), block=(THREADS, 1, 1))


def launch(blocks: int, schedule: str) -> bool:
    """Run it on new tensors; return whether y is right."""
    room = torch.randn(8 * N)  # tensors far enough apart that one's end is not the other's start
    x, y = room[:N], room[4 * N : 5 * N]
    expected = 2 * x + y
    given = [from_dlpack(DeviceTensor(tensor)) for tensor in (x, y)]
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --generate-line-info --dump-dir={folder}"
        compiled = cute.compile(host, *given, 2.0, blocks, options=options)
        run(compiled, *given, 2.0, schedule=schedule)
    return torch.allclose(y, expected)


def main() -> None:
    for schedule in ("eager", "lazy", "random"):
        print(f"{schedule:7s} right: {launch(N // THREADS, schedule)}")
    print("\nwith a CTA too many:")
    try:
        launch(N // THREADS + 1, "eager")
    except EmulationError as fault:
        print(fault)


if __name__ == "__main__":
    main()
