"""Records what cuTensorMapEncodeTiled answers, on a machine with a GPU of sm_90 or newer.

    python -m tests.recorded.record_tensor_maps DIRECTORY

writes DIRECTORY/tensor_maps.jsonl.gz: a line that says on what GPU, driver and CUDA version, then one line a call,
[dtype, rank, address, dims, strides, box, element strides, interleave, swizzle, L2 promotion, fill, CUresult, hex],
all enumerations as the driver's numbers, `hex` the 128 bytes without trailing zeros, or "" for a refusal.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tests.recorded.cuda_driver import Driver

Spec = list[Any]
DTYPE, RANK, ADDRESS, DIMS, STRIDES, BOX, ELEMENT_STRIDES, INTERLEAVE, SWIZZLE, L2, FILL = range(11)

BITS = (
    8,
    16,
    32,
    32,
    64,
    64,
    16,
    32,
    64,
    16,
    32,
    32,
    32,
    4,
    4,
    6,
)  # of an element of each CUtensorMapDataType
FLOATS = (6, 7, 8, 9, 10, 11, 12)
SPANS = (0, 32, 64, 128, 128, 128, 128)  # of each CUtensorMapSwizzle
EDGES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 48, 64, 127, 128, 129, 192, 255, 256, 257, 1024, 4096)
LARGE = (
    2**31,
    2**32 - 16,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**39,
    2**40 - 16,
    2**40,
    2**56,
    2**57 - 16,
    2**57,
    2**63,
)


def spread(rng: random.Random, most: int) -> int:
    """A number of 1 to `most`, any length in bits as likely as another."""
    return min(most, 1 + rng.getrandbits(rng.randrange(most.bit_length()) + 1))


def lawful(rng: random.Random, dtypes: range) -> Spec:
    """Parameters that the documentation allows."""
    dtype, rank = rng.choice(dtypes), rng.randrange(1, 6)
    interleave = rng.choice((0, 0, 0, 1, 2)) if rank >= 3 and BITS[dtype] >= 8 else 0
    swizzle = 1 if interleave == 2 else rng.randrange(4 if dtypes.stop <= 13 else 7)
    unit = 32 if interleave == 2 or dtype >= 14 else 16
    span = min(SPANS[swizzle] if SPANS[swizzle] and not interleave else 4096, 256 * BITS[dtype] // 8)
    inner = 128 if dtype >= 14 else rng.randrange(16, span + 1, 16) * 8 // BITS[dtype]
    box, room = [inner], 230_000 * 8 // (inner * BITS[dtype])
    for _ in range(rank - 1):
        box.append(spread(rng, max(1, min(256, room))))
        room //= box[-1]
    dims = [spread(rng, 2**32) for _ in range(rank)]
    multiple = 128 if dtype >= 14 else 2 if dtype == 13 else 1
    dims[0] = max(dims[0] // multiple, 1) * multiple
    return [
        dtype,
        rank,
        rng.getrandbits(rng.choice((20, 32, 40, 47, 49, 57))) // unit * unit,
        dims,
        [spread(rng, 2**40 - 1) // unit * unit for _ in range(rank - 1)],
        box,
        [rng.choice((1, 1, rng.randrange(1, 9))) for _ in range(rank)],
        interleave,
        swizzle,
        rng.randrange(4),
        rng.randrange(2) if dtype in FLOATS else 0,
    ]


def violations() -> list[Callable[[random.Random, Spec], None]]:
    """Changes that each make one parameter an edge case; most of the results the driver refuses."""

    def scalar(field: int, values: tuple[int, ...]) -> Callable[[random.Random, Spec], None]:
        def change(rng: random.Random, spec: Spec) -> None:
            spec[field] = rng.choice(values)

        return change

    def item(field: int, values: tuple[int, ...]) -> Callable[[random.Random, Spec], None]:
        def change(rng: random.Random, spec: Spec) -> None:
            if spec[field]:
                spec[field][rng.randrange(len(spec[field]))] = rng.choice(values)

        return change

    def innermost(field: int) -> Callable[[random.Random, Spec], None]:
        def change(rng: random.Random, spec: Spec) -> None:
            spec[field][0] = rng.choice(EDGES)

        return change

    def boxed(rng: random.Random, spec: Spec) -> None:
        """A box of about what a multiprocessor's shared memory holds: 256 x 57 x 16 bytes is 228 KB."""
        spec[DTYPE:] = [
            0,
            3,
            0,
            [4096] * 3,
            [4096] * 2,
            [16, 256, rng.choice((56, 57, 58))],
            [1] * 3,
            0,
            0,
            0,
            0,
        ]
        spec[ELEMENT_STRIDES][2] = rng.choice((1, 1, 2))

    return [
        scalar(DTYPE, tuple(range(18))),
        scalar(RANK, (0, 1, 2, 3, 4, 5, 6)),
        scalar(ADDRESS, tuple(16 * e for e in EDGES) + EDGES + LARGE),
        item(DIMS, EDGES + LARGE),
        item(STRIDES, tuple(16 * e for e in EDGES) + EDGES + LARGE),
        item(BOX, EDGES),
        item(ELEMENT_STRIDES, tuple(range(11)) + (256, 2**31)),
        innermost(BOX),
        innermost(DIMS),
        scalar(INTERLEAVE, (0, 1, 2, 3)),
        scalar(SWIZZLE, tuple(range(8))),
        scalar(L2, tuple(range(5))),
        scalar(FILL, (0, 1, 2)),
        boxed,
    ]


def specs(seed: int = 20261120) -> Iterator[Spec]:
    rng = random.Random(seed)
    for _ in range(700):
        yield lawful(rng, range(13))
    for _ in range(100):
        yield lawful(rng, range(13, 16))
    changes = violations()
    for i in range(900):
        spec = lawful(rng, range(13))
        for change in [changes[i % len(changes)], *rng.sample(changes, rng.choice((0, 0, 0, 2)))]:
            change(rng, spec)
        for field, length in (
            (DIMS, spec[RANK]),
            (STRIDES, spec[RANK] - 1),
            (BOX, spec[RANK]),
            (6, spec[RANK]),
        ):
            spec[field] += [32] * (length - len(spec[field]))  # the driver reads as many as the rank says
        yield spec


def main() -> None:
    driver = Driver()
    path = pathlib.Path(sys.argv[1]) / "tensor_maps.jsonl.gz"
    counts = {True: 0, False: 0}
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(json.dumps(driver.versions()).encode() + b"\n")
        for spec in specs():
            code, data = driver.encode_tiled(*spec)
            counts[code == 0] += 1
            line = json.dumps([*spec, code, data.rstrip(b"\0").hex()], separators=(",", ":"))
            file.write(line.encode() + b"\n")
    print(f"{path}: {counts[True]} accepted, {counts[False]} refused, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
