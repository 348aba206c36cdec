"""Stream-K: every CTA gets the same number of K steps, whatever tiles they fall into.

The K steps of tiles, tile after tile, are one line, and CTA `grid - 1 - i` has the steps [i * share, (i + 1) * share)
of it: the `i`-th share. Tiles before those are done whole, `whole` by each CTA and side by side at any time, so that
neighbours read the same operands from L2; the line holds what they leave over, and is done first.

What a share has of one tile is a segment. A tile's first segment owns the tile: it collects the sums of the segments
behind it, in their order, so that equal launches give equal bits, and stores D. Any other segment leaves its sums in
global memory. Only a share's first segment can be one, so a slot for each share is enough; and an owner waits only for
CTAs of lower index, which the hardware starts earlier, so that a grid which does not fit on the GPU at once makes
progress all the same.

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
    """Where a role stands: at K step `step` of the line, below `end`; behind that, at K step `offset` of tile `tile`.

    Tiles below `wholes` are done whole, each `grid`-th by a CTA. share: K steps of a share; k_steps: of a tile.
    """

    def __init__(
        self, step: Any, end: Any, tile: Any, offset: Any, wholes: Any, share: Any, k_steps: Any
    ) -> None:
        self.step, self.end, self.whole, self.offset = step, end, tile, offset
        self.wholes, self.share, self.k_steps = wholes, share, k_steps

    def __extract_mlir_values__(self) -> list[Any]:
        return [v.ir_value() for v in self._state]

    def __new_from_mlir_values__(self, values: list[Any]) -> Walk:
        step, end, tile, offset, wholes, share, k_steps = map(Uint32, values)
        return Walk(step, end, tile, offset, wholes, share, k_steps)

    @property
    def _state(self) -> tuple[Any, ...]:
        return (self.step, self.end, self.whole, self.offset, self.wholes, self.share, self.k_steps)

    def copy(self) -> Walk:
        """Return a walk from the same place on."""
        return Walk(*self._state)

    @property
    def left(self) -> Any:
        """Whether there is a segment at the current place."""
        return (self.step < self.end) | (self.whole < self.wholes)

    @property
    @cute.jit
    def tile(self) -> Any:
        """The current segment's tile."""
        return self.wholes + self.step // self.k_steps if self.step < self.end else self.whole

    @property
    @cute.jit
    def first(self) -> Any:
        """The first K step of the current segment, counted in its tile."""
        return self.step % self.k_steps if self.step < self.end else self.offset

    @property
    @cute.jit
    def count(self) -> Any:
        """How many K steps the current segment has."""
        count = self.k_steps - self.first
        return cutlass.min(count, self.end - self.step) if self.step < self.end else count

    @cute.jit
    def advance(self, steps: Any) -> None:
        """Go on by so many K steps of the current segment."""
        if self.step < self.end:
            self.step += steps
        else:
            self.offset += steps
            if self.offset == self.k_steps:
                self.offset = Uint32(0)
                self.whole += Uint32(cute.arch.grid_dim()[0])


def walk(whole: Any, share: Any, k_steps: Any, tiles: Any) -> Walk:
    """Return this CTA's walk; the grid is one-dimensional, and all of it together leaves no K step."""
    whole, share, k_steps, tiles = map(Uint32, (whole, share, k_steps, tiles))
    wholes = whole * Uint32(cute.arch.grid_dim()[0])
    first, last = share_index() * share, (tiles - wholes) * k_steps
    end = cutlass.max(first, cutlass.min(first + share, last))
    return Walk(first, end, share_index(), Uint32(0), wholes, share, k_steps)


def share_index(ctas: int = 1) -> Any:
    """Which share this CTA, or pair of CTAs, has."""
    return (Uint32(cute.arch.grid_dim()[0]) - 1 - Uint32(cute.arch.block_idx()[0])) // ctas


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
