"""Operand bytes in shared memory: the ISA's canonical layouts against the DSL's layouts and descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import umma_operands as operands
from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    InstructionDescriptor,
    MatrixDescriptor,
    Swizzle,
    UnsupportedForm,
    decode_instruction_descriptor,
    decode_matrix_descriptor,
)
from tests.instructions.dsl_oracle import constants, cute, cutlass, table

tcgen05 = pytest.importorskip("cutlass.cute.nvgpu.tcgen05")

TYPES = {4: "Float4E2M1FN", 8: "Float8E4M3FN", 16: "BFloat16", 32: "TFloat32"}
SWIZZLES = {
    "INTER": Swizzle.NONE,
    "SW32": Swizzle.B32,
    "SW64": Swizzle.B64,
    "SW128": Swizzle.B128,
    "SW128_32B": Swizzle.B128_ATOM32,
    "SW128_32B_4": Swizzle.B128_ATOM32,  # CUTLASS' atom is 4 deep in K, the DSL's 8
}


@dataclass
class Case:
    """A tile in shared memory as the DSL lays it out."""

    name: str
    bits: int
    transposed: bool
    rows: int
    blocks: int  # MMAs along K
    order: tuple[int, int]  # of the atoms
    swizzle: Swizzle

    def atom(self) -> Any:
        if self.name == "SW128_32B_4":
            plain = cute.make_layout((32, 4), stride=(1, 32))
            return cute.make_composed_layout(cute.make_swizzle(2, 5, 2), 0, plain)
        kind = getattr(tcgen05.SmemLayoutAtomKind, f"{'MN' if self.transposed else 'K'}_{self.name}")
        return tcgen05.make_smem_layout_atom(kind, getattr(cutlass, TYPES[self.bits]))

    @property
    def k(self) -> int:
        return 256 // self.bits


def cases() -> list[Case]:
    found = []
    for name, swizzle in SWIZZLES.items():
        for bits in TYPES:
            for transposed in (False, True):
                atom32 = swizzle is Swizzle.B128_ATOM32
                if (transposed and bits == 4) or (
                    (bits == 32 and transposed) != atom32 and (transposed or atom32)
                ):
                    continue
                span = swizzle.span * 8 // bits  # elements
                for rows in (64, 128, 256) if transposed else (8, 64, 128, 256):
                    if transposed and rows % span:
                        continue
                    for order in ((0, 1), (1, 0)):
                        found.append(Case(name, bits, transposed, rows, 4, order, swizzle))
    return found


CASES = cases()
START = 9 * 1024


@pytest.fixture(scope="module")
def described() -> list[tuple[int, npt.NDArray[np.int64], tuple[int, ...]]]:
    """For each case the DSL's descriptor of the first MMA, element offsets [row, k] and swizzle (B, M, S)."""
    tables: list[tuple[npt.NDArray[np.int64], tuple[int, ...]]] = []

    def body() -> list[Any]:
        descriptors = []
        for case in CASES:
            element = getattr(cutlass, TYPES[case.bits])
            layout = cute.tile_to_shape(case.atom(), (case.rows, case.k * case.blocks), case.order)
            swizzle = layout.inner
            tables.append((table(layout.outer), (swizzle.num_bits, swizzle.num_base, swizzle.num_shift)))
            pointer = cute.make_ptr(element, START, cute.AddressSpace.smem, assumed_align=1024)
            tile = cute.zipped_divide(layout.outer, (case.rows, case.k))
            descriptor = tcgen05.make_umma_smem_desc(
                cute.recast_ptr(pointer, swizzle, dtype=element), tile, "mn" if case.transposed else "k"
            )
            descriptors.append(tcgen05.smem_descriptor_to_int(descriptor))
        return descriptors

    found = constants(body)
    return [(bits, *entry) for bits, entry in zip(found, tables, strict=True)]


def swizzled(address: npt.NDArray[np.int64], b: int, m: int, s: int) -> npt.NDArray[np.int64]:
    """CuTe's Swizzle<B, M, S> of byte addresses."""
    return address ^ ((address >> s) & (((1 << b) - 1) << m))


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i].name}-{i}")
def test_bytes_are_those_of_the_layout(index: int, described: Any) -> None:
    case = CASES[index]
    bits, offsets, swizzle = described[index]
    first = decode_matrix_descriptor(bits)
    assert (first.start, first.swizzle) == (START, case.swizzle)
    for block in range(case.blocks):
        tile = offsets[:, block * case.k : (block + 1) * case.k]
        # A kernel advances the start address by the logical offset of the block, before swizzling.
        start = START + int(tile[0, 0]) * case.bits // 8
        descriptor = MatrixDescriptor(start, first.leading, first.stride, first.swizzle)
        chunks = operands.operand_chunks(descriptor, case.rows, case.bits, case.transposed)
        step = max(1, 8 // case.bits)  # elements to a byte
        wanted = swizzled(START + tile[:, ::step] * case.bits // 8, *swizzle)
        row = np.arange(case.rows)[:, None]
        byte = np.arange(0, case.k, step)[None, :] * case.bits // 8
        if case.transposed:
            byte = row * case.bits // 8
            got = chunks[np.arange(case.k)[None, :], byte // 16] + byte % 16
        else:
            got = chunks[row, byte // 16] + byte % 16
        np.testing.assert_array_equal(got, wanted)


def test_no_case_is_missing() -> None:
    seen = {(case.swizzle, case.bits, case.transposed) for case in CASES}
    k_major = {(s, b, False) for s in Swizzle if s is not Swizzle.B128_ATOM32 for b in TYPES}
    mn_major = {(s, b, True) for s in Swizzle if s is not Swizzle.B128_ATOM32 for b in (8, 16)}
    assert seen == k_major | mn_major | {(Swizzle.B128_ATOM32, 32, True)}


def test_start_address_moves_all_chunks_by_whole_periods() -> None:
    base = MatrixDescriptor(2048 + 64, 16, 1024, Swizzle.B128)
    far = MatrixDescriptor(2048 + 64 + 7 * 1024, 16, 1024, Swizzle.B128)
    np.testing.assert_array_equal(
        operands.operand_chunks(far, 128, 4), operands.operand_chunks(base, 128, 4) + 7 * 1024
    )


def test_swizzle_follows_the_address_not_the_start() -> None:
    """A start in the middle of an atom keeps the phase of its rows: row r of the tile is row r + 3 of the
    atom."""
    whole = operands.operand_chunks(MatrixDescriptor(1024, 16, 1024, Swizzle.B128), 16, 8)
    part = operands.operand_chunks(MatrixDescriptor(1024 + 3 * 128, 16, 1024, Swizzle.B128), 5, 8)
    np.testing.assert_array_equal(part, whole[3:8])


@pytest.mark.parametrize(("swizzle", "offset"), [(Swizzle.B128, 112), (Swizzle.B64, 48), (Swizzle.B32, 16)])
def test_refuses_rows_that_cross_the_span(swizzle: Swizzle, offset: int) -> None:
    with pytest.raises(DescriptorError, match="cross"):
        operands.operand_chunks(MatrixDescriptor(1024 + offset, 16, 1024, swizzle), 8, 8)


def instruction(kind: str, **bits: int) -> InstructionDescriptor:
    codes = {"tf32": 2 << 7 | 2 << 10, "f16": 1 << 7 | 1 << 10, "f8f6f4": 0}
    value = 1 << 4 | codes[kind] | 16 << 17 | 8 << 24 | bits.get("a", 0) << 15 | bits.get("b", 0) << 16
    return decode_instruction_descriptor(value, kind, 1)


def test_combinations_of_majorness_and_swizzle() -> None:
    with pytest.raises(DescriptorError, match="32B atoms"):
        operands.check_operand(instruction("tf32", a=1), "a", Swizzle.B128)
    with pytest.raises(DescriptorError, match="32-bit elements alone"):
        operands.check_operand(instruction("f16", b=1), "b", Swizzle.B128_ATOM32)
    with pytest.raises(UnsupportedForm, match="K-major"):
        operands.check_operand(instruction("tf32"), "a", Swizzle.B128_ATOM32)
    operands.check_operand(instruction("tf32", a=1), "a", Swizzle.B128_ATOM32)
    operands.check_operand(instruction("f8f6f4", b=1), "b", Swizzle.B64)


@pytest.mark.parametrize("element", [np.uint8, np.uint16, np.uint32])
def test_rows_of_transposed_chunks(element: Any) -> None:
    matrix = np.arange(64 * 32 // np.dtype(element).itemsize).astype(element).reshape(64, -1)  # rows x k
    lines = np.ascontiguousarray(matrix.T).view(np.uint8)
    bits = 8 * np.dtype(element).itemsize
    np.testing.assert_array_equal(
        operands.rows_of_chunks(lines, bits, True), np.ascontiguousarray(matrix).view(np.uint8)
    )
