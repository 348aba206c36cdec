"""The sm80 GEMM with NVFP4 weights, operands by TMA and products by mma.sync, as a subject.

Small tiles and two stages. The problems leave nothing of it out: whole tiles beside shares and alone; shares that
cross tiles, with segments shorter than the ring; tiles of two and of three CTAs; CTAs with less to do than there are
stages, and with nothing; more tile rows than are walked together; tails in M, N and K, and none; N of every remainder
of 8; rows of D aligned and not.
"""

from __future__ import annotations

import sm80
from sm80.shape import W4a16Shape
from tests.mutation.w4a16 import Division

SHAPE = W4a16Shape(
    "bf16", warp_n=32, warp_m=16, warps_n=1, warps_m=1, warps_k=2, units=2, ctas=1, stages=2, group_m=2
)
DIVISIONS = (
    Division(m=35, n=53, k=1008, ldd=56, ctas=4, whole=1, share=2),
    Division(m=19, n=64, k=768, ldd=64, ctas=3, whole=0, share=4),
    Division(m=13, n=20, k=1232, ldd=21, ctas=3, whole=0, share=2),
    Division(m=35, n=64, k=768, ldd=64, ctas=5, whole=0, share=5),
    Division(m=35, n=53, k=496, ldd=53, ctas=4, whole=1, share=1),
    Division(m=35, n=53, k=112, ldd=56, ctas=3, whole=2, share=0),
    Division(m=35, n=21, k=624, ldd=24, ctas=1, whole=3, share=0),
    *(Division(m=16, n=n, k=112, ldd=43, ctas=2, whole=0, share=1) for n in range(33, 41)),
)
SUBJECTS = (("w4a16", (sm80.w4a16_variant(SHAPE), "sm_90a", DIVISIONS)),)
