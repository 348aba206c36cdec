"""Number formats in rational arithmetic, slow and plain: the reference for what the emulator computes with NumPy."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
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


def is_nan(bits: int, form: Format) -> bool:
    value = decode(bits, form)
    return isinstance(value, float) and math.isnan(value)


def arithmetic(name: str, values: Sequence[Number], mode: str) -> Number:
    """The exact result: a rational, or what IEEE 754 says where an operand or the result is special."""
    if any(isinstance(v, float) and math.isnan(v) for v in values):
        return math.nan
    if name in ("add", "sub"):
        a, b = values[0], values[1]
        return _total(a, _negated(b) if name == "sub" else b, mode)
    if name == "fma":
        return _total(_product(values[0], values[1]), values[2], mode)
    if name == "mul":
        return _product(values[0], values[1])
    if name == "div":
        return _quotient(values[0], values[1])
    raise ValueError(name)


def _negated(v: Number) -> Number:
    if v == 0:
        return Fraction(0) if math.copysign(1, v) < 0 else -0.0
    return -v


def _sign_of(v: Number) -> float:
    return math.copysign(1.0, v) if isinstance(v, float) else (-1.0 if v < 0 else 1.0)


def _product(a: Number, b: Number) -> Number:
    sign = _sign_of(a) * _sign_of(b)
    if is_infinite(a) or is_infinite(b):
        return math.nan if a == 0 or b == 0 else sign * math.inf
    if a == 0 or b == 0:
        return -0.0 if sign < 0 else Fraction(0)
    return Fraction(a) * Fraction(b)


def _quotient(a: Number, b: Number) -> Number:
    sign = _sign_of(a) * _sign_of(b)
    if is_infinite(a):
        return math.nan if is_infinite(b) else sign * math.inf
    if b == 0:
        return math.nan if a == 0 else sign * math.inf
    if a == 0 or is_infinite(b):
        return -0.0 if sign < 0 else Fraction(0)
    return Fraction(a) / Fraction(b)


def _total(a: Number, b: Number, mode: str) -> Number:
    if isinstance(a, float) and math.isnan(a):
        return a
    if is_infinite(a) or is_infinite(b):
        if is_infinite(a) and is_infinite(b) and _sign_of(a) != _sign_of(b):
            return math.nan
        return a if is_infinite(a) else b
    exact = Fraction(a) + Fraction(b)
    if exact == 0:
        both = _sign_of(a) < 0 and _sign_of(b) < 0
        either = _sign_of(a) < 0 or _sign_of(b) < 0
        return -0.0 if both or (either and mode == "rm") else Fraction(0)
    return exact


def is_infinite(v: Number) -> bool:
    return isinstance(v, float) and math.isinf(v)


def samples(form: Format, seed: int = 0, count: int = 40) -> list[int]:
    """Bits: edges of the format, random ones, and numbers around 1 with few bits, which make ties."""
    f, top = form.fraction_bits, form.sign - 1
    one, infinity = form.bias << f, top - ((1 << f) - 1)
    edges = [
        0,
        1,
        3,
        (1 << f) - 1,
        1 << f,
        (1 << f) + 1,
        one - 1,
        one,
        one + 1,
        one + (1 << f - 1),
        infinity - 1,
    ]
    edges += [infinity, infinity + 1, top, one + (1 << f), one - (1 << f)]
    source = random.Random(f"{form} {seed}")
    rest = []
    for _ in range(count):
        kept = min(source.choice((1, 2, f // 2, f - 1, f)), f)
        fraction = source.getrandbits(kept) << f - kept
        exponent = max(
            0, min(2 * form.bias, form.bias + source.choice((0, 1, -1, f, -f, 2, source.randint(-40, 40))))
        )
        rest += [exponent << f | fraction, source.getrandbits(f + form.exponent_bits)]
    return [v | sign for v in edges for sign in (0, form.sign)] + [
        v | source.choice((0, form.sign)) for v in rest
    ]
