"""A warpgroup's products of one stage with wgmma: weights decoded into registers, activations in shared memory.

A warp's A fragment of wgmma is that of mma.m16n8k16, and so are the sums: W's packed layout and what is done with the
sums are those of w4a16_products.py. The tensor cores read X from shared memory in the order in which it lies there, so
`sort` puts it in the order of K that W is packed in (w4a16_layout.py), in place.

Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Constexpr, Float32, Uint32, Uint64
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.experimental import primitives as prims

from sm80.shape import W4a16Shape
from sm80.w4a16_products import Fragments, Place

ROW_WORDS = 32  # of a row of a box: 64 elements of K
STEP_BYTES = 32  # of a row, in the 16 elements of K that one wgmma takes
# Descriptor: rows of 128 bytes, swizzled; 8 of them are 1024 bytes, which is the stride (in 16 bytes, from bit 32).
DESCRIPTOR = (1 << 62) | (1024 // 16 << 32) | (1 << 16)


@cute.jit
def sort(s: Constexpr, words: Any, stage: Any, thread: Any) -> None:
    """Sort the rows of X of one stage; `thread` of 32 * s.sorters takes each such row.

    Pairs of elements 8t + 2j + h (t, j below 4, h below 2) of the 32 in a row go to 8j + 4h + t: where wgmma number j
    takes from a row what lane t has of W for it.
    """
    threads, swizzle = 32 * s.sorters, thread % 8
    for first in cutlass.range(0, s.tile_m * (s.tile_k // s.BOX_K), threads, unroll=1):
        row = stage + (first + thread) * ROW_WORDS
        chunks = [words[row + (swizzle ^ c) * 4 : 4, 16] for c in range(8)]
        for c in cutlass.range_constexpr(8):
            j, h = divmod(c, 2)
            pairs = [8 * t + 2 * j + h for t in range(4)]
            part = cutlass.Vector.from_elements([chunks[p // 4][p % 4] for p in pairs], Uint32)
            words[row + (swizzle ^ c) * 4 : 4, 16] = part


def multiply(s: W4a16Shape, words: Any, stage: Any, sums: Any, at: Place, lane: Any) -> None:
    """Add one stage's products to this warp's sums; the arguments are those of `Fragments`.

    While the tensor cores multiply by 16 elements of K, the weights of the next 16 are decoded. Nothing is left under
    way over the end of a stage: ptxas 13.4 would then wait behind each product.
    """
    fragments = Fragments(s, words, stage, at, lane)
    x = Uint64(DESCRIPTOR) | (Uint64(words.subview(stage).data_ptr().toint()) >> 4)
    steps = [(quarter, step) for quarter in range(fragments.units * 4) for step in range(2)]

    def decode(quarter: int, step: int) -> list[list[Any]]:
        return [[fragments.w_pair(quarter, step, b, i) for i in range(4)] for b in range(fragments.blocks_n)]

    following = decode(*steps[0])
    for number, (quarter, step) in enumerate(steps):
        w = following
        prims.wgmma_fence_aligned()
        at_bytes = quarter // 2 * s.x_box_bytes + (quarter % 2 * 2 + step) * STEP_BYTES
        for b in range(fragments.blocks_n):
            add_product(s, sums, b * fragments.blocks_m * 4, w[b], x + (at_bytes >> 4))
        prims.wgmma_commit_group_sync_aligned()
        if number + 1 < len(steps):
            prims.wgmma_wait_group_sync_aligned(1)
            following = decode(*steps[number + 1])
    prims.wgmma_wait_group_sync_aligned(0)


def add_product(s: W4a16Shape, sums: Any, first: int, w: list[Any], x: Any) -> None:
    """sums[first ..] += the 64 rows of W, of which this warp has 16, times warp_m rows of X (a descriptor)."""
    count = s.warp_m // 2
    registers = ", ".join(f"${i}" for i in range(count))
    a = ", ".join(f"${i}" for i in range(2 * count, 2 * count + 4))
    struct = ir.Type.parse(f"!llvm.struct<({', '.join(['f32'] * count)})>")
    operands = [*(sums[first + i] for i in range(count)), *w, x]
    new = llvm.inline_asm(
        struct,
        [operand.ir_value() for operand in operands],
        "{ .reg .pred add; setp.eq.b32 add, 0, 0; "
        f"wgmma.mma_async.sync.aligned.m64n{s.warp_m}k16.f32.{s.x_dtype}.{s.x_dtype} "
        f"{{{registers}}}, {{{a}}}, ${2 * count + 4}, add, 1, 1, 0; }}",
        ",".join(["=f"] * count + [str(i) for i in range(count)] + ["r"] * 4 + ["l"]),
        has_side_effects=True,
    )
    for i in range(count):
        sums[first + i] = Float32(llvm.extractvalue(Float32.mlir_type, new, [i]))
