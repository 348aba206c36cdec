"""The warp-wide exchanges against lane-by-lane loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from cute_kernels.emulator import warp_ops
from cute_kernels.emulator.ptx import PtxError

MASKS = [0xFFFFFFFF, 0x1, 0x80000000, 0x55555555, 0x0000FFFF, 0x00FF0FF1]


def lanes_of(mask: int) -> NDArray[np.bool_]:
    return np.array([bool(mask >> i & 1) for i in range(32)])


def values(dtype: type[np.generic] = np.uint32, seed: int = 0) -> NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 1 << 32, 32).astype(dtype)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """PTX ISA, shfl.sync: the source lane and whether it is within the segment."""
    bval, cval, mask = b & 31, c & 31, c >> 8 & 31
    max_lane = (lane & mask) | (cval & ~mask & 31)
    if mode == "up":
        source, valid = lane - bval, lane - bval >= max_lane
    elif mode == "down":
        source, valid = lane + bval, lane + bval <= max_lane
    elif mode == "bfly":
        source, valid = lane ^ bval, (lane ^ bval) <= max_lane
    else:
        source = (lane & mask) | (bval & ~mask & 31)
        valid = source <= max_lane
    return (source if valid else lane), valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("active", MASKS)
def test_shfl(mode: str, active: int) -> None:
    source = random.Random(f"{mode} {active}")
    mask, given = lanes_of(active), values()
    controls = [
        0x1F,
        0,
        0x181F,
        0x1C1F,
        0x1E1F,
        0x1C00,
        0x0003,
    ]  # clamp and segments as __shfl_*_sync makes them
    for c in controls:
        for uniform in (True, False):
            b = [source.randrange(40) for _ in range(32)]
            b = [b[0]] * 32 if uniform else b
            found, valid = warp_ops.shfl(mode, given, np.array(b, np.uint32), np.full(32, c, np.uint32), mask)
            assert found.dtype == np.uint32
            for lane in np.flatnonzero(mask):
                wanted, inside = shuffled(mode, int(lane), b[lane], c)
                assert bool(valid[lane]) == inside
                if mask[wanted]:
                    assert found[lane] == given[wanted]
                else:
                    assert found[lane] == warp_ops.GARBAGE & 0xFFFFFFFF


def test_shfl_refuses_other_modes() -> None:
    zero = np.zeros(32, np.uint32)
    with pytest.raises(PtxError, match="sideways"):
        warp_ops.shfl("sideways", zero, zero, zero, lanes_of(0xFFFFFFFF))


@pytest.mark.parametrize("active", MASKS)
@pytest.mark.parametrize("votes", [0, 0xFFFFFFFF, 0x55555555, 0x1, 0x00FF0FF1, 0x7FFFFFFF])
def test_vote(votes: int, active: int) -> None:
    mask, given = lanes_of(active), lanes_of(votes)
    inside = votes & active
    assert (warp_ops.vote("ballot", given, mask) == inside).all()
    assert (warp_ops.vote("all", given, mask) == (inside == active)).all()
    assert (warp_ops.vote("any", given, mask) == (inside != 0)).all()
    assert (warp_ops.vote("uni", given, mask) == (inside in (0, active))).all()
    assert warp_ops.vote("all", given, mask).dtype == np.bool_
    assert warp_ops.vote("ballot", given, mask).dtype == np.uint32
    with pytest.raises(PtxError, match="most"):
        warp_ops.vote("most", given, mask)


@pytest.mark.parametrize("active", MASKS)
@pytest.mark.parametrize("kinds", [1, 2, 5, 32])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_match(dtype: type[np.generic], kinds: int, active: int) -> None:
    mask = lanes_of(active)
    given = (
        np.random.default_rng(kinds).integers(0, kinds, 32) + (1 << 40 if dtype == np.uint64 else 0)
    ).astype(dtype)
    lanes = np.flatnonzero(mask)
    found, _ = warp_ops.match("any", given, mask)
    for lane in lanes:
        assert found[lane] == sum(1 << int(other) for other in lanes if given[other] == given[lane])
    found, same = warp_ops.match("all", given, mask)
    agree = len({int(given[lane]) for lane in lanes}) == 1
    assert (same[mask] == agree).all()
    assert (found[mask] == (active if agree else 0)).all()


@pytest.mark.parametrize("active", MASKS)
def test_redux_of_integers(active: int) -> None:
    mask, given = lanes_of(active), values()
    taken = [int(v) for v in given[mask]]
    signed = [v - (v >> 31 << 32) for v in taken]
    folded = {"and": 0xFFFFFFFF, "or": 0, "xor": 0}
    for v in taken:
        folded = {"and": folded["and"] & v, "or": folded["or"] | v, "xor": folded["xor"] ^ v}
    expected = {
        ("add", "u32"): sum(taken),
        ("add", "s32"): sum(taken),
        ("min", "u32"): min(taken),
        ("max", "u32"): max(taken),
        ("min", "s32"): min(signed),
        ("max", "s32"): max(signed),
    }
    expected |= {(name, "b32"): value for name, value in folded.items()}
    for modifiers, value in expected.items():
        found = warp_ops.redux(modifiers, given, mask)
        assert found.dtype == np.uint32
        assert (found == value % (1 << 32)).all(), modifiers


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", ["min", "max"])
def test_redux_of_floats(name: str, magnitude: bool, strict: bool) -> None:
    given = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    given[3], given[9] = -0.0, 0.0
    modifiers = (name, *(["abs"] if magnitude else []), *(["NaN"] if strict else []), "f32")
    for nans in (0, 1, 32):
        given[:nans] = np.nan
        for active in MASKS:
            mask = lanes_of(active)
            taken = [abs(float(v)) if magnitude else float(v) for v in given[mask]]
            numbers = [v for v in taken if not math.isnan(v)]
            found = warp_ops.redux(modifiers, given.view(np.uint32), mask).view(np.float32)
            if not numbers or (strict and len(numbers) < len(taken)):
                assert (found.view(np.uint32) == 0x7FFFFFFF).all()
            else:
                assert (found == np.float32((min if name == "min" else max)(numbers))).all()


def test_redux_orders_zeros() -> None:
    zeros = np.where(np.arange(32) % 2, -0.0, 0.0).astype(np.float32).view(np.uint32)
    everyone = lanes_of(0xFFFFFFFF)
    assert (warp_ops.redux(("min", "f32"), zeros, everyone) == 0x80000000).all()
    assert (warp_ops.redux(("max", "f32"), zeros, everyone) == 0).all()


@pytest.mark.parametrize(
    "modifiers", [("mul", "u32"), ("add", "f32"), ("and", "u32"), ("add", "abs", "s32"), ("min", "f64")]
)
def test_redux_refuses_other_forms(modifiers: tuple[str, ...]) -> None:
    with pytest.raises(PtxError, match=".".join(modifiers)):
        warp_ops.redux(modifiers, values(), lanes_of(1))
