"""Products that leave as MXFP8: bit for bit what quantizing the FP32 product gives, in both layouts and rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.formats import dequantize, quantize_mxfp8
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.gemm_operands import Scaled
from cute_kernels.scale_factors import from_blocked, pack_for_kernel, unpack
from tests.emulate.direct import by_turns
from tests.emulate.scaled_operands import GRANULARITY, operand, recipe

CUBINS = "*_128x*_mxf8", *(f"sm100_gemm_{f}_128x128x???_f32" for f in (*GRANULARITY, "mxf8_mxf4"))
pytestmark = pytest.mark.usefixtures("cubins")


def quantized_into_poison(
    a: Scaled, b: Scaled, layout: Any, rule: Any, family: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run into poisoned memory with poison around; D's bytes, and its scale bytes row by row."""
    m, n = a[0].shape[0], b[0].shape[0]
    d = torch.full((m, n + 16), 0xFB, dtype=torch.uint8).view(torch.float8_e4m3fn)
    stride, words = -(-m // 4) * 4, -(-n // 128)
    if layout == "packed":
        memory = torch.full((words + 1, stride), 0x5A5A5A5A, dtype=torch.int32)
        out = memory[:words, :m].T
    else:
        memory = torch.full((-(-m // 128) * words * 512 + 16,), 0x5A, dtype=torch.uint8)
        out = memory[:-16]
    cute_kernels.gemm_nt_mxfp8(a, b, (d[:, :n], out), recipe=recipe(family), rule=rule, sf_layout=layout)
    assert bool((d.view(torch.uint8)[:, n:] == 0xFB).all())
    groups = -(-n // 32)
    if layout == "packed":
        assert bool((memory[words] == 0x5A5A5A5A).all() and (memory[:, m:] == 0x5A5A5A5A).all())
        past = unpack(out, words * 4)[:, groups:]
        assert not past.any()
        return d.view(torch.uint8)[:, :n], unpack(out, groups)
    assert bool((memory[-16:] == 0x5A).all())
    whole = from_blocked(out, -(-m // 128) * 128, words * 4)
    assert not whole[m:].any() and not whole[:, groups:].any()
    return d.view(torch.uint8)[:, :n], whole[:m, :groups]


@pytest.mark.parametrize(("family", "schedule"), by_turns(*GRANULARITY))
@pytest.mark.parametrize(
    ("m", "n", "k", "layout", "rule"),
    [
        (1, 16, 32, "packed", "ceil"),
        (130, 272, 640, "blocked", "ceil"),
        (259, 416, 96, "packed", "floor"),
        (40, 1072, 544, "packed", "ceil"),
    ],
)
def test_bits(family: str, schedule: str, m: int, n: int, k: int, layout: str, rule: Any) -> None:
    """As quantizing what the same product is in FP32."""
    a, b = operand(family, m, k, m), operand(family, n, k, n + 1)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        d, scales = quantized_into_poison(a, b, layout, rule, family)
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=recipe(family))
    assert [report.warnings for report in emulation.reports] == [[], []]
    elements, wanted = quantize_mxfp8(product, rule=rule)
    assert torch.equal(scales.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(d, elements.view(torch.uint8))


@pytest.mark.parametrize("exponent", [-110, -61, -59, 29, 31, 70])
@pytest.mark.parametrize("rule", ["ceil", "floor"])
def test_global_scales_of_any_size(exponent: int, rule: Any) -> None:
    """Products of the operands' global scales within and beyond what goes with the scale factor; rows of zeros."""
    a, b = operand("nvf4", 33, 96, 1), operand("nvf4", 64, 96, 2)
    a[0][5:9] = 0
    a = *a[:2], torch.tensor(1.3 * 2.0 ** (exponent // 2))
    b = *b[:2], torch.tensor(1.1 * 2.0 ** (exponent - exponent // 2))
    with cute_kernels.emulate("sm_100a"):
        d, scales = quantized_into_poison(a, b, "packed", rule, "nvf4")
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
    elements, wanted = quantize_mxfp8(product, rule=rule)
    assert torch.equal(scales.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(d, elements.view(torch.uint8)) and d.unique().numel() > 50


@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_mixed_operands(schedule: str) -> None:
    """MXFP8 activations and MXFP4 weights."""
    a, b = operand("mxf8", 130, 384, 1), operand("mxf4", 144, 384, 2)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        d, scales = quantized_into_poison(a, b, "packed", "ceil", "mxf8")
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=(1, 1, 32))
    assert [report.warnings for report in emulation.reports] == [[], []]
    elements, wanted = quantize_mxfp8(product)
    assert torch.equal(scales.view(torch.uint8), wanted.view(torch.uint8))
    assert torch.equal(d, elements.view(torch.uint8))


def test_an_exact_product() -> None:
    """Of small numbers, whose sums are exact in FP32: as quantizing the product in float64, with no kernel's help."""
    random = torch.Generator().manual_seed(5)
    codes = [torch.randint(0, 256, (rows, 48), generator=random, dtype=torch.uint8) for rows in (70, 160)]
    raw = [torch.randint(125, 130, (rows, 3), generator=random, dtype=torch.uint8) for rows in (70, 160)]
    exact = [dequantize(c, s, group=(1, 32), dtype=torch.float64) for c, s in zip(codes, raw, strict=True)]
    a, b = ((c, pack_for_kernel(s, c.shape[0], 96)) for c, s in zip(codes, raw, strict=True))
    with cute_kernels.emulate("sm_100a"):
        d, packed = cute_kernels.gemm_nt_mxfp8(a, b)
    product = exact[0] @ exact[1].T
    assert torch.equal(product.float().double(), product)
    elements, scales = quantize_mxfp8(product.float())
    assert torch.equal(d.view(torch.uint8), elements.view(torch.uint8))
    assert torch.equal(unpack(packed, 5).view(torch.uint8), scales.view(torch.uint8))


@pytest.mark.parametrize("rule", ["ceil", "floor"])
def test_extremes(rule: Any) -> None:
    """Rows of zeros, of NaN, of sums beyond float32 and of subnormal ones."""
    m, n, k = 7, 64, 32
    ones = torch.full((m, k // 2), 0x22, dtype=torch.uint8)  # 1.0
    ones[0] = 0
    ones[6] = 0x77  # 6.0
    raw = torch.tensor([127, 255, 254, 0, 3, 127, 130], dtype=torch.uint8)[:, None]
    b_codes = torch.randint(
        0, 256, (n, k // 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    b_raw = torch.full((n, 1), 127, dtype=torch.uint8)
    b_raw[:32] = 1
    b_raw[32:] = 254
    b_raw[::5] = 127
    a, b = (ones, pack_for_kernel(raw, m, k)), (b_codes, pack_for_kernel(b_raw, n, k))
    with cute_kernels.emulate("sm_100a"):
        d, packed = cute_kernels.gemm_nt_mxfp8(a, b, rule=rule)
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
    assert product.isnan().any() and product.isinf().any() and (product[0] == 0).all()
    elements, scales = quantize_mxfp8(product, rule=rule, check_finite=False)
    assert torch.equal(unpack(packed, 2).view(torch.uint8), scales.view(torch.uint8))
    sound = ~elements.float().isnan()
    assert torch.equal(d.float().isnan(), ~sound)  # of NaN the sign means nothing
    assert torch.equal(d.view(torch.uint8)[sound], elements.view(torch.uint8)[sound])


def test_the_next_product_takes_it() -> None:
    """A chain: D and its scale factors are the A of another product."""
    a, b, other = operand("mxf8", 70, 96, 1), operand("mxf8", 160, 96, 2), operand("mxf4", 128, 160, 3)
    with cute_kernels.emulate("sm_100a"):
        d, scales = cute_kernels.gemm_nt_mxfp8(a, b, recipe=(1, 1, 32))
        again, _ = cute_kernels.gemm_nt_mxfp8((d, scales), operand("mxf8", 48, 160, 4), recipe=(1, 1, 32))
        result = cute_kernels.gemm_nt(
            (d, scales), operand("mxf8", 128, 160, 3), out_dtype=torch.float32, recipe=(1, 1, 32)
        )
    assert again.shape == (70, 48) and other[0].shape == (128, 80)
    right = operand("mxf8", 128, 160, 3)
    exact = [
        dequantize(x, unpack(s, 5), group=(1, 32), dtype=torch.float64) for x, s in ((d, scales), right[:2])
    ]
    wanted = exact[0] @ exact[1].T
    assert (result.double() - wanted).norm() < 1e-6 * wanted.norm()


def test_deepgemms_name() -> None:
    a, b = operand("mxf8_k128", 5, 128, 1), operand("mxf8_k128", 32, 128, 2)
    d, scales = torch.zeros(5, 32, dtype=torch.float8_e4m3fn), torch.zeros(1, 8, dtype=torch.int32)[:, :5].T
    with cute_kernels.emulate("sm_100a"):
        cute_kernels.fp8_gemm_nt_mxfp8out(a, b, d, scales)
        wanted = cute_kernels.gemm_nt_mxfp8(a, b)
    assert torch.equal(d.view(torch.uint8), wanted[0].view(torch.uint8)) and torch.equal(scales, wanted[1])
    assert d.float().abs().max() > 200


def test_nothing_to_sum() -> None:
    a, b = operand("mxf4", 5, 0, 1), operand("mxf4", 32, 0, 2)
    with cute_kernels.emulate("sm_100a") as emulation:
        d, scales = cute_kernels.gemm_nt_mxfp8(a, b)
        empty, none = cute_kernels.gemm_nt_mxfp8(operand("mxf4", 0, 32, 1), operand("mxf4", 32, 32, 2))
    assert not emulation.reports
    assert not d.view(torch.uint8).any() and not scales.any() and d.shape == (5, 32)
    assert empty.shape == (0, 32) and none.shape == (0, 1)


class Call:
    """A call that would be fine."""

    def __init__(self) -> None:
        self.a, self.b = operand("mxf4", 20, 64, 1), operand("mxf4", 144, 64, 2)
        self.d = torch.full((20, 144), 0x33, dtype=torch.uint8).view(torch.float8_e4m3fn)
        self.sf = torch.full((2, 20), 7, dtype=torch.int32).T
        self.options: dict[str, Any] = {}

    def spoil(self, **other: Any) -> Call:
        self.__dict__.update(other)
        return self


def by_columns(given: Scaled) -> tuple[torch.Tensor, torch.Tensor]:
    """MN-major."""
    return given[0].t().contiguous().t(), given[1]


REFUSED: dict[str, tuple[Callable[[Call], Call], str]] = {
    "rule": (lambda c: c.spoil(options={"rule": "up"}), "rule is 'up'"),
    "layout": (lambda c: c.spoil(options={"sf_layout": "rows"}), "layouts 'packed' and 'blocked'"),
    "recipe": (
        lambda c: c.spoil(options={"recipe": (1, 128, 32)}),
        r"recipe is \(1, 32\) for a and \(128, 32\) for b",
    ),
    "columns": (lambda c: c.spoil(b=operand("mxf4", 150, 64, 2)), "N is 150; .*MXFP8 takes multiples of 16"),
    "shape": (lambda c: c.spoil(d=c.d[:, :128]), r"d is .*; this call takes float8_e4m3fn \[20, 144\]"),
    "dtype": (lambda c: c.spoil(d=c.d.view(torch.uint8)), "d is uint8"),
    "rows": (
        lambda c: c.spoil(d=torch.zeros(20, 150, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, :144]),
        "d is .* rows are 150 bytes apart",
    ),
    "scale dtype": (lambda c: c.spoil(sf=c.sf.float()), r"scale factors are float32.*takes int32 \[20, 2\]"),
    "scale strides": (lambda c: c.spoil(sf=c.sf.contiguous()), "MN-major"),
    "scale shape": (lambda c: c.spoil(sf=c.sf[:, :1]), "have shape"),
    "scale address": (
        lambda c: c.spoil(sf=torch.full((41,), 7, dtype=torch.int32)[1:].view(2, 20).T),
        "next product takes multiples of 16",
    ),
    "blocked": (lambda c: c.spoil(options={"sf_layout": "blocked"}), r"takes uint8 \[1024\]"),
    "no kernel": (
        lambda c: c.spoil(a=operand("mxf4", 20, 128, 1), b=operand("mxf8_k128", 144, 128, 2)),
        "a and b are MXFP4 x FP8; gemm_nt_mxfp8 takes MXFP4 x MXFP4, .* MXFP8 x MXFP4",
    ),
    "mn-major": (
        lambda c: c.spoil(a=operand("mxf8", 20, 128, 1), b=by_columns(operand("mxf8", 144, 128, 2))),
        "b is .* MN-major. gemm_nt_mxfp8 takes it K-major",
    ),
    "d over a": (
        lambda c: c.spoil(d=c.d, a=(c.d.view(torch.uint8).view(-1)[: 20 * 32].view(20, 32), c.a[1])),
        "d shares memory with a ",
    ),
    "scales over d": (
        lambda c: c.spoil(sf=c.d.view(torch.uint8).view(-1)[:160].view(torch.int32).view(2, 20).T),
        "d's scale factors shares memory with d ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    spoil, message = REFUSED[what]
    call = spoil(Call())
    outputs = [call.d, call.sf]
    before = [t.clone() for t in outputs]
    with cute_kernels.emulate("sm_100a") as emulation:
        for _ in range(2):  # a refusal must not be remembered as something else
            with pytest.raises(ArgumentError, match=message):
                cute_kernels.gemm_nt_mxfp8(call.a, call.b, (call.d, call.sf), **call.options)
    assert not emulation.reports
    for tensor, kept in zip(outputs, before, strict=True):
        assert torch.equal(tensor.float(), kept.float())


def test_what_is_built() -> None:
    """A variant for each of the operands that the operation names, and no more."""
    shapes = (v.shape for v in sm100.variants("sm_100a"))
    built = {s.family_dtype for s in shapes if s.d_dtype == "mxf8" and s.cta_group == 1}
    assert built == {"mxf4", "nvf4", "mxf8", "mxf8_k128", "mxf8_mxf4"}
