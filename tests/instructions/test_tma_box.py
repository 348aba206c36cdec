"""Tensor copies: plans against what an H200 did, and against an element-by-element reading of the PTX ISA."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cute_kernels.emulator import tensor_map, tma_box, tma_reduce
from cute_kernels.emulator.tensor_map import TensorMap, TensorMapError
from cute_kernels.emulator.tma_box import BoxPlan, TensorCopyError
from tests.recorded import replay
from tests.recorded.tensor_copy_content import MEMORY, MEMORY_SEED, POISON, REGION_SEED, content
from tests.recorded.tensor_copy_kernels import REDUCE_OPS, REGION

BASE = 1 << 32  # where the tests pretend that a tensor's memory lies
SHARED = 2048  # shared address of the region in the recorded kernels

Bytes = NDArray[np.uint8]


def encoded(m: TensorMap) -> bytes:
    return tensor_map.encode(**vars(m))


def over(memory: Bytes) -> tma_box.View:
    """`memory` as global memory from BASE on; refuses a plan that leaves it."""

    def view(plan: BoxPlan) -> Bytes:
        low, high = plan.reach()
        assert low >= BASE
        assert high <= BASE + len(memory)
        return np.lib.stride_tricks.as_strided(memory[low - BASE :], plan.shape, plan.strides)

    return view


# --- against the recording ----------------------------------------------------------------------------------------


def replayed(record: dict[str, Any], arch: str) -> tuple[Bytes, int]:
    """Shared memory after a recorded load, or global memory after a store or reduction; and the bytes signalled."""
    descriptor, at = replay.encode(record["map"], BASE, arch), tuple(record["at"])
    if "flip" in record:
        number = int.from_bytes(descriptor, "little")
        for bit in record["flip"]:
            number ^= 1 << bit
        descriptor = number.to_bytes(128, "little")
    memory = content(record["content"], MEMORY, MEMORY_SEED).copy()
    offsets = tma_box.smem_offsets(descriptor, SHARED + record["smem"]) + record["smem"]
    if record["kind"] == "load":
        plan = tma_box.load_plan(descriptor, at)
        image = tma_box.load_image(plan, over(memory))
        region = np.full(REGION, POISON, np.uint8)
        region.reshape(-1, 16)[offsets // 16] = tma_box.to_shared(descriptor, image, SHARED + record["smem"])[
            1
        ]
        return region, plan.geometry.transaction_nbytes
    plan = tma_box.store_plan(descriptor, at)
    region = content(record["content"], REGION, REGION_SEED)
    image = region.reshape(-1, 16)[offsets // 16].reshape(-1)
    if record["kind"] == "store":
        tma_box.store_image(plan, image, over(memory))
    else:
        tma_reduce.reduce_image(plan, image, record["kind"], over(memory))
    return memory, 0


@pytest.mark.parametrize("kind", ["load", "store", "reduce"])
def test_recorded_copies(kind: str) -> None:
    head, records = replay.lines("tensor_copies.jsonl.gz")
    moved = trapped = 0
    for record in records:
        if kind != (record["kind"] if record["kind"] not in REDUCE_OPS else "reduce"):
            continue
        flips = set(record.get("flip", ()))
        if flips & {83, 84}:
            continue  # the swizzle atoms of newer architectures, which this one ignores
        if "digest" not in record:
            assert record["error"] in (715, 716)  # illegal instruction, misaligned address
            with pytest.raises((TensorCopyError, TensorMapError)):
                replayed(record, head["arch"])
            trapped += 1
            continue
        memory, signalled = replayed(record, head["arch"])
        assert hashlib.sha256(memory.tobytes()).hexdigest()[:16] == record["digest"], record
        assert signalled == record.get("signalled", 0), record
        moved += 1
    assert moved >= 30
    assert trapped >= 10


# --- against an element-by-element reference ----------------------------------------------------------------------


def elements(m: TensorMap, at: tuple[int, ...]) -> Iterator[tuple[int, ...] | None]:
    """Coordinates of what the box takes, in the image's order; None for what lies outside."""
    steps = (1, *m.element_strides[1:])
    ranges = [range(c, c + b, s) for c, b, s in zip(at, m.box, steps, strict=True)]
    for outermost_first in itertools.product(*reversed(ranges)):
        coordinates = outermost_first[::-1]
        inside = all(0 <= c < d for c, d in zip(coordinates, m.dims, strict=True))
        yield coordinates if inside else None


def element_bits(m: TensorMap, memory: Bytes, coordinates: tuple[int, ...]) -> int:
    offset = m.address - BASE + sum(c * s for c, s in zip(coordinates[1:], m.strides, strict=True))
    bit = offset * 8 + coordinates[0] * m.element.bits
    window = int.from_bytes(memory[bit // 8 : bit // 8 + 9].tobytes(), "little")
    return window >> bit % 8 & ((1 << m.element.bits) - 1)


def swizzled(address: int, mode: str) -> int:
    """A byte's shared address, from the tables of PTX ISA 5.5.7: line and 16-byte cell, xored."""
    line, cell = address >> 7, address >> 4 & 7
    atoms = {
        "32B": 1,
        "64B": 3,
        "128B": 7,
        "128B_atom_32B": 3,
        "128B_atom_32B_flip_8B": 3,
        "128B_atom_64B": 1,
    }
    scale = {"128B_atom_32B": 2, "128B_atom_32B_flip_8B": 2, "128B_atom_64B": 4}.get(mode, 1)
    cell ^= (line & atoms.get(mode, 0)) * scale
    byte = address & 15
    if mode == "128B_atom_32B_flip_8B" and line & 1:
        byte ^= 8
    return line << 7 | cell << 4 | byte


def slow_load(m: TensorMap, memory: Bytes, at: tuple[int, ...], smem: int, region: Bytes) -> None:
    """Writes what a load leaves in shared memory from address `smem` on, byte by byte, into region[address]."""
    bits, row = m.element.bits, 0
    span = tensor_map.SWIZZLE_SPAN[m.swizzle]
    nan = int.from_bytes(b"\xf7\x7f" * (bits // 16), "little") if m.oob_fill == "nan" else 0
    everything = list(elements(m, at))
    for row, first in enumerate(range(0, len(everything), m.box[0])):
        values = [
            nan if c is None else element_bits(m, memory, c) for c in everything[first : first + m.box[0]]
        ]
        if m.element.padded:
            groups = [values[i : i + 16] for i in range(0, len(values), 16)]
            packed = [
                sum(v << bits * i for i, v in enumerate(group)).to_bytes(16, "little") for group in groups
            ]
            data = b"".join(packed)
        else:
            data = sum(v << bits * i for i, v in enumerate(values)).to_bytes(
                len(values) * bits // 8, "little"
            )
        start = smem + row * (span or len(data))
        for i, byte in enumerate(data):
            if i % 16 < (2 * bits if m.element.padded else 16):
                region[swizzled(start + i, m.swizzle)] = byte


def random_map(rng: random.Random, swizzle: str) -> tuple[TensorMap, tuple[int, ...]]:
    """A map over less than 256 KiB whose swizzle is `swizzle`, and coordinates around its edges."""
    while True:
        dtype = rng.choice([d for d in tensor_map.DTYPES if not d.startswith("tf32")])
        element, rank = tensor_map.ELEMENT_TYPES[dtype], rng.randrange(1, 6)
        span = tensor_map.SWIZZLE_SPAN[swizzle] or 160
        unit = 128 if element.padded else 128 // element.bits
        inner = 128 if element.padded else rng.randrange(1, min(span // 16, 256 // unit) + 1) * unit
        box = (inner, *(rng.randrange(1, 5) for _ in range(rank - 1)))
        dims = (rng.randrange(1, 3) * unit * 2, *(rng.randrange(1, 5) for _ in range(rank - 1)))
        if element.bits >= 8:
            dims = (rng.randrange(1, 2 * inner), *dims[1:])
        strides, size = [], dims[0] * element.bits // 8
        for extent in dims[1:]:
            strides.append(-(-size // 32) * 32 + 32 * rng.randrange(2))
            size = strides[-1] * extent
        at = (rng.randrange(-2, 4) * unit, *(rng.randrange(-2, d + 1) for d in dims[1:]))
        steps = tuple(rng.choice((1, 1, rng.randrange(1, 9))) for _ in range(rank))
        m = TensorMap(
            *(dtype, BASE + 32 * rng.randrange(9), dims, tuple(strides), box, steps, "none", swizzle, "none"),
            "nan" if element.floating and rng.random() < 0.5 else "zero",
        )
        try:
            tensor_map.validate(m)
        except TensorMapError:
            continue
        return m, at


@pytest.mark.parametrize("swizzle", tensor_map.SWIZZLES)
def test_loads_element_by_element(swizzle: str) -> None:
    rng = random.Random(tensor_map.SWIZZLES.index(swizzle))
    memory = content("bytes", 1 << 18, 7)
    for _ in range(60):
        m, at = random_map(rng, swizzle)
        smem = 128 * rng.randrange(16)
        expected = np.full(1 << 17, POISON, np.uint8)
        slow_load(m, memory, at, smem, expected)
        data = encoded(m)
        image = tma_box.load_image(tma_box.load_plan(data, at), over(memory))
        offsets, chunks = tma_box.to_shared(data, image, smem)
        found = np.full(1 << 17, POISON, np.uint8)
        defined = tma_box.defined_bytes(data)
        found.reshape(-1, 16)[(smem + offsets) // 16, :defined] = chunks[:, :defined]
        assert np.array_equal(found, expected), (m, at, smem)


@pytest.mark.parametrize("swizzle", [s for s in tensor_map.SWIZZLES if "flip" not in s])
def test_stores_undo_loads(swizzle: str) -> None:
    """A store of what a load brought changes nothing, and one of other bytes changes the box, to 16 bytes."""
    rng = random.Random(tensor_map.SWIZZLES.index(swizzle))
    original = content("bytes", 1 << 18, 7)
    for _ in range(40):
        m, at = random_map(rng, swizzle)
        at = tuple(max(0, c) for c in at)
        if m.element.padded:
            with pytest.raises(TensorCopyError, match=m.dtype):
                tma_box.store_plan(encoded(m), at)
            continue
        wide = TensorMap(
            **(
                vars(m)
                | {"dims": (-(-m.dims[0] * m.element.bits // 128) * 128 // m.element.bits, *m.dims[1:])}
            )
        )
        memory, data = original.copy(), encoded(m)
        image = tma_box.load_image(tma_box.load_plan(encoded(wide), at), over(memory))
        tma_box.store_image(tma_box.store_plan(data, at), image, over(memory))
        assert np.array_equal(memory, original)
        tma_box.store_image(tma_box.store_plan(data, at), ~image, over(memory))
        touched = {c for c in elements(wide, at) if c is not None}
        unchanged = original.copy()
        for c in touched:
            bit = (m.address - BASE + sum(i * s for i, s in zip(c[1:], m.strides, strict=True))) * 8
            bit += c[0] * m.element.bits
            unchanged[bit // 8 : (bit + m.element.bits + 7) // 8] = 0
            memory[bit // 8 : (bit + m.element.bits + 7) // 8] = 0
        assert np.array_equal(memory, unchanged), (m, at)


# --- the plan's own promises --------------------------------------------------------------------------------------


def test_runs_and_reach() -> None:
    rng = random.Random(5)
    for _ in range(200):
        m, at = random_map(rng, "none")
        plan = tma_box.load_plan(encoded(m), at)
        touched = {
            m.address + sum(i * s for i, s in zip(c[1:], m.strides, strict=True)) + c[0] * m.element.bits // 8
            for c in elements(m, at)
            if c is not None
        }
        runs = plan.run_addresses().tolist()
        assert plan.empty == (not touched)
        assert (min(touched, default=0), len(runs)) == (plan.reach()[0], len(set(runs)))
        every = {a + i for a in runs for i in range(plan.run_nbytes)}
        assert touched <= every
        assert max(every, default=-1) + 1 == plan.reach()[1]


def test_this_process_memory() -> None:
    array = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    raw = np.zeros(array.nbytes + 16, np.uint8)
    start = -raw.ctypes.data % 16
    raw[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    held = raw[start : start + array.nbytes].view(np.uint16).reshape(64, 96)
    data = tensor_map.encode("u16", held.ctypes.data, (96, 64), (192,), (32, 8))
    image = tma_box.load_image(tma_box.load_plan(data, (64, 60)))
    assert np.array_equal(image.view(np.uint16).reshape(8, 32)[:4], array[60:, 64:])
    assert not image.view(np.uint16).reshape(8, 32)[4:].any()
    tma_box.store_image(tma_box.store_plan(data, (64, 60)), np.full(512, 0xEE, np.uint8))
    assert (held[60:, 64:] == 0xEEEE).all()
    assert np.array_equal(held[:60], array[:60])
    assert np.array_equal(held[60:, :64], array[60:, :64])


def test_padded_types_signal_packed_bytes() -> None:
    data = tensor_map.encode("b4x16_p64", BASE, (256, 64), (128,), (128, 8), swizzle="128B")
    g = tma_box.geometry(data)
    assert (g.box_nbytes, g.transaction_nbytes, tma_box.defined_bytes(data)) == (1024, 512, 8)
    data = tensor_map.encode("b6x16_p32", BASE, (256, 64), (192,), (128, 8))
    g = tma_box.geometry(data)
    assert (g.box_nbytes, g.transaction_nbytes, tma_box.defined_bytes(data)) == (1024, 768, 12)


@pytest.mark.parametrize(
    ("dtype", "at", "words"),
    [
        ("u32", (1, 0), ["4 bytes", "16 bytes"]),
        ("b4x16", (16, 0), ["8 bytes"]),
        ("b4x16_p64", (32, 0), ["multiple of 128"]),
        ("u32", (0,), ["1 coordinates", "rank 2"]),
    ],
)
def test_refused_coordinates(dtype: str, at: tuple[int, ...], words: list[str]) -> None:
    data = tensor_map.encode(dtype, BASE, (256, 64), (1024,), (128, 2))
    with pytest.raises(TensorCopyError) as refusal:
        tma_box.load_plan(data, at)
    assert all(word in str(refusal.value) for word in words)


def test_refused_shared_address_and_direction() -> None:
    data = tensor_map.encode("u32", BASE, (64, 64), (256,), (32, 8), swizzle="128B_atom_32B_flip_8B")
    with pytest.raises(TensorCopyError, match="multiples of 128"):
        tma_box.smem_offsets(data, 64)
    with pytest.raises(TensorCopyError, match="loads alone"):
        tma_box.store_plan(data, (0, 0))
    with pytest.raises(TensorCopyError, match="'mul'"):
        tma_reduce.check_reduction("mul", "u32")
    with pytest.raises(TensorCopyError, match="add of i64"):
        tma_reduce.check_reduction("add", "i64")


def test_reductions_at_their_edges() -> None:
    """What the recording's values do not meet: equal operands, zeros of both signs (PTX ISA, atom and min)."""

    def combined(
        operation: str, dtype: str, kind: type[np.generic], old: list[int], values: list[int]
    ) -> list[int]:
        memory, other = np.array(old, kind).view(np.uint8), np.array(values, kind).view(np.uint8)
        return tma_reduce.reduced(operation, dtype, memory, other).view(kind).tolist()

    top = 2**32 - 1
    assert combined("inc", "u32", np.uint32, [4, 5, 6, top, 0], [5, 5, 5, top, 0]) == [5, 0, 0, 0, 0]
    assert combined("dec", "u32", np.uint32, [0, 1, 5, 6, top], [5, 5, 5, 5, top]) == [5, 0, 4, 5, top - 1]
    for dtype in ("f16", "bf16"):
        zeros, turned = [0, 0x8000, 0, 0x8000], [0x8000, 0, 0, 0x8000]
        assert combined("min", dtype, np.uint16, zeros, turned) == [0x8000, 0x8000, 0, 0x8000]
        assert combined("max", dtype, np.uint16, zeros, turned) == [0, 0, 0, 0x8000]
