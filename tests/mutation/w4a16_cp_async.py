"""The sm80 GEMM with NVFP4 weights, operands by cp.async, as subjects: small tiles, three stages, two K warps.

The problems of w4a16_mma.py in the size of these tiles; rows of X lie apart, with NaN between them. Experts: with no
rows, with whole tiles and with tails; more of them than a warp has lanes.
"""

from __future__ import annotations

import sm80
from cute_kernels.build.variant import Variant
from sm80.shape import W4a16Shape
from tests.mutation.w4a16 import Division

ONE = ("eager",)
N, M, K = 32, 16, 256  # of a tile


def variant(layout: str) -> Variant:
    """Two warps along M, of two along K."""
    shape = W4a16Shape(
        "bf16", warp_n=N, warp_m=M // 2, warps_n=1, warps_m=2, warps_k=2, units=2, ctas=1, stages=3,
        layout=layout, copy="cp_async", sm_shared=164 << 10, group_m=2,
    )  # fmt: skip
    return sm80.w4a16_cp_async_variant(shape, ("sm_80",))


DENSE = (
    Division(m=35, n=53, k=1008, ldd=56, ctas=4, whole=1, share=2, ldx=1016),
    Division(m=19, n=64, k=768, ldd=64, ctas=3, whole=0, share=4),
    Division(m=13, n=20, k=1232, ldd=21, ctas=3, whole=0, share=2, ldx=1240),
    Division(m=35, n=64, k=672, ldd=64, ctas=5, whole=0, share=5, ldx=680),
    Division(m=35, n=53, k=288, ldd=53, ctas=4, whole=1, share=1, ldx=296),
    Division(m=35, n=53, k=160, ldd=56, ctas=3, whole=2, share=0, ldx=168),
    Division(m=19, n=37, k=624, ldd=40, ctas=1, whole=4, share=0),
    Division(m=48, n=48, k=256, ldd=64, ctas=1, whole=6, share=0, schedules=ONE),
    *(Division(m=16, n=n, k=112, ldd=43, ctas=2, whole=0, share=1, schedules=ONE) for n in range(33, 41)),
)
CONTIGUOUS = (
    Division(m=(3, 0, 17), n=53, k=1008, ldd=56, ctas=4, whole=1, share=2, alignment=16, cut=10, ldx=1016),
    Division(m=(16, 32), n=64, k=672, ldd=64, ctas=5, whole=0, share=5, alignment=16, ldx=680),
    Division(m=(1, 21), n=20, k=1232, ldd=21, ctas=3, whole=0, share=7, alignment=32, ldx=1240),
    Division(m=(3, 0, 17), n=53, k=160, ldd=56, ctas=2, whole=3, share=0, alignment=16, cut=15, ldx=168),
    Division(m=(19,), n=37, k=624, ldd=40, ctas=1, whole=4, share=0, alignment=32),
    Division(m=(16, 19), n=53, k=288, ldd=53, ctas=4, whole=1, share=1, alignment=16, ldx=296),
    Division(m=(48,), n=48, k=256, ldd=64, ctas=1, whole=6, share=0, alignment=16, schedules=ONE),
    Division(m=(17,), n=20, k=112, ldd=24, ctas=3, whole=1, share=0, alignment=48, schedules=ONE),
    Division(m=(17,), n=20, k=112, ldd=24, ctas=1, whole=3, share=0, alignment=48, schedules=ONE),
    Division(m=(5,), n=20, k=112, ldd=24, ctas=1, whole=2, share=0, alignment=32, schedules=ONE),
    Division(m=(16,), n=40, k=K, ldd=40, ctas=2, whole=0, share=1, alignment=16, schedules=ONE),
    Division(m=(5,), n=20, k=624, ldd=24, ctas=1, whole=2, share=0, alignment=32, schedules=ONE),
    *(
        Division(m=(16,), n=n, k=112, ldd=43, ctas=2, whole=0, share=1, alignment=16, schedules=ONE)
        for n in range(33, 41)
    ),
)
# Rows of 35 experts: in every part of a warp's lanes, and behind them.
_ROWS = {0: 1, 1: 17, 4: 3, 9: 2, 15: 5, 16: 1, 17: 18, 24: 4, 30: 7, 31: 1, 32: 16, 34: 5}
MANY = tuple(_ROWS.get(expert, 0) for expert in range(35))
MASKED = (
    Division(m=(3, 0, 17, 16), n=53, k=1008, ldd=56, ctas=3, whole=0, share=0, alignment=21, ldx=1016),
    Division(m=(16, 32), n=64, k=672, ldd=64, ctas=7, whole=0, share=0, alignment=32, ldx=680),
    Division(m=MANY, n=20, k=288, ldd=21, ctas=5, whole=0, share=0, alignment=18, ldx=296),
    Division(m=(16, 3), n=53, k=160, ldd=53, ctas=2, whole=0, share=0, alignment=16, ldx=168),
    Division(m=(19,), n=37, k=624, ldd=40, ctas=1, whole=0, share=0, alignment=19),
    Division(m=(16, 32), n=64, k=672, ldd=64, ctas=10, whole=0, share=0, alignment=32, schedules=ONE),
    Division(m=MANY, n=20, k=288, ldd=24, ctas=14, whole=0, share=0, alignment=18, schedules=ONE),
    Division(
        m=(16, 3, 16, 16, 1), n=53, k=160, ldd=56, ctas=3, whole=0, share=0, alignment=16, schedules=ONE
    ),
    Division(m=(17, 48), n=48, k=256, ldd=64, ctas=1, whole=0, share=0, alignment=50, schedules=ONE),
    *(
        Division(m=(16,), n=n, k=112, ldd=43, ctas=2, whole=0, share=1, alignment=16, schedules=ONE)
        for n in range(33, 41)
    ),
)
SUBJECTS = tuple(
    (f"w4a16_cp_async{name}", (variant(layout), "sm_80", divisions))
    for name, layout, divisions in (
        ("", "dense", DENSE),
        ("_contiguous", "contiguous", CONTIGUOUS),
        ("_masked", "masked", MASKED),
    )
)
