"""How the loops of the SM100 GEMMs stand beside their peers': instructions a K block, and for 32 columns of D.

The bars are the fewest that the same loop has in DeepGEMM's kernels, NVIDIA's CuTe DSL examples and QuACK's, compiled
for sm_100a by ptxas 13.4: a warp that issues MMAs, for 128 bytes of every row of A and B; one that loads; and the
store warps, BF16 from FP32 sums. There are peers with one CTA a tile, and with two. Ours are the least that a turn of
a loop passes (perf/sass_loops.py). Left out are the rest of a group's K, less than a K block once a tile, and operands
taken box by box where another loop takes them by one box each, as it does unless M or N is no multiple of 64.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cute_kernels import table
from cute_kernels.device.umma_formats import STEPS
from perf.static import Figures, least_of

# By family_dtype: of one CTA a tile, and of two.
MMA_BARS = {
    "mxf4": (55, 58),
    "nvf4": (67, 70),
    "mxf8": (47, 47),
    "mxf8_k128": (47, 47),
    "bf16": (44, 44),
}
MIXED_MMA_BAR = (55, 55)  # FP8 with FP4
LOAD_BAR, STORE_BAR = 30, 46
BOXES = 2  # of a load loop: A's and B's, or those of their scale factors
NAME = re.compile(r"sm_100a sm100_gemm_(?P<form>\w+?)_(?P<m>\d+)x\d+x\d+_")


class Row(NamedTuple):
    """A kernel's worst loop of each kind: instructions a K block, a K block, and for 32 columns; bar: of the first."""

    kernel: str
    mma: float
    bar: int
    load: float
    store: float

    @property
    def over(self) -> list[str]:
        """Which of them are over their bars."""
        bars = {"mma": self.bar, "load": LOAD_BAR, "store": STORE_BAR}
        return [kind for kind, bar in bars.items() if getattr(self, kind) > bar]


def rows(read: dict[str, Figures]) -> list[Row]:
    """Rows of all SM100 GEMMs among figures, in order of name."""
    found = []
    for name, figures in sorted(read.items()):
        matched = NAME.match(name)
        if matched is None or not figures:
            continue
        bars = MMA_BARS.get(matched["form"], MIXED_MMA_BAR)
        loops: dict[str, list[float]] = {"mma": [0.0], "tma load": [0.0], "epilogue": [0.0]}
        boxes = [
            counts.get("TMA", 0) for loop, counts in figures["loops"].items() if _kind(loop) == "tma load"
        ]
        most = BOXES if min(boxes, default=0) <= BOXES else max(boxes)
        for loop, counts in figures["loops"].items():
            kind = _kind(loop)
            if kind == "mma" and counts["MMA"] % STEPS == 0:
                loops[kind].append(least_of(counts) * STEPS / counts["MMA"])
            elif kind == "tma load" and counts.get("TMA", 0) <= most:
                loops[kind].append(float(least_of(counts)))
            elif kind == "epilogue" and "tmem_columns" in counts:
                loops[kind].append(32 * least_of(counts) / counts["tmem_columns"])
        mma, load, store = (max(values) for values in loops.values())
        found.append(Row(name.split(" ")[1], mma, bars[int(matched["m"]) == 256], load, store))
    return found


def _kind(loop: str) -> str:
    return loop.rstrip(" 0123456789")


def render(read: dict[str, Figures], only: str = "", over: bool = False) -> str:
    """A table of them; over: of those kernels alone that are over a bar."""
    shown = [row for row in rows(read) if only in row.kernel and (row.over or not over)]
    header = ["kernel", "MMA", "bar", f"load, bar {LOAD_BAR}", f"store, bar {STORE_BAR}", "over"]
    body: list[list[object]] = [
        [row.kernel, f"{row.mma:g}", row.bar, f"{row.load:g}", f"{row.store:.1f}", " ".join(row.over)]
        for row in shown
    ]
    return table.render(header, body)
