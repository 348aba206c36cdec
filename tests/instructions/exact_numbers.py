"""Number formats in rational arithmetic, slow and plain: the reference for what the emulator computes with NumPy."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

Number = Fraction | float  # a rational, or one of inf, -inf, nan, -0.0


class Format(NamedTuple):
    """An IEEE-like format. `finite` ones have no infinity; `nan` is the canonical NaN's bits, None if there is none."""

    exponent_bits: int
    fraction_bits: int
    nan: int | None
    finite: bool = False
    largest: Fraction | None = None  # where it is not what the bits suggest

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @property
    def sign(self) -> int:
        return 1 << self.exponent_bits + self.fraction_bits

    def maximum(self) -> Fraction:
        if self.largest is not None:
            return self.largest
        top = (1 << self.exponent_bits) - (1 if self.finite else 2)
        return (2 - Fraction(1, 1 << self.fraction_bits)) * Fraction(2) ** (top - self.bias)


F16 = Format(5, 10, 0x7FFF)
BF16 = Format(8, 7, 0x7FFF)
F32 = Format(8, 23, 0x7FFFFFFF)
F64 = Format(11, 52, 0xFFF8000000000000)
E4M3 = Format(4, 3, 0x7F, True, Fraction(448))
E5M2 = Format(5, 2, 0x7F)
E2M1 = Format(2, 1, None, True)
E2M3 = Format(2, 3, None, True)
E3M2 = Format(3, 2, None, True)


def decode(bits: int, form: Format) -> Number:
    negative = bool(bits & form.sign)
    exponent = (bits >> form.fraction_bits) & ((1 << form.exponent_bits) - 1)
    fraction = Fraction(bits & ((1 << form.fraction_bits) - 1), 1 << form.fraction_bits)
    if not form.finite and exponent == (1 << form.exponent_bits) - 1:
        return math.nan if fraction else (-math.inf if negative else math.inf)
    if form is E4M3 and bits & 0x7F == 0x7F:
        return math.nan
    value = (1 + fraction if exponent else fraction) * Fraction(2) ** (max(exponent, 1) - form.bias)
    if not value:
        return -0.0 if negative else Fraction(0)
    return -value if negative else value


def encode(value: Number, form: Format, mode: str = "rn", saturate: bool = False, odd: bool = False) -> int:
    """The bits of a number rounded once: mode rn (ties to even), rna (ties away), rz, rm, rp."""
    if isinstance(value, float):
        if math.isnan(value):
            if form.nan is not None:
                return form.nan
            return form.sign - 1
        if value == 0:
            return form.sign if math.copysign(1, value) < 0 else 0
        sign = form.sign if value < 0 else 0
        if saturate or form.finite:
            return sign | encode(form.maximum(), form)
        return sign | ((1 << form.exponent_bits) - 1) << form.fraction_bits
    if not value:
        return 0
    negative, size = value < 0, abs(value)
    exponent = max(_floor_log2(size), 1 - form.bias)
    unit = Fraction(2) ** (exponent - form.fraction_bits)
    quotient = size / unit
    whole = quotient.numerator // quotient.denominator
    rest = quotient - whole
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
        "rm": negative and rest > 0,
        "rp": not negative and rest > 0,
    }[mode]
    size = (whole + up) * unit
    sign = form.sign if negative else 0
    if size > form.maximum():
        toward_zero = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
        if saturate or form.finite or toward_zero:
            return sign | encode(form.maximum(), form)
        return sign | ((1 << form.exponent_bits) - 1) << form.fraction_bits
    if not size:
        return sign
    exponent = max(_floor_log2(size), 1 - form.bias)
    steps = int(size / Fraction(2) ** (exponent - form.fraction_bits))
    return sign | (((exponent + form.bias - 1) << form.fraction_bits) + steps)


def _floor_log2(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= value else guess - 1
