"""What the emulator reads of a cubin, an ELF file: how many registers a thread of each kernel has.

ptxas notes it in section .nv.info, as a list of attributes: a format, a kind, and a size or a value. The one named here
holds the index of the kernel's symbol and the number, which `cuobjdump -res-usage` prints as REG. A host program holds
cubins in fat binaries: a header, and for each member a header and its bytes.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

MAGIC = b"\x7fELF"
_SECTIONS_AT, _SECTION_SIZES_AT = 0x28, 0x3A  # in the header: e_shoff; e_shentsize, e_shnum, e_shstrndx
_SIZED = 4  # the format of an attribute whose value follows it
_REGISTERS = 0x2F  # EIATTR_REGCOUNT: symbol, registers a thread
_SYMBOLS = 2  # SHT_SYMTAB
_SYMBOL_BYTES = 24
_FAT_MAGIC, _FAT_HEADER = 0xBA55ED50, "<IHHQ"  # magic, version, bytes of the header and of what follows it
_MEMBER_HEADER, _CUBIN = "<HHIQ", 2  # kind, version, bytes of the header and of the member


class _Section(NamedTuple):
    """The entry of a section in the table of sections."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def of_fat_binary(address: int) -> bytes:
    """The first cubin, not compressed, of the fat binary at an address of this process; empty where it has none."""
    magic, _, header, total = struct.unpack(
        _FAT_HEADER, ctypes.string_at(address, struct.calcsize(_FAT_HEADER))
    )
    data = ctypes.string_at(address + header, total) if magic == _FAT_MAGIC else b""
    at = 0
    while at < len(data):
        kind, _, header, size = struct.unpack_from(_MEMBER_HEADER, data, at)
        member = data[at + header : at + header + size]
        if kind == _CUBIN and member.startswith(MAGIC):
            return member
        at += header + size
    return b""


def registers(cubin: bytes) -> dict[str, int]:
    """Registers a thread of each kernel, by its symbol."""
    (start,) = struct.unpack_from("<Q", cubin, _SECTIONS_AT)
    size, count, names = struct.unpack_from("<HHH", cubin, _SECTION_SIZES_AT)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", cubin, start + i * size)) for i in range(count)]
    symbols = next(s for s in sections if s.kind == _SYMBOLS)
    found = {}
    for section in sections:
        if _text(cubin, sections[names].offset + section.name) == ".nv.info":
            for symbol, value in _counts(cubin[section.offset : section.offset + section.size]):
                (name,) = struct.unpack_from("<I", cubin, symbols.offset + symbol * _SYMBOL_BYTES)
                found[_text(cubin, sections[symbols.link].offset + name)] = value
    return found


def _counts(attributes: bytes) -> list[tuple[int, int]]:
    """Symbol and registers of each note about registers."""
    found, i = [], 0
    while i < len(attributes):
        form, kind, size = struct.unpack_from("<BBH", attributes, i)
        if kind == _REGISTERS:
            found.append(struct.unpack_from("<II", attributes, i + 4))
        i += 4 + (size if form == _SIZED else 0)
    return found


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
