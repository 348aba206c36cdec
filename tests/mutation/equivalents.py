"""Mutants that are the same program as far as anybody can tell, and why."""

from __future__ import annotations

from tests.mutation import w4a16_equivalents
from tests.mutation.equivalent import OTHERS, TRY_WAIT, Equivalent
from tests.mutation.mutants import Mutant

_GEMMS = ("gemm", "gemm_c", "gemm_bf16", "gemm_pair", "gemm_split_k", "gemm_swap_ab")
_KERNEL = "gemm.py:gemm"
_PREFETCH = "other lanes or warps prefetch the descriptors; a hint either way"
_WAITS = (("pass ", ""), ("flip the parity of ", ""), ("", " on the next barrier"))
_DRAIN = (
    "the end of one of the two loading warps waits for the empty barriers less; the other one waits for the same "
    "barriers (test_planted_bugs.py: without either, there is a warning)"
)
_PLAIN = ("gemm_tn",)
_ALL = (*_GEMMS, *_PLAIN)
_DEQUANTIZE = ("nvfp4_dequantize",)

EQUIVALENT = [
    Equivalent(_GEMMS, "compare with 5 for 4", _KERNEL, (1,), 2, _PREFETCH),
    Equivalent(_GEMMS, "negate the guard of bra", _KERNEL, (1,), 7, _PREFETCH),
    Equivalent(
        _ALL, "drop tcgen05.relinquish_alloc_permit", "tmem.py:allocate", (1,), 1,
        "a promise not to allocate again; no other CTA on the SM waits for it, since one fits",
    ),
    Equivalent(
        _ALL, "drop tcgen05.fence::before_thread_sync", "tmem.py:allocate", (1,), 1,
        "tcgen05.alloc is done when it returns; the fence orders tcgen05 operations that are not",
    ),
    Equivalent(
        _ALL, "drop tcgen05.fence::after_thread_sync", _KERNEL, (1,), 2,
        "no tcgen05 access precedes it, and each that follows has an mbarrier wait and a fence of its own before "
        "it",
    ),
    Equivalent(
        _ALL, "drop griddepcontrol.launch_dependents", _KERNEL, (1,), 1,
        "the next grid starts later; a matter of speed alone",
    ),
    Equivalent(
        ("gemm", "gemm_bf16", "gemm_pair", "gemm_split_k", *_PLAIN), "drop griddepcontrol.wait", "epilogue.py:store",
        (1,), 1,
        "without C, the store warps touch global memory only after acc_full, which the loading warps' waits precede",
    ),
    *(
        Equivalent(kernels, f"{what}{TRY_WAIT}{where}", "ring.py:wait", nth, of, _DRAIN)
        for kernels, nth, of, changes in (
            (("gemm", "gemm_bf16", "gemm_pair"), (3, 5), 8, _WAITS),
            (("gemm_c",), (5, 7), 10, _WAITS),
            (("gemm_split_k",), (4, 6), 9, _WAITS[:1]),
            (("gemm_swap_ab",), (4, 6), 9, (_WAITS[0], _WAITS[2])),
        )
        for what, where in changes
    ),
    Equivalent(_GEMMS, "compare with 3 for 2", "ring.py:advance", (3, 5), 8, _DRAIN),
    Equivalent(_GEMMS, "negate the guard of bra", "ring.py:advance", (2, 4), 8, _DRAIN),
    Equivalent(
        _ALL, "drop tcgen05.fence::after_thread_sync", "gemm.py:multiply", (1,), 2,
        "the other fence follows before the first MMA, since K > 0",
    ),
    Equivalent(
        _ALL, "drop tcgen05.fence::after_thread_sync", "gemm.py:multiply", (2,), 2,
        "between the fence after acc_empty and the MMAs, nobody else touches tensor memory: the operands that "
        "`full` tells of lie in shared memory (NVIDIA's main loops have no fence there)",
    ),
    Equivalent(
        _GEMMS, "compare with 7 for 6", _KERNEL, (2,), 2,
        "another warp gives the tensor memory back; nothing is allocated after it",
    ),
    Equivalent(
        _ALL, "drop tcgen05.fence::before_thread_sync", _KERNEL, (1,), 1,
        "the store warps have had one behind their last tcgen05.ld, and have waited for the MMAs",
    ),
    Equivalent(
        _ALL, "drop tcgen05.fence::after_thread_sync", _KERNEL, (2,), 2,
        "tcgen05.dealloc alone follows, which is no asynchronous operation",
    ),
    Equivalent(
        ("gemm_c",), "drop bar.warp.sync", "epilogue.py:store", (1,), 4,
        "every lane has waited on c_full, which the leader fed after the buffer's last store",
    ),
    Equivalent(
        ("gemm_c",), "drop bar.warp.sync", "epilogue.py:store", (3,), 4,
        "as the first; and what the arrival on acc_empty covers is tcgen05.ld, which tcgen05.wait::ld.sync.aligned "
        "completes for the warp as one (lanes.py; NVIDIA's epilogues have no warp barrier there)",
    ),
    Equivalent(
        ("gemm_swap_ab",), "drop bar.warp.sync", "epilogue.py:store", (1,), 2,
        "as the first and the third of gemm_c: one store takes a whole tile",
    ),
    *(
        Equivalent(
            kernels, f"{TRY_WAIT} on the next barrier", "ring.py:wait", nth, of,
            "even tiles wait for the tile before, which covers the odd ones; these wait for c_full, which has passed",
        )
        for kernels, nth, of in ((("gemm_c",), (9,), 10), (("gemm_swap_ab",), (8,), 9))
    ),
    Equivalent(("gemm_split_k",), "negate the guard of bra", "splitk.py:others", (2,), 2, OTHERS),
    *(
        Equivalent(
            _DEQUANTIZE, what, "nvfp4_dequantize.py:nvfp4_dequantize", (1,), 1,
            "a CTA with all of its words may take either path",
        )
        for what in ("setp.lt.s64 by 257 for 256", "setp.lt.s64 with le")
    ),
    Equivalent(
        _DEQUANTIZE, "selp.b32 with 0x7fff7ffe for 2147450879", "dequant.py:e4m3_pair", (1, 2, 3), 3,
        "another NaN; the product's NaN is the canonical one",
    ),
    Equivalent(
        _DEQUANTIZE, "and.b32 with 0xfffe0000 for -65536", "dequant.py:bf16_high", tuple(range(1, 13)), 12,
        "code * scale has six significant bits, so the last of BF16's eight is 0",
    ),
    *w4a16_equivalents.EQUIVALENT,
]  # fmt: skip


def explanation(kernel: str, mutant: Mutant) -> Equivalent | None:
    """Why the mutant is equivalent, if it is."""
    for known in EQUIVALENT:
        if (
            kernel in known.kernels
            and mutant.what.startswith(known.what)
            and mutant.place == known.place
            and mutant.nth in known.nth
            and mutant.count == known.of
        ):
            return known
    return None
