"""Mutants of the sm80 GEMM with NVFP4 weights that are the same program as far as anybody can tell, and why."""

from __future__ import annotations

from tests.mutation.equivalent import OTHERS, TRY_WAIT, Equivalent

_KERNEL = "gemm_w4a16.py:gemm_w4a16"
_W4A16 = ("w4a16",)
_DENSE_WGMMA = ("w4a16_wgmma", "w4a16_wgmma_wide")
_WGMMA = (*_DENSE_WGMMA, "w4a16_wgmma_contiguous")
_EMPTY = "a share without K steps, or at its end, passes once for a segment of none: nothing is done for it"
_FIRST = "equal only where no tile is whole, for the first share, which has K steps then"
_STAGING = "the next tile's K steps have a barrier each, and the staging buffer is written behind them"
_NEXT_PRODUCTS = (
    "the next tile's products, which the warp executes as one, come before the staging buffer is written"
)
_FRESH = "these stages have never been filled"
_STEPS = "a segment of one matrix or of masked ones has at least one K step"
_AHEAD = "W is loaded ahead of griddepcontrol.wait into all stages at most; the place behind them is not used"
_HALVES = "an aligned row's last 8 elements are stored one by one; the same bytes"
_ZEROS = "+0 for -0 where a weight or its scale is zero; sums that begin at +0 stay what they are"
_CP_ASYNC = ("w4a16_cp_async", "w4a16_cp_async_contiguous", "w4a16_cp_async_masked")
_MASKED = _CP_ASYNC[2:]
_TOO_MANY = "a K step behind the last is copied too, as far as the tensors reach, to a stage that is not read any more"
_NOT_NEGATIVE = "corrects the division of a number below 0, which a warp's is not"
_BARRIERS = (
    "each K step of the next segment, of which there is one, has a barrier of all threads before its products"
)
_EXPERTS = "there is at least one expert"
_NO_EXPERTS = "a pass over 32 experts more, of which there are none, adds nothing"
_EXPERT = "a tile's expert is one of them"
_MORE = "CTAs divide what they count themselves: of tiles behind N nothing is stored, and K steps behind K are zeros"
_BEHIND_EXPERTS = "where a tile is sought, what lies behind the last expert comes behind every tile"
_DIVISION = "another division of the tiles among the CTAs, which leaves no K step either"
_TILE_BEGINS = "a tile has at least one block of 16 rows of W"
_LATER_SEGMENT = "a segment that is not the first of a CTA begins with its tile's first K step"
_SPEED = "the next grid starts later; a matter of speed alone"
_ANOTHER = "another warp prepares the barriers, behind the same election; everybody waits for it"
_IDLE = "another warp of the loading one's warpgroup, which has nothing to do, loads in its place"
_LATER = "where X is sorted or multiplied, `full` has passed, behind the loading warp's wait"
_SPILLS = (
    "ptxas gives these warps the registers that all have from the launch, and spills; a matter of speed alone"
)
_BELOW_8 = "whole times 8 goes into a warp's number below 8, which is 0 in any case"
_TWO_MATRICES = "stmatrix of two matrices takes the addresses of lanes 0 to 15"
_PRODUCTS = (
    "the last wait is for all products of a stage; until then no register is written that one of them reads, each "
    "fragment of W having its own (a product adds to the sums of the one before in order)"
)

EQUIVALENT = [
    Equivalent(
        _W4A16, "drop griddepcontrol.launch_dependents", "gemm_w4a16.py:gemm_w4a16", (1,), 1,
        _SPEED,
    ),
    Equivalent(_W4A16, "setp.gt.u32 with ge", "streamk.py:left", (1, 2), 2, _EMPTY),
    Equivalent(_W4A16, "setp.le.u32 with lt", "streamk.py:left", (1,), 1, _EMPTY),
    Equivalent(_W4A16, "setp.lt.u32 with le", "streamk.py:left", (6,), 10, _EMPTY),
    Equivalent(_W4A16, "setp.lt.u32 with le", "streamk.py:left", (1,), 10, _FIRST),
    Equivalent(_W4A16, "setp.ge.u32 with gt", "streamk.py:left", (3,), 3, _FIRST),
    Equivalent(_W4A16, "setp.ge.s32 with gt", "w4a16_tiles.py:place", (1, 2), 2, _STEPS),
    Equivalent(_W4A16, "setp.ge.s32 with gt", "gemm_w4a16.py:prefetch", (1,), 1, _STEPS),
    Equivalent(_W4A16, "setp.lt.s32 with 0x0 for 1", "streamk.py:count", (1,), 1, _STEPS),
    Equivalent(_W4A16, "setp.lt.s32 with 0x0 for 1", "w4a16_sums.py:add_up", (1,), 1, _STEPS),
    Equivalent(_W4A16, f"pass {TRY_WAIT}", "ring.py:wait", (1, 2), 4, _FRESH),
    *(
        Equivalent(kernels, what, "ring.py:advance", (nth,), of, _AHEAD)
        for kernels, nth, of in ((_W4A16, 1, 4), (_DENSE_WGMMA, 2, 5))
        for what in (
            "setp.eq.b32 with 0x0 for 2",
            "compare with 3 for 2",
            "selp.b32 with 0x1 for 0",
            "selp.b32 with 0x0 for 1",
        )
    ),
    Equivalent(_W4A16, "setp.ne.b32 by 1 for 0", "w4a16_sums.py:finish", (1, 2), 2, OTHERS),
    Equivalent(_W4A16, "setp.ne.b32 with eq", "w4a16_sums.py:finish", (1, 2), 2, OTHERS),
    Equivalent(_W4A16, "negate the guard of bra", "w4a16_sums.py:finish", (3,), 5, OTHERS),
    Equivalent(_W4A16, "negate the guard of bra", "streamk.py:publish", (1,), 1, OTHERS),
    Equivalent(_W4A16, "add.s32 by 9 for 8", "w4a16_sums.py:store", (1, 3), 3, _HALVES),
    Equivalent(_W4A16, "setp.gt.s32 with ge", "w4a16_sums.py:store", (1, 2), 2, _HALVES),
    Equivalent(
        _W4A16, "drop bar.warp.sync", "w4a16_sums.py:store", (4,), 4,
        _STAGING,
    ),
    *(
        Equivalent(
            kernels, f"zero {changed} for 0x80008000", f"dequant.py:{function}", tuple(range(1, of + 1)), of, _ZEROS
        )
        for changed in ("0x8000", "0x80000000")
        for kernels, function, of in (
            ((*_W4A16, *_CP_ASYNC, "w4a16_wgmma_wide"), "multiply_bf16x2", 64),
            ((*_W4A16, *_CP_ASYNC, "w4a16_wgmma_wide"), "raise_bf16x2", 8),
            (("w4a16_wgmma", "w4a16_wgmma_contiguous"), "multiply_bf16x2", 32),
            (("w4a16_wgmma", "w4a16_wgmma_contiguous"), "raise_bf16x2", 4),
        )
    ),
    Equivalent(_WGMMA, "drop griddepcontrol.launch_dependents", _KERNEL, (1,), 1, _SPEED),
    *(
        Equivalent(_WGMMA, what, _KERNEL, (1,), 2, _ANOTHER)
        for what in ("setp.ne.b32 with 0x4 for 12", "setp.ne.b32 with 0x8 for 12", "compare with 13 for 12")
    ),
    Equivalent(_WGMMA, "compare with 13 for 12", _KERNEL, (2,), 2, _IDLE),
    Equivalent(_WGMMA, "drop setmaxnreg.inc", _KERNEL, (1,), 1, _SPILLS),
    Equivalent(_DENSE_WGMMA, "drop griddepcontrol.wait", "gemm_w4a16.py:sort", (1,), 1, _LATER),
    Equivalent(_DENSE_WGMMA, "drop griddepcontrol.wait", "gemm_w4a16.py:consume", (1,), 1, _LATER),
    *(
        Equivalent(_WGMMA, what, "gemm_w4a16.py:consume", (1,), 1, _BELOW_8)
        for what in (
            "shr.s32 by 32 for 31",
            "shr.u32 by 30 for 29",
            "shr.s32 by 4 for 3",
            "and.b32 with 0x7ffffff8 for -8",
            "and.b32 with 0xfffffff0 for -8",
            "setp.ne.b32 with eq",
            "setp.lt.s32 by 1 for 0",
            "setp.lt.s32 with le",
            "selp.b32 with 0x7fffffff for -1",
            "selp.b32 with 0xfffffffe for -1",
        )
    ),
    Equivalent(
        ("w4a16_wgmma", "w4a16_wgmma_contiguous"), "and.b32 with 0x4 for 12", "gemm_w4a16.py:consume", (1,), 1,
        _TWO_MATRICES,
    ),
    *(
        Equivalent(_WGMMA, what, "w4a16_wgmma.py:multiply", tuple(range(1, 8)), of, _PRODUCTS)
        for what, of in (
            ("drop wgmma.commit_group", 8),
            ("drop wgmma.wait_group", 8),
            ("wgmma.wait_group.sync.aligned 1 + 1", 7),
        )
    ),
    Equivalent(_DENSE_WGMMA, "setp.gt.u32 with ge", "streamk.py:left", (1, 2, 3), 3, _EMPTY),
    Equivalent(_DENSE_WGMMA, "setp.ge.u32 with gt", "streamk.py:left", (1, 4), 4, _FIRST),
    Equivalent(_DENSE_WGMMA, "setp.lt.u32 with le", "streamk.py:left", (3,), 12, _FIRST),
    Equivalent(_DENSE_WGMMA, "setp.lt.u32 with le", "streamk.py:left", (8,), 12, _EMPTY),
    Equivalent(_DENSE_WGMMA, f"pass {TRY_WAIT}", "ring.py:wait", (2, 3), 5, _FRESH),
    Equivalent(_DENSE_WGMMA, f"{TRY_WAIT} on the next barrier", "ring.py:wait", (2,), 5, _FRESH),
    Equivalent(_DENSE_WGMMA, "setp.ge.s32 with gt", "w4a16_tiles.py:place", (1, 2), 2, _STEPS),
    Equivalent(_DENSE_WGMMA, "setp.ge.s32 with gt", "gemm_w4a16.py:prefetch", (1,), 1, _STEPS),
    Equivalent(_DENSE_WGMMA, "setp.lt.s32 with 0x0 for 1", "streamk.py:count", (1, 2), 2, _STEPS),
    Equivalent(_DENSE_WGMMA, "setp.lt.s32 with 0x0 for 1", "ring.py:advance", (1,), 1, _STEPS),
    Equivalent(_WGMMA[2:], "setp.gt.u32 with ge", "streamk.py:left", (1, 2, 3), 3, _EMPTY),
    Equivalent(_WGMMA[2:], "setp.ge.u32 with gt", "streamk.py:left", (1, 2, 3), 3, _FIRST),
    Equivalent(_WGMMA, "setp.ne.b32 by 1 for 0", "w4a16_sums.py:finish", (2, 3), 3, OTHERS),
    Equivalent(_WGMMA, "setp.ne.b32 with eq", "w4a16_sums.py:finish", (2, 3), 3, OTHERS),
    Equivalent(_DENSE_WGMMA, "negate the guard of bra", "w4a16_sums.py:finish", (4,), 6, OTHERS),
    Equivalent(_WGMMA[2:], "negate the guard of bra", "w4a16_sums.py:finish", (4,), 5, OTHERS),
    Equivalent(_WGMMA, "drop bar.warp.sync", "w4a16_sums.py:store", (32,), 32, _NEXT_PRODUCTS),
    Equivalent(_WGMMA, "negate the guard of bra", "streamk.py:publish", (1,), 1, OTHERS),
    Equivalent(_WGMMA, "add.s32 by 9 for 8", "w4a16_sums.py:store", (1, *range(3, 18)), 17, _HALVES),
    Equivalent(_WGMMA, "setp.gt.s32 with ge", "w4a16_sums.py:store", tuple(range(1, 17)), 16, _HALVES),
    *(
        Equivalent(_CP_ASYNC, what, "gemm_w4a16_cp_async.py:work", (1,), of, _NOT_NEGATIVE)
        for what, of in (
            ("shr.u32 by 32 for 31", 1),
            ("and.b32 with 0x7ffffffe for -2", 1),
            ("setp.ne.b32 with eq", 2),
            ("setp.lt.s32 by 1 for 0", 1),
            ("setp.lt.s32 with le", 2),
            ("selp.b32 with 0x7fffffff for -1", 1),
            ("selp.b32 with 0xfffffffe for -1", 1),
        )
    ),
    Equivalent(_CP_ASYNC, "setp.ge.u32 with gt", "streamk.py:left", (1, 2, 4, 5), 5, _TOO_MANY),
    Equivalent(_CP_ASYNC, "setp.ge.u32 with gt", "streamk.py:left", (3,), 5, _FIRST),
    Equivalent(_CP_ASYNC, "setp.lt.u32 with le", "streamk.py:left", (1, 4), 8, _EMPTY),
    Equivalent((*_CP_ASYNC[:1], *_MASKED), "setp.lt.u32 with le", "streamk.py:left", (2, 3, 5, 6), 8, _STEPS),
    Equivalent(_CP_ASYNC, "setp.gt.u32 with ge", "streamk.py:left", (1,), 1, _EMPTY),
    Equivalent(_CP_ASYNC, "setp.le.u32 with lt", "streamk.py:left", (1,), 1, _EMPTY),
    Equivalent((*_CP_ASYNC[:1], *_MASKED), "setp.lt.s32 with 0x0 for 1", "streamk.py:count", (1,), 1, _STEPS),
    Equivalent((*_CP_ASYNC[:1], *_MASKED), "setp.lt.s32 with 0x0 for 1", "w4a16_copies.py:fill", (1, 2), 2, _TOO_MANY),
    Equivalent(_CP_ASYNC, "setp.lt.u32 with le", "w4a16_copies.py:copy_w", (1, 6), 10, _TILE_BEGINS),
    Equivalent(
        (*_CP_ASYNC[:1], *_MASKED), "shl.b32 by 2 for 1", "w4a16_copies.py:seek", (4,), 4, _LATER_SEGMENT
    ),
    Equivalent(_CP_ASYNC[1:2], "shl.b32 by 2 for 1", "w4a16_copies.py:seek", (2,), 2, _LATER_SEGMENT),
    Equivalent(
        (*_CP_ASYNC[:1], *_MASKED), "setp.lt.s32 with 0x0 for 1", "w4a16_sums.py:add_up", (2,), 2, _STEPS
    ),
    Equivalent((*_CP_ASYNC[:1], *_MASKED), "drop barrier.sync", "w4a16_sums.py:add_up", (2,), 2, _BARRIERS),
    Equivalent(_CP_ASYNC, "setp.ne.b32 by 1 for 0", "w4a16_sums.py:finish", (1, 2), 2, OTHERS),
    Equivalent(_CP_ASYNC, "setp.ne.b32 with eq", "w4a16_sums.py:finish", (1, 2), 2, OTHERS),
    Equivalent(_CP_ASYNC, "negate the guard of bra", "streamk.py:publish", (1,), 1, OTHERS),
    Equivalent(_CP_ASYNC, "add.s32 by 9 for 8", "w4a16_sums.py:store", (1,), 1, _HALVES),
    Equivalent(_CP_ASYNC, "setp.gt.s32 with ge", "w4a16_sums.py:store", (1,), 1, _HALVES),
    Equivalent(_MASKED, "setp.lt.s32 with 0x0 for 1", "w4a16_tiles.py:tile_rows", (1,), 1, _EXPERTS),
    Equivalent(_MASKED, "setp.lt.s32 with le", "w4a16_tiles.py:count_tiles", (1,), 1, _NO_EXPERTS),
    Equivalent(_MASKED, "setp.gt.u32 with ge", "w4a16_tiles.py:divide", (1,), 1, "no tile is whole either way"),
    Equivalent(_MASKED, "add.s32 by 0 for -1", "w4a16_tiles.py:divide", (1, 2), 2, _DIVISION),
    Equivalent(_MASKED, "add.s32 by 32 for 31", "tiles.py:ceil_div", (1,), 1, _MORE),
    Equivalent(_MASKED, "add.s32 by 256 for 255", "tiles.py:ceil_div", (1,), 1, _MORE),
    Equivalent(_MASKED, "setp.lt.s32 with le", "w4a16_tiles.py:tile_rows", (3, 4, 5), 6, _BEHIND_EXPERTS),
    Equivalent(_MASKED, "setp.lt.s32 with le", "w4a16_tiles.py:tile_rows", (6,), 6, _EXPERT),
    Equivalent(_MASKED, "setp.lt.s32 with le", "w4a16_copies.py:seek", (1, 2), 2, _EXPERT),
    Equivalent(_MASKED, "setp.ne.b32 by 1 for 0", "tiles.py:inclusive_sum", (1, 2), 2, OTHERS),
    Equivalent(_MASKED, "setp.ne.b32 with eq", "tiles.py:inclusive_sum", (1, 2), 2, OTHERS),
    Equivalent(_CP_ASYNC, "negate the guard of bra", "w4a16_sums.py:finish", (3,), 5, OTHERS),
    Equivalent(_CP_ASYNC[1:2], "negate the guard of bra", "w4a16_sums.py:finish", (3,), 4, OTHERS),
    Equivalent(_CP_ASYNC, "drop bar.warp.sync", "w4a16_sums.py:store", (2,), 2, _STAGING),
    *(
        Equivalent(("w4a16_wgmma_wide",), what, "w4a16_products.py:__init__", (1,), 1, _BELOW_8)
        for what in ("mul.lo.s32 with 0x20 for 288", "mul.lo.s32 with 0x100 for 288")
    ),
]  # fmt: skip
