"""Products that leave as NVFP4: bit for bit what quantizing the FP32 product gives, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cute_kernels
import sm100
from cute_kernels.formats import dequantize, nvfp4_global_scale, quantize_nvfp4
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.gemm_operands import Scaled
from cute_kernels.scale_factors import from_blocked, pack_for_kernel, unpack
from tests.emulate.direct import by_turns
from tests.emulate.scaled_operands import operand, recipe

FAMILIES = ("nvf4", "mxf8")

CUBINS = "*_128x*_nvf4", *(f"sm100_gemm_{family}_128x128x???_f32" for family in FAMILIES)
pytestmark = pytest.mark.usefixtures("cubins")


def quantized_into_poison(
    a: Scaled, b: Scaled, factor: torch.Tensor, layout: Any, family: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run into poisoned memory with poison around; D's bytes, and its scale bytes row by row."""
    m, n = a[0].shape[0], b[0].shape[0]
    d = torch.full((m, n // 2 + 16), 0xFB, dtype=torch.uint8)
    stride, words = -(-m // 4) * 4, -(-n // 64)
    if layout == "packed":
        memory = torch.full((words + 1, stride), 0x5A5A5A5A, dtype=torch.int32)
        out = memory[:words, :m].T
    else:
        memory = torch.full((-(-m // 128) * words * 512 + 16,), 0x5A, dtype=torch.uint8)
        out = memory[:-16]
    given = d[:, : n // 2], out
    result = cute_kernels.gemm_nt_nvfp4(a, b, factor, given, recipe=recipe(family), sf_layout=layout)
    assert result[2] is factor
    assert bool((d[:, n // 2 :] == 0xFB).all())
    groups = n // 16
    if layout == "packed":
        assert bool((memory[words] == 0x5A5A5A5A).all() and (memory[:, m:] == 0x5A5A5A5A).all())
        assert not unpack(out, words * 4)[:, groups:].any()
        return given[0], unpack(out, groups)
    assert bool((memory[-16:] == 0x5A).all())
    whole = from_blocked(out, -(-m // 128) * 128, words * 4)
    assert not whole[m:].any() and not whole[:, groups:].any()
    return given[0], whole[:m, :groups]


def same(found: tuple[torch.Tensor, torch.Tensor], product: torch.Tensor, factor: torch.Tensor) -> None:
    """Check that what was found are the bits of the quantized product."""
    elements, scales, _ = quantize_nvfp4(product, global_scale=factor)
    assert torch.equal(found[1].view(torch.uint8), scales.view(torch.uint8))
    assert torch.equal(found[0], elements)


@pytest.mark.parametrize(("family", "schedule"), by_turns(*FAMILIES))
@pytest.mark.parametrize(
    ("m", "n", "k", "layout", "share"),
    [
        (1, 32, 32, "packed", 1.0),
        (130, 288, 320, "blocked", 1.0),
        (259, 416, 96, "packed", 0.3),  # some scale factors saturate
        (40, 576, 288, "packed", 40.0),  # some are subnormal, or 0
        (67, 160, 96, "blocked", 1.0),
    ],
)
def test_bits(family: str, schedule: str, m: int, n: int, k: int, layout: str, share: float) -> None:
    """As quantizing what the same product is in FP32."""
    a, b = operand(family, m, k, m), operand(family, n, k, n + 1)
    with cute_kernels.emulate("sm_100a", schedule, 3, 2) as emulation:
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=recipe(family))
        factor = nvfp4_global_scale(product.abs().amax()) * share
        found = quantized_into_poison(a, b, factor, layout, family)
    assert [report.warnings for report in emulation.reports] == [[], []]
    same(found, product, factor)


TIES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)  # half-way between codes
ROWS, COLUMNS, DIGITS = 96, 32, 8


def stepped(x: torch.Tensor, random: torch.Generator, most: int) -> torch.Tensor:
    """Float32 next to given numbers, up to `most` steps away."""
    steps = torch.randint(-most, most + 1, x.shape, generator=random, dtype=torch.int32)
    return (x.float().view(torch.int32) + steps).view(torch.float32)


def near_ties(factor: torch.Tensor, most: int) -> torch.Tensor:
    """Values [ROWS, COLUMNS]: quotients at most so many steps from half-way between two codes, and amax likewise."""
    random = torch.Generator().manual_seed(17)
    decoded = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    code = torch.randint(4, 0x7E, (ROWS, 1), generator=random).repeat_interleave(2, 0)  # alike in a row
    largest = stepped((decoded[code] + decoded[code + 1]) / 2 * 6 * factor.double(), random, 2 * most)
    _, block, _ = quantize_nvfp4(largest.expand(-1, 16).contiguous(), global_scale=factor)
    ties = TIES[torch.randint(0, len(TIES), (ROWS * 2, 16), generator=random)]
    x = torch.minimum(stepped(ties * block.double() * factor.double(), random, most), largest)
    x[:, 5:6] = largest
    return (x * (torch.randint(0, 2, x.shape, generator=random) * 2 - 1)).view(ROWS, COLUMNS)


def with_product(x: torch.Tensor) -> tuple[Scaled, Scaled]:
    """MXFP8 operands whose product is x exactly: digits of four bits, each in a block with its own scale factor."""
    top = x.abs().amax(1).frexp().exponent.int() - 4  # a row's first digit counts 2^top
    exponents = top[:, None] - 4 * torch.arange(DIGITS)
    rest, digits = x.abs().double(), []
    for j in range(DIGITS):
        digits.append((rest / torch.exp2(exponents[:, j : j + 1].double())).floor())
        rest = rest - digits[j] * torch.exp2(exponents[:, j : j + 1].double())
    assert not rest.any()
    elements = (torch.cat(digits, 1) * x.sign().repeat(1, DIGITS)).to(torch.float8_e4m3fn)
    k = COLUMNS * DIGITS
    ones = torch.eye(COLUMNS).repeat(1, DIGITS).to(torch.float8_e4m3fn)
    raw = (exponents + 127).to(torch.uint8), torch.full((COLUMNS, DIGITS), 127, dtype=torch.uint8)
    return (elements, pack_for_kernel(raw[0], ROWS, k)), (ones, pack_for_kernel(raw[1], COLUMNS, k))


@pytest.mark.parametrize("exponent", [-64, -7, 0, 99])
@pytest.mark.parametrize("mantissa", [1.0, 1.25, 1.9999998807907104, 1.2999999523162842])
def test_ties(exponent: int, mantissa: float) -> None:
    """Elements and scale factors that one rounding too many would send the wrong way."""
    check_near_ties(torch.tensor(mantissa * 2.0**exponent), 1)


@pytest.mark.parametrize("most", [8, 64])
def test_near_ties(most: int) -> None:
    """Elements and scale factors about as far from a tie as the kernel's approximations are from the quotients."""
    check_near_ties(torch.tensor(1.7 * 2.0**-9), most)


def check_near_ties(factor: torch.Tensor, most: int) -> None:
    x = near_ties(factor, most)
    a, b = with_product(x)
    with cute_kernels.emulate("sm_100a"):
        d, scales, _ = cute_kernels.gemm_nt_nvfp4(a, b, factor, recipe=(1, 1, 32))
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=(1, 1, 32))
    assert torch.equal(product, x)
    same((d, unpack(scales, 2)), x, factor)


def test_extremes() -> None:
    """Rows of zeros, of NaN, of sums beyond float32 and of subnormal ones."""
    x = torch.ones(7, 64)
    x[0] = 0
    x[6] = 448.0
    raw = torch.tensor([[127], [255], [254], [0], [3], [127], [130]], dtype=torch.uint8).repeat(1, 2)
    elements = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)
    b_raw = torch.full((64, 2), 127, dtype=torch.uint8)
    b_raw[:32], b_raw[32:], b_raw[::5] = 1, 254, 127
    a = x.to(torch.float8_e4m3fn), pack_for_kernel(raw, 7, 64)
    b, factor = (elements, pack_for_kernel(b_raw, 64, 64)), torch.tensor(0.3)
    with cute_kernels.emulate("sm_100a"):
        d, packed, _ = cute_kernels.gemm_nt_nvfp4(a, b, factor, recipe=(1, 1, 32))
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32, recipe=(1, 1, 32))
    assert product.isnan().any() and product.isinf().any() and (product[0] == 0).all()
    codes, scales, _ = quantize_nvfp4(product, global_scale=factor, check_finite=False)
    assert torch.equal(unpack(packed, 4).view(torch.uint8), scales.view(torch.uint8))
    sound = ~scales.float().isnan().repeat_interleave(8, 1)
    assert torch.equal(d[sound], codes[sound]) and 0 < sound.sum() < sound.numel()


def test_the_next_product_takes_it() -> None:
    """A chain: D, its scale factors and its global scale are the A of another product."""
    a, b = operand("nvf4", 70, 96, 1), operand("nvf4", 160, 96, 2)
    right = operand("nvf4", 48, 160, 3)
    assert len(right) == 3
    with cute_kernels.emulate("sm_100a"):
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
        quantized = cute_kernels.gemm_nt_nvfp4(a, b, nvfp4_global_scale(product.abs().amax()))
        result = cute_kernels.gemm_nt(quantized, right, out_dtype=torch.float32)
    exact = [
        dequantize(
            x, unpack(s, 10).view(torch.float8_e4m3fn), group=(1, 16), global_scale=g, dtype=torch.float64
        )
        for x, s, g in (quantized, right)
    ]
    wanted = exact[0] @ exact[1].T
    assert (result.double() - wanted).norm() < 1e-6 * wanted.norm()
    assert (exact[0] - product.double()).norm() < 0.15 * product.double().norm()


@pytest.mark.parametrize("exponent", [-61, -59, 58, 60, 80])
def test_global_scales_of_any_size(exponent: int) -> None:
    """Products of the operands' global scales within and beyond what the kernel multiplies by last."""
    a, b = operand("nvf4", 33, 96, 1), operand("nvf4", 64, 96, 2)
    a = *a[:2], torch.tensor(1.3 * 2.0 ** (exponent // 2))
    b = *b[:2], torch.tensor(1.1 * 2.0 ** (exponent - exponent // 2))
    with cute_kernels.emulate("sm_100a"):
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
        factor = nvfp4_global_scale(product.abs().amax())
        d, scales, _ = cute_kernels.gemm_nt_nvfp4(a, b, factor)
    assert 2.0**-64 <= factor <= 2.0**100 and d.unique().numel() > 50
    same((d, unpack(scales, 4)), product, factor)


def test_a_scale_that_changes() -> None:
    """The kernel reads the global scale: the same call gives what it now holds."""
    a, b, factor = operand("nvf4", 5, 64, 1), operand("nvf4", 32, 64, 2), torch.tensor(1.0)
    with cute_kernels.emulate("sm_100a"):
        product = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
        for value in (0.7, 11.0):
            factor.fill_(value * product.abs().amax() / 2688)
            d, scales, _ = cute_kernels.gemm_nt_nvfp4(a, b, factor)
            same((d, unpack(scales, 2)), product, factor)


def test_nothing_to_sum() -> None:
    one = torch.ones(())
    with cute_kernels.emulate("sm_100a") as emulation:
        d, scales, _ = cute_kernels.gemm_nt_nvfp4(
            operand("mxf8", 5, 0, 1), operand("mxf8", 32, 0, 2), one, recipe=(1, 1, 32)
        )
        empty, none, _ = cute_kernels.gemm_nt_nvfp4(
            operand("nvf4", 0, 32, 1), operand("nvf4", 32, 32, 2), one
        )
    assert not emulation.reports
    assert not d.any() and not scales.any() and d.shape == (5, 16)
    assert empty.shape == (0, 16) and none.shape == (0, 1)


class Call:
    """A call that would be fine."""

    def __init__(self) -> None:
        self.a, self.b = operand("nvf4", 20, 64, 1), operand("nvf4", 160, 64, 2)
        self.factor: Any = torch.ones(())
        self.d = torch.full((20, 80), 0x33, dtype=torch.uint8)
        self.sf = torch.full((3, 20), 7, dtype=torch.int32).T
        self.options: dict[str, Any] = {}

    def spoil(self, **other: Any) -> Call:
        self.__dict__.update(other)
        return self


REFUSED: dict[str, tuple[Callable[[Call], Call], str]] = {
    "layout": (lambda c: c.spoil(options={"sf_layout": "rows"}), "layouts 'packed' and 'blocked'"),
    "recipe": (
        lambda c: c.spoil(options={"recipe": (1, 128, 16)}),
        r"recipe is \(1, 16\) for a and \(128, 16\) for b",
    ),
    "columns": (lambda c: c.spoil(b=operand("nvf4", 144, 64, 2)), "N is 144; .*NVFP4 takes multiples of 32"),
    "shape": (lambda c: c.spoil(d=c.d[:, :64]), r"this call takes .*uint8.* \[20, 80\]"),
    "dtype": (lambda c: c.spoil(d=c.d.view(torch.float8_e4m3fn)), "d is float8_e4m3fn"),
    "rows": (lambda c: c.spoil(d=torch.zeros(20, 90, dtype=torch.uint8)[:, :80]), "90 bytes apart"),
    "scale shape": (lambda c: c.spoil(sf=c.sf[:, :2]), "have shape"),
    "scale dtype": (lambda c: c.spoil(sf=c.sf.float()), r"scale factors are float32.*takes int32 \[20, 3\]"),
    "blocked": (lambda c: c.spoil(options={"sf_layout": "blocked"}), r"takes uint8 \[1536\]"),
    "a number": (lambda c: c.spoil(factor=1.0), "d's global scale is 1.0; NVFP4 takes one float32"),
    "none": (lambda c: c.spoil(factor=None), "d's global scale is None"),
    "double": (lambda c: c.spoil(factor=torch.ones((), dtype=torch.float64)), "global scale is float64"),
    "several": (lambda c: c.spoil(factor=torch.ones(20)), r"global scale is float32 \[20\]"),
    "elsewhere": (lambda c: c.spoil(factor=torch.ones((), device="meta")), "different devices"),
    "d over the global scale": (
        lambda c: c.spoil(factor=c.d.view(-1)[16:20].view(torch.float32)),
        "d shares memory with d's global scale",
    ),
    "no kernel": (
        lambda c: c.spoil(a=operand("mxf4", 20, 128, 1), b=operand("mxf4", 160, 128, 2)),
        "a and b are MXFP4 x MXFP4; gemm_nt_nvfp4 takes NVFP4 x NVFP4, MXFP8 x MXFP8",
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
                cute_kernels.gemm_nt_nvfp4(call.a, call.b, call.factor, (call.d, call.sf), **call.options)
    assert not emulation.reports
    for tensor, kept in zip(outputs, before, strict=True):
        assert torch.equal(tensor.float(), kept.float())


def test_what_is_built() -> None:
    shapes = (v.shape for v in sm100.variants("sm_100a"))
    built = {s.family_dtype for s in shapes if s.d_dtype == "nvf4" and s.cta_group == 1}
    assert built == set(FAMILIES)
