"""A warp's products of one stage: packed NVFP4 weights and activations from shared memory, decoded, multiplied."""

from __future__ import annotations

from typing import Any, NamedTuple

from cute_kernels.device import dequant
from cute_kernels.device.mma_sync import multiply_16x8x16
from cute_kernels.w4a16_layout import CHUNK_BYTES, SCALES_AT
from sm80.shape import W4a16Shape


class Place(NamedTuple):
    """Which part of a tile a consumer warp has."""

    n: Any
    m: Any
    k: Any


GROUP = 4  # 8-row blocks of X whose fragments are in registers at a time


class Fragments:
    """One stage as a consumer warp reads it: its units of K, a quarter (32 elements of K) of them at a time.

    words: shared memory, in which everything is counted here; stage: where the stage begins; at: the warp's `Place`.
    What was read once stays in registers. Plain Python while a kernel is traced: indices are integers.
    """

    def __init__(self, s: W4a16Shape, words: Any, stage: Any, at: Place, lane: Any) -> None:
        self.s, self.words, self.lane = s, words, lane
        self.blocks_n, self.blocks_m, self.units = s.warp_n // 16, s.warp_m // 8, s.units // s.warps_k
        unit_words = s.UNIT_BYTES // 4
        first = stage + s.x_bytes // 4 + at.n * (self.blocks_n * s.units * unit_words)
        first += at.k * (self.units * unit_words)
        self.unit_places = [
            [first + (b * s.units + unit) * unit_words for b in range(self.blocks_n)]
            for unit in range(self.units)
        ]
        # Lane 4g + t reads chunks 2t and 2t + 1 of row g: 16 consecutive elements of K.
        row, chunk = lane // 4, lane % 4 * 2
        x_row = stage + at.k * (self.units * 2 * s.x_box_bytes // 4) + at.m * (s.warp_m * 32) + row * 32
        self.x_chunks = [x_row + ((chunk + i) ^ row) * 4 for i in range(2)]
        self.codes: dict[tuple[int, int], Any] = {}
        self.weights: dict[tuple[int, int], tuple[Any, Any]] = {}

    def w_pair(self, quarter: int, step: int, b: int, index: int) -> Any:
        """Decode one of the four pairs of the A fragment of 16-row block b, for 16 elements of K."""
        unit, half = divmod(quarter // 2, 2)
        place = self.unit_places[unit][b]
        if (unit, b) not in self.codes:
            self.codes[unit, b] = self.words[place + SCALES_AT // 4 + self.lane]
        if (quarter // 2, b) not in self.weights:
            chunk = self.words[place + half * (CHUNK_BYTES // 4) + self.lane * 4 : 4, 16]
            scales = dequant.fragment_scales(self.codes[unit, b], half, self.s.x_dtype)
            self.weights[quarter // 2, b] = chunk, scales
        chunk, scales = self.weights[quarter // 2, b]
        return dequant.fragment_pair(chunk[quarter % 2 * 2 + step], scales, index, self.s.x_dtype)

    def x_rows(self, quarter: int, blocks: range) -> list[Any]:
        """Read the B fragments of some 8-row blocks of X, both steps of a quarter at once."""
        first = self.x_chunks[quarter % 2] + quarter // 2 * (self.s.x_box_bytes // 4)
        return [self.words[first + n * 256 : 4, 16] for n in blocks]


def multiply(s: W4a16Shape, words: Any, stage: Any, sums: Any, at: Place, lane: Any) -> None:
    """Add one stage's products to this warp's sums; the arguments are those of `Fragments`.

    The tensor cores never wait only if there is always a product to start: so the fragments of W for the next 32
    elements of K are decoded between the products of these, and X is read a group ahead.
    """
    fragments = Fragments(s, words, stage, at, lane)
    width = min(GROUP, fragments.blocks_m)
    groups = [range(first, first + width) for first in range(0, fragments.blocks_m, width)]
    turns = [(quarter, group) for quarter in range(fragments.units * 4) for group in groups]
    pairs = [(step, b, index) for step in range(2) for b in range(fragments.blocks_n) for index in range(4)]
    following = {pair: fragments.w_pair(0, *pair) for pair in pairs}
    x_following = fragments.x_rows(*turns[0])
    for turn, (quarter, group) in enumerate(turns):
        if group == groups[0]:
            w, following = following, {}
        x = x_following
        x_following = fragments.x_rows(*turns[turn + 1]) if turn + 1 < len(turns) else []
        for step in range(2):
            for n in group:
                x_pair = [x[n - group[0]][2 * step + i] for i in range(2)]
                for b in range(fragments.blocks_n):
                    place = (b * fragments.blocks_m + n) * 4
                    old = [sums[place + i] for i in range(4)]
                    w_pairs = [w[step, b, index] for index in range(4)]
                    for i, value in enumerate(multiply_16x8x16(s.x_dtype, old, w_pairs, x_pair)):
                        sums[place + i] = value
                done = group[0] * 2 + step * width + n - group[0] + 1  # of blocks_m * 2
                while quarter + 1 < fragments.units * 4 and len(
                    following
                ) * 2 * fragments.blocks_m < done * len(pairs):
                    pair = pairs[len(following)]
                    following[pair] = fragments.w_pair(quarter + 1, *pair)
