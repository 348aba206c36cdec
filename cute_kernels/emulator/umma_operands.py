"""Which bytes of shared memory a tcgen05.mma operand occupies, from its matrix descriptor.

An operand tile of one instruction is `rows` x K elements (rows of A or of B), and K always spans 32 bytes.
The unit of everything here is the 16-byte chunk: hardware swizzles chunks, never the bytes inside one.

    K-major   a row is 32 contiguous bytes: chunk (row r, c) of 2 chunks
    MN-major  a K index is rows * element bytes contiguous bytes: chunk (k, c) of rows * bits / 128 chunks

Canonical layouts (PTX ISA 9.7.16.3.3; LBO and SBO are the descriptor's leading and stride offsets), as byte
offsets from the start address before swizzling, with w = the swizzle span and s = w / 16 chunks:

    K-major,  none       (r % 8) * 16 + (r // 8) * SBO + c * LBO
    K-major,  w = 32..   (r % 8) * w  + (r // 8) * SBO + c * 16
    MN-major, none       (k % 8) * 16 + (k // 8) * LBO + c * SBO
    MN-major, w = 32..   (k % 8) * w  + (k // 8) * SBO + (c % s) * 16 + (c // s) * LBO
    MN-major, 128B with 32B atoms: as above with 4 in the place of 8 (CUTLASS' Layout_MN_SW128_32B_Atom)

The swizzle XORs bits of the absolute shared address, after the offset is added, so a descriptor whose start
was advanced inside an atom (by 32 bytes along K) reads what hardware reads.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    InstructionDescriptor,
    MatrixDescriptor,
    Swizzle,
    UnsupportedForm,
)

CHUNK = 16  # bytes
K_BYTES = 32  # of shared memory that the K extent of one instruction spans, for every kind
_PERIOD = 1024  # bytes after which every swizzle pattern repeats
_CACHE = 4096

Addresses = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def swizzled(address: Addresses, swizzle: Swizzle) -> Addresses:
    """Physical shared addresses of logical ones: bits 4-6 (5-6 with 32-byte atoms) XOR bits 7-9 or fewer."""
    if swizzle is Swizzle.NONE:
        return address
    if swizzle is Swizzle.B128_ATOM32:
        return address ^ (((address >> 7) & 3) << 5)
    mask = swizzle.span // CHUNK - 1
    return address ^ (((address >> 7) & mask) << 4)


def operand_chunks(
    descriptor: MatrixDescriptor,
    rows: int,
    element_bits: int,
    transposed: bool = False,
    row_bytes: int = K_BYTES,
) -> Addresses:
    """Shared addresses of the 16-byte chunks of an operand tile, int64 [lines, chunks a line].

    rows: rows of the tile in this CTA. element_bits: as stored (InstructionDescriptor.element_bits).
    transposed: MN-major. Lines are rows when K-major and K indices when MN-major; `rows_of_chunks` makes
    rows of either. row_bytes: 32, or 16 for the copies of tcgen05.cp that are 128 bits wide.
    """
    phase = descriptor.start % _PERIOD
    layout = (descriptor.leading, descriptor.stride, descriptor.swizzle)
    if transposed:
        offsets = _mn_major(phase, *layout, rows, element_bits)
    else:
        offsets = _k_major(phase, *layout, rows, row_bytes)
    return offsets + (descriptor.start - phase)


# Offsets depend on the start address only through `phase`, its remainder by the period of the swizzle.
@lru_cache(maxsize=_CACHE)
def _k_major(phase: int, leading: int, stride: int, swizzle: Swizzle, rows: int, row_bytes: int) -> Addresses:
    span = swizzle.span
    if swizzle is not Swizzle.NONE and phase % span + row_bytes > span:
        raise DescriptorError(
            f"the {row_bytes} bytes of a K-major row cross their {span}-byte swizzle span: the start is "
            f"{phase % span} bytes into it; advance in multiples of {row_bytes} bytes"
        )
    row = np.arange(rows)[:, None]
    chunk = np.arange(row_bytes // CHUNK)[None, :]
    step = leading if swizzle is Swizzle.NONE else CHUNK
    return _frozen(phase + (row % 8) * span + (row // 8) * stride + chunk * step, swizzle)


@lru_cache(maxsize=_CACHE)
def _mn_major(phase: int, leading: int, stride: int, swizzle: Swizzle, rows: int, bits: int) -> Addresses:
    span = swizzle.span
    depth = 4 if swizzle is Swizzle.B128_ATOM32 else 8  # K indices of an atom
    k = np.arange(K_BYTES * 8 // bits)[:, None]
    chunk = np.arange(rows * bits // (8 * CHUNK))[None, :]
    outer_k, outer_chunk = (leading, stride) if swizzle is Swizzle.NONE else (stride, leading)
    inner = chunk % (span // CHUNK) * CHUNK
    outer = chunk // (span // CHUNK) * outer_chunk
    return _frozen(phase + (k % depth) * span + (k // depth) * outer_k + inner + outer, swizzle)


def _frozen(address: npt.NDArray[np.integer], swizzle: Swizzle) -> Addresses:
    result = swizzled(address.astype(np.int64), swizzle)
    result.flags.writeable = False
    return result


def check_operand(d: InstructionDescriptor, operand: str, swizzle: Swizzle) -> None:
    """Refuses a majorness that its element size and swizzling mode do not combine with (ISA table 54)."""
    transposed = d.transpose_a if operand == "a" else d.transpose_b
    atom32 = swizzle is Swizzle.B128_ATOM32
    name = f"operand {operand.upper()} of kind::{d.kind}"
    if transposed and d.kind == "tf32" and not atom32:
        raise DescriptorError(
            f"{name}: a transposed (MN-major) tf32 operand needs the 128B swizzle with 32B atoms (mode 1), "
            f"not mode {int(swizzle)}"
        )
    if transposed and d.kind != "tf32" and atom32:
        raise DescriptorError(f"{name}: the 128B swizzle with 32B atoms transposes 32-bit elements alone")
    if not transposed and atom32:
        # ISA table 54 lists it, table 55 and CUTLASS know no such layout.
        raise UnsupportedForm(f"{name}: the 128B swizzle with 32B atoms of a K-major operand")


def operand_rows(d: InstructionDescriptor, operand: str) -> int:
    """Rows of A or of B that one CTA's shared memory holds."""
    return (d.m if operand == "a" else d.n) // d.cta_group


def chunk_bytes(number_format: str, element_bits: int) -> int:
    """Bytes of each 16-byte chunk that carry elements; the rest is padding, which has no meaning.

    4- and 6-bit elements of kind::f8f6f4 and kind::mxf8f6f4 lie 16 to a chunk, packed from its first byte
    (as TMA writes them with the ALIGN16B types); all other elements fill their chunks.
    """
    if element_bits == 8:
        return {"e2m1": 8, "e2m3": 12, "e3m2": 12}.get(number_format, CHUNK)
    return CHUNK


def rows_of_chunks(data: Bytes, element_bits: int, transposed: bool) -> Bytes:
    """Gathered chunks -> one row of the operand a line, K contiguous: uint8 [rows, 32].

    data: uint8 [lines, chunks * 16], the bytes at `operand_chunks`.
    """
    if not transposed:
        return data
    element = {8: np.uint8, 16: np.uint16, 32: np.uint32}[element_bits]
    return np.ascontiguousarray(data.view(element).T).view(np.uint8)
