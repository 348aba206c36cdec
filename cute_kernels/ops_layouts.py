"""The operations of ops.py that multiply, for operands that lie transposed: views of them, and no kernel of their own.

By the order of dimensions in which A and B are given: "n" for A [M, K] and for B [K, N], "t" for A [K, M] and for
B [N, K]. Scale factors are given transposed where their elements are, so those of a B [K, N] are [words, N]. What
"nt" refuses is refused here too: FP4 that is not contiguous along K.
"""

from __future__ import annotations

from typing import Any

import torch

from .ops import bf16_gemm_nt, fp8_fp4_gemm_nt, gemm_nt
from .runtime.errors import ArgumentError
from .runtime.gemm_operands import Given, Scaled


def gemm_nn(
    a: Given,
    b: Given,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D = A @ B (+ C): `gemm_nt` with B given as [K, N], and its scale factors transposed likewise, [words, N]."""
    return gemm_nt(a, transposed("b", b), d, c, out_dtype=out_dtype, recipe=recipe)


def gemm_tn(
    a: Given,
    b: Given,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D = A^T @ B (+ C): `gemm_nt` with A given as [K, M] and B as [K, N], and their scale factors transposed."""
    return gemm_nn(transposed("a", a), b, d, c, out_dtype=out_dtype, recipe=recipe)


def gemm_tt(
    a: Given,
    b: Given,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    recipe: tuple[int, int, int] | None = None,
) -> torch.Tensor:
    """D = A^T @ B^T (+ C): `gemm_nt` with A given as [K, M], and its scale factors transposed."""
    return gemm_nt(transposed("a", a), b, d, c, out_dtype=out_dtype, recipe=recipe)


def fp8_fp4_gemm_nn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
) -> None:
    """`gemm_nn` under DeepGEMM's name and with its arguments; see `fp8_fp4_gemm_nt`."""
    fp8_fp4_gemm_nt(a, transposed("b", b), d, c, recipe, recipe_a, recipe_b)


def fp8_fp4_gemm_tn(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
) -> None:
    """`gemm_tn` under DeepGEMM's name and with its arguments; see `fp8_fp4_gemm_nt`."""
    fp8_fp4_gemm_nn(transposed("a", a), b, d, c, recipe, recipe_a, recipe_b)


def fp8_fp4_gemm_tt(
    a: Scaled,
    b: Scaled,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: tuple[int, int, int] | None = None,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
) -> None:
    """`gemm_tt` under DeepGEMM's name and with its arguments; see `fp8_fp4_gemm_nt`."""
    fp8_fp4_gemm_nt(transposed("a", a), b, d, c, recipe, recipe_a, recipe_b)


fp8_gemm_nn = fp8_fp4_gemm_nn
fp8_gemm_tn = fp8_fp4_gemm_tn
fp8_gemm_tt = fp8_fp4_gemm_tt


def bf16_gemm_nn(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """`bf16_gemm_nt` with B given as [K, N]: D = A @ B (+ C)."""
    bf16_gemm_nt(a, transposed("b", b), d, c)


def bf16_gemm_tn(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """`bf16_gemm_nt` with A given as [K, M] and B as [K, N]: D = A^T @ B (+ C)."""
    bf16_gemm_nt(transposed("a", a), transposed("b", b), d, c)


def bf16_gemm_tt(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, c: torch.Tensor | None = None) -> None:
    """`bf16_gemm_nt` with A given as [K, M]: D = A^T @ B^T (+ C)."""
    bf16_gemm_nt(transposed("a", a), b, d, c)


def transposed(name: str, given: Given, dims: int = 2) -> Any:
    """Return views of an operand's elements and scale factors with their dimensions swapped."""
    if isinstance(given, torch.Tensor):
        return _swapped(name, given, dims)
    try:
        return (*(_swapped(name, tensor, dims) for tensor in given[:2]), *given[2:])
    except TypeError:
        return given  # whoever takes it says what is wrong


def _swapped(name: str, tensor: Any, dims: int) -> Any:
    if isinstance(tensor, torch.Tensor) and tensor.dim() != dims:
        raise ArgumentError(
            f"{name} has {tensor.dim()} dimensions; this operation takes {dims} of them, the last two transposed"
        )
    return tensor.mT if isinstance(tensor, torch.Tensor) else tensor
