"""TMA: boxes between global and shared memory through tensor maps that the launch carries."""

from __future__ import annotations

from typing import Any

import cutlass.experimental.cuda as cuda
from cutlass import Int32, Int64
from cutlass.experimental import primitives as prims

from cute_kernels.device import pair
from cute_kernels.device.umma_formats import OperandTile


def placeholder_map() -> Any:
    """Return a tensor map for tracing an entry: it types the kernel's parameter, and its contents reach no cubin.

    The real descriptor is built by whoever launches, from the variant's TensorMapSpec.
    """
    return cuda.create_tensor_map_tiled(
        global_address=Int64(0),
        dtype=Int32,
        global_dims=[Int32(4), Int32(1)],
        global_strides=[Int64(1)],
        box_dims=[4, 1],
    )


def prefetch(*maps: Any) -> None:
    """Fetch descriptors ahead of their first use; by one thread."""
    for tensor_map in maps:
        prims.prefetch_tensormap(tensor_map.get_ptr())


def load(
    target: Any, tensor_map: Any, coordinates: tuple[Any, ...], barrier: Any, ctas: int = 1, to: Any = None
) -> None:
    """Load one box into shared memory; by one thread, after the barrier expects the whole box's bytes.

    coordinates: of the box's first element, innermost dimension first. What lies outside the tensor arrives as zeros
    and counts in the bytes all the same.
    ctas: more than 1 to signal the barrier as it lies in the first CTA of the pair (device/pair.py).
    to: mask of CTAs of the cluster that get the box, at the same place in each, and each pair its signal; None: this.
    """
    if ctas > 1:
        prims.cp_async_bulk_tensor_shared_cluster_global(
            target, tensor_map.get_ptr(), coordinates, barrier, [], multicast_mask=to, group=pair.group(ctas)
        )
    else:
        prims.cp_async_bulk_tensor_shared_cta_global(target, tensor_map.get_ptr(), coordinates, barrier)


def load_tile(
    tile: OperandTile,
    target: Any,
    tensor_map: Any,
    boxes: Any,
    at: tuple[Any, ...],
    k: Any,
    barrier: Any,
    ctas: int = 1,
    to: Any = None,
) -> None:
    """Load a tile of A or B, its boxes as one, or by their own map, if not None, one by one; see `load`.

    at: its row, and matrix if there are several. k: where it begins along K, in elements of the maps.
    """
    row, *matrix = at
    if boxes is None:
        load(target, tensor_map, (*tile.coordinates(row, k), *matrix), barrier, ctas, to)
        return
    for box in range(tile.boxes):
        part = target.subview(box * tile.box_bytes) if box else target
        load(part, boxes, (*tile.box_coordinates(box, row, k), *matrix), barrier, ctas, to)


def whole_blocks(tiles: tuple[OperandTile, OperandTile], extents: tuple[Any, Any]) -> Any:
    """Return whether A and B, of so many rows, have whole boxes of them, as far as their tiles have several boxes.

    If not, the last box of a row goes on with the next row when several come as one. That is harmless, since it is of
    rows that D does not have; but behind the last row there is none, so a map that brings several lacks it
    (TensorMapSpec.blocks), and the K tile that holds it comes box by box.
    """
    left = Int32(0)
    for tile, extent in zip(tiles, extents, strict=True):
        if tile.boxes > 1:
            left = left | extent & (tile.box[0] * 8 // tile.operand.bits - 1)
    return left == 0


def store(tensor_map: Any, source: Any, coordinates: tuple[Any, ...], add: bool = False) -> None:
    """Store one box from shared memory, as part of this thread's current bulk group; by one thread.

    Needs `fence_proxy` by those who wrote the box. What lies outside the tensor is not written.
    add: to add it to what is there, which rounds once; subnormal sums of Float32 may become zeros (PTX ISA,
    "cp.reduce.async.bulk"), though Hopper keeps them.
    """
    if add:
        prims.cp_async_bulk_tensor_reduce(tensor_map.get_ptr(), source, "add", coordinates)
    else:
        prims.cp_async_bulk_tensor_global_shared_cta(tensor_map.get_ptr(), source, coordinates)


def publish() -> None:
    """Order this thread's accesses to shared memory before later ones by TMA and tensor cores (the async proxy).

    Its writes before their reads, and its reads before their writes.
    """
    prims.fence_proxy(prims.Proxy.ASYNC_SHARED, space=prims.SharedSpace.shared_cta)
