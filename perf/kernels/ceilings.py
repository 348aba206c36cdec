"""What bounds a kernel, each alone: an empty launch, reading, and mma.sync out of registers.

read        every 16-byte piece of `data` is loaded once, `loads` at a time in a thread, side by side in a CTA. Each
            thread combines its pieces by exclusive or and stores the word only where it is `wanted`: so the loads
            are needed, and a random word costs no store.
mma_sync    each warp multiplies one A [16, 16] by `chains` B [16, 8] of BF16, `iterations` times each into sums of
            its own, and stores the total of the chains: 4 float32 a lane, as an m16n8k16 accumulator has them.
            operands: uint32 [words, 32], lane by lane.
empty       nothing.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Int32, Int64, Pointer, Uint32, Vector
from cutlass.cute.runtime import make_ptr

from cute_kernels.device.mma_sync import multiply_16x8x16
from perf.kernels.shape import EmptyShape, MmaSyncShape, ReadShape

PIECE_WORDS = 4


@cute.kernel
def empty(unused: Int32) -> None:
    pass


@cute.jit
def combine(pieces: list[Vector]) -> Uint32:
    word = Uint32(0)
    for piece in pieces:
        for i in range(PIECE_WORDS):
            word ^= piece[i]
    return word


@cute.kernel
def read(data: Pointer, out: Pointer, wanted: Uint32, pieces: Int64, s: Constexpr) -> None:
    first = Int64(cute.arch.block_idx()[0]) * s.pieces + cute.arch.thread_idx()[0]
    data += first * PIECE_WORDS
    word = Uint32(0)
    if first + (s.loads - 1) * s.threads < pieces:
        word = combine(
            [
                (data + i * s.threads * PIECE_WORDS).load(count=PIECE_WORDS, alignment=s.PIECE)
                for i in range(s.loads)
            ]
        )
    else:
        for i in cutlass.range(s.loads, unroll=1):
            if first + i * s.threads < pieces:
                word ^= combine(
                    [(data + i * s.threads * PIECE_WORDS).load(count=PIECE_WORDS, alignment=s.PIECE)]
                )
    if word == wanted:
        (out + first).store(word)


@cute.kernel
def mma_sync(operands: Pointer, out: Pointer, iterations: Int32, s: Constexpr) -> None:
    thread = cute.arch.thread_idx()[0]
    lane = thread % 32
    words = [(operands + i * 32 + lane).load() for i in range(s.words)]
    a, b = words[:4], [words[i : i + 2] for i in range(4, s.words, 2)]
    sums = [[Float32(0)] * 4 for _ in range(s.chains)]
    for _ in cutlass.range(iterations, unroll=4):
        sums = [multiply_16x8x16("bf16", sums[i], a, b[i]) for i in range(s.chains)]
    total = [sum((chain[i] for chain in sums[1:]), sums[0][i]) for i in range(4)]
    place = (Int32(cute.arch.block_idx()[0]) * s.threads + thread) * 4
    (out + place).store(Vector.from_elements(tuple(total), Float32), alignment=16)


@cute.jit
def launch_empty(unused: Int32, s: Constexpr) -> None:
    empty(unused).launch(grid=(1, 1, 1), block=(s.threads, 1, 1))


@cute.jit
def launch_read(data: Pointer, out: Pointer, wanted: Uint32, pieces: Int64, s: Constexpr) -> None:
    read(data, out, wanted, pieces, s).launch(grid=(1, 1, 1), block=(s.threads, 1, 1))


@cute.jit
def launch_mma_sync(operands: Pointer, out: Pointer, iterations: Int32, s: Constexpr) -> None:
    mma_sync(operands, out, iterations, s).launch(grid=(1, 1, 1), block=(s.threads, 1, 1))


def compile(
    family: str, shape: EmptyShape | ReadShape | MmaSyncShape, name: str, arch: str, options: str
) -> Any:
    """Compile one of them for an architecture; the result has the PTX and the cubin."""

    def pointer(dtype: Any) -> Pointer:
        return make_ptr(dtype, 16, cute.AddressSpace.gmem)

    kernel, host, arguments = {
        "ceiling_empty": (empty, launch_empty, (Int32(0),)),
        "ceiling_read": (read, launch_read, (pointer(Uint32), pointer(Uint32), Uint32(0), Int64(0))),
        "ceiling_mma_sync": (mma_sync, launch_mma_sync, (pointer(Uint32), pointer(Float32), Int32(0))),
    }[family]
    kernel.set_name_prefix(name, remove_cutlass_symbol=True, keep_mangled_name=False)
    return cute.compile(host, *arguments, shape, options=f"--gpu-arch {arch} {options}")
