"""Reads the recordings of tensor maps and tensor copies back, for the tests that compare with them."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cute_kernels.emulator import tensor_map

HERE = pathlib.Path(__file__).parent


def lines(name: str) -> tuple[dict[str, str], list[Any]]:
    """What machine a recording is of, and its records."""
    with gzip.open(HERE / name, "rt") as file:
        head, *records = [json.loads(line) for line in file]
    return head, records


def encode(spec: Sequence[Any], base: int = 0, arch: str | None = None) -> bytes:
    """tensor_map.encode of the driver's parameters, enumerations as its numbers, `base` added to the address."""
    dtype, rank, address, dims, strides, box, element_strides, interleave, swizzle, l2_promotion, oob_fill = (
        spec
    )
    return tensor_map.encode(
        _name(tensor_map.DTYPES, dtype),
        address + base,
        tuple(dims[:rank]),
        tuple(strides[: max(rank - 1, 0)]),
        tuple(box[:rank]),
        tuple(element_strides[:rank]),
        _name(tensor_map.INTERLEAVES, interleave),
        _name(tensor_map.SWIZZLES, swizzle),
        _name(tensor_map.L2_PROMOTIONS, l2_promotion),
        _name(tensor_map.OOB_FILLS, oob_fill),
        arch=arch,
    )


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"number {number}"
