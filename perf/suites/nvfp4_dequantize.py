"""NVFP4 to BF16, as users call it, against a copy that reads and writes as many bytes in all.

The result is compared with the reference bit for bit. No DSL: the cubins are those of CUTE_KERNELS_CUBINS or build/.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from cute_kernels import formats, ops
from perf.ceilings import recorded
from perf.suite import Case, Selection
from perf.timing import copy, sets_for

BLOCK = formats.NVFP4_GROUP
OURS = "nvfp4_dequantize"


class Size(NamedTuple):
    """experts: None for a matrix with one global scale."""

    experts: int | None
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        return (self.experts or 1) * self.rows * self.columns

    @property
    def moved(self) -> int:
        """Bytes read and written: codes, scales, BF16."""
        return self.elements // 2 + self.elements // BLOCK + self.elements * 2

    def __str__(self) -> str:
        return " x ".join(str(extent) for extent in self if extent is not None)


SIZES = (
    Size(None, 4096, 4096),
    Size(None, 8192, 8192),
    Size(None, 16384, 8208),
    Size(None, 16384, 16384),
    Size(None, 53248, 16384),
    Size(64, 4096, 2048),
    Size(128, 2048, 7168),
)


class Operands(NamedTuple):
    packed: torch.Tensor
    scales: torch.Tensor
    global_scale: torch.Tensor
    out: torch.Tensor


def operands(size: Size, seed: int) -> Operands:
    """Random codes; every scale code but NaN's."""
    random = torch.Generator(device="cuda").manual_seed(seed)
    lead = (size.rows,) if size.experts is None else (size.experts, size.rows)

    def draw(high: int, columns: int) -> torch.Tensor:
        shape = (*lead, columns)
        return torch.randint(0, high, shape, dtype=torch.uint8, device="cuda", generator=random)

    scale_shape = () if size.experts is None else (size.experts,)
    return Operands(
        packed=draw(256, size.columns // 2),
        scales=draw(127, size.columns // BLOCK).view(torch.float8_e4m3fn),
        global_scale=torch.rand(scale_shape, device="cuda", generator=random) + 0.01,
        out=torch.full((*lead, size.columns), torch.nan, dtype=torch.bfloat16, device="cuda"),
    )


def run(given: Operands) -> None:
    ops.nvfp4_dequantize(given.packed, given.scales, given.global_scale, out=given.out)


def check(given: Operands) -> str:
    """Run the operation once and count the elements whose bits are not the reference's."""
    run(given)
    wrong = 0
    # The reference needs some 20 times the memory of the result; so a part at a time.
    step = max(1, 2**25 // (given.out[0].numel()))
    for start in range(0, len(given.out), step):
        part = slice(start, start + step)
        scale = given.global_scale[part] if given.global_scale.ndim else given.global_scale
        reference = formats.dequantize(
            given.packed[part], given.scales[part], group=(1, BLOCK), global_scale=scale
        ).to(torch.bfloat16)
        wrong += int((reference.view(torch.int16) != given.out[part].view(torch.int16)).sum())
    return f"{wrong} elements differ from the reference" if wrong else ""


def cases(selection: Selection) -> Iterator[Case]:
    for size in SIZES:
        if selection.only not in str(size):
            continue
        sets = [operands(size, seed) for seed in range(sets_for(size.moved, selection.l2_bytes))]
        yield Case(
            name=str(size),
            ours=OURS,
            contenders={
                OURS: [partial(run, given) for given in sets],
                "copy": [copy(size.moved) for _ in sets],
            },
            check=partial(check, sets[0]),
            moved_bytes=size.moved,
            bandwidth="copy",
        )
        del sets


def kernels() -> list[dict[str, Any]]:
    """What ran, as the manifest names it."""
    return recorded(["nvfp4_dequantize"])
