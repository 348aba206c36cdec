"""Every shape of the field has a compiled kernel, by every operation that it is of, whatever the operands."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

import sm100
from cute_kernels.heuristics import GemmProblem, candidates
from cute_kernels.runtime.gemm_operands import KINDS

SMS = 148
CONFIGS = {v.name: v.shape.config() for v in sm100.variants("sm_100a")}
FORMATS = tuple(KINDS.values())
EIGHT_BITS_OR_MORE = ("mxf8", "mxf8_k128", "bf16")

# (N, K) of dense products, whose M is 1, 128 or 4096, and of groups.
DENSE = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
GROUPED = ((6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048), (4096, 7168), (7168, 2048))
MASKED = (
    (32, 192),
    (6, 1024),
    (32, 20),
    (6, 20),
    (1, 1024),
    (2, 512),
    (4, 256),
)  # groups, rows expected of each
MEANS = (
    (8192, 4096, 7168),
    (8192, 7168, 2048),
)  # K of a group among 4, M, N; halves and quarters among 8 and 16
EINSUM = ((128, 512, 128), (8, 4096, 1024))  # h, r, d


def dense(operands: str) -> list[GemmProblem]:
    """Forward, with C and without, and the products of PR 348's table."""
    more = ((128, 2048, 7168), (512, 2048, 7168), (512, 7168, 2048), (1024, 7168, 2048), (8192, 8192, 8192))
    shapes = [*((m, n, k) for m in (1, 128, 4096) for n, k in DENSE), *more]
    if operands == "bf16":
        shapes += [(m, n, 7168) for m in (1, 128, 4096) for n in (256, 129280)]
    made = itertools.product(shapes, ("bf16", "f32"), (False, True))
    return [GemmProblem(*shape, operands, d, c) for shape, d, c in made]


def backward(operands: str) -> list[GemmProblem]:
    """dgrad, B contiguous along N, and wgrad, both along M and N, which accumulates in FP32."""
    found = []
    for n, k in DENSE:
        found.append(GemmProblem(4096, k, n, operands, "bf16", False, "k", "mn"))
        found.append(GemmProblem(n, k, 4096, operands, "f32", True, "mn", "mn"))
        found.append(GemmProblem(n, k, 4096, operands, "bf16", False, "mn", "mn"))
    return found


def groups(operands: str) -> list[GemmProblem]:
    """Contiguous by indices and prefix sums, masked, and a decoding batch of 128 experts."""
    found = []
    for n, k in GROUPED:
        for count, mean in ((4, 8192), (8, 4096)):
            rows = GemmProblem(
                count * mean, n, k, operands, "bf16", groups=count, grouping="indices", alignment=128
            )
            sizes = GemmProblem(
                count * mean, n, k, operands, "bf16", groups=count, grouping="sizes", expected_m=mean
            )
            found += [rows, sizes]
        for count, expected in MASKED:
            found.append(
                GemmProblem(4096, n, k, operands, "bf16", groups=count, grouping="sizes", expected_m=expected)
            )
        found.append(GemmProblem(192, n, k, operands, "bf16", groups=128, grouping="indices", alignment=32))
    return found


def groups_along_k(operands: str) -> list[GemmProblem]:
    """Of rows, and of K-major matrices."""
    return [
        GemmProblem(
            m, n, mean * 4 // count, operands, "f32", True, major, major, batches=count, k_grouped=True
        )
        for mean, m, n in MEANS
        for count in (4, 8, 16)
        for major in ("k", "mn")
    ]


def batches(operands: str) -> list[GemmProblem]:
    """bhr,hdr->bhd; bhd,hdr->bhr; bhd,bhr->hdr."""
    found = []
    for (h, r, d), b in itertools.product(EINSUM, (4, 32, 128, 4096, 8192)):
        found.append(GemmProblem(b, d, r, operands, "bf16", batches=h))
        found.append(GemmProblem(b, r, d, operands, "bf16", False, "k", "mn", batches=h))
        found.append(GemmProblem(d, r, b, operands, "f32", False, "mn", "mn", batches=h))
    return found


def quantized(operands: str) -> list[GemmProblem]:
    """To MXFP8, dense and in groups, where the operands have it; to NVFP4."""
    shapes = [*((m, 7168, 2048) for m in (1, 128, 256, 4096)), (128, 4096, 7168), (256, 4096, 7168)]
    found = [GemmProblem(*shape, operands, "mxf8") for shape in shapes]
    if operands in ("nvf4", "mxf8"):
        found += [GemmProblem(*shape, operands, "nvf4") for shape in shapes]
    if operands in ("mxf8", "mxf8_k128"):
        for (count, m), by in itertools.product(((4, 30720), (8, 36864), (48, 64512)), ("indices", "sizes")):
            found.append(
                GemmProblem(m, 1280, 4096, operands, "mxf8", groups=count, grouping=by, alignment=128)
            )
    return found


def heads(operands: str) -> list[GemmProblem]:
    """DeepGEMM's."""
    shapes = itertools.product((128, 4096), ((32768, 512), (8192, 512)))
    made = itertools.product(shapes, (d for of, d in sm100.HEADS if of == operands))
    return [GemmProblem(m, n, k, operands, d, heads=True) for (m, (n, k)), d in made]


CASES = [
    *((dense, operands) for operands in FORMATS),
    *((groups, operands) for operands in FORMATS),
    *itertools.product((backward, groups_along_k, batches), EIGHT_BITS_OR_MORE),
    *((quantized, operands) for operands in sm100.QUANTIZING["mxf8"]),
    *((heads, operands) for operands in dict(sm100.HEADS)),
]


@pytest.mark.parametrize(("problems", "operands"), CASES, ids=[f"{f.__name__}-{x}" for f, x in CASES])
def test_a_kernel_is_chosen(problems: Callable[[str], list[GemmProblem]], operands: str) -> None:
    found = problems(operands)
    assert found
    for problem in found:
        best = candidates(problem, SMS, CONFIGS)[0]
        assert best.estimate is not None, problem
        assert best.estimate.grid[0] >= 1, problem
        if not CONFIGS[best.name]["clc"]:
            assert best.estimate.grid[0] <= SMS, problem
