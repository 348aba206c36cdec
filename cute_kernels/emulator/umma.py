"""The product of tcgen05.mma: D = A * B^T (+ D), with block scales or without.

Numerics. Every product of two elements, scaled or not, is exact in float64 for all kinds; one instruction's
sum over K and the addition of D are accumulated in float64 and rounded once, to nearest even, to the type of
D. Hardware accumulates with less: kernels must not depend on either. kind::i8 is exact, and wraps or
saturates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cute_kernels.emulator import number_formats as formats
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import DescriptorError, InstructionDescriptor

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float32 | np.float64]
_NEAR_ONE = bytes(range(127 - 50, 127 + 51))  # UE8M0 codes of 2**-50 to 2**50
_SERIAL_PRODUCT = 1 << 18  # multiply-adds up to which OpenBLAS starts no threads


def multiply(
    d: InstructionDescriptor,
    a: Bytes,
    b: Bytes,
    scale_a: Bytes | None = None,
    scale_b: Bytes | None = None,
    accumulator: npt.NDArray[np.uint32] | None = None,
    scale_input_d: int = 0,
    a_in_tensor_memory: bool = False,
) -> npt.NDArray[np.uint32]:
    """One instruction's D for `rows` rows of A and N rows of B, as tensor memory words.

    a: uint8 [rows, 32] and b: uint8 [n, 32], K-major bytes as `rows_of_chunks` gives them (or the bytes of
    A's 8 tensor memory columns). scale_a, scale_b: uint8 [rows, X] and [n, X], for the block-scaled kinds.
    accumulator: uint32 [rows, n], the words of D before, None when D is not read. scale_input_d: D is
    multiplied by 2**-that first (0 to 15, kinds f16 and tf32). Result: uint32 [rows, n]; 16-bit results in
    the low half.
    """
    left = values_of(d, "a", a, scale_a, a_in_tensor_memory)
    with np.errstate(over="ignore", invalid="ignore"):
        return accumulate(d, left, values_of(d, "b", b, scale_b), accumulator, scale_input_d)


def values_of(
    d: InstructionDescriptor,
    operand: str,
    rows: Bytes,
    scales: Bytes | None,
    in_tensor_memory: bool = False,
) -> Matrix:
    """Values of an operand, scaled if the kind is: as `multiply` takes its bytes -> [rows, k], exact.

    In float64, or in float32 where the sums over a scale block are exact in it: see `_product_of_blocks`.
    """
    if d.scale_block and scales is None:
        raise DescriptorError(f"kind::{d.kind} needs the scale factors of A and of B")
    powers = d.kind in ("mxf4", "mxf4nvf4") and d.scale_format == "ue8m0"
    if scales is not None and powers and not scales.tobytes().translate(None, _NEAR_ONE):
        narrow = np.take(formats.E2M1_PAIRS_FLOAT32, rows).view(np.float32)
        _scale(narrow, np.take(formats.UE8M0, scales))
        return narrow
    values = decode_operand(d, operand, rows, in_tensor_memory)
    if scales is not None:
        _scale(values, decode_scales(d, scales, operand.upper()))
    return values


def accumulate(
    d: InstructionDescriptor,
    left: Matrix,
    right: Matrix,
    accumulator: npt.NDArray[np.uint32] | None,
    scale_input_d: int = 0,
) -> npt.NDArray[np.uint32]:
    """D from the values of A and B, as `multiply` gives it; NumPy's warnings of overflow are the caller's affair."""
    if left.dtype == right.dtype == np.float32:
        total = _product_of_blocks(left, right, d.scale_block)
    else:
        total = _product(left.astype(np.float64, copy=False), right.astype(np.float64, copy=False))
    if d.negate_a != d.negate_b:
        np.negative(total, out=total)
    if accumulator is not None:
        exponent = _check_input_scale(d, scale_input_d)
        old = _decode_result(d, accumulator)
        if d.d_format == "f32" and not exponent:
            rounded = np.empty(total.shape, np.float32)
            return np.add(total, old, out=rounded, casting="same_kind").view(np.uint32)
        total += old.astype(np.float64) * 2.0**-exponent if exponent else old
    return _encode_result(d, total)


def _product_of_blocks(left: Matrix, right: Matrix, block: int) -> Matrix:
    """left @ right.T in float64, from float32 products of blocks of K, which are exact.

    A product of two e2m1 is a multiple of 1/4 up to 36, so the sum of 32 of them has 13 bits; scale factors that are
    powers of two from 2**-50 to 2**50, one a row of A and of B, leave it those, and within float32's range.
    """
    total: Matrix | None = None
    for first in range(0, left.shape[1], block):
        part = _product(left[:, first : first + block], right[:, first : first + block])
        total = part if total is None else np.add(total, part, dtype=np.float64)
    assert total is not None
    return total


def _product(left: Matrix, right: Matrix) -> Matrix:
    """left @ right.T, in pieces that BLAS multiplies on the calling thread.

    Its threads gain nothing on products this small, and cost milliseconds each where other processes keep the cores
    busy.
    """
    rows = max(1, _SERIAL_PRODUCT // (right.shape[0] * right.shape[1]))
    total = np.empty((len(left), len(right)), left.dtype)
    for first in range(0, len(left), rows):
        np.matmul(left[first : first + rows], right.T, out=total[first : first + rows])
    return total


def decode_operand(
    d: InstructionDescriptor, operand: str, rows: Bytes, in_tensor_memory: bool = False
) -> Matrix:
    """Values of an operand: uint8 [rows, 32] -> float64 [rows, k], exact."""
    name = d.a_format if operand == "a" else d.b_format
    padded = d.kind in ("f8f6f4", "mxf8f6f4") and name in ("e2m1", "e2m3", "e3m2")
    if not padded:
        return formats.decode_bytes(rows, name)
    if in_tensor_memory:
        codes = formats.unpack_containers(rows, name, formats.TMEM_SHIFT[name])
    else:
        codes = formats.unpack_padded(rows, name)
    return np.take(formats.TABLES[name], codes).astype(np.float64)


def decode_scales(d: InstructionDescriptor, scales: Bytes, operand: str) -> Matrix:
    """Values of scale factors, float64; refuses a UE4M3 byte with its top bit set, which no value has."""
    if d.scale_format == "ue4m3" and (scales & 0x80).any():
        row = int(np.argwhere(scales & 0x80)[0][0])
        raise EmulationError(
            "tensor-memory",
            f"scale factor {scales[row].tolist()} of row {row} of {operand}: bit 7 of a UE4M3 must be 0",
        )
    return np.take(formats.TABLES[d.scale_format], scales).astype(np.float64)


def _scale(values: Matrix, scales: Matrix) -> None:
    """Multiplies each block of K by its scale, in place: float64 [rows, k] by [rows, X]."""
    rows, count = scales.shape
    values.reshape(rows, count, -1)[...] *= scales[:, :, None]


def _check_input_scale(d: InstructionDescriptor, exponent: int) -> int:
    if exponent and (d.kind not in ("f16", "tf32") or not 0 <= exponent <= 15):
        raise DescriptorError(
            f"scale-input-d {exponent} with kind::{d.kind}; it is 0 to 15, for kinds f16 and tf32 alone"
        )
    return exponent


def _decode_result(
    d: InstructionDescriptor, words: npt.NDArray[np.uint32]
) -> npt.NDArray[np.float32 | np.float64]:
    if d.d_format == "f32":
        return words.view(np.float32)
    if d.d_format == "f16":
        return words.astype(np.uint16).view(np.float16).astype(np.float64)
    return words.view(np.int32).astype(np.float64)


def _encode_result(d: InstructionDescriptor, total: Matrix) -> npt.NDArray[np.uint32]:
    if d.d_format == "f32":
        return total.astype(np.float32).view(np.uint32)
    if d.d_format == "f16":
        return total.astype(np.float16).view(np.uint16).astype(np.uint32)
    if d.saturate:
        total = np.clip(total, -(2.0**31), 2.0**31 - 1)
    return total.astype(np.int64).astype(np.uint32)
