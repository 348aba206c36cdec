"""Block-scaled number formats: exact rounding, quantize and dequantize, in torch on any device.

A matrix `x` is [..., MN, K], K innermost. A quantized matrix is its elements and one scale a group of
elements; `group` is (rows, columns), (1, 32) for MX and (1, 16) for NVFP4, and the last group of a row or
column may be short.

| format | elements | scales | made by |
| --- | --- | --- | --- |
| MXFP4 | E2M1, uint8 [..., MN, K/2] | UE8M0 [..., MN, ceil(K/32)] | `quantize_mxfp4` |
| MXFP8 | E4M3, float8_e4m3fn [..., MN, K] | UE8M0 [..., MN, ceil(K/g)], g = 32 or 128 | `quantize_mxfp8` |
| NVFP4 | E2M1, uint8 [..., MN, K/2] | UE4M3 [..., MN, ceil(K/16)], and global float32 | `quantize_nvfp4` |
| FP8 and FP4 with float32 scales | E4M3 or E2M1 | float32 powers of two | casts.py |

Two E2M1 codes share a byte; the low nibble is the even k. `dequantize` turns each of these back.

Sources: OCP Microscaling Formats (MX) v1.0 sections 5 and 6.3; PTX ISA, `cvt.rn.satfinite`, for E2M1 and
UE8M0; NVIDIA's NVFP4 recipe (two levels of scales) for NVFP4.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Rule = Literal["floor", "ceil"]

E2M1_MAX = 6.0
E4M3_MAX = 448.0
UE8M0_NAN = 255
MX_GROUP = 32
NVFP4_GROUP = 16

_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT32_MANTISSA_BITS = 23


class ElementFormat(NamedTuple):
    """What the choice of a power-of-two scale needs to know of an element format."""

    name: str
    max_exponent: int  # of the largest magnitude: emax in the MX specification
    max_mantissa: int  # of the largest magnitude, as the float32 mantissa field


E2M1 = ElementFormat("E2M1", max_exponent=2, max_mantissa=0x400000)  # 6 = 1.5 * 2^2
E4M3 = ElementFormat("E4M3", max_exponent=8, max_mantissa=0x600000)  # 448 = 1.75 * 2^8


# Elements


def encode_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Round floats to E2M1 codes 0..15 (uint8, one a byte): to nearest, ties to even, saturated at 6, signs
    kept.

    The result of `cvt.rn.satfinite.e2m1x2.f32`, except for NaN, which E2M1 cannot hold: its code is
    meaningless.
    """
    magnitude = x.abs()
    code = torch.signbit(x).to(torch.uint8) * 8
    # A boundary half-way between two values belongs to the one whose code is even.
    for boundary in (0.25, 1.25, 2.5, 5.0):
        code += magnitude > boundary
    for boundary in (0.75, 1.75, 3.5):
        code += magnitude >= boundary
    return code


def decode_e2m1(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the values of E2M1 codes 0..15 (uint8, one a byte), exactly, in any floating dtype; code 8 is
    -0."""
    table = torch.tensor(_E2M1_MAGNITUDES, dtype=dtype, device=codes.device)
    return torch.cat((table, -table))[codes.int()]


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Pack E2M1 codes (uint8 [..., K], K even) into bytes [..., K/2], even k in the low nibble."""
    if codes.shape[-1] % 2:
        raise ValueError(f"two E2M1 share a byte, so K must be even; K is {codes.shape[-1]}")
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Unpack bytes [..., K/2] (uint8, int8 or float4_e2m1fn_x2) into E2M1 codes (uint8 [..., K])."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def encode_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Round float32, bfloat16 or float16 to float8_e4m3fn: to nearest, ties to even, saturated at 448, signs
    kept.

    NaN stays NaN, and infinities saturate: `cvt.rn.satfinite.e4m3x2.f32`.
    """
    # torch before 2.12 gave NaN instead of 448 beyond the range.
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


# Scales


def decode_ue8m0(scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return 2^(byte - 127) of UE8M0 bytes (uint8 or float8_e8m0fnu), exactly, in float32 or float64; 255 is
    NaN."""
    return scales.view(torch.uint8).view(torch.float8_e8m0fnu).to(torch.float32).to(dtype)


def scale_exponent(amax: torch.Tensor, element: ElementFormat, rule: Rule) -> torch.Tensor:
    """Return the UE8M0 bytes (uint8) of the scales for groups whose largest magnitudes are `amax` (float32).

    "ceil": the smallest power of two with amax / scale <= the format's maximum, so nothing saturates
    (DeepGEMM, and cvt.rp of amax / max). "floor": 2^(floor(log2(amax)) - emax), the rule of OCP MX section
    6.3, which is up to two times smaller, and whose largest elements may saturate. Both are clamped to
    2^-127. NaN or infinity gives 255.

    Works on float32's bits, so every device gives the same bytes.
    """
    if rule not in ("floor", "ceil"):
        raise ValueError(f'rule is {rule!r}; the supported rules are "ceil" (DeepGEMM) and "floor" (OCP MX)')
    bits = amax.view(torch.int32)
    field = bits >> _FLOAT32_MANTISSA_BITS
    byte = field - element.max_exponent
    if rule == "ceil":
        byte = byte + ((bits & 0x7FFFFF) > element.max_mantissa)
    byte = byte.clamp(min=0)
    return torch.where(field == 255, UE8M0_NAN, byte).to(torch.uint8)


# Groups


def group_amax(x: torch.Tensor, group: tuple[int, int]) -> torch.Tensor:
    """Return the largest magnitude (float32) of each group of the last two dimensions; short groups count as
    zero-padded.

    x is [..., R, C] and group (r, c); the result is [..., ceil(R/r), ceil(C/c)]. NaN in a group gives NaN.
    """
    rows, columns = group
    padding = (0, -x.shape[-1] % columns, 0, -x.shape[-2] % rows)
    if any(padding):
        x = torch.nn.functional.pad(x, padding)
    grouped = x.unflatten(-1, (x.shape[-1] // columns, columns)).unflatten(-3, (x.shape[-2] // rows, rows))
    return grouped.abs().amax(dim=(-3, -1)).float()


def spread_groups(scales: torch.Tensor, group: tuple[int, int], shape: tuple[int, int]) -> torch.Tensor:
    """Repeat each group's value over its elements: [..., ceil(R/r), ceil(C/c)] to [..., R, C] with shape (R,
    C)."""
    for dim, size, extent in ((-2, group[0], shape[0]), (-1, group[1], shape[1])):
        if size > 1:
            scales = scales.repeat_interleave(size, dim=dim).narrow(dim, 0, extent)
    return scales


def scale_by_powers_of_two(
    x: torch.Tensor, element: ElementFormat, group: tuple[int, int], rule: Rule, amax_floor: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide each group by its power-of-two scale: returns (scaled float32 [..., R, C], UE8M0 bytes).

    The division is exact in float32 except where the quotient is subnormal, far below what any element format
    keeps.
    """
    bytes_ = scale_exponent(group_amax(x, group).clamp(min=amax_floor), element, rule)
    # 254 - byte is the byte of the reciprocal; NaN's 255 stays 255.
    reciprocal = decode_ue8m0(254 - bytes_)
    return x.float() * spread_groups(reciprocal, group, (x.shape[-2], x.shape[-1])), bytes_


def require_matrix(x: torch.Tensor, check_finite: bool) -> None:
    """Refuse what the quantizers cannot take: TypeError or ValueError says what was given and what is
    supported."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"x is {x.dtype}; quantizing takes float32, bfloat16 or float16: convert it first")
    if x.ndim < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; quantizing takes matrices, [..., MN, K]")
    if check_finite and not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).nonzero()
        raise ValueError(
            f"x holds {len(bad)} infinite or NaN elements, the first at {tuple(bad[0].tolist())}; "
            "block scales cannot hold them: clean x, or pass check_finite=False to make their groups NaN"
        )


# Formats


def quantize_mxfp4(
    x: torch.Tensor, *, rule: Rule = "ceil", check_finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize [..., MN, K] (float32, bfloat16 or float16) to MXFP4, groups of 32 along K.

    Returns (E2M1 uint8 [..., MN, K/2], UE8M0 float8_e8m0fnu [..., MN, ceil(K/32)]). `rule` as in
    `scale_exponent`. K must be even. check_finite=False leaves out the test for infinities and NaN (and its
    wait for the device): a group that holds one gets the scale NaN.
    """
    require_matrix(x, check_finite)
    scaled, scales = scale_by_powers_of_two(x, E2M1, (1, MX_GROUP), rule)
    return pack_e2m1(encode_e2m1(scaled)), scales.view(torch.float8_e8m0fnu)


def quantize_mxfp8(
    x: torch.Tensor, *, group_k: int = MX_GROUP, rule: Rule = "ceil", check_finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize [..., MN, K] (float32, bfloat16 or float16) to MXFP8 (E4M3), groups of `group_k` (32 or 128)
    along K.

    Returns (float8_e4m3fn [..., MN, K], UE8M0 float8_e8m0fnu [..., MN, ceil(K/group_k)]); `rule` and
    `check_finite` as in `quantize_mxfp4`.
    """
    if group_k not in (32, 128):
        raise ValueError(f"group_k is {group_k}; MXFP8 groups have 32 or 128 elements")
    require_matrix(x, check_finite)
    scaled, scales = scale_by_powers_of_two(x, E4M3, (1, group_k), rule)
    return encode_e4m3(scaled), scales.view(torch.float8_e8m0fnu)


def nvfp4_global_scale(amax: torch.Tensor) -> torch.Tensor:
    """Return NVFP4's global scale (a multiplier, float32) for an `amax`: amax / (6 * 448), or 1 for 0."""
    # A divisor on the device: torch multiplies by the reciprocal of a host number there, which rounds twice.
    divisor = torch.full_like(amax, E2M1_MAX * E4M3_MAX, dtype=torch.float32)
    scale = (amax.float() / divisor).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(amax == 0, 1.0, scale)


def quantize_nvfp4(
    x: torch.Tensor, *, global_scale: torch.Tensor | None = None, check_finite: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize [..., MN, K] (float32, bfloat16 or float16) to NVFP4, groups of 16 along K.

    `global_scale` is a multiplier, float32, [] or shaped as x's first dimensions ([G] for x [G, N, K]),
    positive; by default one for all of x, from its amax. Block scale = round_e4m3(amax(block) / 6 / global),
    in float32; element = the exact x / (block scale * global), rounded once. A block whose scale rounds to 0
    has elements 0.

    Returns (E2M1 uint8 [..., MN, K/2], UE4M3 float8_e4m3fn [..., MN, ceil(K/16)], global scale float32). K
    must be even. check_finite=False as in `quantize_mxfp4`; a non-finite element then makes its block NaN,
    or, if the global scale comes from it, all of x.
    """
    require_matrix(x, check_finite)
    if global_scale is None:
        amax = x.abs().amax() if x.numel() else x.new_zeros(())
        global_scale = nvfp4_global_scale(amax)
    elif check_finite and not (torch.isfinite(global_scale) & (global_scale > 0)).all():
        raise ValueError(f"global_scale is {global_scale.tolist()}; it must be positive and finite")
    outer = _align_global_scale(global_scale, x)
    group = (1, NVFP4_GROUP)
    amax = group_amax(x, group)
    block = encode_e4m3(amax / torch.full_like(amax, E2M1_MAX) / outer).float()
    block = block.masked_fill(~torch.isfinite(amax), torch.nan)
    # In float64 the product is exact, and no quotient rounds onto a boundary that the exact one is off.
    divisor = block.masked_fill(block == 0, torch.inf).double() * outer.double()
    scaled = x.double() / spread_groups(divisor, group, (x.shape[-2], x.shape[-1]))
    return pack_e2m1(encode_e2m1(scaled)), block.to(torch.float8_e4m3fn), global_scale


def dequantize(
    data: torch.Tensor,
    scales: torch.Tensor,
    *,
    group: tuple[int, int],
    global_scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return the values [..., MN, K] of a quantized matrix in float32 or float64.

    data: E2M1, two a byte (uint8, int8 or float4_e2m1fn_x2, [..., MN, K/2]), or E4M3 (float8_e4m3fn [..., MN,
    K]). scales: [..., ceil(MN/rows), ceil(K/columns)] with `group` = (rows, columns): UE8M0 (float8_e8m0fnu
    or uint8), UE4M3 (float8_e4m3fn) or float32. global_scale: as in `quantize_nvfp4`.

    float64 is exact (for float32 scales too). float32 is exact for UE8M0 and UE4M3 scales unless a value lies
    beyond float32's range, which gives infinity; a global scale rounds once more.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype is {dtype}; dequantize gives float32 or float64")
    if data.dtype is torch.float8_e4m3fn:
        values = data.to(torch.float32).to(dtype)
    elif data.dtype in (torch.uint8, torch.int8, torch.float4_e2m1fn_x2):
        values = decode_e2m1(unpack_e2m1(data), dtype)
    else:
        raise TypeError(
            f"data is {data.dtype}; supported are float8_e4m3fn, and uint8, int8 or float4_e2m1fn_x2 for E2M1"
        )
    expected = (*values.shape[:-2], -(-values.shape[-2] // group[0]), -(-values.shape[-1] // group[1]))
    if tuple(scales.shape) != expected:
        raise ValueError(
            f"scales have shape {tuple(scales.shape)}; values of shape {tuple(values.shape)} "
            f"in groups of {group} take {expected}"
        )
    factors = spread_groups(_decode_scales(scales, dtype), group, (values.shape[-2], values.shape[-1]))
    values = values * factors
    return values if global_scale is None else values * _align_global_scale(global_scale, values).to(dtype)


def _decode_scales(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return decode_ue8m0(scales, dtype)
    if scales.dtype is torch.float8_e4m3fn:
        if (scales.view(torch.uint8) > 127).any():
            raise ValueError("scales hold negative E4M3 numbers; UE4M3 scales have no sign")
        return scales.to(torch.float32).to(dtype)
    if scales.dtype is torch.float32:
        return scales.to(dtype)
    raise TypeError(
        f"scales are {scales.dtype}; supported are float8_e8m0fnu, uint8 (UE8M0), float8_e4m3fn and float32"
    )


def _align_global_scale(global_scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Give a global scale of x's first dimensions trailing ones, so that it broadcasts against x."""
    if global_scale.dtype is not torch.float32:
        raise TypeError(f"global_scale is {global_scale.dtype}; it must be float32")
    leading = x.shape[: global_scale.ndim]
    if global_scale.ndim > x.ndim - 2 or global_scale.shape != leading:
        raise ValueError(
            f"global_scale has shape {tuple(global_scale.shape)}; for x of shape {tuple(x.shape)} "
            f"it must be [] or leading dimensions of {tuple(x.shape[:-2])}"
        )
    return global_scale.reshape(leading + (1,) * (x.ndim - global_scale.ndim))
