"""Operations by name on the command line: the kernel of each, and the options that it stands for."""

from __future__ import annotations

import argparse
from typing import Any

from cute_kernels.runtime import ArgumentError
from cute_kernels.trial_w4a16 import KERNEL as W4A16

GEMM = "sm100.gemm_blockscaled"  # or sm100.gemm_bf16, as the operands are

OPERATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"gemm_{layout}": (GEMM, {"layout": layout}) for layout in ("nt", "nn", "tn", "tt")},
    "gemm_nt_mxfp8": (GEMM, {"d_dtype": "mxf8"}),
    "gemm_nt_nvfp4": (GEMM, {"d_dtype": "nvf4"}),
    "gemm_nt_skip_head_mid": (GEMM, {}),
    "m_grouped_gemm_nt_contiguous": (GEMM, {"grouped": "contiguous"}),
    "m_grouped_gemm_nn_contiguous": (GEMM, {"grouped": "contiguous", "layout": "nn"}),
    "m_grouped_gemm_nt_masked": (GEMM, {"grouped": "masked"}),
    "m_grouped_gemm_nt_contiguous_mxfp8": (GEMM, {"grouped": "contiguous", "d_dtype": "mxf8"}),
    **{
        f"k_grouped_gemm_{layout}_contiguous": (
            GEMM,
            {"grouped": "k", "layout": layout, "d_dtype": "f32", "accumulate": True},
        )
        for layout in ("tn", "nt")
    },
    "einsum": (GEMM, {"operands": "bf16"}),
    "nvfp4_dequantize": ("sm80.nvfp4_dequantize", {}),
    "nvfp4_repack": ("sm80.nvfp4_repack", {}),
    "w4a16_gemm_nt": (W4A16, {}),
    "m_grouped_w4a16_gemm_nt_contiguous": (W4A16, {"grouped": "contiguous"}),
    "m_grouped_w4a16_gemm_nt_masked": (W4A16, {"grouped": "masked"}),
}
# What an operation cannot do without, beside sizes: the option, and how it may look.
NEEDS = {
    "gemm_nt_skip_head_mid": ("head_splits", "--head-splits 128 64 128"),
    "einsum": ("einsum", "--einsum bhr,hdr->bhd"),
}
DEFAULTS = {"layout": "nt", "d_dtype": "bf16", "grouped": "contiguous", "accumulate": False, "operands": None}


def resolve(options: argparse.Namespace) -> None:
    """Set the kernel and the options that `options.op` stands for, unless the kernel is named itself.

    Raises ArgumentError for both or neither, for another operation, for an option that says otherwise than the
    operation, and for want of one.
    """
    if (options.op is None) == (options.kernel is None):
        raise ArgumentError(
            "name a kernel (sm100.gemm_blockscaled) or an operation (--op gemm_nt), and not both"
        )
    if options.op is None:
        return
    if options.op not in OPERATIONS:
        raise ArgumentError(f"the operation is {options.op!r}; there are {', '.join(OPERATIONS)}")
    kernel, implied = OPERATIONS[options.op]
    for name, value in implied.items():
        given = getattr(options, name)
        if given not in (value, DEFAULTS[name]) and name != "operands":
            raise ArgumentError(f"--{name.replace('_', '-')} is {given}; {options.op} is for {value}")
        setattr(options, name, value if given == DEFAULTS[name] else given)
    if "grouped" in implied and not options.groups:
        raise ArgumentError(f"{options.op} needs groups: --groups 4")
    needed, example = NEEDS.get(options.op, ("op", ""))
    if not getattr(options, needed):
        raise ArgumentError(f"{options.op} needs {example}")
    options.kernel = "sm100.gemm_bf16" if kernel == GEMM and options.operands == "bf16" else kernel
