"""Value tables of the narrow number formats that tensor cores read, and their decoders.

A table has one entry a code, in float32, which holds every one of these values exactly (UE8M0's
2**-127 is a float32 subnormal). NaN codes decode to NaN. Sources: OCP MX v1.0 sections 5.3 and 5.4 for the
element and scale formats, PTX ISA 5.2.3 for the names.

Element formats: a code is the low bits of its container.
    e2m1        4 bits, 0, .5, 1, 1.5, 2, 3, 4, 6 and negatives
    e2m3, e3m2  6 bits, no NaN, no infinity
    e4m3        8 bits, max 448, NaN 0x7f and 0xff, no infinity
    e5m2        8 bits, IEEE with infinities
Scale formats: one byte.
    ue8m0       2**(code - 127), 0xff is NaN, no zero
    ue4m3       e4m3 without its sign; bit 7 must be 0, such codes decode to NaN
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _minifloat(exponent_bits: int, mantissa_bits: int) -> Floats:
    """Values of all codes of a sign / exponent / mantissa format with the usual bias, none special."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    normal = exponent > 0
    magnitude = np.ldexp(mantissa + normal, np.where(normal, exponent, 1) - bias)
    sign = 1.0 - 2.0 * (codes >> (exponent_bits + mantissa_bits))
    return (sign * magnitude).astype(np.float32)


def _e4m3() -> Floats:
    table = _minifloat(4, 3)
    table[[0x7F, 0xFF]] = np.nan
    return table


def _e5m2() -> Floats:
    table = _minifloat(5, 2)
    for sign, infinity in ((0x00, np.inf), (0x80, -np.inf)):
        table[sign | 0x7C] = infinity
        table[sign | 0x7D : (sign | 0x7F) + 1] = np.nan
    return table


def _ue8m0() -> Floats:
    table = np.full(256, np.nan)
    table[:255] = np.ldexp(1.0, np.arange(255) - 127)
    return table.astype(np.float32)


def _ue4m3() -> Floats:
    table = _e4m3()
    table[0x80:] = np.nan
    return table


E2M1: Floats = _minifloat(2, 1)
E2M3: Floats = _minifloat(2, 3)
E3M2: Floats = _minifloat(3, 2)
E4M3: Floats = _e4m3()
E5M2: Floats = _e5m2()
UE8M0: Floats = _ue8m0()
UE4M3: Floats = _ue4m3()

TABLES: dict[str, Floats] = {
    "e2m1": E2M1,
    "e2m3": E2M3,
    "e3m2": E3M2,
    "e4m3": E4M3,
    "e5m2": E5M2,
    "ue8m0": UE8M0,
    "ue4m3": UE4M3,
}
BITS: dict[str, int] = {
    "e2m1": 4,
    "e2m3": 6,
    "e3m2": 6,
    "e4m3": 8,
    "e5m2": 8,
    "u8": 8,
    "s8": 8,
    "f16": 16,
    "bf16": 16,
    "tf32": 32,
}
for _table in TABLES.values():
    _table.flags.writeable = False

# Both values of a byte that holds two e2m1 codes, low nibble first, for one lookup a byte.
E2M1_PAIRS: npt.NDArray[np.float64] = np.stack(
    [E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=-1
).astype(np.float64)
E2M1_PAIRS.flags.writeable = False
E2M1_PAIRS_FLOAT32 = E2M1_PAIRS.astype(np.float32).view(np.float64)[
    :, 0
]  # the same in 8 bytes, to be viewed as float32


def unpack_e2m1(packed: Bytes) -> npt.NDArray[np.float64]:
    """Values of packed e2m1: uint8 [..., n] -> float64 [..., 2n]; the low nibble is the even element."""
    return np.take(E2M1_PAIRS, packed, axis=0).reshape(*packed.shape[:-1], -1)


def unpack_nibbles(packed: Bytes) -> Bytes:
    """Codes of packed 4-bit elements, the low nibble first: uint8 [..., n] -> uint8 [..., 2n]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def unpack_padded(rows: Bytes, name: str) -> Bytes:
    """Codes of 4- or 6-bit elements as kind::f8f6f4 has them in shared memory, uint8 [..., n] both.

    Each 16 bytes hold 16 codes, packed from the first byte, then 8 or 4 bytes of padding (PTX ISA 5.5.1.1,
    .b4x16_p64 and .b6x16_p32). name: "e2m1", "e2m3" or "e3m2".
    """
    chunks = rows.reshape(*rows.shape[:-1], -1, 16)
    if BITS[name] == 4:
        codes = unpack_nibbles(chunks[..., :8])
    else:
        # Three bytes are 24 bits: four codes, the first in the lowest bits.
        triples = chunks[..., :12].reshape(*chunks.shape[:-1], 4, 3).astype(np.uint32)
        word = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
        codes = (word[..., None] >> np.arange(0, 24, 6, dtype=np.uint32) & 63).astype(np.uint8)
    return codes.reshape(rows.shape)


# Lowest bit of the code in its 8-bit container, for the operands of kinds f8f6f4 and mxf8f6f4 that the tensor
# core reads one element a byte. The bits around the code are not read.
#   in tensor memory: the middle of the byte for all (ISA figures 199-201, which the comments of CUTLASS'
#     experimental/primitives/tcgen05/cp_narrow_a_to_tmem_mma.py spell out)
#   in registers of mma.sync: the middle 4 bits for e2m1, the low 6 bits for the others (ISA 9.7.14.5)
TMEM_SHIFT = {"e2m1": 2, "e2m3": 1, "e3m2": 1}
REGISTER_SHIFT = {"e2m1": 2, "e2m3": 0, "e3m2": 0}


def unpack_containers(containers: Bytes, name: str, shift: int) -> Bytes:
    """Codes of elements that lie one in a byte, `shift` bits up: uint8 -> uint8 of the same shape."""
    return (containers >> np.uint8(shift)) & np.uint8((1 << BITS[name]) - 1)


def decode_bf16(bits: npt.NDArray[np.uint16]) -> Floats:
    """bfloat16 bits -> float32, exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def decode_f16(bits: npt.NDArray[np.uint16]) -> Floats:
    """IEEE half bits -> float32, exact."""
    return bits.view(np.float16).astype(np.float32)


def decode_tf32(bits: npt.NDArray[np.uint32]) -> Floats:
    """tf32 in a float32 container -> float32. The low 13 bits are not read, as the tensor core does not."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def decode_bytes(rows: Bytes, name: str) -> npt.NDArray[np.float64]:
    """Elements without padding (e2m1 two a byte) -> float64, exact: uint8 [..., n] -> [..., elements].

    rows: contiguous in its last axis. name: a key of BITS; for 6-bit elements and for e2m1 in a container of
    its own take `unpack_padded` or `unpack_containers` and TABLES.
    """
    if name == "e2m1":
        return unpack_e2m1(rows)
    if name in ("e4m3", "e5m2"):
        return np.take(TABLES[name], rows).astype(np.float64)
    if name == "u8":
        return rows.astype(np.float64)
    if name == "s8":
        return rows.view(np.int8).astype(np.float64)
    if name == "f16":
        return rows.view(np.float16).astype(np.float64)
    if name == "bf16":
        return decode_bf16(rows.view(np.uint16)).astype(np.float64)
    if name == "tf32":
        return decode_tf32(rows.view(np.uint32)).astype(np.float64)
    raise ValueError(f"number format {name!r} has padding between its elements or is unknown")
