"""Inputs for the forms of alu_forms, from a seed, so that a recording holds results alone.

NumPy promises that RandomState's streams stay the same.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

COUNT = 512  # inputs of a form

_FLOATS = {"f16": (16, 10), "bf16": (16, 7), "f32": (32, 23), "f64": (64, 52)}


def _integer_edges(width: int) -> list[int]:
    top = 1 << width
    values = [
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        255,
        256,
        top // 2 - 1,
        top // 2,
        top // 2 + 1,
        top - 1,
        top - 2,
        top - 128,
        top - 129,
    ]
    return [
        v % top
        for v in [*values, *(1 << i for i in range(4, width, 7)), 0x8000, 0x7FFF, 0xFFFF, 0x10000, 127, 128]
    ]


def _float_edges(type: str) -> list[int]:
    width, fraction = _FLOATS[type]
    one, infinity = (
        ((1 << width - 2 - fraction) - 1) << fraction,
        ((1 << width - 1 - fraction) - 1) << fraction,
    )
    positive = [
        0, 1, 2, (1 << fraction) - 1, 1 << fraction, (1 << fraction) + 1, one, one + 1, one - 1, infinity - 1,
        infinity, infinity + 1, infinity | (1 << fraction - 1), (1 << width - 1) - 1, one + (1 << fraction),
        one - (1 << fraction), one + (3 << fraction - 1), one | 1 << fraction - 1, one | 3 << fraction - 2,
        one + (7 << fraction), one + (8 << fraction), 1 << fraction - 1,
    ]  # fmt: skip
    return [v | sign for v in positive for sign in (0, 1 << width - 1)]


def _floats(type: str, random: np.random.RandomState) -> NDArray[np.uint64]:
    """Edges, any bits, and numbers near 1 or near the integers' bounds whose short fractions give ties."""
    width, fraction = _FLOATS[type]
    bias = (1 << width - 2 - fraction) - 1
    edges = np.array(_float_edges(type), np.uint64)
    edge = edges[random.randint(0, len(edges), COUNT)]
    anything = _random_bits(width, random)
    near = random.randint(-6, 7, COUNT)
    far = random.randint(max(-40, 1 - bias), min(66, bias) + 1, COUNT)
    kept = np.array([2, fraction // 2, fraction - 1, fraction])[random.randint(0, 4, COUNT)].astype(np.uint64)
    bits = np.uint64((1 << fraction) - 1) & ~((np.uint64(1) << (np.uint64(fraction) - kept)) - np.uint64(1))
    sign = random.randint(0, 2, COUNT).astype(np.uint64) << np.uint64(width - 1)
    choice = random.randint(0, 4, COUNT)
    exponent = (np.where(choice == 2, near, far) + bias).astype(np.uint64) << np.uint64(fraction)
    return np.where(choice == 0, anything, np.where(choice == 1, edge, sign | exponent | (anything & bits)))


def _random_bits(width: int, random: np.random.RandomState) -> NDArray[np.uint64]:
    words = [
        random.randint(0, 1 << 16, COUNT).astype(np.uint64) << np.uint64(16 * i)
        for i in range(-(-width // 16))
    ]
    return np.bitwise_or.reduce(words)


def values(kind: str, random: np.random.RandomState) -> NDArray[np.uint64]:
    """COUNT inputs of a kind, as the low bits of uint64."""
    if kind == "pred":
        return random.randint(0, 2, COUNT).astype(np.uint64)
    if kind == "amount":  # bit counts: mostly small ones
        wild = _random_bits(32, random)
        return np.where(
            random.randint(0, 8, COUNT) == 0, wild, random.randint(0, 70, COUNT).astype(np.uint64)
        )
    if kind == "selector":
        return _random_bits(16, random)
    if kind == "angle32":
        angles = random.uniform(-20.0, 20.0, COUNT).astype(np.float32)
        return (
            np.where(random.randint(0, 8, COUNT) == 0, np.float32(0), angles)
            .view(np.uint32)
            .astype(np.uint64)
        )
    if kind == "small32":  # around what eight bits hold
        numbers = np.ldexp(random.uniform(-1, 1, COUNT), random.randint(-20, 20, COUNT)).astype(np.float32)
        halfway = numbers.view(np.uint32) & np.uint32(0xFFF80000)
        chosen = np.where(random.randint(0, 2, COUNT) == 0, halfway, numbers.view(np.uint32)).astype(
            np.uint64
        )
        return np.where(random.randint(0, 4, COUNT) == 0, _floats("f32", random), chosen)
    if kind in ("f16x2", "bf16x2", "f32x2"):
        scalar = kind[:-2]
        shift = np.uint64(_FLOATS[scalar][0])
        return _floats(scalar, random) | _floats(scalar, random) << shift
    if kind in _FLOATS:
        return _floats(kind, random)
    width = int(kind[1:])
    edges = np.array(_integer_edges(width), np.uint64)[random.randint(0, len(_integer_edges(width)), COUNT)]
    small = random.randint(0, 300, COUNT).astype(np.uint64)
    choice = random.randint(0, 4, COUNT)
    return np.where(choice == 0, small, np.where(choice == 1, _random_bits(width, random), edges))


def inputs(name: str, sources: tuple[str, ...], salt: int = 0) -> list[NDArray[np.uint64]]:
    """One array of COUNT values a source of the form called `name`; each salt gives others."""
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ salt)
    return [values(kind, random) for kind in sources]
