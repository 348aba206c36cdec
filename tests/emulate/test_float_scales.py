"""Scale factors in float32, as DeepGEMM has them: the bits of those that are rounded up, repeated and packed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels import ops_k_grouped
from cute_kernels.runtime import ArgumentError
from cute_kernels.scale_factors import pack_for_kernel, pack_k_grouped

KINDS = ("mxf8_k128", "mxf8", "mxf4", "mxf8_k128_mxf4", "mxf4_mxf8_k128")
CUBINS = (
    *(f"sm100_gemm_{kind}_128x128x???_f32" for kind in KINDS),
    "sm100_gemm_mxf8_k128_128x128x128_f32_[nt][nt]",
    "sm100_gemm_mxf8_k128_128x128x128_bf16_by_*",
    "sm100_gemm_mxf8_k128_128x128x128_mxf8*",
    "sm100_gemm_mxf8_k128_128x128x128_bf16_heads",
    "sm100_gemm_mxf8_k128_*_k_grouped*",
    "sm100_gemm_mxf8_k128_*_f32_batched*",
)
pytestmark = pytest.mark.usefixtures("cubins")
Pair = tuple[torch.Tensor, torch.Tensor]


def codes(shape: tuple[int, ...], fp4: bool, random: torch.Generator) -> torch.Tensor:
    """Random elements, no NaN."""
    if fp4:
        return torch.randint(0, 256, (*shape[:-1], shape[-1] // 2), generator=random, dtype=torch.uint8)
    found = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    found[found & 0x7F == 0x7F] = 0
    return found.view(torch.float8_e4m3fn)


def float_scales(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    """Random scales, of which some are powers of two."""
    scales = torch.rand(shape, generator=random) + 0.5
    scales[torch.rand(shape, generator=random) < 0.2] = 1.0
    return scales * torch.exp2(torch.randint(-8, 9, shape, generator=random))


def rounded_up(scales: torch.Tensor) -> torch.Tensor:
    """UE8M0 by the definition, one scale after another."""
    exponents = [math.ceil(math.log2(scale)) for scale in scales.flatten().tolist()]
    return torch.tensor([127 + e for e in exponents], dtype=torch.uint8).view(scales.shape)


def operand(
    shape: tuple[int, ...], rows: int, granularity: int, seed: int, fp4: bool = False
) -> tuple[Pair, Pair]:
    """Random [..., MN, K] with a float32 scale for each block of rows x granularity, and the same with packed ones."""
    random = torch.Generator().manual_seed(seed)
    *lead, mn, k = shape
    scales = float_scales((*lead, -(-mn // rows), -(-k // granularity)), random)
    by_row = rounded_up(scales).repeat_interleave(rows, -2)[..., :mn, :]
    elements = codes(shape, fp4, random)
    return (elements, scales), (elements, pack_for_kernel(by_row, mn, k, gran_k=granularity))


def emulated() -> Any:
    return cute_kernels.emulate("sm_100a", "random", 1, 2)


# The formats of A and B by (is it FP4, rows and elements of K to a scale), and how the call says so.
DENSE: dict[str, tuple[tuple[bool, int, int], tuple[bool, int, int], dict[str, Any]]] = {
    "DeepGEMM's default": ((False, 1, 128), (False, 128, 128), {}),
    "the default, said": ((False, 1, 128), (False, 128, 128), {"recipe": (1, 128, 128)}),
    "rows": ((False, 1, 128), (False, 1, 128), {"recipe": (1, 1, 128)}),
    "blocks of both": ((False, 128, 128), (False, 128, 128), {"recipe": (128, 128, 128)}),
    "small blocks": ((False, 1, 32), (False, 32, 32), {"recipe": (1, 32, 32)}),
    "MXFP4": ((True, 1, 32), (True, 1, 32), {"recipe_a": (1, 32), "recipe_b": (1, 32)}),
    "FP8 and MXFP4": ((False, 1, 128), (True, 1, 32), {"recipe_a": (1, 128), "recipe_b": (1, 32)}),
    "MXFP4 and FP8": ((True, 1, 32), (False, 128, 128), {"recipe_a": (1, 32), "recipe_b": (128, 128)}),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense(case: str) -> None:
    (fp4_a, rows_a, by_a), (fp4_b, rows_b, by_b), options = DENSE[case]
    k = 768 if fp4_a or fp4_b else 656
    a, packed_a = operand((70, k), rows_a, by_a, 1, fp4_a)
    b, packed_b = operand((136, k), rows_b, by_b, 2, fp4_b)
    d, wanted = torch.full((2, 70, 136), torch.nan)
    with emulated() as emulation:
        cute_kernels.fp8_fp4_gemm_nt(a, b, d, **options)
        cute_kernels.fp8_fp4_gemm_nt(packed_a, packed_b, wanted, recipe_a=(1, by_a), recipe_b=(1, by_b))
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert bool(wanted.isfinite().all()) and bool(wanted.any())
    assert torch.equal(d, wanted)


def test_mxfp4_without_a_recipe() -> None:
    a, packed_a = operand((33, 256), 1, 32, 1, True)
    b, packed_b = operand((40, 256), 1, 32, 2, True)
    with emulated():
        mixed = cute_kernels.gemm_nt(a, packed_b, out_dtype=torch.float32)  # one of each
        d, wanted = (
            cute_kernels.gemm_nt(*x, out_dtype=torch.float32) for x in ((a, b), (packed_a, packed_b))
        )
    assert bool(wanted.any()) and torch.equal(d, wanted) and torch.equal(mixed, wanted)


@pytest.mark.parametrize("layout", ["nn", "tn"])
def test_transposed(layout: str) -> None:
    """Elements and scales of an operand lie transposed alike."""
    a, packed_a = operand((48, 272), 1, 128, 1)
    b, packed_b = operand((144, 272), 128, 128, 2)
    d, wanted = torch.full((2, 48, 144), torch.nan)
    with emulated():
        for result, (left, right) in ((d, (a, b)), (wanted, (packed_a, packed_b))):
            given = [
                tuple(part.t().contiguous() if part.dtype != torch.int32 else part.t() for part in pair)
                if which in ("n" if i else "t")
                else pair
                for i, (which, pair) in enumerate(zip(layout, (left, right), strict=True))
            ]
            getattr(cute_kernels, f"fp8_gemm_{layout}")(*given, result)
    assert bool(wanted.any()) and torch.equal(d, wanted)


@pytest.mark.parametrize("kind", ["contiguous", "masked"])
def test_groups(kind: str) -> None:
    """Scales of rows of none are nonsense, and reach nothing."""
    rows = (3, 140) if kind == "masked" else (512,)
    a, packed_a = operand((*rows, 272), 1, 128, 1)
    b, packed_b = operand((3, 136, 272), 128, 128, 2)
    layout = torch.full((512,), -1, dtype=torch.int32)
    layout[:100], layout[128:386] = 2, 0
    sizes = torch.tensor([5, 0, 140], dtype=torch.int32)
    if kind == "masked":
        a[1][0, 5:] = torch.nan
    else:
        a[1][layout == -1] = torch.nan
    d, wanted = torch.zeros(2, *rows, 136, dtype=torch.bfloat16)
    with emulated() as emulation:
        for result, pair in ((d, (a, b)), (wanted, (packed_a, packed_b))):
            if kind == "masked":
                cute_kernels.m_grouped_fp8_gemm_nt_masked(*pair, result, sizes, 100)
            else:
                cute_kernels.m_grouped_fp8_gemm_nt_contiguous(*pair, result, layout)
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert bool(wanted.any()) and torch.equal(d, wanted)


def test_quantized_results_and_heads() -> None:
    a, packed_a = operand((20, 272), 1, 128, 1)
    b, packed_b = operand((192, 272), 128, 128, 2)
    of_groups = (
        (b[0][None], b[1][None]),
        (b[0][None], pack_for_kernel(rounded_up(b[1])[None], 192, 272, gran_mn=128, gran_k=128)),
    )
    layout = torch.zeros(20, dtype=torch.int32)
    with emulated():
        found, wanted = (
            (
                *cute_kernels.gemm_nt_mxfp8(left, right),
                *cute_kernels.m_grouped_gemm_nt_contiguous_mxfp8(left, grouped, None, layout),
                cute_kernels.gemm_nt_skip_head_mid(left, right, head_splits=(64, 32, 32)),
            )
            for left, right, grouped in ((a, b, of_groups[0]), (packed_a, packed_b, of_groups[1]))
        )
    for results in zip(found, wanted, strict=True):
        one, other = (result.contiguous().view(torch.uint8) for result in results)
        assert bool(other.any()) and torch.equal(one, other)


@pytest.mark.parametrize("known", [True, False], ids=["lengths known", "on the device"])
@pytest.mark.parametrize("layout", ["tn", "nt"])
def test_groups_along_k(layout: str, known: bool) -> None:
    """With lengths that the host does not know, K has room for more."""
    random, ks, room = torch.Generator().manual_seed(1), [0, 640, 128, 0, 256], 0 if known else 256
    k, m, n = sum(ks) + room, 20, 36
    operands = []
    for mn in (m, n):
        elements = codes((k, mn) if layout == "tn" else (k * mn,), False, random)
        if layout == "tn":  # rows of whole 16 bytes
            elements = torch.nn.functional.pad(elements.view(torch.uint8), (0, -mn % 16)).view(
                elements.dtype
            )[:, :mn]
        scales = float_scales((k // 128, mn), random)
        scales[sum(ks) // 128 :] = torch.nan
        words = pack_k_grouped(rounded_up(scales[: sum(ks) // 128]), ks, 128)
        operands.append(((elements, scales), (elements, words)))
    lengths, host = torch.tensor(ks, dtype=torch.int32), ks if known else None
    d, wanted = torch.full((2, 5, m, n), torch.nan)
    operation = getattr(ops_k_grouped, f"k_grouped_fp8_gemm_{layout}_contiguous")
    with emulated() as emulation:
        for i, result in enumerate((d, wanted)):
            operation(operands[0][i], operands[1][i], result, host, lengths)
    assert [report.warnings for report in emulation.reports] == [[], []]
    assert bool(wanted.any()) and torch.equal(d, wanted)


@pytest.mark.parametrize("known", [True, False], ids=["lengths known", "on the device"])
@pytest.mark.parametrize("layout", ["tn", "nt"])
@pytest.mark.parametrize(("m", "n"), [(0, 36), (20, 0), (0, 0)])
def test_groups_along_k_of_nothing(m: int, n: int, layout: str, known: bool) -> None:
    """K-major operands without rows do not tell K."""
    ks = [256, 0, 128]
    operands = [
        (
            torch.zeros((384, mn) if layout == "tn" else (384 * mn,), dtype=torch.float8_e4m3fn),
            torch.ones(3, mn),
        )
        for mn in (m, n)
    ]
    operation = getattr(ops_k_grouped, f"k_grouped_fp8_gemm_{layout}_contiguous")
    with emulated() as emulation:
        operation(*operands, torch.zeros(3, m, n), ks if known else None, torch.tensor(ks, dtype=torch.int32))
        wrong = torch.ones(3, m + 4), torch.ones(3, n + 4)
        for i in range(2):
            given = list(operands)
            given[i] = operands[i][0], wrong[i]
            with pytest.raises(ArgumentError, match="scale factors are float32"):
                operation(*given, torch.zeros(3, m, n), None, torch.tensor(ks, dtype=torch.int32))
    assert not emulation.reports


@pytest.mark.parametrize("expression", ["bhr,hdr->bhd", "bhd,hdr->bhr", "bhd,bhr->hdr"])
def test_batches(expression: str) -> None:
    """In the expression's order, by the default of each: no blocks where the sum is over tokens."""
    b, h, d, r = 144, 2, 160, 272
    orders = {
        "bhr,hdr->bhd": ((b, d, r), (1, 0, 2), (0, 1, 2), (b, h, d)),
        "bhd,hdr->bhr": ((b, r, d), (1, 0, 2), (0, 2, 1), (b, h, r)),
        "bhd,bhr->hdr": ((d, r, b), (2, 0, 1), (2, 0, 1), (h, d, r)),
    }
    (m, n, k), order_a, order_b, shape = orders[expression]
    blocks = 1 if expression == "bhd,bhr->hdr" else 128
    left, packed_left = operand((h, m, k), 1, 128, 1)
    right, packed_right = operand((h, n, k), blocks, 128, 2)
    given, packed = [], []
    for (elements, scales), (_, words), order in (
        (left, packed_left, order_a),
        (right, packed_right, order_b),
    ):
        placed = elements.permute(order).contiguous()
        given.append((placed, scales.permute(order).contiguous()))
        packed.append((placed, words))
    result, wanted = torch.full((2, *shape), torch.nan)
    with emulated():
        cute_kernels.fp8_einsum(expression, given[0], given[1], result)
        cute_kernels.fp8_einsum(expression, packed[0], packed[1], wanted)
    assert bool(wanted.any()) and torch.equal(result, wanted)
