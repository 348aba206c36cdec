"""How the epilogue stages D and C: buffers in shared memory between registers and TMA, a set for each of its warps."""

from __future__ import annotations

from typing import Literal

LANES, READ_COLUMNS = 32, 32  # of the accumulator, that an epilogue warp takes out at a time
EPILOGUE_WARPS = 4  # tcgen05.ld lets warp w read lanes 32 * (w % 4) onwards: four warps see all 128

DDtype = Literal["bf16", "f32", "mxf8", "nvf4"]
D_BITS = {"bf16": 16, "f32": 32, "mxf8": 8, "nvf4": 4}
D_GROUPS = {"mxf8": 32, "nvf4": 16}  # columns of D that share a scale factor


class Staging:
    """The part of a Shape that follows from its tile_n, d_dtype, accumulate, family_dtype and swap_ab."""

    tile_n: int
    d_dtype: DDtype
    accumulate: bool
    family_dtype: str
    swap_ab: bool

    @property
    def d_bits(self) -> int:
        """Bits of an element of D."""
        return D_BITS[self.d_dtype]

    @property
    def quantized(self) -> bool:
        """Whether D has scale factors."""
        return self.d_dtype in D_GROUPS

    @property
    def store_scales(self) -> int:
        """Scale factors of D that a lane has with each read."""
        return READ_COLUMNS // D_GROUPS[self.d_dtype]

    @property
    def staged_bytes(self) -> int:
        """Bytes of what staging buffers hold: elements of D, or words of several."""
        return 4 if self.quantized else self.d_bits // 8

    @property
    def staged_elements(self) -> int:
        """Elements of D in a staged one."""
        return 8 * self.staged_bytes // self.d_bits

    @property
    def d_packed(self) -> int:
        """Elements of D in what its tensor map counts: two in a byte of E2M1."""
        return 2 if self.d_bits == 4 else 1

    @property
    def loads_c(self) -> bool:
        """Whether C is loaded and added in registers. FP32 sums are added by TMA, to a D that holds C."""
        return self.accumulate and self.d_dtype == "bf16"

    @property
    def read_columns(self) -> int:
        """Columns of the accumulator that an epilogue warp takes from TMEM at a time."""
        return min(self.tile_n, READ_COLUMNS) if self.swap_ab else READ_COLUMNS

    @property
    def reads(self) -> int:
        """Times that an epilogue warp does so for a tile."""
        return self.tile_n // self.read_columns

    @property
    def store_reads(self) -> int:
        """Reads that it stores at a time: all of a tile, where that is a row of 128 bytes and costs no stage."""
        whole = self.quantized or (self.d_dtype == "bf16" and self.reads == 2)
        return self.reads if whole and (self.family_dtype, self.d_dtype) != ("nvf4", "mxf8") else 1

    @property
    def store_columns(self) -> int:
        """Columns of the accumulator that they are."""
        return self.store_reads * self.read_columns

    @property
    def store_box(self) -> tuple[int, int]:
        """The box of D that they are: columns, or bytes of E2M1, and rows; lanes are rows, or columns if swapped."""
        return (LANES, self.store_columns) if self.swap_ab else (self.store_columns // self.d_packed, LANES)

    @property
    def stores(self) -> int:
        """TMA stores that an epilogue warp makes for a tile."""
        return self.tile_n // self.store_columns

    @property
    def store_stages(self) -> int:
        """Staging buffers of a warp: two take turns, so that each tile begins with the first; one for one store."""
        return min(2, self.stores)

    @property
    def store_row_bytes(self) -> int:
        """Bytes of a staging row."""
        return self.store_box[0] * self.d_packed * self.d_bits // 8

    @property
    def store_swizzle(self) -> str:
        """How tensor maps of C and D swizzle staging buffers: over a row, but for 16 bytes, and rows of FP32 that a
        warp's lanes write as a whole."""
        whole = self.swap_ab and self.d_dtype == "f32"
        return "none" if whole or self.store_row_bytes == 16 else f"{self.store_row_bytes}B"

    @property
    def store_bytes(self) -> int:
        """Bytes of one staging buffer."""
        return self.store_box[1] * self.store_row_bytes

    @property
    def staging_bytes(self) -> int:
        """Bytes of all staging buffers."""
        return EPILOGUE_WARPS * self.store_stages * self.store_bytes
