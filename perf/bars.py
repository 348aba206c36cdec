"""How the loops of the SM100 GEMMs stand beside their peers': instructions a K block, and for 32 columns of D.

The bars are the fewest that the same loop has in DeepGEMM's kernels, NVIDIA's CuTe DSL examples and QuACK's, compiled
for sm_100a by ptxas 13.4: a warp that issues MMAs, for 128 bytes of every row of A and B; one that loads, and takes
fewer than 30; and the store warps, BF16 from FP32 sums. There are peers with one CTA a tile, and with two. Ours are
the least that a turn of a loop passes (perf/sass_loops.py): of all loops over K blocks, those over the rest of a
group's K too, which is less than a K block and counts as one.

The store warps of these peers do nothing but convert. Ours also add C, multiply by scales, quantize and transpose, and
tiles may be narrow, so beside the bar stands what a variant's own steps take at least (`needed`): where that is over
the bar, no loop with these steps is under it.
"""

from __future__ import annotations

from typing import NamedTuple

from cute_kernels import table
from cute_kernels.device.umma_formats import STEPS
from perf.static import Figures, least_of
from sm100 import variants
from sm100.shape import Shape

# By family_dtype: of one CTA a tile, and of two.
MMA_BARS = {
    "mxf4": (55, 58),
    "nvf4": (67, 70),
    "mxf8": (47, 47),
    "mxf8_k128": (47, 47),
    "bf16": (44, 44),
}
MIXED_MMA_BAR = (55, 55)  # FP8 with FP4
LOAD_BAR, STORE_BAR = 29, 46
ARCH = "sm_100a"
# Instructions of store warps that none of their steps can do without. For 32 columns of D in FP32 or BF16:
READ, CONVERT = 1, 16  # tcgen05.ld; two values a conversion
ADD_C = 32 + 4  # BF16 C, which is added one by one, from four words a load; FP32 C is added by TMA
MULTIPLY = 16  # by the global scales, two values a product
# And quantized, with the words of one swizzled row written 16 bytes at a time:
MXFP8 = (
    16 + 16 + 16 + 2 + 7
)  # three-input maxima, products, conversions, stores; and UE8M0, with its reciprocal
NVFP4 = (
    16 + 32 + 32 + 1 + 4 + 15
)  # products and conversions for both bounds, which are compared; and two UE4M3
# Of a box of D: its buffer is free again, and the lanes know; fence (two) and warp barrier; store and commit. Of one of
# C, which covers the first two: bytes are expected, the load, and waiting for it (two).
STORE_BOX, LOAD_BOX = 7, 2
# Of a tile: waiting for its accumulator (two) and leaving it; the next accumulator and parity (three), index and branch
# (three). A row of scale factors: where it goes, whether it is inside, its store.
TILE, SCALES = 9, 4


class Row(NamedTuple):
    """A kernel's worst loop of each kind: instructions a K block, a K block, and for 32 columns.

    bar: of the first. needed: of the last, see `needed`.
    """

    kernel: str
    mma: float
    bar: int
    load: float
    store: float
    needed: float

    @property
    def over(self) -> list[str]:
        """Which of them are over their bars."""
        bars = {"mma": self.bar, "load": LOAD_BAR, "store": STORE_BAR}
        return [kind for kind, bar in bars.items() if getattr(self, kind) > bar]


def rows(read: dict[str, Figures]) -> list[Row]:
    """Rows of all SM100 GEMMs among figures, in order of name."""
    found = []
    shapes = {f"{ARCH} {variant.name}": variant.shape for variant in variants(ARCH)}
    for name, figures in sorted(read.items()):
        if name not in shapes or not figures:
            continue
        s = shapes[name]
        bars = MMA_BARS.get(s.family_dtype, MIXED_MMA_BAR)
        loops: dict[str, list[float]] = {"mma": [0.0], "tma load": [0.0], "epilogue": [0.0]}
        for loop, counts in figures["loops"].items():
            kind = _kind(loop)
            if kind == "mma":
                loops[kind].append(least_of(counts) * STEPS / max(counts["MMA"], STEPS))
            elif kind == "tma load":
                loops[kind].append(float(least_of(counts)))
            elif kind == "epilogue":  # what reads half of the lanes at a time does so for a tile
                loops[kind].append(32 * least_of(counts) / counts.get("tmem_columns", s.tile_n))
        mma, load, store = (max(values) for values in loops.values())
        found.append(Row(name.split(" ")[1], mma, bars[s.cta_group - 1], load, store, needed(s)))
    return found


def needed(s: Shape) -> float:
    """Instructions for 32 columns that the steps of a Shape's store warps take at least: a bound, and none is known to
    reach it.

    The constants above say which. Nothing is counted for where a tile lies, whose group or K it is of, and what other
    CTAs have summed up of it.
    """
    if s.quantized:
        columns = float(MXFP8 if s.d_dtype == "mxf8" else NVFP4)
        tile = TILE + SCALES * s.reads * s.store_scales // 4
    else:
        # 16 bytes a store; but lanes that have a column of FP32 each store four.
        stores = 32 if s.swap_ab and s.d_dtype == "f32" else 32 * s.staged_bytes // 16
        columns = float(
            stores + CONVERT * (s.d_dtype == "bf16") + MULTIPLY * s.global_scales + ADD_C * s.loads_c
        )
        tile = TILE
    tile += s.stores * (STORE_BOX + LOAD_BOX * s.loads_c)
    return READ + columns + 32 * tile / s.tile_n


def _kind(loop: str) -> str:
    return loop.rstrip(" 0123456789")


def render(read: dict[str, Figures], only: str = "", over: bool = False) -> str:
    """A table of them; over: of those kernels alone that are over a bar."""
    shown = [row for row in rows(read) if only in row.kernel and (row.over or not over)]
    header = ["kernel", "MMA", "bar", f"load, bar {LOAD_BAR}", f"store, bar {STORE_BAR}", "needed", "over"]
    body: list[list[object]] = [
        [
            *(row.kernel, f"{row.mma:g}", row.bar, f"{row.load:g}"),
            *(f"{row.store:.1f}", f"{row.needed:.1f}", " ".join(row.over)),
        ]
        for row in shown
    ]
    return table.render(header, body)
