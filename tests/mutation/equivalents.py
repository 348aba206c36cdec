"""Mutants that are the same program as far as anybody can tell, and why."""

from __future__ import annotations

from typing import NamedTuple

from tests.mutation.mutants import Mutant


class Equivalent(NamedTuple):
    """One explanation. It fits exactly the mutants it was written for, so that it hides no other.

    kernels: whose mutants. what: the beginning of their name. place: file and function. nth of `of`: which ones of
    that name and place.
    """

    kernels: tuple[str, ...]
    what: str
    place: str
    nth: tuple[int, ...]
    of: int
    why: str


_GEMMS = ("gemm", "gemm_c", "gemm_bf16", "gemm_pair")
_TRY_WAIT = "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64"
_KERNEL = "gemm_blockscaled.py:gemm_blockscaled"
_PREFETCH = "other lanes or warps prefetch the descriptors; a hint either way"
_DRAIN = (
    "the end of one of the two loading warps waits for the empty barriers less; the other one waits for the same "
    "barriers (test_planted_bugs.py: without either, there is a warning)"
)
_PLAIN = ("gemm_tn",)
# What the GEMM's own files give the same reason for: kernels, and the file.
_FILES = ((_GEMMS, "gemm_blockscaled"), (_PLAIN, "gemm_bf16"))
_DEQUANTIZE = ("nvfp4_dequantize",)

EQUIVALENT = [
    Equivalent(_GEMMS, "compare with 5 for 4", _KERNEL, (1,), 2, _PREFETCH),
    Equivalent(_GEMMS, "negate the guard of bra", _KERNEL, (1,), 7, _PREFETCH),
    Equivalent(
        (*_GEMMS, *_PLAIN), "drop tcgen05.relinquish_alloc_permit", "tmem.py:allocate", (1,), 1,
        "a promise not to allocate again; no other CTA on the SM waits for it, since one fits",
    ),
    Equivalent(
        (*_GEMMS, *_PLAIN), "drop tcgen05.fence::before_thread_sync", "tmem.py:allocate", (1,), 1,
        "tcgen05.alloc is done when it returns; the fence orders tcgen05 operations that are not",
    ),
    *(
        Equivalent(
            kernels, "drop tcgen05.fence::after_thread_sync", f"{file}.py:{file}", (1,), 2,
            "no tcgen05 access precedes it, and each that follows has an mbarrier wait and a fence of its own before "
            "it",
        )
        for kernels, file in _FILES
    ),
    *(
        Equivalent(
            kernels, "drop griddepcontrol.launch_dependents", f"{file}.py:{file}", (1,), 1,
            "the next grid starts later; a matter of speed alone",
        )
        for kernels, file in _FILES
    ),
    Equivalent(
        ("gemm", "gemm_bf16", "gemm_pair", *_PLAIN), "drop griddepcontrol.wait", "epilogue.py:store", (1,), 1,
        "without C, the store warps touch global memory only after acc_full, which the loading warps' waits precede",
    ),
    *(
        Equivalent(kernels, what, "ring.py:wait", nth, of, _DRAIN)
        for kernels, nth, of in ((("gemm", "gemm_bf16", "gemm_pair"), (3, 5), 8), (("gemm_c",), (5, 7), 10))
        for what in (
            f"pass {_TRY_WAIT}",
            f"flip the parity of {_TRY_WAIT}",
            f"{_TRY_WAIT} on the next barrier",
        )
    ),
    Equivalent(_GEMMS, "compare with 3 for 2", "ring.py:advance", (3, 5), 8, _DRAIN),
    Equivalent(_GEMMS, "negate the guard of bra", "ring.py:advance", (2, 4), 8, _DRAIN),
    *(
        Equivalent(
            kernels, "drop tcgen05.fence::after_thread_sync", f"{file}.py:multiply", (1,), 2,
            "the other fence follows before the first MMA, since K > 0",
        )
        for kernels, file in _FILES
    ),
    *(
        Equivalent(
            kernels, "drop tcgen05.fence::after_thread_sync", f"{file}.py:multiply", (2,), 2,
            "between the fence after acc_empty and the MMAs, nobody else touches tensor memory: the operands that "
            "`full` tells of lie in shared memory (NVIDIA's main loops have no fence there)",
        )
        for kernels, file in _FILES
    ),
    Equivalent(
        _GEMMS, "compare with 7 for 6", _KERNEL, (2,), 2,
        "another warp gives the tensor memory back; nothing is allocated after it",
    ),
    *(
        Equivalent(
            kernels, "drop tcgen05.fence::before_thread_sync", f"{file}.py:{file}", (1,), 1,
            "the store warps have had one behind their last tcgen05.ld, and have waited for the MMAs",
        )
        for kernels, file in _FILES
    ),
    *(
        Equivalent(
            kernels, "drop tcgen05.fence::after_thread_sync", f"{file}.py:{file}", (2,), 2,
            "tcgen05.dealloc alone follows, which is no asynchronous operation",
        )
        for kernels, file in _FILES
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
        ("gemm_c",), f"{_TRY_WAIT} on the next barrier", "ring.py:wait", (9,), 10,
        "even tiles wait for the tile before, which covers the odd ones; these wait for c_full, which has passed",
    ),
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
]  # fmt: skip


def reason(kernel: str, mutant: Mutant) -> str:
    """Why the mutant is equivalent, or ""."""
    for known in EQUIVALENT:
        if (
            kernel in known.kernels
            and mutant.what.startswith(known.what)
            and mutant.place == known.place
            and mutant.nth in known.nth
            and mutant.count == known.of
        ):
            return known.why
    return ""
