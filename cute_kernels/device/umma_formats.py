"""Operand formats of the block-scaled tcgen05.mma, as data: what a kernel needs to know of one, with no DSL.

A K tile is 128 bytes of every row of A and of B, which is one row of the 128-byte swizzle and four MMAs.

Sources: PTX ISA, "Instruction descriptor" for the codes, "Block scaling for tcgen05.mma" for the scale factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

TILE_BYTES = 128  # of a row of A or B along K, in a tile
MMA_BYTES = 32  # of a row that one MMA multiplies
STEPS = TILE_BYTES // MMA_BYTES  # MMAs of a tile
SCALES_PER_WORD = 4  # scale factors of a row in a packed int32, and in a column of TMEM
UE4M3, UE8M0 = 0, 1  # scale codes


@dataclass(frozen=True)
class Operand:
    """One operand's half of a format.

    code: of its elements in the instruction descriptor.
    bits: of an element in shared memory.
    granularity: elements of K that share a scale factor in memory: the instruction's block, or more, and then MMAs
        share factors.
    load_as: type of its tensor map, "u8" for what lies in shared memory as it does in global memory. "b4x16_p64" is
        FP4 for the 8-bit kinds: TMA puts each sixteen codes, 8 bytes, at the start of 16 bytes.
    """

    code: int
    bits: int
    granularity: int
    load_as: Literal["u8", "b4x16_p64"] = "u8"

    @property
    def tile_k(self) -> int:
        """Elements along K of a tile."""
        return TILE_BYTES * 8 // self.bits

    def bytes_in_memory(self, k: int) -> int:
        """Return the bytes of a row of `k` elements in global memory. It is these that TMA counts."""
        return k * (self.bits if self.load_as == "u8" else 4) // 8

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


@dataclass(frozen=True)
class Format:
    """Formats of A and B that one instruction multiplies.

    kind: of the instruction, "mxf4" for .kind::mxf4.
    scale: the code of the scale factors. block: elements of K that share one by the instruction (.block16, .block32).
    global_scales: whether A and B have a float32 factor each.
    """

    name: str
    kind: str
    a: Operand
    b: Operand
    scale: int
    block: int
    global_scales: bool = False

    def __post_init__(self) -> None:
        assert self.a.bits == self.b.bits, f"{self.name}: a tile has the same K of A and of B"
        assert self.a.words == self.b.words, f"{self.name}: a tile has as many scale words of A as of B"

    @property
    def bits(self) -> int:
        """Bits of an element in shared memory."""
        return self.a.bits

    @property
    def tile_k(self) -> int:
        """Elements along K of a tile."""
        return self.a.tile_k

    @property
    def words(self) -> int:
        """Packed scale words of a row of A, and of B, that a tile loads."""
        return self.a.words


# Element codes: E2M1 is 1 to the FP4 kinds and 5 to kind::mxf8f6f4, where E4M3 is 0.
_MXFP4 = Operand(1, 4, granularity=32)
_NVFP4 = Operand(1, 4, granularity=16)
_MXFP8 = Operand(0, 8, granularity=32)
_FP8 = Operand(0, 8, granularity=128)
_MXFP4_UNPACKED = Operand(5, 8, granularity=32, load_as="b4x16_p64")

FORMATS = {
    form.name: form
    for form in (
        Format("mxf4", "mxf4", _MXFP4, _MXFP4, UE8M0, block=32),
        Format("nvf4", "mxf4nvf4", _NVFP4, _NVFP4, UE4M3, block=16, global_scales=True),
        Format("mxf8", "mxf8f6f4", _MXFP8, _MXFP8, UE8M0, block=32),
        Format("mxf8_k128", "mxf8f6f4", _FP8, _FP8, UE8M0, block=32),
        Format("mxf8_mxf4", "mxf8f6f4", _MXFP8, _MXFP4_UNPACKED, UE8M0, block=32),
        Format("mxf8_k128_mxf4", "mxf8f6f4", _FP8, _MXFP4_UNPACKED, UE8M0, block=32),
        Format("mxf4_mxf8", "mxf8f6f4", _MXFP4_UNPACKED, _MXFP8, UE8M0, block=32),
        Format("mxf4_mxf8_k128", "mxf8f6f4", _MXFP4_UNPACKED, _FP8, UE8M0, block=32),
    )
}
