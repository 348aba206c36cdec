"""What the lanes of a warp compute together: shfl, vote, match, redux. Pure functions on arrays of 32 lanes.

`active` is bool[32], the lanes that execute. Results are valid in active lanes; what the ISA leaves undefined (a value
fetched from a lane that does not take part) is GARBAGE, so that nobody relies on it.
Semantics: PTX ISA, shfl.sync, vote.sync, match.sync, redux.sync.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.float_ops import NAN_F32, float_max, float_max_nan, float_min, float_min_nan
from cute_kernels.emulator.ptx_types import PtxError

Lanes = NDArray[Any]
Bools = NDArray[np.bool_]

LANE = np.arange(32, dtype=np.int64)
GARBAGE = 0xFBADFBADFBADFBAD
_BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)


def bits_of(mask: Bools) -> int:
    """bool[32] as a 32-bit integer, lane 0 in bit 0."""
    return int(_BIT[mask].sum())


def shfl(mode: str, values: Lanes, b: Lanes, c: Lanes, active: Bools) -> tuple[Lanes, Bools]:
    """Fetch each lane's value from another lane. mode: "up", "down", "bfly" or "idx"; b, c: uint32[32].

    Returns the values and whether the source lay within the segment that c describes; where it did not, a lane
    keeps its own value.
    """
    distance, clamp, segment = (np.asarray(v, np.int64) for v in (b & 31, c & 31, c >> np.uint32(8) & 31))
    last = (LANE & segment) | (clamp & ~segment)
    if mode == "up":
        source = LANE - distance
        valid = source >= last
    elif mode in ("down", "bfly", "idx"):
        source = {
            "down": LANE + distance,
            "bfly": LANE ^ distance,
            "idx": (LANE & segment) | (distance & ~segment),
        }[mode]
        valid = source <= last
    else:
        raise PtxError(f"shfl mode .{mode} is not supported (supported: up, down, bfly, idx)")
    source = np.where(valid, source, LANE)
    fetched = values[source]
    if not active.all():
        garbage = values.dtype.type(GARBAGE & ((1 << 8 * values.itemsize) - 1))
        fetched = np.where(active[source], fetched, garbage)
    return fetched, valid


def vote(mode: str, values: Bools, active: Bools) -> Lanes:
    """mode "all", "any", "uni" give bool[32], "ballot" gives uint32[32]; inactive lanes do not vote."""
    votes = values[active]
    if mode == "ballot":
        return np.full(32, bits_of(values & active), np.uint32)
    if mode == "all":
        return np.full(32, votes.all())
    if mode == "any":
        return np.full(32, votes.any())
    if mode == "uni":
        return np.full(32, votes.all() or not votes.any())
    raise PtxError(f"vote mode .{mode} is not supported (supported: all, any, uni, ballot)")


def match(mode: str, values: Lanes, active: Bools) -> tuple[Lanes, Bools]:
    """Which active lanes hold the same value, as uint32[32] masks, and whether all do.

    mode "any": each lane gets the mask of the lanes equal to it. "all": the mask of all lanes if every one holds the
    same value, else 0.
    """
    equal = (values[:, None] == values[None, :]) & active
    same = np.full(32, bool(equal[active][:, active].all()))
    if mode == "any":
        return np.where(equal, _BIT, np.uint32(0)).sum(-1, dtype=np.uint32), same
    if mode == "all":
        return np.full(32, bits_of(active) if same[0] else 0, np.uint32), same
    raise PtxError(f"match mode .{mode} is not supported (supported: any, all)")


_INTEGER_REDUCTIONS: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}
_BITWISE_REDUCTIONS: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def redux(modifiers: Sequence[str], values: Lanes, active: Bools) -> Lanes:
    """Reduce uint32[32] over the active lanes; modifiers are those after .sync: ("add", "s32"), ("max", "NaN", "f32").

    Returns uint32[32], the same in every lane.
    """
    operation, *flags, type = modifiers
    taken = values[active]
    if type in ("u32", "s32") and operation in _INTEGER_REDUCTIONS and not flags:
        numbers = taken.view(np.int32) if type == "s32" else taken
        total = _INTEGER_REDUCTIONS[operation].reduce(numbers, dtype=numbers.dtype)
    elif type == "b32" and operation in _BITWISE_REDUCTIONS and not flags:
        total = _BITWISE_REDUCTIONS[operation].reduce(taken)
    elif type == "f32" and operation in ("min", "max") and set(flags) <= {"abs", "NaN"}:
        total = _reduce_f32(
            operation, "NaN" in flags, np.abs(taken.view(np.float32)) if "abs" in flags else taken
        )
    else:
        raise PtxError(f"redux.sync.{'.'.join(modifiers)} is not supported")
    return np.full(32, np.asarray(total).view(np.uint32), np.uint32)


def _reduce_f32(operation: str, strict: bool, values: Lanes) -> Lanes:
    functions: dict[tuple[str, bool], Callable[[Lanes, Lanes], Lanes]] = {
        ("min", False): float_min,
        ("max", False): float_max,
        ("min", True): float_min_nan,
        ("max", True): float_max_nan,
    }
    numbers = values.view(np.float32)
    total = numbers[:1]
    for i in range(1, len(numbers)):
        total = functions[operation, strict](total, numbers[i : i + 1])
    return np.where(np.isnan(total), NAN_F32, total)[0]
