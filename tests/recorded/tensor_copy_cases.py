"""The tensor copies that record_tensor_copies.py runs: what to copy, where from and where to.

A case is a dict: kind ("load", "store" or a reduction), map (the driver's parameters as in tensor_maps.jsonl.gz, the
address counted from the start of the tensors' memory), at (coordinates), smem (offset of the box image), content (of
global and shared memory, see tensor_copy_content.py) and flip (bits of the descriptor to change, as a list).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tests.recorded.record_tensor_maps import BITS, FLOATS, SPANS
from tests.recorded.tensor_copy_content import MEMORY
from tests.recorded.tensor_copy_kernels import REDUCE_OPS

Case = dict[str, Any]
TF32_AND_FTZ = (10, 11, 12)


def case(
    kind: str, spec: list[Any], at: list[int], smem: int = 0, content: str = "bytes", **more: Any
) -> Case:
    return {"kind": kind, "map": spec, "at": at, "smem": smem, "content": content, **more}


def tiled(rng: random.Random, kind: str, dtype: int, content: str = "bytes") -> Case:
    """A random copy that the hardware should take, the box inside the tensor, across its edges or outside.

    Rows never overlap, so that a store's result does not depend on its order.
    """
    rank, swizzle, bits = rng.randrange(1, 6), rng.randrange(4), BITS[dtype]
    span = min(SPANS[swizzle] or 512, 256 * bits // 8)
    box, room = [rng.randrange(16, span + 1, 16) * 8 // bits], 8192
    pitch = SPANS[swizzle] or box[0] * bits // 8
    for _ in range(rank - 1):
        room = room // pitch if len(box) == 1 else room // box[-1]
        box.append(rng.randrange(1, max(1, min(room, 11)) + 1))
    dims = [rng.randrange(1, 2 * box[0] + 1), *(rng.randrange(1, 9) for _ in range(rank - 1))]
    steps = [1] * rank if rng.random() < 0.6 else [rng.randrange(1, 9) for _ in range(rank)]
    size, strides = -(-dims[0] * bits // 8 // 16) * 16, []
    for extent in dims[1:]:
        strides.append(size + 16 * rng.randrange(3))
        size = strides[-1] * extent
        if size > MEMORY // 2:
            return tiled(rng, kind, dtype, content)
    unit = 128 // bits  # elements in 16 bytes: coordinate 0 counts whole ones
    at = [rng.randrange(-2, dims[0] // unit + 2) * unit if rng.random() < 0.6 else 0]
    at += [
        rng.randrange(-e - 1, d + 2) if rng.random() < 0.2 else rng.randrange(d)
        for e, d in zip(box[1:], dims[1:], strict=True)
    ]
    if kind != "load":
        at = [max(0, c) for c in at]
    fill = rng.randrange(2) if dtype in FLOATS else 0
    spec = [
        dtype,
        rank,
        16 * rng.randrange(999),
        dims,
        strides,
        box,
        steps,
        0,
        swizzle,
        rng.randrange(4),
        fill,
    ]
    return case(kind, spec, at, 128 * rng.randrange(17), content)


def interleaved(rng: random.Random, kind: str) -> Case:
    dtype, rank, interleave = rng.randrange(13), rng.randrange(3, 6), rng.randrange(1, 3)
    slice_nbytes, swizzle = 16 * interleave, rng.randrange(4)
    unit = 128 // BITS[dtype]
    box = [unit * rng.randrange(1, 1 + max(1, 16 // unit)), *(rng.randrange(1, 4) for _ in range(rank - 1))]
    box[rank - 2] = rng.choice((1, 2, unit, 2 * unit, 3 * unit, 33))
    if rng.random() < 0.3:
        box[-1] = 1
    dims = [rng.randrange(1, 20), *(rng.randrange(1, 6) for _ in range(rank - 1))]
    dims[rank - 2] = rng.choice((1, 2, 5, unit, 3 * unit, 64))
    steps = [1] * rank if rng.random() < 0.6 else [rng.randrange(1, 4) for _ in range(rank)]
    size, strides = dims[0] * slice_nbytes, []
    for extent in dims[1:]:
        strides.append(size + slice_nbytes * rng.randrange(2))
        size = strides[-1] * extent
    at = [rng.randrange(-2, d + 1) if rng.random() < 0.5 else 0 for d in dims]
    if kind != "load":
        at = [max(0, c) for c in at]
    spec = [dtype, rank, 32 * rng.randrange(99), dims, strides, box, steps, interleave, swizzle, 0, 0]
    if size > MEMORY // 2:
        return interleaved(rng, kind)
    return case(kind, spec, at, 128 * rng.randrange(9))


def far(rng: random.Random) -> Iterator[Case]:
    """Coordinates and extents at the ends of their ranges."""
    for at in ((-(2**31), 0), (0, -(2**31)), (-4, -1), (-8, 0), (2**31 - 4, 0), (0, 2**31 - 1)):
        yield case("load", [2, 2, 0, [64, 32], [256], [8, 8], [1, 3], 0, 0, 0, 0], list(at))
    for extent in (2**31 - 4, 2**31, 2**31 + 4, 2**32 - 4, 2**32 - 1, 2**32):
        for dims in ([extent, 32], [64, extent], [extent, extent]):
            for at in ((-4, -1), (-8, 0), (0, -8), (-(2**31), 0), (0, -(2**31)), (8, 4)):
                yield case("load", [2, 2, 0, dims, [4096], [8, 8], [1, 1], 0, 0, 0, 0], list(at))
    for step in range(1, 9):
        place = [0, -rng.randrange(9)]
        yield case("load", [2, 2, 0, [8, 40], [256], [4, 31], [1, step], 0, 0, 0, 0], place)


def trapped() -> Iterator[Case]:
    """What the hardware should not take: addresses and coordinates that are not aligned, negative ones in a store."""
    spec = [2, 2, 0, [64, 32], [256], [8, 4], [1, 1], 0, 0, 0, 0]
    for at in ([1, 0], [2, 0], [-2, 0], [3, 40]):
        yield case("load", spec, at)
        yield case("store", spec, at)
    for at in ([-4, 0], [0, -1], [-400, -400]):
        yield case("store", spec, at)
        yield case("add", spec, at)
    for offset in (4, 16, 32, 64):
        yield case("load", spec, [0, 0], offset)
        yield case("store", spec, [0, 0], offset)


def altered() -> Iterator[Case]:
    """Descriptors with bits that the driver leaves clear but others set, and with the driver's own half altered."""
    spec = [2, 2, 64, [64, 32], [256], [8, 4], [1, 1], 0, 0, 0, 0]
    swizzled = [*spec[:5], [32, 8], [1, 1], 0, 3, 2, 0]
    for flip in ([65], [85], [65, 85], [64], [83], [84], [512, 700, 1023], [580], [584, 586]):
        for m in (spec, swizzled):
            yield case("load", m, [4, 3], 128, flip=flip)
            yield case("store", m, [4, 3], 128, flip=flip)


def cases(seed: int = 20261120) -> list[Case]:
    rng = random.Random(seed)
    found: list[Case] = []
    for i in range(390):
        found.append(tiled(rng, "load", i % 13))
    for i in range(60):
        found.append(tiled(rng, "load", TF32_AND_FTZ[i % 3], "floats"))
    for i in range(156):
        found.append(tiled(rng, "store", i % 13))
    for i in range(30):
        found.append(tiled(rng, "store", TF32_AND_FTZ[i % 3], "floats"))
    for _ in range(120):
        found.append(interleaved(rng, "load"))
    for _ in range(30):
        found.append(interleaved(rng, "store"))
    found += [*far(rng), *altered()]
    for op in REDUCE_OPS:
        for dtype in range(13):
            found.append(reduction(rng, op, dtype))
    found += trapped()
    return found


def reduction(rng: random.Random, op: str, dtype: int) -> Case:
    """A reduction of a box that is inside the tensor save for a part of its last row."""
    row = 128 * 8 // BITS[dtype]
    spec = [dtype, 2, 0, [row - rng.randrange(row // 2), 60], [128], [row, 64], [1, 1], 0, 3, 0, 0]
    return case(op, spec, [0, 2], 1024, "floats" if dtype in FLOATS else "bytes")
