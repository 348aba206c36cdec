"""Which tensor memory cells tcgen05.ld, tcgen05.st and tcgen05.cp touch.

ld and st move 32-bit registers of a warp (PTX ISA 9.7.16.2.3.1; the thread maps, which the manual draws, are
those of CUTLASS' Copy_Traits<SM100_TMEM_LOAD_...>, cute/atom/copy_traits_sm100.hpp). With t the thread and r
the register of .xN, lanes and columns relative to the address:

    32x32b    lane t                           column r
    16x32bx2  lane t % 16                      column r, + the half-split offset for t >= 16
    16x64b    lane t // 4 + 8 * (t % 2)        column 2 * r + t // 2 % 2
    16x128b   lane t // 4 + 8 * (r % 2)        column 4 * (r // 2) + t % 4
    16x256b   lane t // 4 + 8 * (r // 2 % 2)   column 8 * (r // 4) + 2 * (t % 4) + r % 2

With .pack::16b and .unpack::16b a register holds the low halves of two cells: column c above stands for
columns 2c (low half) and 2c + 1 (high half).

cp copies rows of 128 or 256 bits, which lie in shared memory as a K-major operand does, to lanes (PTX ISA
9.7.16.9.2; 4x256b and the multicast pairs as CUTLASS' SM100_UTCCP traits have them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator import number_formats as formats
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import MatrixDescriptor, UnsupportedForm
from cute_kernels.emulator.umma_operands import CHUNK, operand_chunks

Indices = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

QUARTER = 32  # lanes that one warp of a warpgroup reaches
_REGISTERS = {"32x32b": 1, "16x32bx2": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4}  # of .x1
_MOST_REGISTERS = 128


@dataclass(frozen=True)
class RegisterMap:
    """Cells of one tcgen05.ld or .st by one warp, relative to its address.

    lanes, columns: int64 [registers, 32], a column for each thread. packed: each register holds the low
    halves of its cell and of the cell in the next column. square: register r of thread t is column r of lane t.
    """

    lanes: Indices
    columns: Indices
    packed: bool
    square: bool = False


@lru_cache(maxsize=256)
def register_map(shape: str, num: int, packed: bool = False, half_split: int = 0) -> RegisterMap:
    """The cells of tcgen05.{ld,st}.shape.x{num}, as [registers, threads].

    shape: "32x32b" and so on. packed: .pack::16b or .unpack::16b. half_split: the immediate of 16x32bx2, in
    columns.
    """
    if shape not in _REGISTERS:
        raise UnsupportedForm(f"tcgen05.ld/st of shape .{shape}; known: {', '.join(_REGISTERS)}")
    registers = _REGISTERS[shape] * num
    if num not in (1, 2, 4, 8, 16, 32, 64, 128) or registers > _MOST_REGISTERS:
        raise UnsupportedForm(f"tcgen05.ld/st .{shape}.x{num}: at most {_MOST_REGISTERS} registers a thread")
    t = np.arange(32)[None, :]
    r = np.arange(registers)[:, None]
    width = 2 if packed else 1  # cells of a register; the half split is given in cells
    if shape == "32x32b":
        lanes, columns = t, r * width
    elif shape == "16x32bx2":
        lanes, columns = t % 16, r * width + t // 16 * half_split
    elif shape == "16x64b":
        lanes, columns = t // 4 + 8 * (t % 2), (2 * r + t // 2 % 2) * width
    elif shape == "16x128b":
        lanes, columns = t // 4 + 8 * (r % 2), (4 * (r // 2) + t % 4) * width
    else:
        lanes, columns = t // 4 + 8 * (r // 2 % 2), (8 * (r // 4) + 2 * (t % 4) + r % 2) * width
    lanes, columns = (
        np.ascontiguousarray(np.broadcast_to(x, (registers, 32)), np.int64) for x in (lanes, columns)
    )
    lanes.flags.writeable = columns.flags.writeable = False
    return RegisterMap(lanes, columns, packed, shape == "32x32b" and not packed)


def warp_lane(shape: str, lane: int, warp: int) -> int:
    """The tensor memory lane that a tcgen05.ld or .st by warp `warp` of its CTA starts at.

    A warp reaches the 32 lanes of its own quarter alone (PTX ISA 9.7.16.8.1). The lane field of the address
    names a lane of that quarter, or leaves the quarter 0, and hardware takes the warp's: NVIDIA's example
    1cta_mma_a_from_tmem and DeepGEMM's epilogues give the same address in all four warps.
    """
    first = QUARTER * (warp % 4)
    starts = (0,) if shape == "32x32b" else (0, 16)
    if lane // QUARTER not in (0, warp % 4) or lane % QUARTER not in starts:
        allowed = sorted({base + start for base in (0, first) for start in starts})
        raise EmulationError(
            "tensor-memory",
            f"tcgen05.ld/st.{shape} at lane {lane} by warp {warp}, which reaches lanes {first} to "
            f"{first + QUARTER - 1}; the address may name lane {' or '.join(map(str, allowed))}",
        )
    return first + lane % QUARTER


def load(words: Words, at: RegisterMap, lane: int, column: int) -> Words:
    """Registers that tcgen05.ld returns: uint32 [registers, 32] from tensor memory words [128, 512]."""
    if at.square:
        first, width = column, len(at.lanes)
        return np.ascontiguousarray(words[lane : lane + QUARTER, first : first + width].T)
    lanes, columns = at.lanes + lane, at.columns + column
    if not at.packed:
        return words[lanes, columns]
    return (words[lanes, columns] & np.uint32(0xFFFF)) | (words[lanes, columns + 1] << np.uint32(16))


def store(words: Words, at: RegisterMap, lane: int, column: int, registers: Words) -> None:
    """Writes registers [registers, 32] as tcgen05.st does; unpacked halves clear the upper half of their
    cells."""
    lanes, columns = at.lanes + lane, at.columns + column
    if not at.packed:
        words[lanes, columns] = registers
        return
    words[lanes, columns] = registers & np.uint32(0xFFFF)
    words[lanes, columns + 1] = registers >> np.uint32(16)


@dataclass(frozen=True)
class CopyPlan:
    """One tcgen05.cp in one CTA. Row i goes to lanes[c, i] for every copy c, from the address' column on.

    lanes: int64 [copies, rows], relative to the lane of the address. columns: 32-bit cells of a row. source:
    "", "b4x16_p64" or "b6x16_p32". chunk_bytes: of each 16 source bytes, those that are read; the rest is
    padding.
    """

    lanes: Indices
    columns: int
    source: str
    chunk_bytes: int

    @property
    def rows(self) -> int:
        return int(self.lanes.shape[1])


# (shape, multicast) -> (first lanes of the copies, by group of rows; rows of a group; columns).
_COPIES: dict[tuple[str, str], tuple[tuple[tuple[int, ...], ...], int, int]] = {
    ("128x256b", ""): (((0,),), 128, 8),
    ("128x128b", ""): (((0,),), 128, 4),
    ("4x256b", ""): (((0,), (32,), (64,), (96,)), 1, 8),
    ("64x128b", "warpx2::02_13"): (((0, 64), (32, 96)), 32, 4),
    ("64x128b", "warpx2::01_23"): (((0, 32), (64, 96)), 32, 4),
    ("32x128b", "warpx4"): (((0, 32, 64, 96),), 32, 4),
}


@lru_cache(maxsize=64)
def copy_plan(shape: str, multicast: str = "", source: str = "") -> CopyPlan:
    """The plan of tcgen05.cp.shape{.multicast}{.b8x16.source}; qualifiers without their dots, "" for none."""
    if (shape, multicast) not in _COPIES:
        known = ", ".join(".".join(part for part in form if part) for form in _COPIES)
        raise UnsupportedForm(f"tcgen05.cp .{shape} with multicast {multicast or 'none'}; known: {known}")
    padding = {"": CHUNK, "b4x16_p64": 8, "b6x16_p32": 12}
    if source not in padding:
        raise UnsupportedForm(f"tcgen05.cp from source format .{source}; known: .b4x16_p64, .b6x16_p32")
    groups, size, columns = _COPIES[shape, multicast]
    lanes = np.concatenate([np.array(group)[:, None] + np.arange(size) for group in groups], axis=1)
    lanes.flags.writeable = False
    return CopyPlan(lanes.astype(np.int64), columns, source, padding[source])


def copy_chunks(plan: CopyPlan, descriptor: MatrixDescriptor) -> Indices:
    """Shared addresses of the source, int64 [rows, 16-byte chunks a row]."""
    return operand_chunks(descriptor, plan.rows, 8, row_bytes=4 * plan.columns)


def copy_words(plan: CopyPlan, data: Bytes) -> Words:
    """Cells to write from the gathered source: uint8 [rows, 4 * columns] -> uint32 [rows, columns].

    Decompression puts each code where kinds f8f6f4 and mxf8f6f4 read it, in the middle of a byte.
    """
    if plan.source == "b6x16_p32":
        data = formats.unpack_padded(data, "e3m2") << np.uint8(formats.TMEM_SHIFT["e3m2"])
    elif plan.source == "b4x16_p64":
        data = formats.unpack_padded(data, "e2m1") << np.uint8(formats.TMEM_SHIFT["e2m1"])
    return np.ascontiguousarray(data).view(np.uint32)


def check_copy_lane(shape: str, lane: int) -> None:
    """Refuses a lane field of the destination that its shape does not start at."""
    allowed = range(QUARTER) if shape == "4x256b" else range(1)
    if lane not in allowed:
        raise EmulationError(
            "tensor-memory",
            f"tcgen05.cp.{shape} to lane {lane}; it starts at lane {allowed[0]} to {allowed[-1]}",
        )
