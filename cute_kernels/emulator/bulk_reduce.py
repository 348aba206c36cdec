"""The reductions of cp.reduce.async.bulk: element-wise, in the type of the elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")

_INTEGERS = {
    "u32": "u4",
    "s32": "i4",
    "i32": "i4",
    "u64": "u8",
    "s64": "i8",
    "i64": "i8",
    "b32": "u4",
    "b64": "u8",
}
_FLOATS = {"f16": "f2", "f32": "f4", "f64": "f8"}
_FUNCTIONS = {
    "add": np.add,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def into(target: NDArray[np.uint8], source: NDArray[np.uint8], dtype: str, operation: str) -> None:
    """target = target (operation) source, element by element; both are bytes of the same shape, last axis adjacent."""
    if dtype == "bf16":
        old = _widen(np.ascontiguousarray(target).view(np.uint16))
        new = _widen(np.ascontiguousarray(source).view(np.uint16))
        target[...] = _round_bf16(_combine(old, new, operation)).view(np.uint8)
        return
    element = np.dtype(_INTEGERS.get(dtype) or _FLOATS.get(dtype) or "")
    old, new = np.ascontiguousarray(target).view(element), np.ascontiguousarray(source).view(element)
    target[...] = np.ascontiguousarray(_combine(old, new, operation)).view(np.uint8)


def _widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _round_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _combine(old: NDArray[Any], new: NDArray[Any], operation: str) -> NDArray[Any]:
    if operation == "inc":
        return np.where(old >= new, 0, old + old.dtype.type(1)).astype(old.dtype)
    if operation == "dec":
        return np.where((old == 0) | (old > new), new, old - old.dtype.type(1)).astype(old.dtype)
    result: NDArray[Any] = _FUNCTIONS[operation](old, new)
    return result
