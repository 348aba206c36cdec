"""GPU kernels in the CuTe Python DSL, compiled ahead of time, and an emulator that runs them with no GPU."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported at first use, because they need torch: `import cute_kernels` itself stays quick.
_HOMES = {
    "ArgumentError": "cute_kernels.runtime",
    "DriverError": "cute_kernels.runtime",
    "KernelNotFoundError": "cute_kernels.runtime",
    "ManifestError": "cute_kernels.runtime",
    "bf16_gemm_nn": "cute_kernels.ops_layouts",
    "bf16_gemm_nt": "cute_kernels.ops",
    "bf16_gemm_tn": "cute_kernels.ops_layouts",
    "bf16_gemm_tt": "cute_kernels.ops_layouts",
    "einsum": "cute_kernels.ops_einsum",
    "emulate": "cute_kernels.runtime",
    "fp8_einsum": "cute_kernels.ops_einsum",
    "fp8_fp4_gemm_nn": "cute_kernels.ops_layouts",
    "fp8_fp4_gemm_nt": "cute_kernels.ops",
    "fp8_fp4_gemm_tn": "cute_kernels.ops_layouts",
    "fp8_fp4_gemm_tt": "cute_kernels.ops_layouts",
    "fp8_gemm_nn": "cute_kernels.ops_layouts",
    "fp8_gemm_nt": "cute_kernels.ops",
    "fp8_gemm_nt_mxfp8out": "cute_kernels.ops_quantized",
    "fp8_gemm_nt_skip_head_mid": "cute_kernels.ops_heads",
    "fp8_gemm_tn": "cute_kernels.ops_layouts",
    "fp8_gemm_tt": "cute_kernels.ops_layouts",
    "gemm_nn": "cute_kernels.ops_layouts",
    "gemm_nt": "cute_kernels.ops",
    "gemm_nt_mxfp8": "cute_kernels.ops_quantized",
    "gemm_nt_nvfp4": "cute_kernels.ops_quantized",
    "gemm_nt_skip_head_mid": "cute_kernels.ops_heads",
    "gemm_tn": "cute_kernels.ops_layouts",
    "gemm_tt": "cute_kernels.ops_layouts",
    "k_grouped_bf16_gemm_tn_contiguous": "cute_kernels.ops_k_grouped",
    "k_grouped_fp8_gemm_tn_contiguous": "cute_kernels.ops_k_grouped",
    "k_grouped_gemm_tn_contiguous": "cute_kernels.ops_k_grouped",
    "m_grouped_bf16_gemm_nn_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_bf16_gemm_nt_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_bf16_gemm_nt_masked": "cute_kernels.ops_grouped",
    "m_grouped_fp8_fp4_gemm_nn_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_fp8_fp4_gemm_nt_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_fp8_fp4_gemm_nt_masked": "cute_kernels.ops_grouped",
    "m_grouped_fp8_gemm_nn_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_fp8_gemm_nt_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_fp8_gemm_nt_contiguous_mxfp8out": "cute_kernels.ops_quantized",
    "m_grouped_fp8_gemm_nt_masked": "cute_kernels.ops_grouped",
    "m_grouped_gemm_nn_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_gemm_nt_contiguous": "cute_kernels.ops_grouped",
    "m_grouped_gemm_nt_contiguous_mxfp8": "cute_kernels.ops_quantized",
    "m_grouped_gemm_nt_masked": "cute_kernels.ops_grouped",
    "m_grouped_w4a16_gemm_nt_contiguous": "cute_kernels.ops",
    "m_grouped_w4a16_gemm_nt_masked": "cute_kernels.ops",
    "nvfp4_dequantize": "cute_kernels.ops",
    "nvfp4_repack": "cute_kernels.ops",
    "set_cubins": "cute_kernels.runtime",
    "w4a16_gemm_nt": "cute_kernels.ops",
}

__all__ = [
    "ArgumentError",
    "DriverError",
    "KernelNotFoundError",
    "ManifestError",
    "bf16_gemm_nn",
    "bf16_gemm_nt",
    "bf16_gemm_tn",
    "bf16_gemm_tt",
    "einsum",
    "emulate",
    "fp8_einsum",
    "fp8_fp4_gemm_nn",
    "fp8_fp4_gemm_nt",
    "fp8_fp4_gemm_tn",
    "fp8_fp4_gemm_tt",
    "fp8_gemm_nn",
    "fp8_gemm_nt",
    "fp8_gemm_nt_mxfp8out",
    "fp8_gemm_nt_skip_head_mid",
    "fp8_gemm_tn",
    "fp8_gemm_tt",
    "gemm_nn",
    "gemm_nt",
    "gemm_nt_mxfp8",
    "gemm_nt_nvfp4",
    "gemm_nt_skip_head_mid",
    "gemm_tn",
    "gemm_tt",
    "k_grouped_bf16_gemm_tn_contiguous",
    "k_grouped_fp8_gemm_tn_contiguous",
    "k_grouped_gemm_tn_contiguous",
    "m_grouped_bf16_gemm_nn_contiguous",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_fp8_fp4_gemm_nn_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "m_grouped_fp8_gemm_nn_contiguous",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_contiguous_mxfp8out",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_gemm_nn_contiguous",
    "m_grouped_gemm_nt_contiguous",
    "m_grouped_gemm_nt_contiguous_mxfp8",
    "m_grouped_gemm_nt_masked",
    "m_grouped_w4a16_gemm_nt_contiguous",
    "m_grouped_w4a16_gemm_nt_masked",
    "nvfp4_dequantize",
    "nvfp4_repack",
    "set_cubins",
    "w4a16_gemm_nt",
]

if TYPE_CHECKING:
    from .ops import (
        bf16_gemm_nt,
        fp8_fp4_gemm_nt,
        fp8_gemm_nt,
        gemm_nt,
        m_grouped_w4a16_gemm_nt_contiguous,
        m_grouped_w4a16_gemm_nt_masked,
        nvfp4_dequantize,
        nvfp4_repack,
        w4a16_gemm_nt,
    )
    from .ops_einsum import einsum, fp8_einsum
    from .ops_grouped import (
        m_grouped_bf16_gemm_nn_contiguous,
        m_grouped_bf16_gemm_nt_contiguous,
        m_grouped_bf16_gemm_nt_masked,
        m_grouped_fp8_fp4_gemm_nn_contiguous,
        m_grouped_fp8_fp4_gemm_nt_contiguous,
        m_grouped_fp8_fp4_gemm_nt_masked,
        m_grouped_fp8_gemm_nn_contiguous,
        m_grouped_fp8_gemm_nt_contiguous,
        m_grouped_fp8_gemm_nt_masked,
        m_grouped_gemm_nn_contiguous,
        m_grouped_gemm_nt_contiguous,
        m_grouped_gemm_nt_masked,
    )
    from .ops_heads import fp8_gemm_nt_skip_head_mid, gemm_nt_skip_head_mid
    from .ops_k_grouped import (
        k_grouped_bf16_gemm_tn_contiguous,
        k_grouped_fp8_gemm_tn_contiguous,
        k_grouped_gemm_tn_contiguous,
    )
    from .ops_layouts import (
        bf16_gemm_nn,
        bf16_gemm_tn,
        bf16_gemm_tt,
        fp8_fp4_gemm_nn,
        fp8_fp4_gemm_tn,
        fp8_fp4_gemm_tt,
        fp8_gemm_nn,
        fp8_gemm_tn,
        fp8_gemm_tt,
        gemm_nn,
        gemm_tn,
        gemm_tt,
    )
    from .ops_quantized import (
        fp8_gemm_nt_mxfp8out,
        gemm_nt_mxfp8,
        gemm_nt_nvfp4,
        m_grouped_fp8_gemm_nt_contiguous_mxfp8out,
        m_grouped_gemm_nt_contiguous_mxfp8,
    )
    from .runtime import (
        ArgumentError,
        DriverError,
        KernelNotFoundError,
        ManifestError,
        emulate,
        set_cubins,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)  # so that it is looked up here once
    return value
