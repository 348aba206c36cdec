"""Tensor maps: the 128-byte descriptors of the tensor copies, as the CUDA driver encodes them.

`encode` writes what cuTensorMapEncodeTiled writes, bit for bit, and refuses what it refuses; `decode` reads
such bytes back. The layout was read off the driver's own output (tests/recorded/tensor_maps.jsonl.gz); the
rules are those of the CUDA driver API's section on tensor maps and of PTX ISA 5.5 and "Restriction on Tensor
Copy instructions", and where the driver does otherwise, the driver's.

Everywhere dimension 0 is the innermost one, extents count elements and strides bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import NamedTuple

NBYTES = 128
MAX_RANK = 5
MAX_SHARED_PER_SM = 228 * 1024  # the driver refuses boxes that no multiprocessor could hold


class TensorMapError(ValueError):
    """A tensor map that the driver would refuse, or bytes that it would never have written."""


class ElementType(NamedTuple):
    """One CUtensorMapDataType: bits of an element in global memory and its code in the descriptor."""

    bits: int
    code: int
    floating: bool = False
    tf32: bool = False  # a flag of its own beside the code of f32 or f32_ftz
    padded: bool = False  # sixteen elements take 16 bytes of shared memory


# In the order of the driver's enumeration, so that a position is the driver's number.
ELEMENT_TYPES: dict[str, ElementType] = {
    "u8": ElementType(8, 0),
    "u16": ElementType(16, 1),
    "u32": ElementType(32, 2),
    "i32": ElementType(32, 3),
    "u64": ElementType(64, 4),
    "i64": ElementType(64, 5),
    "f16": ElementType(16, 6, floating=True),
    "f32": ElementType(32, 7, floating=True),
    "f64": ElementType(64, 9, floating=True),
    "bf16": ElementType(16, 10, floating=True),
    "f32_ftz": ElementType(32, 8, floating=True),
    "tf32": ElementType(32, 7, floating=True, tf32=True),
    "tf32_ftz": ElementType(32, 8, floating=True, tf32=True),
    "b4x16": ElementType(4, 11),
    "b4x16_p64": ElementType(4, 12, padded=True),
    "b6x16_p32": ElementType(6, 13, padded=True),
}
DTYPES = tuple(ELEMENT_TYPES)
INTERLEAVES = ("none", "16B", "32B")
SWIZZLES = ("none", "32B", "64B", "128B", "128B_atom_32B", "128B_atom_32B_flip_8B", "128B_atom_64B")
L2_PROMOTIONS = ("none", "64B", "128B", "256B")
OOB_FILLS = ("zero", "nan")

SWIZZLE_SPAN = {"none": 0, "32B": 32, "64B": 64} | dict.fromkeys(SWIZZLES[3:], 128)
SLICE_BYTES = {"none": 0, "16B": 16, "32B": 32}
_PADDED_SWIZZLES = {
    "b4x16_p64": ("none", "128B", "128B_atom_32B"),
    "b6x16_p32": ("none", "128B", "128B_atom_32B", "128B_atom_64B"),
}


@dataclass(frozen=True)
class TensorMap:
    """The parameters of cuTensorMapEncodeTiled.

    dtype: one of DTYPES. b4x16, b4x16_p64 and b6x16_p32 are the driver's 16U4_ALIGN8B, 16U4_ALIGN16B and
        16U6_ALIGN16B; their extents count single 4-bit or 6-bit elements.
    address: of the first element.
    dims: extents of the tensor, one a dimension.
    strides: of dimensions 1 and up, so one fewer.
    box: elements that the box spans along each dimension.
    element_strides: the box takes every so-manieth element.
    interleave, swizzle, l2_promotion, oob_fill: one of INTERLEAVES, SWIZZLES, L2_PROMOTIONS, OOB_FILLS.
    """

    dtype: str
    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    interleave: str = "none"
    swizzle: str = "none"
    l2_promotion: str = "none"
    oob_fill: str = "zero"

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def element(self) -> ElementType:
        return ELEMENT_TYPES[self.dtype]


class Field(NamedTuple):
    """`width` bits from bit `low` of the descriptor, seen as one little-endian integer of 1024 bits."""

    low: int
    width: int


ADDRESS = Field(0, 57)
RANK = Field(68, 3)
DTYPE = Field(71, 4)
INTERLEAVE = Field(75, 2)
SWIZZLE = Field(77, 2)
OOB_FILL = Field(79, 1)
TF32 = Field(80, 1)
_L2_PROMOTION = Field(81, 2)
ATOM = Field(83, 2)  # 32B, 32B with flip, 64B from 1 on; they come with swizzle 128B
STRIDES_LOW = tuple(Field(96 + 32 * i, 32) for i in range(4))  # in units of 16 bytes
STRIDES_HIGH = tuple(Field(224 + 4 * i, 4) for i in range(4))
DIMS = tuple(Field(256 + 32 * i, 32) for i in range(5))
ELEMENT_STRIDES = tuple(Field(416 + 3 * i, 3) for i in range(5))
BOX = tuple(Field(440 + 8 * i, 8) for i in range(5))
# What the hardware reads ends here. The driver adds notes of its own; the CuTe DSL's encoder leaves the second half
# as it finds it, and sets two bits of the first that the driver leaves clear.
HARDWARE_NBYTES = 64
_DSL_BITS = 1 << 65 | 1 << 85
_BOX_NBYTES = Field(512, 18)
_UNSWIZZLED = Field(580, 1)
_SPAN = Field(584, 3)  # one bit for each of 32, 64 and 128 bytes


def encode(
    dtype: str,
    address: int,
    dims: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    element_strides: tuple[int, ...] = (),
    interleave: str = "none",
    swizzle: str = "none",
    l2_promotion: str = "none",
    oob_fill: str = "zero",
    *,
    arch: str | None = None,
) -> bytes:
    """The 128 bytes that cuTensorMapEncodeTiled writes for these parameters (see TensorMap).

    element_strides: () stands for all ones.
    arch: "sm_90a" and the like also refuses what that architecture's driver refuses; None takes what any does.
    Raises TensorMapError where the driver answers CUDA_ERROR_INVALID_VALUE.
    """
    dims = tuple(map(int, dims))
    steps = tuple(map(int, element_strides)) or (1,) * len(dims)
    tensor_map = TensorMap(
        dtype,
        int(address),
        dims,
        tuple(map(int, strides)),
        tuple(map(int, box)),
        steps,
        interleave,
        swizzle,
        l2_promotion,
        oob_fill,
    )
    validate(tensor_map, arch)
    return _pack(tensor_map)


@lru_cache(maxsize=1024)
def decode(data: bytes) -> TensorMap:
    """The parameters behind 128 bytes that `encode`, the driver or the CuTe DSL wrote.

    Reads what the hardware reads, the first 64 bytes. Raises TensorMapError for a wrong length and for bytes that
    no parameters give: a field out of range, or a bit set that none sets.
    """
    if len(data) != NBYTES:
        raise TensorMapError(f"a tensor map of {len(data)} bytes; it has {NBYTES}: pass the whole descriptor")
    tensor_map = _unpack(data)
    validate(tensor_map)
    stray = int.from_bytes(data[:HARDWARE_NBYTES], "little") & ~_DSL_BITS
    stray ^= int.from_bytes(_pack(tensor_map)[:HARDWARE_NBYTES], "little")
    if stray:
        raise TensorMapError(
            f"bit {stray.bit_length() - 1} of these bytes is not as cuTensorMapEncodeTiled leaves it for {tensor_map}; "
            "supported are tiled maps: pass the bytes as the driver wrote them"
        )
    return tensor_map


def _pack(m: TensorMap) -> bytes:
    value = 0

    def put(field: Field, number: int) -> None:
        nonlocal value
        value |= (number & ((1 << field.width) - 1)) << field.low

    element, swizzle = m.element, SWIZZLES.index(m.swizzle)
    put(ADDRESS, m.address)
    put(RANK, m.rank - 1)
    put(DTYPE, element.code)
    put(INTERLEAVE, INTERLEAVES.index(m.interleave))
    put(SWIZZLE, min(swizzle, 3))
    put(ATOM, max(swizzle - 3, 0))
    put(OOB_FILL, OOB_FILLS.index(m.oob_fill))
    put(TF32, element.tf32)
    put(_L2_PROMOTION, L2_PROMOTIONS.index(m.l2_promotion))
    for i, stride in enumerate(m.strides):
        put(STRIDES_LOW[i], stride >> 4)
        put(STRIDES_HIGH[i], stride >> 36)
    for i in range(m.rank):
        put(DIMS[i], m.dims[i] - 1)
        put(ELEMENT_STRIDES[i], m.element_strides[i] - 1)
        put(BOX[i], m.box[i] - 1)
    put(_BOX_NBYTES, driver_box_nbytes(m))
    put(_UNSWIZZLED, m.swizzle == "none")
    put(_SPAN, SWIZZLE_SPAN[m.swizzle] // 32)
    return value.to_bytes(NBYTES, "little")


def _unpack(data: bytes) -> TensorMap:
    value = int.from_bytes(data, "little")

    def get(field: Field) -> int:
        return value >> field.low & ((1 << field.width) - 1)

    rank = get(RANK) + 1
    if rank > MAX_RANK:
        raise TensorMapError(f"these bytes say rank {rank}; a tensor map has 1 to {MAX_RANK} dimensions")
    code, tf32 = get(DTYPE), bool(get(TF32))
    dtype = next((n for n, e in ELEMENT_TYPES.items() if (e.code, e.tf32) == (code, tf32)), None)
    interleave, swizzle, atom = get(INTERLEAVE), get(SWIZZLE), get(ATOM)
    if dtype is None or interleave >= len(INTERLEAVES):
        raise TensorMapError(
            f"these bytes say element type {code} (tf32: {tf32}), interleave {interleave}: no such map"
        )
    return TensorMap(
        dtype=dtype,
        address=get(ADDRESS),
        dims=tuple(get(DIMS[i]) + 1 for i in range(rank)),
        strides=tuple((get(STRIDES_HIGH[i]) << 32 | get(STRIDES_LOW[i])) << 4 for i in range(rank - 1)),
        box=tuple(get(BOX[i]) + 1 for i in range(rank)),
        element_strides=tuple(get(ELEMENT_STRIDES[i]) + 1 for i in range(rank)),
        interleave=INTERLEAVES[interleave],
        swizzle=SWIZZLES[swizzle + atom if swizzle == 3 else swizzle],
        l2_promotion=L2_PROMOTIONS[get(_L2_PROMOTION)],
        oob_fill=OOB_FILLS[get(OOB_FILL)],
    )


def driver_box_nbytes(m: TensorMap) -> int:
    """The box's size as the driver reckons it: rounded down in every dimension, and the innermost step counted."""
    return (
        prod(extent // step for extent, step in zip(m.box, m.element_strides, strict=True))
        * m.element.bits
        // 8
    )


def validate(m: TensorMap, arch: str | None = None) -> None:
    """Raises TensorMapError where the driver (of `arch`, if given) refuses these parameters."""
    _check_choices(m, arch)
    _check_global(m)
    _check_box(m)


def check(accepted: bool, given: str, supported: str) -> None:
    """Refuses what the driver or the hardware would."""
    if not accepted:
        raise TensorMapError(f"{given}; {supported}")


def _check_choices(m: TensorMap, arch: str | None) -> None:
    choices = {
        "dtype": DTYPES,
        "interleave": INTERLEAVES,
        "swizzle": SWIZZLES,
        "l2_promotion": L2_PROMOTIONS,
        "oob_fill": OOB_FILLS,
    }
    for name, known in choices.items():
        value = getattr(m, name)
        check(value in known, f"{name} {value!r}", f"choose one of {', '.join(known)}")
    if arch is not None:
        _check_arch(m, arch)
    check(
        m.oob_fill == "zero" or m.element.floating,
        f"oob_fill 'nan' with {m.dtype}",
        "only f16, bf16, f32, f64 and tf32 types have a NaN: use 'zero'",
    )


def _check_arch(m: TensorMap, arch: str) -> None:
    version = int("".join(c for c in arch if c.isdigit()) or 0)
    check(version >= 90, f"a tensor map on {arch}", "tensor maps need sm_90 or newer: use cp.async there")
    if version < 100:
        sub_byte, atom = m.element.bits < 8, m.swizzle.startswith("128B_atom")
        check(not sub_byte, f"dtype {m.dtype} on {arch}", "it needs sm_100 or newer: load packed bytes as u8")
        check(
            not atom,
            f"swizzle {m.swizzle} on {arch}",
            f"it needs sm_100 or newer: choose one of {SWIZZLES[:4]}",
        )


def _check_global(m: TensorMap) -> None:
    rank = m.rank
    check(1 <= rank <= MAX_RANK, f"rank {rank}", f"a tensor map has 1 to {MAX_RANK} dimensions: merge some")
    check(
        m.interleave == "none" or rank >= 3,
        f"interleave {m.interleave} with rank {rank}",
        "interleaved tensors have rank 3 to 5: add dimensions of extent 1",
    )
    for name, expected in (("strides", rank - 1), ("box", rank), ("element_strides", rank)):
        given = len(getattr(m, name))
        check(given == expected, f"{given} {name} for {rank} dims", f"give {expected} {name}")
    unit = 32 if m.interleave == "32B" or m.element.padded else 16
    why = f"with dtype {m.dtype} and interleave {m.interleave} it is a multiple of {unit}"
    check(m.address % unit == 0, f"address {m.address:#x}", f"{why}: align the tensor's first element")
    check(0 <= m.address < 1 << 57, f"address {m.address:#x}", "a global address has 57 bits")
    for i, extent in enumerate(m.dims):
        check(1 <= extent <= 1 << 32, f"dims[{i}] = {extent}", "an extent is 1 to 2**32")
    for i, stride in enumerate(m.strides):
        check(stride % unit == 0, f"strides[{i}] = {stride}", f"{why} bytes: pad the rows")
        check(0 <= stride < 1 << 40, f"strides[{i}] = {stride}", "a stride is below 2**40 bytes")
    multiple = 128 if m.element.padded else 2 if m.element.bits == 4 else 1
    check(
        m.dims[0] % multiple == 0,
        f"dims[0] = {m.dims[0]} of {m.dtype}",
        f"it is a multiple of {multiple}: pad the rows",
    )


def _check_box(m: TensorMap) -> None:
    for i, (extent, step) in enumerate(zip(m.box, m.element_strides, strict=True)):
        check(1 <= extent <= 256, f"box[{i}] = {extent}", "a box extent is 1 to 256: copy several boxes")
        check(1 <= step <= 8, f"element_strides[{i}] = {step}", "an element stride is 1 to 8")
    inner_bits, span = m.box[0] * m.element.bits, SWIZZLE_SPAN[m.swizzle]
    inner = f"box[0] = {m.box[0]} elements of {m.dtype} = {inner_bits / 8:g} bytes"
    check(inner_bits % 128 == 0, inner, "it is a multiple of 16 bytes")
    check(
        not m.element.padded or m.box[0] == 128,
        inner,
        f"with {m.dtype} it is 128 elements: copy several boxes",
    )
    if m.interleave == "none" and span:
        check(
            inner_bits <= span * 8,
            f"{inner} with swizzle {m.swizzle}",
            f"at most the swizzle's {span} bytes: copy several boxes or widen the swizzle",
        )
    if m.element.padded:
        known = _PADDED_SWIZZLES[m.dtype]
        check(m.swizzle in known, f"swizzle {m.swizzle} with {m.dtype}", f"choose one of {', '.join(known)}")
        check(m.interleave == "none", f"interleave {m.interleave} with {m.dtype}", "only 'none' is supported")
    nbytes = driver_box_nbytes(m)
    check(
        nbytes <= MAX_SHARED_PER_SM,
        f"a box of {nbytes} bytes",
        f"at most {MAX_SHARED_PER_SM}: shrink the box",
    )
