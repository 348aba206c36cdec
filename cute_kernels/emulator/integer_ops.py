"""Integer functions that generated code calls: arrays of lanes in, arrays of lanes out, any leading axes.

Arguments and results are in the canonical unsigned dtypes of alu_code unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]

_LEAST = {np.dtype(f"i{size}"): np.iinfo(f"i{size}").min for size in (2, 4, 8)}
_ONES_OF_BYTE = np.array([bin(i).count("1") for i in range(256)], np.uint8)
_REVERSED_BYTE = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)
_BYTE_PLACES = np.arange(4, dtype=np.uint32) * np.uint32(4)


def saturate_s32(x: Lanes) -> Lanes:
    """int64 lanes clamped to 32 bits."""
    return np.clip(x, -(2**31), 2**31 - 1).astype(np.int32).view(np.uint32)


def carry_of_add(a: Lanes, b: Lanes, carry: Lanes | None = None) -> Lanes:
    total = a + b
    overflowed = total < a
    if carry is None:
        return overflowed
    return overflowed | (carry & (total == total.dtype.type(-1 % 2 ** (8 * total.itemsize))))


def borrow_of_sub(a: Lanes, b: Lanes, borrow: Lanes | None = None) -> Lanes:
    borrowed = a < b
    return borrowed if borrow is None else borrowed | (borrow & (a == b))


def mul_hi_u64(a: Lanes, b: Lanes) -> Lanes:
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_low, a_high, b_low, b_high = a & low, a >> shift, b & low, b >> shift
    middle = a_high * b_low + (a_low * b_low >> shift)
    other = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> shift) + (other >> shift)


def mul_hi_s64(a: Lanes, b: Lanes) -> Lanes:
    """int64 lanes in, uint64 lanes out."""
    x, y = a.view(np.uint64), b.view(np.uint64)
    zero = np.uint64(0)
    return mul_hi_u64(x, y) - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)


def low_24_u32(x: Lanes) -> Lanes:
    """The low 24 bits as int64 lanes."""
    return (x & np.uint32(0xFFFFFF)).astype(np.int64)


def low_24_s32(x: Lanes) -> Lanes:
    """The low 24 bits, sign-extended, as int64 lanes."""
    return ((x << np.uint32(8)).view(np.int32) >> np.int32(8)).astype(np.int64)


def divide_unsigned(a: Lanes, b: Lanes) -> Lanes:
    """Division by zero gives all ones, as the sequences do that stand for it on sm_90."""
    return _ones_where_zero(b, a // b)


def remainder_unsigned(a: Lanes, b: Lanes) -> Lanes:
    """The remainder by zero is all ones too."""
    return _ones_where_zero(b, a % b)


def divide_signed(a: Lanes, b: Lanes) -> Lanes:
    """Signed lanes in, truncated quotient out (canonical dtype); the least integer by -1 gives itself."""
    unsigned = np.dtype(f"u{a.itemsize}")
    quotient = np.abs(a).view(unsigned) // np.abs(b).view(unsigned)
    quotient = np.where((a ^ b) < 0, np.negative(quotient), quotient)
    return _ones_where_zero(b, quotient)


def remainder_signed(a: Lanes, b: Lanes) -> Lanes:
    """Signed lanes in, the remainder with the dividend's sign out (canonical dtype)."""
    unsigned = np.dtype(f"u{a.itemsize}")
    remainder = np.abs(a).view(unsigned) % np.abs(b).view(unsigned)
    return _ones_where_zero(b, np.where(a < 0, np.negative(remainder), remainder))


def _ones_where_zero(divisor: Lanes, result: Lanes) -> Lanes:
    zero = divisor == 0
    return np.where(zero, ~np.zeros_like(result), result) if np.count_nonzero(zero) else result


def absolute_difference(a: Lanes, b: Lanes) -> Lanes:
    """|a - b| of lanes compared in their own signedness, in the canonical dtype."""
    return np.where(a < b, b - a, a - b).view(np.dtype(f"u{a.itemsize}"))


def dot_bytes(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    """c + the dot product of four bytes; a and b are 8-bit views with four elements a lane."""
    products = a.astype(np.int32) * b.astype(np.int32)
    return products.reshape(*c.shape, 4).sum(-1, dtype=np.int32).view(np.uint32) + c


def dot_halves(a: Lanes, b: Lanes, c: Lanes, first: int) -> Lanes:
    """c + the dot product of a's two halves (a 16-bit view) with the bytes first and first + 1 of b (an 8-bit view)."""
    halves = a.reshape(*c.shape, 2).astype(np.int32)
    octets = b.reshape(*c.shape, 4)[..., first : first + 2].astype(np.int32)
    return (halves * octets).sum(-1, dtype=np.int32).view(np.uint32) + c


def shift_clamp(n: Lanes) -> Lanes:
    return np.minimum(n, np.uint32(32))


def shift_wrap(n: Lanes) -> Lanes:
    return n & np.uint32(31)


def funnel_l(low: Lanes, high: Lanes, n: Lanes) -> Lanes:
    return (high << n) | (low >> (np.uint32(32) - n))


def funnel_r(low: Lanes, high: Lanes, n: Lanes) -> Lanes:
    return (low >> n) | (high << (np.uint32(32) - n))


def permute(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """prmt's default mode: each selector nibble picks a byte of b:a, its top bit replicates that byte's sign."""
    words = np.empty((*np.broadcast_shapes(a.shape, b.shape, selector.shape), 2), np.uint32)
    words[..., 0], words[..., 1] = a, b
    nibbles = selector[..., None] >> _BYTE_PLACES
    index = (nibbles & np.uint32(7)) + (np.arange(words.size // 2, dtype=np.uint32) << np.uint32(3)).reshape(
        *words.shape[:-1], 1
    )
    picked = words.view(np.uint8).reshape(-1)[index]
    replicated = nibbles & np.uint32(8)
    if np.count_nonzero(replicated):
        picked = np.where(replicated, (picked.view(np.int8) >> 7).view(np.uint8), picked)
    return picked.view(np.uint32)[..., 0]


def _permute_by(table: list[int]) -> Any:
    """A prmt mode whose selector's low two bits pick one of four nibble selectors."""
    selectors = np.array(table, np.uint32)

    def permute_mode(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
        return permute(a, b, selectors[c & np.uint32(3)])

    return permute_mode


def _field_mask(length: Lanes, dtype: np.dtype[Any]) -> Lanes:
    one = dtype.type(1)
    return (one << length) - one  # a length of the width or more shifts to 0, less 1: all ones


def _bounds(position: Lanes, length: Lanes, dtype: np.dtype[Any]) -> tuple[Lanes, Lanes]:
    """Position and length of a bit field. 32-bit fields take eight bits of them, as the ISA says of all fields;
    the sequences that stand for 64-bit ones on sm_90 take all, and so do we."""
    if dtype.itemsize == 4:
        return position & np.uint32(255), length & np.uint32(255)
    limit = np.uint32(255)
    return np.minimum(position, limit).astype(dtype), np.minimum(length, limit).astype(dtype)


def field_unsigned(a: Lanes, position: Lanes, length: Lanes) -> Lanes:
    p, n = _bounds(position, length, a.dtype)
    return (a >> p) & _field_mask(n, a.dtype)


def field_signed(a: Lanes, position: Lanes, length: Lanes) -> Lanes:
    width = 8 * a.itemsize
    p, n = _bounds(position, length, a.dtype)
    mask = _field_mask(n, a.dtype)
    last = np.minimum(p + n - a.dtype.type(1), a.dtype.type(width - 1))
    negative = ((a >> last) & a.dtype.type(1)).astype(np.bool_) & (n != 0)
    value = (a >> p) & mask
    present = _field_mask(np.minimum(n, np.maximum(a.dtype.type(width), p) - p), a.dtype)
    return np.where(negative, value | ~present, value)


def insert_field(a: Lanes, b: Lanes, position: Lanes, length: Lanes) -> Lanes:
    p, n = _bounds(position, length, b.dtype)
    mask = _field_mask(n, b.dtype) << p
    return (b & ~mask) | ((a << p) & mask)


def mask_clamp(position: Lanes, length: Lanes) -> Lanes:
    return _field_mask(length, np.dtype(np.uint32)) << position


def mask_wrap(position: Lanes, length: Lanes) -> Lanes:
    return mask_clamp(position & np.uint32(31), length & np.uint32(31))


def extend_unsigned(a: Lanes, n: Lanes, wrap: bool) -> Lanes:
    n = n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))
    return a & _field_mask(n, a.dtype)


def extend_signed(a: Lanes, n: Lanes, wrap: bool) -> Lanes:
    n = n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))
    rest = (np.uint32(32) - n).view(np.int32)
    return ((a.view(np.int32) << rest) >> rest).view(np.uint32)


def count_ones(x: Lanes) -> Lanes:
    return _ONES_OF_BYTE[x.view(np.uint8)].reshape(*x.shape, x.itemsize).sum(-1, dtype=np.uint32)


def highest_bit(x: Lanes, distance: bool) -> Lanes:
    """The place of the highest one; with `distance` how far it lies below the top; 0xFFFFFFFF for 0."""
    if x.itemsize == 8:
        high = (x >> np.uint64(32)).astype(np.uint32)
        length = np.where(high, _length(high) + np.uint32(32), _length(x.astype(np.uint32)))
    else:
        length = _length(x)
    place = length - np.uint32(1)
    return np.where(length, np.uint32(8 * x.itemsize - 1) - place, place) if distance else place


def count_leading_zeros(x: Lanes) -> Lanes:
    return np.uint32(8 * x.itemsize - 1) - highest_bit(x, False)


def _length(x: Lanes) -> Lanes:
    """Bits up to the highest one of uint32 lanes: float64 holds them exactly, so its exponent tells."""
    return np.frexp(x.astype(np.float64))[1].astype(np.uint32)


def without_sign(x: Lanes) -> Lanes:
    """Negative values complemented, so that the highest one is the highest bit that differs from the sign."""
    signed = x.view(np.dtype(f"i{x.itemsize}"))
    return np.where(signed < 0, ~x, x)


def reverse_bits(x: Lanes) -> Lanes:
    return _REVERSED_BYTE[x.view(np.uint8)].view(x.dtype).byteswap()


NAMESPACE: dict[str, Any] = {
    f.__name__: f
    for f in (
        saturate_s32, carry_of_add, borrow_of_sub, mul_hi_u64, mul_hi_s64, low_24_u32, low_24_s32, divide_unsigned,
        remainder_unsigned, divide_signed, remainder_signed, absolute_difference, dot_bytes, dot_halves, shift_clamp,
        shift_wrap, funnel_l, funnel_r, permute, field_unsigned, field_signed, insert_field, mask_clamp, mask_wrap,
        extend_unsigned, extend_signed, count_ones, highest_bit, count_leading_zeros, without_sign, reverse_bits,
    )
}  # fmt: skip
# Nibble selectors by the mode's two control bits (PTX ISA, prmt).
NAMESPACE |= {
    f"permute_{mode}": _permute_by(table)
    for mode, table in {
        "f4e": [0x3210, 0x4321, 0x5432, 0x6543],
        "b4e": [0x5670, 0x6701, 0x7012, 0x0123],
        "rc8": [0x0000, 0x1111, 0x2222, 0x3333],
        "ecl": [0x3210, 0x3211, 0x3222, 0x3333],
        "ecr": [0x0000, 0x1110, 0x2210, 0x3210],
        "rc16": [0x1010, 0x3232, 0x1010, 0x3232],
    }.items()
}
