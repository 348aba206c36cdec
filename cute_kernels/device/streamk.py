"""Stream-K: every CTA gets the same number of K steps, whatever tiles they fall into.

The K steps of all tiles, tile after tile, are one line, and CTA `grid - 1 - i` has the steps [i * share, (i + 1) *
share) of it: the `i`-th share. What a share has of one tile is a segment. A tile's first segment owns the tile: it
collects the sums of the segments behind it, in their order, so that equal launches give equal bits, and stores D. Any
other segment leaves its sums in global memory. Only a share's first segment can be one, so a slot for each share is
enough; and an owner waits only for CTAs of lower index, which the hardware starts earlier, so that a grid which does
not fit on the GPU at once makes progress all the same.

A slot's flags are zero between launches: whoever collects from a slot resets its flag.

Source: Osama et al., "Stream-K: Work-centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU",
PPoPP 2023.
"""

from __future__ import annotations

from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32
from cutlass.experimental import primitives as prims


class Walk:
    """Where a role stands on its CTA's share: at K step `step` of those below `end`.

    share: K steps of a share; k_steps: of a tile.
    """

    def __init__(self, step: Any, end: Any, share: Any, k_steps: Any) -> None:
        self.step, self.end, self.share, self.k_steps = step, end, share, k_steps

    def __extract_mlir_values__(self) -> list[Any]:
        return [v.ir_value() for v in (self.step, self.end, self.share, self.k_steps)]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        step, end, share, k_steps = map(Uint32, values)
        return Walk(step, end, share, k_steps)

    @property
    def left(self) -> Any:
        """Whether there is a segment at the current place."""
        return self.step < self.end

    @property
    def tile(self) -> Any:
        """The current segment's tile."""
        return self.step // self.k_steps

    @property
    def first(self) -> Any:
        """The first K step of the current segment, counted in its tile."""
        return self.step % self.k_steps

    @property
    def count(self) -> Any:
        """How many K steps the current segment has."""
        return cutlass.min(self.k_steps - self.first, self.end - self.step)

    def advance(self) -> None:
        """Go to the next segment."""
        self.step += self.count

    def split(self, steps: int) -> tuple[Walk, Walk]:
        """Return walks over the first `steps` K steps of what is left, and over the others."""
        middle = cutlass.min(self.step + steps, self.end)
        return Walk(self.step, middle, self.share, self.k_steps), Walk(
            middle, self.end, self.share, self.k_steps
        )


def walk(share: Any, k_steps: Any, tiles: Any) -> Walk:
    """Return this CTA's walk; the grid is one-dimensional and has a CTA for each share of `share` K steps."""
    k_steps, tiles, share = map(Uint32, (k_steps, tiles, share))
    first, last = share_index() * share, tiles * k_steps
    return Walk(first, cutlass.min(first + share, last), share, k_steps)


def share_index() -> Any:
    """Which share this CTA has."""
    return Uint32(cute.arch.grid_dim()[0]) - 1 - Uint32(cute.arch.block_idx()[0])


@cute.jit
def publish(flag: Any, leader: Any) -> None:
    """Say that this warp's sums lie in its slot. flag: pointer to Int32; leader: true in one lane."""
    cute.arch.sync_warp()
    if leader:
        prims.inline_ptx("st.release.gpu.global.b32 [{$r0}], 1;", read_only_args=[flag])


@cute.jit
def wait(flag: Any, leader: Any) -> None:
    """Wait until the same warp of another CTA has published, and take the flag back to zero."""
    if leader:
        value = Int32(0)
        while value == 0:
            value = prims.inline_ptx(
                "ld.acquire.gpu.global.b32 {$w0}, [{$r0}];", write_only_types=[Int32], read_only_args=[flag]
            )
        flag.store(Int32(0))
    cute.arch.sync_warp()
