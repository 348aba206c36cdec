"""The sm80 GEMM with NVFP4 weights, products by wgmma, as subjects: the tiles of the kernels in use, and two stages.

The problems of w4a16_mma.py in the size of these tiles. Those that are there for what is computed, and not for what
is waited for, are run under one schedule. Rows of X lie apart, with NaN between them.
"""

from __future__ import annotations

from collections.abc import Iterator

import sm80
from sm80.shape import W4a16Shape
from tests.mutation.w4a16 import Division

ONE = ("eager",)
N, M, K = 128, 128, 128  # of a tile


def shape(warp_n: int, layout: str = "dense") -> W4a16Shape:
    """Two warpgroups, side by side along N, with two stages."""
    return W4a16Shape(
        "bf16", warp_n, warp_m=M, warps_n=8, warps_m=1, warps_k=1, units=1, ctas=1, stages=2, mma="wgmma",
        layout=layout, group_m=2,
    )  # fmt: skip


def dense(tile_n: int) -> tuple[Division, ...]:
    """Of one matrix of weights."""
    n, k = tile_n + 13, 2 * K + 16
    return (
        Division(m=M, n=tile_n, k=2 * K, ldd=tile_n, ctas=2, whole=0, share=2),
        Division(m=M, n=tile_n - 20, k=4 * K - 48, ldd=tile_n, ctas=3, whole=0, share=2, ldx=4 * K),
        Division(m=M, n=tile_n + 5, k=K - 16, ldd=tile_n + 8, ctas=1, whole=2, share=0, schedules=ONE),
        Division(m=M + 3, n=n, k=k, ldd=n + 3, ctas=3, whole=0, share=5, ldx=k + 8),
        Division(m=M + 3, n=n, k=k, ldd=n + 3, ctas=3, whole=1, share=2, ldx=k + 8),
        Division(m=3 * M + 3, n=tile_n - 8, k=K, ldd=tile_n, ctas=1, whole=4, share=0, schedules=ONE),
        Division(
            m=2 * M + 3, n=2 * tile_n - 5, k=K, ldd=2 * tile_n - 5, ctas=4, whole=1, share=1, schedules=ONE
        ),
        *ends(tile_n, experts=False),
    )


def contiguous(tile_n: int) -> tuple[Division, ...]:
    """Of experts: with whole tiles, with tails, with no rows, and with tiles of nobody's rows behind theirs."""
    n, k = tile_n + 13, 2 * K + 16
    return (
        Division(
            m=(M,), n=tile_n - 20, k=4 * K - 48, ldd=tile_n, ctas=3, whole=0, share=2, alignment=M, ldx=4 * K
        ),
        Division(
            m=(M, M),
            n=tile_n,
            k=2 * K,
            ldd=tile_n,
            ctas=3,
            whole=0,
            share=2,
            alignment=M,
        ),
        Division(
            m=(M,),
            n=tile_n + 5,
            k=K - 16,
            ldd=tile_n + 8,
            ctas=1,
            whole=2,
            share=0,
            alignment=M,
            schedules=ONE,
        ),
        Division(m=(1, M + 5), n=tile_n - 1, k=K + 16, ldd=tile_n, ctas=3, whole=0, share=3, alignment=2 * M),
        Division(m=(3, 0, M + 2), n=n, k=k, ldd=n + 3, ctas=4, whole=1, share=2, alignment=M, ldx=k + 8),
        *ends(tile_n, experts=True),
    )


def ends(tile_n: int, experts: bool) -> Iterator[Division]:
    """M that ends in each of a tile's groups of 8 rows; N of every remainder of 8; rows of D that are not aligned."""
    for i in range(M // 8):
        tail = 8 * i + 3
        m = (M, tail) if i < 8 else (tail,)  # beside whole tiles, and alone
        alignment, cut = (M, M - tail) if experts else (1, 0)
        yield Division(
            m=m if experts else sum(m), n=tile_n - 8 + i % 8, k=K - 16, ldd=tile_n + 1, ctas=2, whole=0, share=1,
            alignment=alignment, cut=cut, schedules=ONE,
        )  # fmt: skip


SUBJECTS = (
    ("w4a16_wgmma", (sm80.w4a16_variant(shape(16)), "sm_90a", dense(128))),
    ("w4a16_wgmma_wide", (sm80.w4a16_variant(shape(32)), "sm_90a", dense(256))),
    ("w4a16_wgmma_contiguous", (sm80.w4a16_variant(shape(16, "contiguous")), "sm_90a", contiguous(128))),
)
