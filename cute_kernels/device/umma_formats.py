"""Operand formats of tcgen05.mma, as data: what a kernel needs to know of one, with no DSL.

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
        share factors. 0 where there are none.
    load_as: type of its tensor map, "u8" for what lies in shared memory as it does in global memory. "b4x16_p64" is
        FP4 for the 8-bit kinds: TMA puts each sixteen codes, 8 bytes, at the start of 16 bytes.
    """

    code: int
    bits: int
    granularity: int = 0
    load_as: Literal["u8", "b4x16_p64"] = "u8"

    @property
    def tile_k(self) -> int:
        """Elements along K of a tile."""
        return TILE_BYTES * 8 // self.bits

    def bytes_in_memory(self, k: int) -> int:
        """Return the bytes of a row of `k` elements in global memory. It is these that TMA counts."""
        return k * (self.bits if self.load_as == "u8" else 4) // 8

    def scale_bytes_in_memory(self, k: int) -> int:
        """Return the bytes of the scale factors of a row of `k` elements."""
        return self.granularity and -(-k // self.granularity)

    @property
    def words(self) -> int:
        """Packed scale words of a row that a tile loads."""
        return self.granularity and -(-self.tile_k // (self.granularity * SCALES_PER_WORD))

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
    scale: the code of the scale factors. block: elements of K that share one by the instruction (.block16, .block32);
        both 0 where there are none.
    global_scales: whether A and B have a float32 factor each.
    """

    name: str
    kind: str
    a: Operand
    b: Operand
    scale: int = 0
    block: int = 0
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

    @property
    def k_multiple(self) -> int:
        """Elements of K that groups along K have a multiple of: whole scale factors, and whole MMAs."""
        return max(self.a.granularity, self.b.granularity, MMA_BYTES * 8 // self.bits)


Major = Literal["k", "mn"]


@dataclass(frozen=True)
class OperandTile:
    """A tile of A or B: the boxes that bring it to shared memory, and how it lies there for the tensor core.

    rows: of the tile, along M or N. major: the dimension that is contiguous in memory.

    K-major, a tile is one box of rows of 128 bytes. MN-major, a box is 128 bytes of rows for each k of the tile, and
    as many boxes lie side by side as the rows need. The 128-byte swizzle lies over both. Where the tensor has whole
    boxes of rows, one box with a third dimension, of `boxes`, brings them all, one behind another just the same.
    """

    operand: Operand
    rows: int
    major: Major = "k"

    def __post_init__(self) -> None:
        if self.major == "mn":
            assert self.operand.bits >= 8 and self.operand.load_as == "u8", "FP4 has to be K-major"
            assert self.rows * self.operand.bits % (8 * TILE_BYTES) == 0, f"{self.rows} rows: not whole boxes"

    @property
    def nbytes(self) -> int:
        """Bytes of the tile in shared memory."""
        return self.rows * TILE_BYTES

    @property
    def box(self) -> tuple[int, int]:
        """Extents of a box, in elements of the tensor map's type, which are bytes or unpacked FP4."""
        return TILE_BYTES, self.rows if self.major == "k" else self.operand.tile_k

    @property
    def box_bytes(self) -> int:
        """Bytes of a box in shared memory."""
        return self.box[0] * self.box[1]

    @property
    def boxes(self) -> int:
        """Boxes of the tile, one behind another."""
        return self.nbytes // self.box_bytes

    @property
    def k_step(self) -> int:
        """Elements of the tensor map along K from one K tile to the next."""
        return TILE_BYTES if self.major == "k" else self.operand.tile_k

    def box_coordinates(self, box: int, row: Any, k: Any) -> tuple[Any, Any]:
        """Return where a box of the tile of row `row` begins, innermost first; k: along K, in elements of the map."""
        if self.major == "k":
            return k, row
        return row * (self.operand.bits // 8) + box * TILE_BYTES, k

    def coordinates(self, row: Any, k: Any) -> tuple[Any, ...]:
        """The same of all boxes as one, in a map that has a dimension of boxes if there are several."""
        if self.boxes == 1:
            return self.box_coordinates(0, row, k)
        return 0, k, row // (TILE_BYTES * 8 // self.operand.bits)

    @property
    def leading_bytes(self) -> int:
        """The matrix descriptor's leading offset: MN-major, from one box to the next; K-major it is not read."""
        return 16 if self.major == "k" else self.box_bytes

    @property
    def stride_bytes(self) -> int:
        """The matrix descriptor's stride offset: from eight rows of 128 bytes to the next eight, whatever a row is."""
        return 8 * TILE_BYTES

    @property
    def step_bytes(self) -> int:
        """Bytes from the start of one MMA's part of the tile to that of the next MMA's."""
        return MMA_BYTES if self.major == "k" else MMA_BYTES * 8 // self.operand.bits * TILE_BYTES


# Element codes: E2M1 is 1 to the FP4 kinds and 5 to kind::mxf8f6f4, where E4M3 is 0; BF16 is 1 to kind::f16.
_MXFP4 = Operand(1, 4, granularity=32)
_NVFP4 = Operand(1, 4, granularity=16)
_MXFP8 = Operand(0, 8, granularity=32)
_FP8 = Operand(0, 8, granularity=128)
_MXFP4_UNPACKED = Operand(5, 8, granularity=32, load_as="b4x16_p64")

_BF16 = Operand(1, 16)

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
        Format("bf16", "f16", _BF16, _BF16),
    )
}
# The format of the same operands the other way round.
SWAPPED = {
    form.name: next(
        other.name
        for other in FORMATS.values()
        if (other.a, other.b, other.scale) == (form.b, form.a, form.scale)
    )
    for form in FORMATS.values()
}
