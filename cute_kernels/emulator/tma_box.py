"""What one tiled tensor copy touches: bytes of global memory, and where they lie in shared memory.

A copy moves a box. Its image in shared memory is dense, dimension 0 innermost, one row for each combination of
the outer dimensions; after that the swizzle permutes the 16-byte chunks of every 128-byte line of shared memory.
Elements outside the tensor are filled by a load and skipped by a store, so what is touched in global memory is
itself a box: a BoxPlan gives it as an address, a shape and strides.

Semantics: PTX ISA 5.5 (tensors) and cp.async.bulk.tensor; tests/recorded/tensor_copies.jsonl.gz holds what an
H200 does, and the tests compare. Only the tiled mode is here; im2col maps are refused by `tensor_map.decode`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cute_kernels.emulator.tensor_map import SWIZZLE_SPAN, TensorMap, decode

Bytes: TypeAlias = NDArray[np.uint8]
CHUNK = 16  # bytes that a swizzle never splits
LINE = 128  # bytes within which a swizzle permutes, and the alignment of a copy's shared memory
OOB_NAN = 0x7FF7  # what every 16 bits outside the tensor are filled with, whatever the float type
SLICE_NBYTES = {"none": 0, "16B": 16, "32B": 32}
MAX_EXTENT = 1 << 31  # elements of a dimension that copies can address
PATTERN = 1024  # bytes after which every swizzle repeats


class TensorCopyError(ValueError):
    """A tensor copy that the hardware traps on or whose result the ISA leaves undefined."""


@dataclass(frozen=True)
class Geometry:
    """What all copies through one map share.

    dimensions: those that the box steps along, outermost first; what it takes of dimension 0 is one run of adjacent
        bytes, unless slices are interleaved.
    counts: elements (or slices) that the box takes along each of them.
    steps: bytes of global memory from one to the next.
    run_nbytes: adjacent bytes of global memory at the end of each step: a row of the box, or a slice.
    image_run_nbytes: the same in shared memory, more for the padded sub-byte types.
    pitch: bytes of shared memory from one run to the next: a swizzled row takes the whole span of the swizzle.
    box_nbytes: bytes of the whole image.
    transaction_nbytes: what a load signals to its barrier, whatever lies outside the tensor: the bytes of the box in
        global memory, so those of the image without padding.
    """

    tensor_map: TensorMap
    dimensions: tuple[int, ...]
    counts: tuple[int, ...]
    steps: tuple[int, ...]
    run_nbytes: int
    image_run_nbytes: int
    pitch: int
    box_nbytes: int
    transaction_nbytes: int


@dataclass(frozen=True)
class BoxPlan:
    """The part of one box that lies inside the tensor.

    start: address of its first byte; 0 where nothing lies inside.
    shape: of that part, outermost first; the last extent counts bytes, all of them adjacent.
    strides: bytes of global memory, one for each extent.
    inside: where the part lies in the image of shape `(*geometry.counts, geometry.run_nbytes)`.
    """

    geometry: Geometry
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    inside: tuple[slice, ...]

    @property
    def empty(self) -> bool:
        return self.start == 0

    @property
    def run_nbytes(self) -> int:
        """Bytes of each run that `run_addresses` gives."""
        return self.shape[-1]

    def run_addresses(self) -> NDArray[np.uint64]:
        """Addresses of the adjacent runs in the image's order, uint64 [runs]."""
        if self.empty:
            return np.empty(0, np.uint64)
        offsets = np.zeros((1,) * len(self.shape[:-1]), np.uint64)
        for axis, (extent, stride) in enumerate(zip(self.shape[:-1], self.strides[:-1], strict=True)):
            along = [1] * offsets.ndim
            along[axis] = extent
            offsets = offsets + (np.arange(extent, dtype=np.uint64) * np.uint64(stride)).reshape(along)
        return (offsets + np.uint64(self.start)).ravel()

    def reach(self) -> tuple[int, int]:
        """Lowest address touched and the one past the highest; (0, 0) where nothing is."""
        return self._reach

    @cached_property
    def _reach(self) -> tuple[int, int]:
        if self.empty:
            return 0, 0
        last = sum((extent - 1) * stride for extent, stride in zip(self.shape, self.strides, strict=True))
        return self.start, self.start + last + 1

    def of_image(self, image: Bytes) -> Bytes:
        """The same part of an unpadded image, uint8 [box_nbytes], as a view of `shape`."""
        g = self.geometry
        return image.reshape(*g.counts, g.run_nbytes)[self.inside]


View: TypeAlias = Callable[[BoxPlan], Bytes]


def process_memory(plan: BoxPlan) -> Bytes:
    """This process's memory at the plan's addresses, uint8 of plan.shape, writeable; not to be called if empty."""
    low, high = plan.reach()
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))
    return np.lib.stride_tricks.as_strided(memory, plan.shape, plan.strides)


@lru_cache(maxsize=256)
def geometry(descriptor: bytes) -> Geometry:
    """The geometry of a descriptor's boxes.

    Raises TensorMapError for bytes that are no tiled tensor map, TensorCopyError for a map that no copy can use.
    """
    m = decode(descriptor)
    if max(m.dims) > MAX_EXTENT:
        raise TensorCopyError(
            f"a tensor of extents {m.dims}; the driver encodes such maps, but the hardware traps on extents above "
            f"{MAX_EXTENT}: split the tensor"
        )
    slice_nbytes = SLICE_NBYTES[m.interleave]
    strides = (slice_nbytes, *m.strides)
    dimensions = tuple(reversed(range(0 if slice_nbytes else 1, m.rank)))
    # A box takes one slice of the channels, the last dimension but one, whatever its extent there says.
    counts = tuple(
        1 if slice_nbytes and d == m.rank - 2 else -(-m.box[d] // m.element_strides[d]) for d in dimensions
    )
    run_nbytes = slice_nbytes or m.box[0] * m.element.bits // 8
    image_run_nbytes = m.box[0] if m.element.padded else run_nbytes
    return Geometry(
        tensor_map=m,
        dimensions=dimensions,
        counts=counts,
        steps=tuple(strides[d] * m.element_strides[d] for d in dimensions),
        run_nbytes=run_nbytes,
        image_run_nbytes=image_run_nbytes,
        pitch=image_run_nbytes if slice_nbytes else SWIZZLE_SPAN[m.swizzle] or image_run_nbytes,
        box_nbytes=prod(counts) * image_run_nbytes,
        transaction_nbytes=prod(counts) * run_nbytes,
    )


@lru_cache(maxsize=4096)
def load_plan(descriptor: bytes, coordinates: tuple[int, ...]) -> BoxPlan:
    """What a load of the box at `coordinates` (innermost first, elements; any int32) reads.

    Raises TensorCopyError where the hardware traps, TensorMapError for bytes that are no tiled tensor map.
    """
    g = geometry(descriptor)
    _check_coordinates(g, coordinates)
    return _plan(g, coordinates, granule=1)


@lru_cache(maxsize=4096)
def store_plan(descriptor: bytes, coordinates: tuple[int, ...]) -> BoxPlan:
    """What a store or a reduction of the box at `coordinates` writes; coordinates as for load_plan.

    The hardware writes whole 16-byte granules along dimension 0: where the tensor's row is no multiple of 16 bytes,
    a box that reaches past its end also writes what follows the row, up to the next multiple.
    """
    g = geometry(descriptor)
    m = g.tensor_map
    if m.element.padded:
        raise TensorCopyError(
            f"a store of {m.dtype} is not modelled; supported are unpadded types: store as u8"
        )
    if m.swizzle == "128B_atom_32B_flip_8B":
        raise TensorCopyError("swizzle 128B_atom_32B_flip_8B is for loads alone; store with another swizzle")
    if min(coordinates) < 0:
        raise TensorCopyError(
            f"a store at {coordinates}; stores take no negative coordinates: the hardware traps"
        )
    _check_coordinates(g, coordinates)
    return _plan(g, coordinates, granule=CHUNK)


def _plan(g: Geometry, coordinates: tuple[int, ...], granule: int) -> BoxPlan:
    """The box's part inside the tensor, whose rows count up to a multiple of `granule` bytes."""
    m = g.tensor_map
    start, shape, inside = m.address, [], []
    for dimension, count, stride_step in zip(g.dimensions, g.counts, g.steps, strict=True):
        step, first = m.element_strides[dimension], coordinates[dimension]
        low = max(0, -(first // step))  # the first index whose coordinate is not negative
        high = min(count, -(-(m.dims[dimension] - first) // step))
        start += first * (stride_step // step) + low * stride_step
        shape.append(high - low)
        inside.append(slice(low, high))
    low, high = 0, g.run_nbytes
    if m.interleave == "none":
        first = coordinates[0] * m.element.bits // 8
        row_end = -(-m.dims[0] * m.element.bits // (8 * granule)) * granule
        low, high = max(0, -first), min(g.run_nbytes, row_end - first)
        start += first + low
    shape.append(high - low)
    inside.append(slice(low, high))
    strides = (*g.steps, 1)
    if min(shape) <= 0:
        return BoxPlan(g, 0, (0,) * len(shape), strides, (slice(0, 0),) * len(shape))
    return BoxPlan(g, start, tuple(shape), strides, tuple(inside))


def _check_coordinates(g: Geometry, coordinates: tuple[int, ...]) -> None:
    m = g.tensor_map
    if len(coordinates) != m.rank:
        raise TensorCopyError(
            f"{len(coordinates)} coordinates for a tensor map of rank {m.rank}; give one a dimension"
        )
    first = coordinates[0]
    if m.element.padded and first % 128:
        raise TensorCopyError(f"coordinate 0 is {first}; with {m.dtype} it is a multiple of 128 elements")
    if m.interleave == "none" and first * m.element.bits % (8 * CHUNK):
        raise TensorCopyError(
            f"coordinate 0 is {first} elements of {m.dtype}, {first * m.element.bits / 8:g} bytes; the hardware takes "
            f"multiples of {CHUNK} bytes and traps on others"
        )


def load_image(plan: BoxPlan, view: View = process_memory) -> Bytes:
    """The box's bytes in shared memory before swizzling, uint8 [box_nbytes].

    view: gives global memory at the plan's addresses as uint8 of plan.shape.
    """
    g = plan.geometry
    m = g.tensor_map
    if plan.shape == (*g.counts, g.run_nbytes) and not m.element.tf32 and not m.element.padded:
        return view(plan).reshape(-1)  # all of it lies inside
    image = np.zeros((*g.counts, g.run_nbytes), np.uint8)
    if m.oob_fill == "nan":
        image.view(np.uint16)[...] = OOB_NAN
    if not plan.empty:
        inside = view(plan)
        image[plan.inside] = _rounded_to_tf32(inside) if m.element.tf32 else inside
    if m.element.padded:
        image = _padded(m, image)
    return image.reshape(-1)


def store_image(plan: BoxPlan, image: Bytes, view: View = process_memory) -> None:
    """Writes the in-bounds part of an unswizzled image, uint8 [box_nbytes], to global memory."""
    if not plan.empty:
        view(plan)[...] = plan.of_image(image)


def _rounded_to_tf32(data: Bytes) -> Bytes:
    words = np.ascontiguousarray(data).view(np.uint32)
    rounded = words + np.uint32(0xFFF) + (words >> np.uint32(13) & np.uint32(1)) & np.uint32(0xFFFFE000)
    return np.where((words & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FFFE000), rounded).view(np.uint8)


def _padded(m: TensorMap, packed: Bytes) -> Bytes:
    """Sixteen packed elements a chunk, the rest of the chunk zero: the ISA leaves it undefined (see defined_bytes)."""
    group = 16 * m.element.bits // 8
    chunks = packed.reshape(-1, group)
    image = np.zeros((len(chunks), CHUNK), np.uint8)
    image[:, :group] = chunks
    return image


def defined_bytes(descriptor: bytes) -> int:
    """How many bytes at the start of each 16-byte chunk of a load's image are defined: 16, fewer if padded."""
    element = decode(descriptor).element
    return 16 * element.bits // 8 if element.padded else CHUNK


def smem_offsets(descriptor: bytes, smem_address: int) -> NDArray[np.int64]:
    """Where the image's 16-byte chunks lie: int64 [box_nbytes / 16], bytes from `smem_address`.

    The swizzle permutes by the bits of the absolute shared address. It moves a chunk within its 128-byte line,
    so an image that is no multiple of 128 bytes can reach past its own end.
    Raises TensorCopyError for an address that is no multiple of 128.
    """
    if smem_address % LINE:
        raise TensorCopyError(
            f"shared memory address {smem_address:#x}; tensor copies take multiples of {LINE} bytes"
        )
    return _offsets(descriptor, smem_address % PATTERN)


@lru_cache(maxsize=1024)
def _offsets(descriptor: bytes, base: int) -> NDArray[np.int64]:
    g = geometry(descriptor)
    runs = g.pitch * np.arange(prod(g.counts), dtype=np.int64)
    linear = base + runs[:, None] + CHUNK * np.arange(g.image_run_nbytes // CHUNK, dtype=np.int64)
    offsets = swizzle(linear.ravel(), g.tensor_map.swizzle) - base
    offsets.setflags(write=False)
    return offsets


# swizzle -> (lowest bit that changes, how many); they are xored with as many bits from bit 7 on.
_SWIZZLED_BITS = {
    "none": (0, 0),
    "32B": (4, 1),
    "64B": (4, 2),
    "128B": (4, 3),
    "128B_atom_32B": (5, 2),
    "128B_atom_32B_flip_8B": (5, 2),
    "128B_atom_64B": (6, 1),
}


def swizzle(address: NDArray[np.int64], mode: str) -> NDArray[np.int64]:
    """Shared addresses of 16-byte chunks after swizzling. Each mode is its own inverse."""
    low, width = _SWIZZLED_BITS[mode]
    return address ^ ((address >> 7 & (1 << width) - 1) << low)


def to_shared(descriptor: bytes, image: Bytes, smem_address: int) -> tuple[NDArray[np.int64], Bytes]:
    """An image as a load writes it: (offsets int64 [chunks] as smem_offsets gives them, uint8 [chunks, 16])."""
    offsets = smem_offsets(descriptor, smem_address)
    chunks = image.reshape(-1, CHUNK)
    if decode(descriptor).swizzle == "128B_atom_32B_flip_8B":
        odd = (smem_address + offsets) >> 7 & 1 == 1
        chunks = np.where(odd[:, None], np.roll(chunks, CHUNK // 2, axis=1), chunks)
    return offsets, chunks
