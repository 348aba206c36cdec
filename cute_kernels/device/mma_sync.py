"""mma.sync: products of fragments that lie in a warp's registers."""

from __future__ import annotations

from typing import Any

from cutlass import Float32
from cutlass.experimental import primitives as prims


def multiply_16x8x16(dtype: str, sums: list[Any], a: list[Any], b: list[Any]) -> list[Any]:
    """Return sums + A @ B for A [16, 16] and B [16, 8], FP32 accumulation; by a whole warp.

    dtype: "bf16" or "f16". sums: four Float32, lane 4g + t has D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1].
    a: four Uint32, pairs A[g][2t..], A[g + 8][2t..], A[g][2t + 8..], A[g + 8][2t + 8..]. b: two Uint32, pairs
    B[2t..][g], B[2t + 8..][g]. Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
    """
    return list(
        prims.inline_ptx(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
            "{{$w0}, {$w1}, {$w2}, {$w3}}, {{$r0}, {$r1}, {$r2}, {$r3}}, {{$r4}, {$r5}}, "
            "{{$r6}, {$r7}, {$r8}, {$r9}};",
            write_only_types=[Float32] * 4,
            read_only_args=[*a, *b, *sums],
        )
    )
