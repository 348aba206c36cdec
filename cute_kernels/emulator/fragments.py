"""What ldmatrix, stmatrix and movmatrix move between rows in shared memory and the registers of a warp.

PTX ISA 9.7.14.5.15 to 17. A row is always 16 bytes; row i of an instruction starts at the address that
thread i holds. Of a matrix, with t the thread and b the byte of its register:

    m8n8 .b16           row t // 4, bytes 4 * (t % 4) + b                     register i is matrix i
    m8n8 .trans .b16    half h: row 2 * (t % 4) + h, element t // 4           register i is matrix i
    m8n16 .b8x16...     row t // 4, elements 4 * (t % 4) + b                  register i is matrix i
    m16n16 .trans .b8   row 4 * (t % 4) + b, element t // 4 + 8 * (i % 2)     registers 2j and 2j + 1 are
    matrix j m16n8 .trans .b8    row 2 * (t % 4) + b % 2, element t // 4 + 8 * (b // 2)    (stmatrix; 8 rows
    of 16 bytes)

The manual draws the 8-bit forms; their maps here are those of CUTLASS' SM100_U8x8_LDSM_T, SM100_SU4_DU8x16
and SM100_U8x4_STSM_T (cute/atom/copy_traits_sm100.hpp), with the register permutation of
cute/arch/copy_sm100.hpp undone. From the sources .b4x16_p64 and .b6x16_p32 each code becomes the low bits of
a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator import number_formats as formats
from cute_kernels.emulator.umma_descriptors import UnsupportedForm

ROW_BYTES = 16
Bytes = npt.NDArray[np.uint8]
Register = npt.NDArray[np.uint32]
Modifiers = tuple[str, ...]


@dataclass(frozen=True)
class MatrixForm:
    """The geometry of one ldmatrix or stmatrix.

    rows: 16-byte rows touched; row i starts at thread i's address. registers: destination or source
    registers. source: "", "b4x16_p64" or "b6x16_p32". chunk_bytes: bytes of a row that are read; the rest is
    padding.
    """

    rows: int
    registers: int
    source: str
    chunk_bytes: int
    index: npt.NDArray[np.int64]  # [registers, 32, 4]: byte of the rows, for each byte of each register


def _byte_index(shape: str, transposed: bool, registers: int) -> npt.NDArray[np.int64]:
    """Byte offset in the rows (row * 16 + byte) of byte b of register i of thread t, [registers, 32, 4]."""
    i = np.arange(registers)[:, None, None]
    t = np.arange(32)[None, :, None]
    b = np.arange(4)[None, None, :]
    if shape == "m16n16":
        row, byte = 16 * (i // 2) + 4 * (t % 4) + b, t // 4 + 8 * (i % 2)
    elif shape == "m16n8":
        row, byte = 8 * i + 2 * (t % 4) + b % 2, t // 4 + 8 * (b // 2)
    elif transposed:
        row, byte = 8 * i + 2 * (t % 4) + b // 2, 2 * (t // 4) + b % 2
    else:
        row, byte = 8 * i + t // 4, 4 * (t % 4) + b
    return np.ascontiguousarray(np.broadcast_to(ROW_BYTES * row + byte, (registers, 32, 4)), np.int64)


# (shape, transposed, element) of each instruction -> the counts it has.
_LOADS = {
    ("m8n8", False, "b16"): (1, 2, 4),
    ("m8n8", True, "b16"): (1, 2, 4),
    ("m16n16", True, "b8"): (1, 2),
    ("m16n16", True, "b8x16"): (1, 2),
    ("m8n16", False, "b8x16"): (1, 2, 4),
}
_STORES = {
    ("m8n8", False, "b16"): (1, 2, 4),
    ("m8n8", True, "b16"): (1, 2, 4),
    ("m16n8", True, "b8"): (1, 2, 4),
}
_IGNORED = {"sync", "aligned", "shared", "shared::cta"}
_COUNTS = {"x1": 1, "x2": 2, "x4": 4}


@lru_cache(maxsize=64)
def matrix_form(opcode: str, modifiers: Modifiers) -> MatrixForm:
    """The form of an ldmatrix or stmatrix; modifiers as the instruction writes them, without dots."""
    rest = [m for m in modifiers if m not in _IGNORED]
    transposed, source = "trans" in rest, next((m for m in rest if m.startswith(("b4x16", "b6x16"))), "")
    shape = next((m for m in rest if m.startswith("m")), "")
    count = next((m for m in rest if m in _COUNTS), "")
    element = next((m for m in rest if m in ("b16", "b8", "b8x16")), "")
    known = {"trans": transposed, source: bool(source), shape: True, count: True, element: True}
    counts = (_LOADS if opcode == "ldmatrix" else _STORES).get((shape, transposed, element), ())
    padding = {"": ROW_BYTES, "b4x16_p64": 8, "b6x16_p32": 12}
    if (
        _COUNTS.get(count) not in counts
        or any(m not in known for m in rest)
        or source not in padding
        or bool(source) != (element == "b8x16")
    ):
        raise UnsupportedForm(f"{opcode}.{'.'.join(modifiers)} is not a form of {opcode}")
    matrices = _COUNTS[count]
    registers = matrices * (2 if shape == "m16n16" else 1)
    index = _byte_index(shape, transposed, registers)
    index.flags.writeable = False
    return MatrixForm(8 * registers, registers, source, padding[source], index)


def ldmatrix(form: MatrixForm, rows: Bytes) -> list[Register]:
    """Registers of the warp, uint32 [32] each, from the rows: uint8 [form.rows, 16]."""
    if form.source:
        rows = formats.unpack_padded(rows, "e2m1" if form.source == "b4x16_p64" else "e3m2")
    words = rows.reshape(-1)[form.index].view(np.uint32)[..., 0]
    return list(words)


def stmatrix(form: MatrixForm, registers: Sequence[Register]) -> Bytes:
    """Rows to write, uint8 [form.rows, 16], from the warp's registers, uint32 [32] each."""
    rows = np.empty(form.rows * ROW_BYTES, np.uint8)
    rows[form.index] = np.stack(registers)[..., None].view(np.uint8)
    return rows.reshape(form.rows, ROW_BYTES)


def movmatrix(register: Register) -> Register:
    """movmatrix.sync.aligned.m8n8.trans.b16: the transpose of an 8x8 matrix of 16-bit elements, uint32
    [32]."""
    plain, transposed = (_byte_index("m8n8", trans, 1) for trans in (False, True))
    rows = np.empty(8 * ROW_BYTES, np.uint8)
    rows[plain] = register[None, :, None].view(np.uint8)
    return np.asarray(rows[transposed].view(np.uint32)[0, :, 0])
