"""Checks on torch tensors that operations share. Each raises ArgumentError, and none reads a value."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch

from .arguments import Tiled
from .errors import ArgumentError

TMA_ALIGNMENT = 16  # bytes, of base addresses and of strides
GRID_YZ_MAX = 65535  # CTAs along the second and third dimension of a grid


def describe(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype, shape, strides and device, for messages."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype} {list(tensor.shape)} with strides {tuple(tensor.stride())} on {tensor.device}"


class NoKeyError(AttributeError):
    """A tensor whose memory does not hold its elements as they are: it has no key, and its request refuses it by
    name."""


def tensor_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return all of a tensor that a launch depends on. Raises NoKeyError for one that `require_tensor` refuses."""
    return output_key(tensor), tensor.data_ptr()


def output_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return the same but for the address, on which a request does not depend where it takes any result."""
    if tensor.layout is not torch.strided or tensor.is_neg():
        raise NoKeyError("not strided, or negative")
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def require_tensor(name: str, given: Any) -> torch.Tensor:
    """Return what must be a tensor whose memory holds its elements: not sparse, and no lazy negative or conjugate."""
    if not isinstance(given, torch.Tensor):
        raise ArgumentError(f"{name} is a {type(given).__name__}; it must be a tensor")
    if given.layout is not torch.strided:
        raise ArgumentError(
            f"{name} has the layout {given.layout}; it must be dense. Make it so with .to_dense()"
        )
    if given.is_neg() or given.is_conj():
        bit = "negative" if given.is_neg() else "conjugate"
        raise ArgumentError(
            f"{name} has the {bit} bit: its memory holds other elements than it has. Write them to memory with "
            ".resolve_neg() or .resolve_conj()"
        )
    return given


def require_number(name: str, given: Any) -> None:
    """Refuse what is no integer on the host: a tensor on the device would have to be waited for."""
    if not isinstance(given, Integral):
        raise ArgumentError(f"{name} is {given!r}; it must be an integer, on the host")


def require_one_device(tensors: Mapping[str, torch.Tensor]) -> torch.device:
    """Return the device of all the tensors. Refuse what is none."""
    for name, given in tensors.items():
        require_tensor(name, given)
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) != 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ArgumentError(f"operands are on different devices: {where}. Move them to one device")
    return next(iter(devices.values()))


def flat(tensor: torch.Tensor, name: str) -> Tiled:
    """Return a contiguous tensor as one row of bytes."""
    if not tensor.is_contiguous():
        raise ArgumentError(
            f"{name} is {describe(tensor)}; it must be contiguous. Make it so with .contiguous()"
        )
    return Tiled(tensor.data_ptr(), tensor.nbytes)


def require_aligned(tensor: Tiled, name: str, alignment: int) -> None:
    """Refuse an address that is not a multiple of `alignment` bytes."""
    if tensor.address % alignment:
        raise ArgumentError(
            f"{name} starts at address {tensor.address:#x}; it must be a multiple of {alignment} bytes. Copy "
            "it with .clone()"
        )


def require_rows(tensor: torch.Tensor, name: str, alignment: int = TMA_ALIGNMENT) -> None:
    """Refuse a matrix that a tensor map cannot take row by row.

    Its last stride must be 1, its rows must not overlap, and its address and row stride must be multiples of
    `alignment` bytes; an empty tensor, and the row stride of a single row, are free.
    """
    rows, columns = tensor.shape
    if rows == 0 or columns == 0:
        return
    if columns > 1 and tensor.stride(1) != 1:
        raise ArgumentError(
            f"{name} is {describe(tensor)}: its last dimension must be contiguous (stride 1). "
            "Make it so with .contiguous()"
        )
    size = tensor.element_size()
    if rows > 1 and tensor.stride(0) < columns:
        raise ArgumentError(f"{name} is {describe(tensor)}: its rows overlap. Make it so that they do not")
    if rows > 1 and tensor.stride(0) * size % alignment:
        raise ArgumentError(
            f"{name} is {describe(tensor)}: its rows are {tensor.stride(0) * size} bytes apart, and TMA "
            "takes multiples "
            f"of {alignment} bytes only. Allocate rows of {round_up(columns, alignment // size)} "
            "elements and "
            f"pass a view of the first {columns}"
        )
    if tensor.data_ptr() % alignment:
        raise ArgumentError(
            f"{name} starts at address {tensor.data_ptr():#x}, and TMA takes multiples of {alignment} "
            "bytes only. "
            "Copy it with .clone()"
        )


def tiled(tensor: torch.Tensor) -> Tiled:
    """Return a matrix that `require_rows` accepts as a tensor map sees it."""
    rows, columns = tensor.shape
    size = tensor.element_size()
    # The stride of a single row means nothing, so torch may state any; the driver still wants a valid one.
    stride = tensor.stride(0) * size if rows > 1 else round_up(columns * size, TMA_ALIGNMENT)
    return Tiled(tensor.data_ptr(), columns * size, (rows,), (stride,))


def tiled_batches(name: str, tensor: torch.Tensor, major: str) -> Tiled:
    """Return [batch, MN, K], contiguous along K ("k") or MN, as a tensor map sees it.

    Raises ArgumentError for what TMA cannot take: the other strides, and the address, are multiples of 16 bytes.
    """
    lines = tensor if major == "k" else tensor.transpose(1, 2)
    size = lines.element_size()
    batches, rows, width = lines.shape
    if width > 1 and lines.stride(2) != 1:
        raise ArgumentError(
            f"{name} has strides {tuple(tensor.stride())} as [batch, rows, columns]: its last dimension must be "
            "contiguous (stride 1). Make it so with .contiguous()"
        )
    strides = []
    for extent, stride in ((rows, lines.stride(1)), (batches, lines.stride(0))):
        if extent > 1 and stride * size % TMA_ALIGNMENT:
            raise ArgumentError(
                f"{name} has rows or batches {stride * size} bytes apart, and TMA takes multiples of "
                f"{TMA_ALIGNMENT} bytes only. Pad its last dimension and pass a view"
            )
        # The stride of an extent of one means nothing; the driver still wants a valid one.
        strides.append(stride * size if extent > 1 else round_up(width * size, TMA_ALIGNMENT))
    if lines.data_ptr() % TMA_ALIGNMENT:
        raise ArgumentError(
            f"{name} starts at address {lines.data_ptr():#x}, and TMA takes multiples of {TMA_ALIGNMENT} bytes "
            "only. Copy it with .clone()"
        )
    return Tiled(lines.data_ptr(), width * size, (rows, batches), tuple(strides))


def require_whole_rows(name: str, d: torch.Tensor, seen: Tiled) -> None:
    """Refuse an output of three dimensions that overlaps itself, or whose rows (`seen`) TMA does not write alone."""
    strides = [(1, 1), *sorted((s, e) for s, e in zip(d.stride(), d.shape, strict=True) if e > 1)]
    if any(outer[0] < inner[0] * inner[1] for inner, outer in pairwise(strides)):
        raise ArgumentError(f"{name} is {describe(d)}: its elements overlap. Make it so that they do not")
    if seen.row_bytes % TMA_ALIGNMENT:
        raise ArgumentError(
            f"{name} is {describe(d)}: TMA writes whole {TMA_ALIGNMENT} bytes, so its last dimension must be a "
            f"multiple of {TMA_ALIGNMENT // d.element_size()}. Pad b along it with zeros"
        )


def tiled_matrices(tensor: torch.Tensor, name: str, alignment: int = TMA_ALIGNMENT) -> Tiled:
    """Return a matrix [M, K], or several [G, M, K] of which there is one at least, as a tensor map sees them.

    Raises ArgumentError for what TMA cannot take: `require_rows`, and matrices that overlap.
    """
    if tensor.dim() == 2:
        require_rows(tensor, name, alignment)
        return tiled(tensor)
    require_rows(tensor[0], name, alignment)
    rows, size = tiled(tensor[0]), tensor.element_size()
    matrix = tensor.stride(0) * size if tensor.shape[0] > 1 else round_up(rows.nbytes, alignment)
    if matrix % alignment or matrix < rows.nbytes:
        raise ArgumentError(
            f"{name} is {describe(tensor)}: its matrices are {matrix} bytes apart, and must be a multiple of "
            f"{alignment} and not overlap. Make it contiguous"
        )
    return Tiled(rows.address, rows.row_bytes, (*rows.outer, tensor.shape[0]), (*rows.strides, matrix))


def begin_with(d: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """Let D hold C, which it may be, or zeros without it, on the current stream; return it."""
    if c is None:
        return d.zero_()
    return d if c.data_ptr() == d.data_ptr() else d.copy_(c)


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple that is not below a value."""
    return -(-value // multiple) * multiple
