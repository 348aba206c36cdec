"""Formats, MX above all, against exact arithmetic written out again here, and against torchao's MX code.

The references decode every code from its bit fields and round by searching for the nearest value, ties to the
even code; they share nothing with the library. bfloat16 and float16 inputs are tried exhaustively, float32 at
every rounding boundary and its neighbours.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch

from cute_kernels import formats
from cute_kernels.formats import E2M1, E4M3, ElementFormat, Rule
from tests.host.format_reference import E2M1_VALUES, E4M3_VALUES, nearest_code, random_blocks


def boundary_inputs(positive_values: np.ndarray) -> torch.Tensor:
    """Every value and every midpoint, both float32 neighbours of each, extremes, zeros, and all of it
    negated."""
    midpoints = (positive_values[:-1] + positive_values[1:]) / 2
    top = positive_values[-1] + (positive_values[-1] - positive_values[-2]) / 2
    tiny, huge = (
        np.finfo(np.float32).smallest_subnormal,
        np.nextafter(np.finfo(np.float32).max, np.float32(0)),
    )
    exact = np.concatenate((positive_values, midpoints, [top, 2 * top, huge, tiny, 2**-126])).astype(
        np.float32
    )
    near = [np.nextafter(exact, np.float32(direction)) for direction in (-np.inf, np.inf)]
    inputs = np.concatenate((exact, *near))
    return torch.from_numpy(np.concatenate((inputs, -inputs)))


def all_finite(dtype: torch.dtype) -> torch.Tensor:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    return values[torch.isfinite(values)]


ELEMENT_INPUTS = ["boundaries", "bfloat16", "float16"]


def element_inputs(which: str, positive_values: np.ndarray) -> torch.Tensor:
    return boundary_inputs(positive_values) if which == "boundaries" else all_finite(getattr(torch, which))


# Elements


def test_e2m1_codes() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        decoded = formats.decode_e2m1(codes, dtype)
        assert decoded.dtype == dtype
        np.testing.assert_array_equal(decoded.double().numpy(), E2M1_VALUES)
        assert torch.signbit(decoded).tolist() == [False] * 8 + [True] * 8, "code 8 is -0"
    assert torch.equal(formats.encode_e2m1(formats.decode_e2m1(codes)), codes)


@pytest.mark.parametrize("which", ELEMENT_INPUTS)
def test_e2m1_rounding(which: str) -> None:
    x = element_inputs(which, E2M1_VALUES[:8])
    expected = nearest_code(x.double().numpy(), E2M1_VALUES[:8], 8)
    np.testing.assert_array_equal(formats.encode_e2m1(x).numpy(), expected)


def test_e2m1_ties_and_infinities() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    expected = [0, 1, 1, 2, 2, 4, 4]
    assert formats.decode_e2m1(formats.encode_e2m1(ties)).tolist() == expected
    assert formats.encode_e2m1(torch.tensor([torch.inf, -torch.inf, -0.0])).tolist() == [7, 15, 8]


@pytest.mark.parametrize("which", ELEMENT_INPUTS)
def test_e4m3_rounding(which: str) -> None:
    x = element_inputs(which, E4M3_VALUES[:0x7F])
    expected = nearest_code(x.double().numpy(), E4M3_VALUES[:0x7F], 0x80)
    np.testing.assert_array_equal(formats.encode_e4m3(x).view(torch.uint8).numpy(), expected)


def test_e4m3_infinities_and_nan() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert formats.encode_e4m3(x).float().nan_to_num(nan=-1).tolist() == [448, -448, -1]


def test_packing() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    codes = formats.unpack_e2m1(every_byte)
    assert codes.shape == (4, 128)
    assert codes[1, :4].tolist() == [0, 4, 1, 4], "byte 0x40, then 0x41: the low nibble comes first"
    assert torch.equal(formats.pack_e2m1(codes), every_byte)
    for view in (torch.int8, torch.float4_e2m1fn_x2):
        assert torch.equal(formats.unpack_e2m1(every_byte.view(view)), codes)
    with pytest.raises(ValueError, match="K must be even; K is 5"):
        formats.pack_e2m1(codes[:, :5])


# Scales


def test_ue8m0_codes() -> None:
    scales = torch.arange(256, dtype=torch.uint8)
    for given in (scales, scales.view(torch.float8_e8m0fnu)):
        for dtype in (torch.float32, torch.float64):
            decoded = formats.decode_ue8m0(given, dtype).double()
            assert decoded[:255].tolist() == [2.0 ** (byte - 127) for byte in range(255)]
            assert decoded[255].isnan()


def every_exponent() -> torch.Tensor:
    """Positive float32 of every exponent (subnormals too), mantissas at 1, 1.5, 1.75, 2 and around them."""
    fields = np.arange(255, dtype=np.int64)[:, None] << 23
    mantissas = np.array([0x000000, 0x400000, 0x600000])[:, None] + np.array([-1, 0, 1])
    bits = (fields + mantissas.reshape(-1)).reshape(-1)
    return torch.from_numpy(bits[(bits >= 0) & (bits < 255 << 23)].astype(np.int32)).view(torch.float32)


@pytest.mark.parametrize(("element", "largest"), [(E2M1, 6), (E4M3, 448)])
def test_scale_exponents(element: ElementFormat, largest: int) -> None:
    amax = every_exponent()
    ceil = formats.scale_exponent(amax, element, "ceil").tolist()
    floor = formats.scale_exponent(amax, element, "floor").tolist()
    largest_exponent = math.frexp(largest)[1] - 1
    for value, ceil_byte, floor_byte in zip(amax.tolist(), ceil, floor, strict=True):
        exact = Fraction(value)
        assert exact <= largest * Fraction(2) ** (ceil_byte - 127), "nothing saturates"
        assert ceil_byte == 0 or exact > largest * Fraction(2) ** (ceil_byte - 128), "the smallest that does"
        floor_log2 = math.frexp(value)[1] - 1 if value else -1000
        assert floor_byte == max(floor_log2 - largest_exponent, -127) + 127


@pytest.mark.parametrize(("element", "largest"), [(E2M1, 6.0), (E4M3, 448.0)])
def test_ceil_equals_deepgemms_formula(element: ElementFormat, largest: float) -> None:
    """DeepGEMM divides in float32 and then adds one to the exponent if any mantissa bit is set."""
    amax = every_exponent().clamp(min=1e-4).numpy()
    bits = (amax / np.float32(largest)).view(np.int32)
    expected = np.clip((bits >> 23) + (bits & 0x7FFFFF != 0), 1, 254)
    actual = formats.scale_exponent(torch.from_numpy(amax), element, "ceil").numpy()
    np.testing.assert_array_equal(actual, expected)


def test_scale_exponent_of_infinity_and_nan() -> None:
    amax = torch.tensor([torch.inf, torch.nan])
    for rule in ("floor", "ceil"):
        assert formats.scale_exponent(amax, E2M1, rule).tolist() == [255, 255]
    with pytest.raises(ValueError, match=r"rule is 'round'.*ceil.*floor"):
        formats.scale_exponent(amax, E2M1, cast(Any, "round"))


# Whole matrices


def scalar_mx(
    row: list[float], positive_values: np.ndarray, largest: int, rule: Rule
) -> tuple[int, list[float]]:
    """One MX group by the book: its scale's byte and the values that its codes mean."""
    amax = max(abs(value) for value in row)
    if amax == 0:
        exponent = -127
    elif rule == "floor":
        exponent = math.frexp(amax)[1] - math.frexp(largest)[1]
    else:
        exponent = math.frexp(amax)[1] - math.frexp(largest)[1] - 1
        while largest * Fraction(2) ** exponent < Fraction(amax):
            exponent += 1
    scaled = np.array([math.ldexp(value, -exponent) for value in row])
    codes = nearest_code(scaled, positive_values, 0x80)
    magnitudes = positive_values[codes & 0x7F]
    return exponent + 127, [math.ldexp(float(v), exponent) for v in np.copysign(magnitudes, scaled)]


@pytest.mark.parametrize("rule", ["ceil", "floor"])
@pytest.mark.parametrize("columns", [2, 32, 34, 128, 130, 290])
@pytest.mark.parametrize(("element", "group"), [("E2M1", 32), ("E4M3", 32), ("E4M3", 128)])
def test_mx_by_the_book(element: str, group: int, columns: int, rule: Rule) -> None:
    x = random_blocks(7, columns, group, spread=30, seed=columns)
    if element == "E2M1":
        data, scales = formats.quantize_mxfp4(x, rule=rule)
        positive_values, largest = E2M1_VALUES[:8], 6
        assert (data.dtype, data.shape) == (torch.uint8, (7, columns // 2))
    else:
        data, scales = formats.quantize_mxfp8(x, group_k=group, rule=rule)
        positive_values, largest = E4M3_VALUES[:0x7F], 448
        assert (data.dtype, data.shape) == (torch.float8_e4m3fn, (7, columns))
    assert (scales.dtype, scales.shape) == (torch.float8_e8m0fnu, (7, -(-columns // group)))
    actual = formats.dequantize(data, scales, group=(1, group), dtype=torch.float64)
    for i, row in enumerate(x.tolist()):
        for j in range(scales.shape[1]):
            columns_of_group = slice(j * group, (j + 1) * group)
            byte, values = scalar_mx(row[columns_of_group], positive_values, largest, rule)
            assert scales.view(torch.uint8)[i, j] == byte
            assert actual[i, columns_of_group].tolist() == values
            assert torch.signbit(actual[i, columns_of_group]).tolist() == [
                math.copysign(1, v) < 0 for v in values
            ]


def test_leading_dimensions_strides_and_16_bit_inputs() -> None:
    x = random_blocks(24, 96, 32, spread=5).reshape(2, 3, 4, 96)
    for given in (x.bfloat16(), x.half(), x.transpose(1, 2)):
        rows = [formats.quantize_mxfp4(given[index][None]) for index in np.ndindex(*given.shape[:-1])]
        data, scales = formats.quantize_mxfp4(given)
        assert torch.equal(data.reshape(24, 48), torch.cat([row[0] for row in rows]))
        assert torch.equal(
            scales.view(torch.uint8).reshape(24, 3), torch.cat([row[1].view(torch.uint8) for row in rows])
        )


def test_quantizing_again_changes_nothing() -> None:
    x = random_blocks(16, 160, 16, spread=8)
    for quantize in (formats.quantize_mxfp4, formats.quantize_mxfp8):
        once = formats.dequantize(*quantize(x), group=(1, 32))
        assert torch.equal(formats.dequantize(*quantize(once), group=(1, 32)), once)


def test_extremes_of_float32() -> None:
    """The largest and the smallest numbers, at both ends of the scales' range."""
    top, tiny = torch.finfo(torch.float32).max, 2.0**-149
    x = torch.tensor([[top, 1.0], [2.0**-126, -(2.0**-127)], [tiny, -tiny]])
    data, scales = formats.quantize_mxfp4(x)
    values = formats.dequantize(data, scales, group=(1, 32), dtype=torch.float64)
    assert values.tolist() == [[2.0**128, 0.0], [2.0**-126, -(2.0**-127)], [0.0, 0.0]]
    assert torch.signbit(values[2]).tolist() == [False, True]
    assert formats.dequantize(data, scales, group=(1, 32))[0, 0] == torch.inf, "2^128 is beyond float32"


# Against torchao


@pytest.mark.parametrize("rule", ["ceil", "floor"])
@pytest.mark.parametrize("element", ["E2M1", "E4M3"])
def test_mx_equals_torchao(element: str, rule: Rule) -> None:
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    mode = mx_tensor.ScaleCalculationMode.RCEIL if rule == "ceil" else mx_tensor.ScaleCalculationMode.FLOOR
    x = random_blocks(64, 512, 32, spread=40)
    dtype = torch.float4_e2m1fn_x2 if element == "E2M1" else torch.float8_e4m3fn
    their_scales, their_data = mx_tensor.to_mx(x, dtype, 32, mode)
    quantize = formats.quantize_mxfp4 if element == "E2M1" else formats.quantize_mxfp8
    data, scales = quantize(x, rule=rule)
    assert torch.equal(scales.view(torch.uint8), their_scales.view(torch.uint8))
    assert torch.equal(data.view(torch.uint8), their_data.view(torch.uint8))
    theirs = mx_tensor.to_dtype(their_data, their_scales, dtype, 32, torch.float32)
    assert torch.equal(formats.dequantize(data, scales, group=(1, 32)), theirs)


# Refusals


def test_infinities_and_nan_are_refused_or_make_their_group_nan() -> None:
    for bad in (torch.inf, -torch.inf, torch.nan):
        x = torch.ones(3, 64)
        x[1, 40] = bad
        for quantize in (formats.quantize_mxfp4, formats.quantize_mxfp8, formats.quantize_nvfp4):
            with pytest.raises(ValueError, match=r"1 infinite or NaN elements, the first at \(1, 40\)"):
                quantize(x)
        for quantize in (formats.quantize_mxfp4, formats.quantize_mxfp8):
            values = formats.dequantize(*quantize(x, check_finite=False), group=(1, 32))
            assert values[1, 32:].isnan().all()
            assert torch.equal(values.isnan().sum(dim=1), torch.tensor([0, 32, 0]))
        data, scales, one = formats.quantize_nvfp4(x, global_scale=torch.tensor(1.0), check_finite=False)
        values = formats.dequantize(data, scales, group=(1, 16), global_scale=one)
        assert values[1, 32:48].isnan().all()
        assert values.isnan().sum() == 16


def test_quantizers_refuse() -> None:
    x = torch.ones(4, 64)
    with pytest.raises(TypeError, match=r"x is torch.float64; quantizing takes float32, bfloat16 or float16"):
        formats.quantize_mxfp4(x.double())
    with pytest.raises(ValueError, match=r"x has shape \(64,\); quantizing takes matrices"):
        formats.quantize_mxfp8(x[0])
    with pytest.raises(ValueError, match="K must be even; K is 63"):
        formats.quantize_mxfp4(x[:, :63])
    with pytest.raises(ValueError, match="group_k is 64; MXFP8 groups have 32 or 128"):
        formats.quantize_mxfp8(x, group_k=64)
    with pytest.raises(TypeError, match=r"global_scale is torch.float64; it must be float32"):
        formats.quantize_nvfp4(x, global_scale=torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"global_scale has shape \(4,\)"):
        formats.quantize_nvfp4(x, global_scale=torch.ones(4))
    for bad in (0.0, -1.0, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            formats.quantize_nvfp4(x, global_scale=torch.tensor(bad))


def test_dequantize_refuses() -> None:
    data, scales = formats.quantize_mxfp4(torch.ones(4, 64))
    with pytest.raises(ValueError, match=r"scales have shape \(4, 2\).*in groups of \(1, 16\) take \(4, 4\)"):
        formats.dequantize(data, scales, group=(1, 16))
    with pytest.raises(TypeError, match=r"data is torch.float32"):
        formats.dequantize(data.float(), scales, group=(1, 32))
    with pytest.raises(TypeError, match=r"scales are torch.int32"):
        formats.dequantize(data, scales.view(torch.uint8).int(), group=(1, 32))
    with pytest.raises(TypeError, match=r"dtype is torch.bfloat16; dequantize gives float32 or float64"):
        formats.dequantize(data, scales, group=(1, 32), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="UE4M3 scales have no sign"):
        formats.dequantize(data, (-torch.ones(4, 4)).to(torch.float8_e4m3fn), group=(1, 16))


def test_empty() -> None:
    for shape in ((0, 64), (4, 0), (0, 4, 64)):
        x = torch.empty(shape)
        data, scales = formats.quantize_mxfp4(x)
        assert formats.dequantize(data, scales, group=(1, 32)).shape == shape
        data, scales, global_scale = formats.quantize_nvfp4(x)
        assert formats.dequantize(data, scales, group=(1, 16), global_scale=global_scale).shape == shape
