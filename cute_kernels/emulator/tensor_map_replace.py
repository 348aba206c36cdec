"""tensormap.replace: one field of a tensor map changed (PTX ISA, "tensormap.replace")."""

from __future__ import annotations

from cute_kernels.emulator.tensor_map import (
    ADDRESS,
    ATOM,
    BOX,
    DIMS,
    DTYPE,
    ELEMENT_STRIDES,
    ELEMENT_TYPES,
    INTERLEAVE,
    MAX_RANK,
    NBYTES,
    OOB_FILL,
    RANK,
    STRIDES_HIGH,
    STRIDES_LOW,
    SWIZZLE,
    TF32,
    Field,
    check,
)

# Fields that tensormap.replace writes, and the values of those with a table of their own (PTX ISA, Table 33).
_ORDINALS = {"box_dim": BOX, "global_dim": DIMS, "element_stride": ELEMENT_STRIDES}
_CHOICES = {
    "interleave_layout": INTERLEAVE,
    "swizzle_mode": SWIZZLE,
    "swizzle_atomicity": ATOM,
    "fill_mode": OOB_FILL,
}
_ELEMENT_NAMES = (
    "u8", "u16", "u32", "i32", "u64", "i64", "f16", "f32", "f32_ftz", "f64", "bf16", "tf32", "tf32_ftz", "b4x16",
    "b4x16_p64", "b6x16_p32",
)  # fmt: skip
REPLACEABLE = ("global_address", "rank", "global_stride", "elemtype", *_ORDINALS, *_CHOICES)


def replaced(data: bytes, field: str, ordinal: int, value: int) -> bytes:
    """The 128 bytes after tensormap.replace.tile of one field (of REPLACEABLE).

    ordinal: of the dimension, 0 the innermost; of a stride, 0 that of dimension 1. value: as the instruction takes it:
    strides in bytes, extents as they are, the rank less one, Table 33's numbers. Raises TensorMapError for a value
    that the field cannot hold; whether the whole map is one that copies can use is seen when one does.
    """
    parts: list[tuple[Field, int]]
    if field == "global_address":
        parts = [(ADDRESS, value)]
    elif field == "rank":
        parts = [(RANK, value)]
    elif field == "elemtype":
        check(
            value < len(_ELEMENT_NAMES),
            f"element type {value}",
            f"0 to {len(_ELEMENT_NAMES) - 1} are allowed",
        )
        element = ELEMENT_TYPES[_ELEMENT_NAMES[value]]
        parts = [(DTYPE, element.code), (TF32, int(element.tf32))]
    elif field in _CHOICES:
        parts = [(_CHOICES[field], value)]
    elif field == "global_stride":
        check(value % 16 == 0, f"a stride of {value} bytes", "strides are multiples of 16 bytes")
        check(ordinal < len(STRIDES_LOW), f"the stride of ordinal {ordinal}", "0 to 3 are allowed")
        parts = [(STRIDES_LOW[ordinal], value >> 4 & 0xFFFFFFFF), (STRIDES_HIGH[ordinal], value >> 36)]
    else:
        check(ordinal < MAX_RANK, f"the {field} of ordinal {ordinal}", "0 to 4 are allowed")
        parts = [(_ORDINALS[field][ordinal], value - 1)]
    number = int.from_bytes(data, "little")
    for place, part in parts:
        check(
            0 <= part < 1 << place.width,
            f"tensormap.replace of {field} by {value}",
            "the field does not hold it",
        )
        number &= ~(((1 << place.width) - 1) << place.low)
        number |= part << place.low
    return number.to_bytes(NBYTES, "little")
