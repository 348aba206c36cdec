"""The arithmetic of cp.reduce.async.bulk and .tensor, of red.async and of atomics, element by element.

Which operation takes which type, what becomes of NaN and when subnormals are flushed is what an H200 does
(tests/recorded/tensor_copies.jsonl.gz and machine.jsonl.gz). It differs from the table in the PTX ISA in taking f64
additions, and from its prose in that additions of f32 keep subnormals: those of f32_ftz and tf32_ftz flush them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.tma_box import BoxPlan, Bytes, TensorCopyError, View, process_memory

_INTEGERS: dict[str, Any] = {"u32": np.uint32, "i32": np.int32, "u64": np.uint64, "i64": np.int64}
_HALVES = ("f16", "bf16")
_SINGLES = {"f32": False, "f32_ftz": True, "tf32": False, "tf32_ftz": True}  # whether subnormals are flushed
REDUCTIONS: dict[str, tuple[str, ...]] = {
    "add": ("u32", "i32", "u64", *_HALVES, *_SINGLES, "f64"),
    "min": ("u32", "i32", "u64", "i64", *_HALVES),
    "max": ("u32", "i32", "u64", "i64", *_HALVES),
    "inc": ("u32",),
    "dec": ("u32",),
    "and": ("u32", "i32", "u64"),
    "or": ("u32", "i32", "u64"),
    "xor": ("u32", "i32", "u64"),
}


def reduce_image(plan: BoxPlan, image: Bytes, operation: str, view: View = process_memory) -> None:
    """Combines the in-bounds part of an unswizzled image, uint8 [box_nbytes], into global memory.

    plan: from store_plan. Raises TensorCopyError, with nothing written, for an operation that the type does not have.
    """
    g = plan.geometry
    check_reduction(operation, g.tensor_map.dtype)
    if not plan.empty:
        memory = view(plan)
        memory[...] = reduced(operation, g.tensor_map.dtype, memory, plan.of_image(image))


def check_reduction(operation: str, dtype: str) -> None:
    """Raises TensorCopyError unless the hardware reduces elements of this type with this operation."""
    if operation not in REDUCTIONS:
        raise TensorCopyError(f"reduction {operation!r}; choose one of {', '.join(REDUCTIONS)}")
    if dtype not in REDUCTIONS[operation]:
        raise TensorCopyError(
            f"reduction {operation} of {dtype}, which traps; it takes {', '.join(REDUCTIONS[operation])}"
        )


def reduced(operation: str, dtype: str, memory: Bytes, values: Bytes) -> Bytes:
    """What `memory` becomes: uint8 of one shape, whose last axis holds whole elements of `dtype`.

    inc counts up to the value and then wraps to 0, dec down to 0 and then wraps to the value; the order of
    minima and maxima puts -0 below +0, and a NaN gives way to a number.
    """
    check_reduction(operation, dtype)
    memory, values = np.ascontiguousarray(memory), np.ascontiguousarray(values)
    with np.errstate(all="ignore"):
        if dtype in _INTEGERS:
            kind = _INTEGERS[dtype]
            result = _INTEGER[operation](memory.view(kind), values.view(kind)).astype(kind)
        elif operation == "add":
            result = _added(dtype, memory, values)
        else:
            result = _extreme(operation, dtype, memory.view(np.uint16), values.view(np.uint16))
    return result.view(np.uint8)


_INTEGER: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "min": np.minimum,
    "max": np.maximum,
    "inc": lambda a, b: np.where(a >= b, 0, a + np.uint32(1)),
    "dec": lambda a, b: np.where((a == 0) | (a > b), b, a - np.uint32(1)),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def _added(dtype: str, memory: Bytes, values: Bytes) -> NDArray[Any]:
    if dtype == "f64":
        x, y = memory.view(np.float64), values.view(np.float64)
        doubles = (x + y).view(np.uint64)  # a NaN operand stays as it is, a signalling one too
        return np.where(np.isnan(x), x.view(np.uint64), np.where(np.isnan(y), y.view(np.uint64), doubles))
    if dtype in _HALVES:
        a, b = _widened(dtype, memory.view(np.uint16)), _widened(dtype, values.view(np.uint16))
        return _narrowed(dtype, a + b)
    a, b = memory.view(np.float32), values.view(np.float32)
    if _SINGLES[dtype]:
        a, b = _flushed(a), _flushed(b)
    total = a + b
    if _SINGLES[dtype]:
        total = _flushed(total)
    return np.where(np.isnan(total), np.uint32(0x7FFFFFFF), total.view(np.uint32))


def _extreme(operation: str, dtype: str, a: NDArray[np.uint16], b: NDArray[np.uint16]) -> NDArray[np.uint16]:
    x, y = _widened(dtype, a), _widened(dtype, b)
    below = (y < x) | (y == x) & (b >> 15 > a >> 15)
    chosen = np.where(below if operation == "min" else ~below, b, a)
    chosen = np.where(np.isnan(x), b, np.where(np.isnan(y), a, chosen))
    return np.where(np.isnan(x) & np.isnan(y), np.uint16(0x7FFF), chosen)


def _widened(dtype: str, halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    if dtype == "f16":
        return halves.view(np.float16).astype(np.float32)
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _narrowed(dtype: str, sums: NDArray[np.float32]) -> NDArray[np.uint16]:
    """To the nearest, ties to even. That the sums were rounded once already does no harm: 24 bits >= 2 * 11 + 2."""
    if dtype == "f16":
        narrow = sums.astype(np.float16).view(np.uint16)
    else:
        words = sums.view(np.uint32)
        narrow = (
            words + np.uint32(0x7FFF) + (words >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
        ).astype(np.uint16)
    return np.where(np.isnan(sums), np.uint16(0x7FFF), narrow)


def _flushed(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    tiny = np.abs(numbers) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), numbers), numbers)
