"""Packing NVFP4 weights, as users call it, against a copy that reads and writes as many bytes in all.

The result is compared byte for byte with what the host packs. No DSL: the cubins are those of CUTE_KERNELS_CUBINS or
build/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from cute_kernels import nvfp4_weight, ops
from cute_kernels import w4a16_layout as layout
from perf.ceilings import recorded
from perf.suite import Case, Selection
from perf.timing import copy, sets_for

OURS = "nvfp4_repack"
SIZES: tuple[tuple[int, ...], ...] = (
    (4096, 4096),
    (14336, 4096),
    (4096, 14336),
    (21504, 5376),
    (5376, 21504),
    (28672, 8192),
    (2880, 2880),  # K is no multiple of 128
    (64, 4096, 2048),
    (128, 2048, 7168),
)


class Operands(NamedTuple):
    codes: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    out: torch.Tensor


def moved(shape: tuple[int, ...]) -> int:
    """Bytes read and written: codes and scales, and units."""
    *lead, n, k = shape
    experts = lead[0] if lead else 1
    row_blocks, units = layout.units(n, k)
    return experts * (n * k // 2 + n * k // layout.BLOCK + row_blocks * units * layout.UNIT_BYTES)


def operands(shape: tuple[int, ...], seed: int) -> Operands:
    """Random codes, and all scales that UE4M3 has."""
    random = torch.Generator(device="cuda").manual_seed(seed)
    *lead, n, k = shape

    def draw(high: int, columns: int) -> torch.Tensor:
        size = (*lead, n, columns)
        return torch.randint(0, high, size, dtype=torch.uint8, device="cuda", generator=random)

    return Operands(
        codes=draw(256, k // 2),
        scales=draw(127, k // layout.BLOCK).view(torch.float8_e4m3fn),
        global_scale=torch.ones(lead[0] if lead else 1, device="cuda"),
        out=torch.full(
            (*lead, *layout.units(n, k), layout.UNIT_BYTES), 255, dtype=torch.uint8, device="cuda"
        ),
    )


def run(given: Operands) -> None:
    ops.nvfp4_repack(given.codes, given.scales, given.global_scale, out=given.out)


def check(given: Operands) -> str:
    """Run the operation once and count the bytes that are not the host's."""
    run(given)
    expected = nvfp4_weight.pack(given.codes.cpu(), given.scales.cpu(), given.global_scale.cpu())
    wrong = int((expected.data.cuda() != given.out).sum())
    return f"{wrong} bytes differ from the host's" if wrong else ""


def cases(selection: Selection) -> Iterator[Case]:
    for shape in SIZES:
        name = " x ".join(map(str, shape))
        if selection.only not in name:
            continue
        sets = [operands(shape, seed) for seed in range(sets_for(moved(shape), selection.l2_bytes))]
        yield Case(
            name=name,
            ours=OURS,
            contenders={
                OURS: [partial(run, given) for given in sets],
                "copy": [copy(moved(shape)) for _ in sets],
            },
            check=partial(check, sets[0]),
            moved_bytes=moved(shape),
            bandwidth="copy",
        )
        del sets


def kernels() -> list[dict[str, Any]]:
    """What ran, as the manifest names it."""
    return recorded(["nvfp4_repack"])
