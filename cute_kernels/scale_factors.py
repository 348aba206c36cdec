"""Scale factors in the layouts that kernels read: transforms of whole tensors, each with its inverse.

Row-major scales are [..., MN, SFK], SFK = ceil(K / gran_k), of one byte each (UE8M0 as float8_e8m0fnu or
uint8, UE4M3 as float8_e4m3fn). Each transform places bytes where scale_layout.py says.

| layout | shape | there | back |
| --- | --- | --- | --- |
| packed MN-major | int32 [..., MN, ceil(SFK/4)], strides (1, align(MN, 4)) | `pack` | `unpack` |
| packed, K-grouped | int32 [words, MN], MN innermost | `pack_k_grouped` | `unpack_k_grouped` |
| packed, UTCCP order | as packed | `to_utccp` | `from_utccp` |
| 128 x 4 blocked | bytes [..., n] | `to_blocked` | `from_blocked` |

float32 scales become UE8M0 by `encode_scales` (back: `formats.decode_ue8m0`), block scales one a row by
`repeat_rows`; `pack_for_kernel` does what an operand's scales need, whatever form they come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from cute_kernels.scale_layout import (
    ATOM_ROWS,
    blocked_bytes,
    blocked_offset,
    ceil_div,
    packed_group_starts,
    packed_offset,
    packed_stride,
    packed_words,
    utccp_position,
    utccp_row,
)

_BYTE_DTYPES = (torch.uint8, torch.float8_e8m0fnu, torch.float8_e4m3fn)

Check = Literal["power_of_two", "finite", "none"]


# Packed MN-major


def pack(scales: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Pack row-major scales [..., MN, SFK] (one byte each) into int32 [..., MN, ceil(SFK/4)], MN-major.

    Strides are (..., 1, align(MN, 4)), leading dimensions contiguous. Bytes past SFK and the words that pad
    MN are 0. out: what `empty_packed` gives for them, to be filled; allocated if not given.
    """
    source = _bytes_of(scales)
    *leading, mn, columns = source.shape
    if out is None:
        out = empty_packed(source.shape, source.device)
    require_packed(out, mn, columns, "out")
    memory = out.as_strided(
        (*leading, packed_words(columns) * packed_stride(mn)), (*out.stride()[:-2], 1)
    ).zero_()
    memory.view(torch.uint8)[..., _packed_offsets(mn, columns, source.device)] = source
    return out


def empty_packed(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return memory for the packed scales of row-major ones of a shape [..., MN, SFK]; nothing is written to it."""
    *leading, mn, columns = shape
    memory = torch.empty(*leading, packed_words(columns), packed_stride(mn), dtype=torch.int32, device=device)
    return memory[..., :mn].transpose(-1, -2)


def unpack(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the bytes (uint8 [..., MN, SFK]) of packed scales, SFK = `columns`; any strides will do."""
    words = packed_words(columns)
    if packed.dtype is not torch.int32 or packed.ndim < 2 or packed.shape[-1] != words:
        raise ValueError(
            f"packed is {packed.dtype} of shape {tuple(packed.shape)}; {columns} scales a row are packed as "
            f"int32 [..., MN, {words}]"
        )
    # Not contiguous(): that keeps any stride of a dimension of one element, and view() wants 1.
    row_major = packed.clone(memory_format=torch.contiguous_format)
    return row_major.view(torch.uint8)[..., :columns].contiguous()


def require_packed(packed: torch.Tensor, mn: int, columns: int, name: str = "scales") -> None:
    """Refuse packed scales that are not exactly the packed MN-major layout for [..., mn, columns]:
    ValueError."""
    words, stride = packed_words(columns), packed_stride(mn)
    if packed.ndim < 2 or tuple(packed.shape[-2:]) != (mn, words):
        raise ValueError(
            f"{name} have shape {tuple(packed.shape)}; packed scales of {mn} rows and {columns} scales a row "
            f"are int32 [..., {mn}, {words}]"
        )
    expected = {-2: 1, -1: stride}
    for dim in range(packed.ndim - 3, -1, -1):
        expected[dim] = words * stride * math.prod(packed.shape[dim + 1 : -2])
    # torch's strides of a dimension of one element mean nothing, nor do those of no elements at all.
    if packed.numel() and any(
        packed.stride(dim) != wanted for dim, wanted in expected.items() if packed.shape[dim] > 1
    ):
        raise ValueError(
            f"{name} of shape {tuple(packed.shape)} have strides {packed.stride()}; the packed layout is "
            f"MN-major: strides (..., {words * stride}, 1, {stride}), as scale_factors.pack gives them"
        )


def _packed_offsets(mn: int, columns: int, device: torch.device) -> torch.Tensor:
    row = torch.arange(mn, device=device)[:, None]
    return packed_offset(row, torch.arange(columns, device=device), mn)


# K-grouped


def pack_k_grouped(
    scales: torch.Tensor,
    ks: list[int] | torch.Tensor,
    gran_k: int,
    *,
    words: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pack the scales of K groups, uint8 or UE8M0 [sum ceil(k/gran_k), MN], into int32 [words, MN].

    Each group starts a fresh word, so words = sum ceil(k / (4 * gran_k)); unused bytes are 0. MN has stride 1
    and the stride of the words is align(MN, 4), of which the rest is not written. Groups with k = 0 take no words.

    ks: a list; or integers on the device of the scales, which are not waited for. Then `words` says how many words the
    result has, scales behind those of the groups are left out, and so is what finds no room.
    out: what `empty_k_grouped` gives for them, to be filled; allocated if not given.
    """
    source = _bytes_of(scales)
    if isinstance(ks, torch.Tensor):
        rows = _k_grouped_rows_on_device(ks, gran_k, source.shape[0], words)
    else:
        rows, words = _k_grouped_rows(ks, gran_k, source.device)
    if source.ndim != 2 or source.shape[0] != len(rows):
        raise ValueError(
            f"scales have shape {tuple(source.shape)}; groups of {ks} elements with a scale every {gran_k} "
            f"have [{len(rows)}, MN]"
        )
    mn = source.shape[1]
    by_row = source.new_zeros(words * 4 + 1, mn)
    by_row[rows] = source
    by_row = by_row[:-1]  # the last row takes what no word holds
    if out is None:
        out = empty_k_grouped(words, mn, source.device)
    out.unsqueeze(-1).view(torch.uint8).copy_(by_row.view(words, 4, mn).transpose(1, 2))
    return out


def empty_k_grouped(words: int, mn: int, device: torch.device) -> torch.Tensor:
    """Return memory for packed scales of K groups, int32 [words, MN]; nothing is written to it."""
    return torch.empty(words, packed_stride(mn), dtype=torch.int32, device=device)[:, :mn]


def unpack_k_grouped(packed: torch.Tensor, ks: list[int], gran_k: int) -> torch.Tensor:
    """Return the bytes (uint8 [sum ceil(k/gran_k), MN]) of K-grouped packed scales (int32 [words, MN])."""
    rows, words = _k_grouped_rows(ks, gran_k, packed.device)
    if packed.dtype is not torch.int32 or packed.ndim != 2 or packed.shape[0] != words:
        raise ValueError(
            f"packed is {packed.dtype} of shape {tuple(packed.shape)}; groups of {ks} elements with a scale "
            f"every {gran_k} are packed as int32 [{words}, MN]"
        )
    mn = packed.shape[1]
    as_bytes = packed.clone(memory_format=torch.contiguous_format).view(torch.uint8).view(words, mn, 4)
    return as_bytes.transpose(1, 2).reshape(words * 4, mn)[rows]


def _k_grouped_rows(ks: list[int], gran_k: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Return each scale row's place (4 * word + byte) in the packed words, and the number of words."""
    if any(k < 0 for k in ks):
        raise ValueError(f"ks are {ks}; none may be negative")
    starts = packed_group_starts(ks, gran_k)
    places = [torch.arange(ceil_div(k, gran_k)) + 4 * start for k, start in zip(ks, starts, strict=False)]
    return torch.cat(places).to(device) if places else torch.arange(0, device=device), starts[-1]


def _k_grouped_rows_on_device(ks: torch.Tensor, gran_k: int, count: int, words: int) -> torch.Tensor:
    """Return the same place of each of `count` scale rows, by lengths on the device; 4 * words for rows of no group."""
    rows = torch.arange(count, device=ks.device)
    if ks.shape[0] == 0:
        return torch.full_like(rows, 4 * words)
    counts = ceil_div(ks.long().clamp(min=0), gran_k)
    taken = packed_words(counts)
    ends = counts.cumsum(0)
    group = torch.searchsorted(ends, rows, right=True)
    behind = group == ks.shape[0]
    group = group.clamp(max=ks.shape[0] - 1)
    places = 4 * (taken.cumsum(0) - taken)[group] + rows - (ends - counts)[group]
    # Lengths are the caller's word: whatever they are, nothing outside the words is written.
    return torch.where(behind, 4 * words, places).clamp(max=4 * words)


# UTCCP


def to_utccp(packed: torch.Tensor) -> torch.Tensor:
    """Permute the rows of packed scales (int32 [..., MN, W], MN a multiple of 128) to UTCCP order; strides as
    `pack`."""
    return _permute_rows(packed, utccp_row)


def from_utccp(permuted: torch.Tensor) -> torch.Tensor:
    """Permute packed scales in UTCCP order (int32 [..., MN, words]) back; strides as `pack`."""
    return _permute_rows(permuted, utccp_position)


def _permute_rows(packed: torch.Tensor, source_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Place row source_of(i) of every column at i; the same shape, with the strides of `pack`."""
    if packed.dtype is not torch.int32 or packed.ndim < 2 or packed.shape[-2] % ATOM_ROWS:
        raise ValueError(
            f"packed is {packed.dtype} of shape {tuple(packed.shape)}; UTCCP order is for int32 [..., MN, "
            f"words] with MN a multiple of {ATOM_ROWS}: pad the rows first"
        )
    rows = source_of(torch.arange(packed.shape[-2], device=packed.device))
    return packed.transpose(-1, -2)[..., rows].contiguous().transpose(-1, -2)


# 128 x 4 blocked


def to_blocked(scales: torch.Tensor) -> torch.Tensor:
    """Lay scales [..., rows, columns] out as 128 x 4 atoms: [..., bytes] of the same dtype, padding zero.

    What cuBLAS and torch's scaled_mm call SWIZZLE_32_4_4; UE8M0 and UE4M3 alike. Leading dimensions stay
    outermost.
    """
    source = _bytes_of(scales)
    rows, columns = source.shape[-2:]
    memory = source.new_zeros(*source.shape[:-2], blocked_bytes(rows, columns))
    memory[..., _blocked_offsets(rows, columns, source.device)] = source
    return memory.view(scales.dtype)


def from_blocked(blocked: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the scales [..., rows, columns] of a blocked tensor [..., bytes], in its dtype."""
    source = _bytes_of(blocked)
    if source.shape[-1] != blocked_bytes(rows, columns):
        raise ValueError(
            f"blocked has {source.shape[-1]} bytes; {rows} rows of {columns} scales take "
            f"{blocked_bytes(rows, columns)}"
        )
    return source[..., _blocked_offsets(rows, columns, source.device)].view(blocked.dtype)


def _blocked_offsets(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    row = torch.arange(rows, device=device)[:, None]
    return blocked_offset(row, torch.arange(columns, device=device), columns)


# What quantizers give


def encode_scales(scales: torch.Tensor, *, check: Check = "power_of_two") -> torch.Tensor:
    """Return the UE8M0 bytes (uint8) of float32 scales, rounded up to powers of two, at most 2^127; 0 gives
    2^-127.

    Rounding a scale up without quantizing its elements again makes them up to twice too large, so by default
    scales must be powers of two (or 0): `casts` makes such scales. check="finite" rounds up, and refuses only
    what has no UE8M0 at all: negative, NaN, or above 2^127. check="none" looks at nothing, and so does not
    wait for the device: negative scales, NaN and infinity become NaN (0xFF), and finite ones above 2^127 become that.
    """
    if scales.dtype is not torch.float32:
        raise TypeError(f"scales are {scales.dtype}; encode_scales takes float32")
    bits = scales.contiguous().view(torch.int32)
    field, mantissa = bits >> 23, bits & 0x7FFFFF
    # 2^-127 is float32's subnormal 0x400000 and UE8M0's byte 0.
    rounds_up = torch.where(field == 0, mantissa > 0x400000, mantissa > 0)
    if check != "none":
        # The sign bit makes a field negative.
        allowed = (field >= 0) & (field + rounds_up <= 254)
        if check == "power_of_two":
            allowed &= (scales == 0) | torch.where(field == 0, mantissa == 0x400000, mantissa == 0)
        if not allowed.all():
            index = tuple((~allowed).nonzero()[0].tolist())
            kinds = "powers of two" if check == "power_of_two" else "positive and at most 2^127"
            raise ValueError(
                f"the scale at {index} is {scales[index].item()}; scales must be {kinds}: quantize with "
                "formats "
                'or casts, or round scales up with check="finite" and quantize the elements with those'
            )
    encoded = (field + rounds_up).clamp(0, 254)
    # Infinity and NaN have the largest bits; those of -0 are the sign alone.
    no_number = (bits >= 0x7F800000) | ((bits < 0) & ((bits & 0x7FFFFFFF) != 0))
    return encoded.masked_fill(no_number, 255).to(torch.uint8)


def repeat_rows(scales: torch.Tensor, gran_mn: int, mn: int) -> torch.Tensor:
    """Repeat scales of blocks of `gran_mn` rows, [..., ceil(mn/gran_mn), SFK], once a row: [..., mn, SFK]."""
    if scales.shape[-2] != ceil_div(mn, gran_mn):
        raise ValueError(
            f"scales have shape {tuple(scales.shape)}; {mn} rows in blocks of {gran_mn} have "
            f"[..., {ceil_div(mn, gran_mn)}, SFK]"
        )
    rows = torch.arange(mn, device=scales.device) // gran_mn
    return scales[..., rows, :]


def pack_for_kernel(
    scales: torch.Tensor,
    mn: int,
    k: int,
    *,
    gran_mn: int = 1,
    gran_k: int = 32,
    check: Check = "power_of_two",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return an operand's scales in the packed MN-major layout, int32 [..., mn, ceil(ceil(k/gran_k)/4)].

    Takes them row-major [..., ceil(mn/gran_mn), ceil(k/gran_k)], as float32 (encoded with `check`, see
    `encode_scales`), float8_e8m0fnu, uint8, or float8_e4m3fn; or already packed (int32, gran_mn 1), which is
    checked and returned as it is. out: where to, as `pack` has it, for those that are not packed already.
    """
    columns = ceil_div(k, gran_k)
    if scales.dtype is torch.int32:
        if gran_mn != 1:
            raise ValueError(f"packed scales have one row each; gran_mn is {gran_mn}")
        require_packed(scales, mn, columns)
        return scales
    if scales.ndim < 2 or tuple(scales.shape[-2:]) != (ceil_div(mn, gran_mn), columns):
        raise ValueError(
            f"scales have shape {tuple(scales.shape)}; {mn} x {k} elements with a scale every {gran_mn} x "
            f"{gran_k} have [..., {ceil_div(mn, gran_mn)}, {columns}]"
        )
    as_bytes = encode_scales(scales, check=check) if scales.dtype is torch.float32 else scales
    return pack(repeat_rows(as_bytes, gran_mn, mn), out=out)


def _bytes_of(scales: torch.Tensor) -> torch.Tensor:
    if scales.dtype not in _BYTE_DTYPES:
        raise TypeError(f"scales are {scales.dtype}; supported are float8_e8m0fnu, float8_e4m3fn and uint8")
    return scales.view(torch.uint8)
