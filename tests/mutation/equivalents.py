"""Mutants that are the same program as far as anybody can tell, and why."""

from __future__ import annotations

from tests.mutation import gemm_equivalents, w4a16_equivalents
from tests.mutation.equivalent import Equivalent
from tests.mutation.mutants import Mutant

_DEQUANTIZE = ("nvfp4_dequantize",)

EQUIVALENT = [
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
    *gemm_equivalents.EQUIVALENT,
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
