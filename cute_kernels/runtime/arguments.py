"""Launch arguments as bytes: one code path for the GPU and for the emulator."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cute_kernels.build.variant import Param, TensorMapSpec

from .errors import ManifestError

# Bits of one element of each tensor-map type. The 16U4 and 16U6 types count single 4- and 6-bit elements.
ELEMENT_BITS = {
    "u8": 8,
    "u16": 16,
    "u32": 32,
    "i32": 32,
    "u64": 64,
    "i64": 64,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "b4x16": 4,
    "b4x16_p64": 4,
}

_SCALARS = {"pointer": "<Q", "i32": "<i", "u32": "<I", "f32": "<f", "i64": "<q"}


@dataclass(frozen=True)
class Tiled:
    """A row-major tensor in memory, as a tensor map sees it: the half of a descriptor that the kernel does
    not fix.

    address: of the first element. row_bytes: extent of the innermost dimension.
    outer: extents of the other dimensions, innermost first. strides: bytes from one to the next, for each of
        `outer`.
    """

    address: int
    row_bytes: int
    outer: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes from the first byte of the tensor to the last, gaps between rows included."""
        reach = sum((extent - 1) * stride for extent, stride in zip(self.outer, self.strides, strict=True))
        return reach + self.row_bytes

    def overlaps(self, other: Tiled) -> bool:
        """Return whether two tensors share memory.

        Exact for matrices with one row stride, such as column slices of one buffer; otherwise any overlap of
        their address ranges counts.
        """
        shift = other.address - self.address
        if shift >= self.nbytes or -shift >= other.nbytes:
            return False
        if len(self.strides) != 1 or self.strides != other.strides:
            return True
        stride = self.strides[0]
        return not self.row_bytes <= shift % stride <= stride - other.row_bytes

    def dims(self, dtype: str) -> tuple[int, ...]:
        """Return the extents in elements of a tensor-map type, innermost first."""
        return (self.row_bytes * 8 // ELEMENT_BITS[dtype], *self.outer)


EncodeTensorMap = Callable[[TensorMapSpec, Tiled], bytes]
Argument = Tiled | int | float


def pack(
    params: Sequence[Param], arguments: Mapping[str, Argument], encode: EncodeTensorMap
) -> tuple[bytes, ...]:
    """Return the bytes of every launch parameter, in the kernel's order.

    arguments: by parameter name; a Tiled for each tensor map, an address or number for the others.
    encode: makes the 128 bytes of a descriptor.
    Raises ManifestError if names or kinds disagree with the kernel: then host code and cubin are of different
    versions.
    """
    names = list(dict.fromkeys(argument_of(p) for p in params))
    if set(names) != set(arguments):
        raise ManifestError(
            f"the kernel takes {names}, but the host code has {sorted(arguments)}; build the cubins again"
        )
    packed = []
    for param in params:
        value = arguments[argument_of(param)]
        if isinstance(value, Tiled) != (param.tensor_map is not None):
            raise ManifestError(
                f"parameter {param.name} is a {param.kind}, given {value!r}; build the cubins again"
            )
        if isinstance(value, Tiled):
            assert param.tensor_map is not None
            packed.append(encode(*in_blocks(param.tensor_map, value)))
        else:
            packed.append(struct.pack(_SCALARS[param.kind], value))
    return tuple(packed)


def argument_of(param: Param) -> str:
    """Return the argument that a parameter is made of: that of NAME, for NAME_boxes (TensorMapSpec.blocks)."""
    return param.name.removesuffix("_boxes")


def in_blocks(spec: TensorMapSpec, tensor: Tiled) -> tuple[TensorMapSpec, Tiled]:
    """Return box and tensor as a tensor map of them is encoded: with a dimension of blocks where it has several.

    A last block that is not whole goes on with what lies behind the end of its row, in the rows that follow. So the
    map leaves out the last row, and is of the tensor's memory alone.
    """
    if spec.blocks == 1:
        return spec, tensor
    step = spec.box[0] * ELEMENT_BITS[spec.dtype] // 8
    width, whole = min(step, tensor.row_bytes), tensor.row_bytes % step == 0
    (extent, *outer), (stride, *strides) = tensor.outer, tensor.strides
    rows, blocks = extent, tensor.row_bytes // width
    if not whole and extent > 1:
        rows, blocks = extent - 1, -(-tensor.row_bytes // width)
    return (
        replace(spec, box=(*spec.box[:2], spec.blocks, *spec.box[2:]), blocks=1),
        Tiled(tensor.address, width, (rows, blocks, *outer), (stride, step, *strides)),
    )
