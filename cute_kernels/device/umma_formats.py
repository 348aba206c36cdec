"""Operand formats of the block-scaled tcgen05.mma, as data: what a kernel needs to know of one, with no DSL.

A K tile is 128 bytes of every row of A and of B, which is one row of the 128-byte swizzle and four MMAs.

Sources: PTX ISA, "Instruction descriptor" for the codes, "Block scaling for tcgen05.mma" for the scale factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TILE_BYTES = 128  # of a row of A or B along K, in a tile
MMA_BYTES = 32  # of a row that one MMA multiplies
STEPS = TILE_BYTES // MMA_BYTES  # MMAs of a tile
SCALES_PER_WORD = 4  # scale factors of a row in a packed int32, and in a column of TMEM
E4M3, E2M1 = 0, 1  # element codes, E2M1's that of the FP4 kinds
UE4M3, UE8M0 = 0, 1  # scale codes


@dataclass(frozen=True)
class Format:
    """Formats of A and B that one instruction multiplies.

    kind: of the instruction, "mxf4" for .kind::mxf4.
    bits: of an element of A or B in shared memory.
    a, b: element codes of the instruction descriptor; scale: the code of the scale factors.
    block: elements of K that share a scale factor by the instruction (.block16, .block32).
    granularity: elements of K that share one in memory: `block`, or more, and then MMAs share factors.
    global_scales: whether A and B have a float32 factor each.
    """

    name: str
    kind: str
    bits: int
    a: int
    b: int
    scale: int
    block: int
    granularity: int
    global_scales: bool = False

    @property
    def tile_k(self) -> int:
        """Elements along K of a tile."""
        return TILE_BYTES * 8 // self.bits

    @property
    def words(self) -> int:
        """Packed scale words of a row that a tile loads."""
        return -(-self.tile_k // (self.granularity * SCALES_PER_WORD))

    @property
    def tiles_per_word(self) -> int:
        """Tiles in turn that use one scale word: 1, or more where a tile has less than a word's factors."""
        return self.granularity * SCALES_PER_WORD * self.words // self.tile_k

    def first_word(self, k: Any) -> Any:
        """Return the scale word that tile `k` of K begins with."""
        return (k >> self.tiles_per_word.bit_length() - 1) * self.words

    def scale_place(self, step: int) -> tuple[int, int]:
        """Return the word and the byte in it where the scale factors of a tile's MMA `step` begin.

        The byte is that of the first of `tiles_per_word` tiles; each later one begins one byte behind.
        """
        factor = step * (MMA_BYTES * 8 // self.bits) // self.granularity
        return factor // SCALES_PER_WORD, factor % SCALES_PER_WORD


FORMATS = {
    form.name: form
    for form in (
        Format("mxf4", "mxf4", 4, E2M1, E2M1, UE8M0, block=32, granularity=32),
        Format("nvf4", "mxf4nvf4", 4, E2M1, E2M1, UE4M3, block=16, granularity=16, global_scales=True),
        Format("mxf8", "mxf8f6f4", 8, E4M3, E4M3, UE8M0, block=32, granularity=32),
        Format("mxf8_k128", "mxf8f6f4", 8, E4M3, E4M3, UE8M0, block=32, granularity=128),
    )
}
