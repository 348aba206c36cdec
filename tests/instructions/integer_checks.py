"""Compares generated code with a function of Python integers, over edge values and random ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.instructions import alu_harness

LETTERS = {16: "h", 32: "r", 64: "d"}


def edges(width: int) -> list[int]:
    top = 1 << width
    values = {
        0,
        1,
        2,
        7,
        8,
        31,
        32,
        255,
        0x7F,
        0x80,
        top // 2 - 1,
        top // 2,
        top // 2 + 1,
        top - 1,
        top - 2,
        top // 3,
    }
    return sorted(v % top for v in values)


def samples(width: int, seed: int = 0, count: int = 40) -> list[int]:
    source = random.Random(f"{width} {seed}")
    return edges(width) + [source.getrandbits(source.randint(1, width)) for _ in range(count)]


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (value >> (width - 1) << width)


def pairs(width: int) -> list[tuple[int, int]]:
    chosen = list(itertools.product(edges(width), edges(width)))
    return chosen + list(zip(samples(width, 1, 200), samples(width, 2, 200), strict=True))


def check(
    body: str, rows: Sequence[tuple[int, ...]], sources: str, expected: Callable[..., Any], result: str
) -> None:
    """`body` computes `result` from registers like "%r1 %r2"; `expected` computes it from Python integers."""
    names = sources.split()
    values = {name: np.array([row[i] for row in rows], np.uint64) for i, name in enumerate(names)}
    found = alu_harness.run(body, values)[result]
    for row, got in zip(rows, found, strict=True):
        wanted = expected(*row)
        width = {"h": 16, "r": 32, "d": 64, "o": 8}.get(result[1])
        if width:
            wanted &= (1 << width) - 1
        assert int(got) == wanted, (
            f"{body} of {[hex(v) for v in row]} gives {int(got):#x}, not {int(wanted):#x}"
        )
