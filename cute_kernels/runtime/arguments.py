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
    names = [p.name for p in params]
    if set(names) != set(arguments):
        raise ManifestError(
            f"the kernel takes {names}, but the host code has {sorted(arguments)}; build the cubins again"
        )
    whole = in_blocks(params, arguments)
    packed = []
    for param in params:
        value = arguments[param.name]
        if isinstance(value, Tiled) != (param.tensor_map is not None):
            raise ManifestError(
                f"parameter {param.name} is a {param.kind}, given {value!r}; build the cubins again"
            )
        if isinstance(value, Tiled):
            assert param.tensor_map is not None
            packed.append(encode(*whole.get(param.name, (param.tensor_map, value))))
        else:
            packed.append(struct.pack(_SCALARS[param.kind], value))
    return tuple(packed)


def in_blocks(
    params: Sequence[Param], arguments: Mapping[str, Argument]
) -> dict[str, tuple[TensorMapSpec, Tiled]]:
    """Return the maps, by parameter name, whose blocks are a dimension: all that have several, or none.

    A last block that is not whole would be read beyond the end of its row, which in the last row may be that of
    the allocation.
    """
    several = [
        (p.name, p.tensor_map, arguments[p.name]) for p in params if p.tensor_map and p.tensor_map.blocks > 1
    ]
    result = {}
    for name, spec, tensor in several:
        assert isinstance(tensor, Tiled)
        width = spec.box[0] * ELEMENT_BITS[spec.dtype] // 8
        if tensor.row_bytes % width:
            return {}
        (extent, *outer), (stride, *strides) = tensor.outer, tensor.strides
        blocks = tensor.row_bytes // width
        result[name] = (
            replace(spec, box=(*spec.box[:2], spec.blocks, *spec.box[2:]), blocks=1),
            Tiled(tensor.address, width, (extent, blocks, *outer), (stride, width, *strides)),
        )
    return result
