"""Operations named on the command line: which kernel and options each stands for, and what is refused."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

import cute_kernels
from cute_kernels.__main__ import parser
from cute_kernels.operation_options import OPERATIONS, resolve
from cute_kernels.runtime import ArgumentError

NEEDED: dict[str, tuple[str, ...]] = {
    "gemm_nt_skip_head_mid": ("--head-splits", "128", "64", "128"),
    "einsum": ("--einsum", "bhr,hdr->bhd"),
}


def options(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["explain", "--m", "4", "--n", "8", "--k", "64", *arguments])


def resolved(operation: str, *more: str) -> argparse.Namespace:
    groups = ("--groups", "2") if "grouped" in operation else ()
    given = options("--op", operation, *groups, *NEEDED.get(operation, ()), *more)
    resolve(given)
    return given


def test_every_operation_is_public() -> None:
    assert set(OPERATIONS) <= set(cute_kernels.__all__)
    # The others are these under DeepGEMM's names, or no operations.
    others = {name for name in cute_kernels.__all__ if name[0].islower()} - set(OPERATIONS)
    assert all("bf16" in name or "fp8" in name or name in ("emulate", "set_cubins") for name in others), (
        others
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_states_a_problem(operation: str) -> None:
    from cute_kernels.__main__ import stated

    groups = ("--groups", "2") if "grouped" in operation else ()
    operands = ("--operands", "mxf8") if "mxfp8" in operation or "_n_" in operation else ()
    more = ("--operands", "bf16") if operation in ("gemm_nn", "gemm_tn", "gemm_tt") else operands
    if operation in ("m_grouped_gemm_nn_contiguous", "k_grouped_gemm_tn_contiguous"):
        more = ("--operands", "bf16")
    head = ("--n", "256") if operation == "gemm_nt_skip_head_mid" else ()
    given = options("--op", operation, *groups, *NEEDED.get(operation, ()), *more, *head)
    assert (
        stated(given)
        .operation.split()[0]
        .startswith(operation.removesuffix("_contiguous").removesuffix("_mxfp8"))
    )


def test_operands_choose_the_kernel() -> None:
    assert resolved("gemm_nt").kernel == "sm100.gemm_blockscaled"
    assert resolved("gemm_nt", "--operands", "bf16").kernel == "sm100.gemm_bf16"
    assert resolved("einsum").kernel == "sm100.gemm_bf16"
    assert resolved("einsum", "--operands", "mxf8_k128").kernel == "sm100.gemm_blockscaled"


def test_implied_options() -> None:
    of_k = resolved("k_grouped_gemm_tn_contiguous")
    assert (of_k.grouped, of_k.layout, of_k.d_dtype, of_k.accumulate) == ("k", "tn", "f32", True)
    assert resolved("k_grouped_gemm_nt_contiguous").layout == "nt"
    assert resolved("gemm_nt_mxfp8").d_dtype == "mxf8"
    named = options("sm100.gemm_bf16", "--layout", "tt")
    resolve(named)
    assert (named.kernel, named.layout) == ("sm100.gemm_bf16", "tt")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name a kernel .* or an operation"),
        (("sm100.gemm_bf16", "--op", "gemm_nt"), "and not both"),
        (("--op", "gemm"), "the operation is 'gemm'; there are gemm_nt, "),
        (("--op", "gemm_nn", "--layout", "tt"), "--layout is tt; gemm_nn is for nn"),
        (("--op", "gemm_nt_mxfp8", "--d-dtype", "f32"), "--d-dtype is f32; gemm_nt_mxfp8 is for mxf8"),
        (("--op", "m_grouped_gemm_nt_masked"), "needs groups"),
        (("--op", "einsum"), "einsum needs --einsum"),
        (("--op", "gemm_nt_skip_head_mid"), "needs --head-splits"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        resolve(options(*arguments))
