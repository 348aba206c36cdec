"""Tensors as launches see them."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

from cute_kernels.build.variant import Param, TensorMapSpec
from cute_kernels.runtime import ManifestError, Tiled, pack

SPEC = TensorMapSpec("b4x16", (64, 32), "128B")


def touched(tensor: Tiled) -> set[int]:
    """The addresses of a tensor's bytes."""
    starts = itertools.product(*(range(extent) for extent in tensor.outer))
    rows = [sum(i * s for i, s in zip(index, tensor.strides, strict=True)) for index in starts]
    return {tensor.address + row + byte for row in rows for byte in range(tensor.row_bytes)}


@pytest.mark.parametrize("stride", [8, 12])
@pytest.mark.parametrize("rows", [1, 3])
def test_overlap_of_matrices_with_one_stride_is_exact_but_for_the_last_rows(stride: int, rows: int) -> None:
    x = Tiled(1000, 6, (3,), (stride,))
    assert x.nbytes == max(touched(x)) + 1 - min(touched(x))
    for width, address in itertools.product((2, 8), range(960, 1060)):
        y = Tiled(address, width, (rows,), (stride,))
        if touched(x) & touched(y):
            assert x.overlaps(y)
            assert y.overlaps(x)
        elif x.overlaps(y):
            # Told apart only as if both had rows without end.
            taller = (Tiled(1000 - 20 * stride, 6, (60,), (stride,)), Tiled(address, width, (60,), (stride,)))
            assert touched(taller[0]) & touched(taller[1])
            assert max(touched(y)) >= 1000
            assert min(touched(y)) < 1000 + x.nbytes


def test_overlap_of_other_shapes_is_that_of_their_ranges() -> None:
    x = Tiled(1000, 6, (3,), (16,))
    for other in (Tiled(900, 50, (3,), (25,)), Tiled(1038, 16), Tiled(984, 16)):
        assert not x.overlaps(other)
        assert not other.overlaps(x)
    for other in (Tiled(1008, 2), Tiled(985, 16), Tiled(1037, 16), Tiled(900, 51, (3,), (25,))):
        assert x.overlaps(other)
        assert other.overlaps(x)


def test_parameters_are_packed_in_the_kernels_order() -> None:
    params = [
        Param("x", "f32"),
        Param("map", "tensor_map", SPEC),
        Param("n", "i32"),
        Param("data", "pointer"),
        Param("count", "i64"),
        Param("flags", "u32"),
    ]
    arguments: dict[str, Tiled | int | float] = {
        "data": 2**63,
        "n": -5,
        "flags": 2**32 - 1,
        "count": -(2**40),
        "x": 0.5,
        "map": Tiled(64, 32, (7,), (48,)),
    }
    packed = pack(params, arguments, lambda spec, tensor: repr((spec, tensor.dims(spec.dtype))).encode())
    assert packed == (
        struct.pack("<f", 0.5),
        repr((SPEC, (64, 7))).encode(),
        struct.pack("<i", -5),
        struct.pack("<Q", 2**63),
        struct.pack("<q", -(2**40)),
        struct.pack("<I", 2**32 - 1),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"m": 1},
        {"m": 1, "map": Tiled(0, 1), "extra": 2},
        {"m": 1, "map": 5},
        {"m": Tiled(0, 1), "map": 1},
    ],
)
def test_arguments_of_another_kernel_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="build the cubins again"):
        pack([Param("map", "tensor_map", SPEC), Param("m", "i32")], arguments, lambda spec, tensor: b"")
