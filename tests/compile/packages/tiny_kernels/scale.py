"""out[i] = factor * in[i]; with shape.held, also enough live values to make the register file spill."""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32

from tiny_kernels.shape import Shape


@cute.kernel
def scale(source: cutlass.Pointer, target: cutlass.Pointer, factor: Float32, n: Int32, s: Constexpr) -> None:
    first = (cute.arch.block_idx()[0] * s.threads + cute.arch.thread_idx()[0]) * s.per_thread
    if cutlass.const_expr(s.held > 0):
        held = [(source + first + i).load() for i in range(s.held)]
        cute.arch.sync_threads()  # what was loaded before it may not be loaded again after it
        for i in cutlass.range_constexpr(s.held):
            (target + first + s.held - i).store(held[i])
    for i in cutlass.range_constexpr(s.per_thread):
        if first + i < n:
            (target + first + i).store((source + first + i).load() * factor)


@cute.jit
def host(source: cutlass.Pointer, target: cutlass.Pointer, factor: Float32, n: Int32, s: Constexpr) -> None:
    scale(source, target, factor, n, s).launch(grid=(1, 1, 1), block=(s.threads, 1, 1))


def compile(shape: Shape, arch: str, options: str) -> Any:
    pointer = cute.runtime.make_ptr(Float32, 1024, cute.AddressSpace.gmem, assumed_align=16)
    scale.set_name_prefix(shape.name, remove_cutlass_symbol=True, keep_mangled_name=False)
    return cute.compile(
        host, pointer, pointer, Float32(0), Int32(0), shape, options=f"--gpu-arch {arch} {options}"
    )
