"""Scale factors in tensor memory: their words against the DSL's tensor memory layouts, and their replicas."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import umma_scales
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    InstructionDescriptor,
    UnsupportedForm,
    decode_instruction_descriptor,
)
from tests.instructions.dsl_oracle import cute, cutlass, offsets, traced

tcgen05 = pytest.importorskip("cutlass.cute.nvgpu.tcgen05")
layouts = pytest.importorskip("cutlass.utils.blockscaled_layout")

LANE = 4 << 16  # a lane in the DSL's addresses of bytes in tensor memory
VECTORS = {"mxf8f6f4": (32, "block32"), "mxf4": (32, "block32"), "mxf4nvf4": (16, "block16")}


def descriptor(kind: str, m: int, n: int, group: int, scale_id: int = 0) -> InstructionDescriptor:
    types = 0 if kind == "mxf8f6f4" else 1 << 7 | 1 << 10
    bits = types | n >> 3 << 17 | 1 << 23 | m >> 7 << 27 | scale_id << 29 | scale_id << 4
    return decode_instruction_descriptor(bits, kind, group, VECTORS[kind][1])


def columns(kind: str, m: int, group: int) -> list[int]:
    """Every N of block-scaled instructions with this M."""
    found = []
    for n in range(8, 257, 8):
        with contextlib.suppress(DescriptorError):
            descriptor(kind, m, n, group)
            found.append(n)
    return found


# By kind, M and CTA group of every block-scaled instruction, its Ns.
ROWS = itertools.product(VECTORS, (128, 256), (1, 2))
SHAPES = {rows: found for rows in ROWS if (found := columns(*rows))}


@pytest.fixture(scope="module")
def dsl_layouts() -> dict[tuple[Any, ...], Any]:
    """By (kind, M, N, CTA group, operand), (shape, stride) of the DSL's layout ((rows, replicas), (block, scales)),
    MMAs along M, MMAs along K.
    """
    groups = {1: tcgen05.CtaGroup.ONE, 2: tcgen05.CtaGroup.TWO}
    shared, major = tcgen05.OperandSource.SMEM, cute.nvgpu.OperandMajorMode.K

    def body() -> dict[tuple[Any, ...], Any]:
        found = {}
        for (kind, m, group), n in ((rows, n) for rows, ns in SHAPES.items() for n in ns):
            if kind == "mxf8f6f4":
                fp8 = cutlass.Float8E4M3FN
                op = tcgen05.MmaMXF8F6F4Op(fp8, fp8, (m, n, 32), groups[group], shared, major, major)
            elif kind == "mxf4":
                op = tcgen05.MmaMXF4Op((m, n, 64), groups[group], shared)
            else:
                op = tcgen05.MmaMXF4NVF4Op(cutlass.Float8E4M3FN, (m, n, 64), groups[group], shared)
            block = VECTORS[kind][0]
            mma, tile = cute.make_tiled_mma(op), (m, n, 8 * block)
            for operand in ("a", "b"):
                in_shared = getattr(layouts, f"make_smem_layout_sf{operand}")(mma, tile, block, 1)
                stage = cute.slice_(in_shared, (None, None, None, 0))
                layout = getattr(layouts, f"make_tmem_layout_sf{operand}")(mma, tile, block, stage)
                found[kind, m, n, group, operand] = layout.shape, layout.stride
        return found

    return traced(body)


@pytest.mark.parametrize("operand", ["a", "b"])
@pytest.mark.parametrize(("kind", "m", "group"), SHAPES)
def test_words_agree_with_the_layout(kind: str, m: int, group: int, operand: str, dsl_layouts: Any) -> None:
    """For every N, but where the emulator takes none (test_refused)."""
    compared = 0
    for n in SHAPES[kind, m, group]:
        if (m, group, operand) == (128, 2, "b") and n % 128:
            continue
        shape, stride = dsl_layouts[kind, m, n, group, operand]
        (rows_shape, (_, scales)), _, blocks_shape = shape
        (rows_stride, (_, scale_stride)), _, blocks_stride = stride
        blocks = offsets(blocks_shape, blocks_stride)  # byte address of the scales of each MMA along K
        assert scales == descriptor(kind, m, n, group).scales_per_row
        # Byte addresses [replica, row]; the last of the rows' modes is the replication.
        addresses = offsets(rows_shape, rows_stride).reshape(rows_shape[-1], -1)
        rows = n if operand == "b" else m // group
        assert addresses.shape[1] >= rows
        for block in range(len(blocks)):
            # 4 bytes a column: the remainder is the scale id of the instruction.
            column, scale_id = divmod(int(blocks[block]), 4)
            at = umma_scales.scale_words(descriptor(kind, m, n, group, scale_id), operand)
            assert (at.first, at.count) == (scale_id, scales)
            byte = scale_stride * np.arange(scales)
            wanted = addresses[:, :rows, None] + blocks[block] + byte
            got = at.lanes[:, :, None] * LANE + (at.columns[:, None] + column) * 4 + at.first + byte
            np.testing.assert_array_equal(np.sort(got, axis=0), np.sort(wanted, axis=0))
        compared += 1
    assert compared == (2 if (m, group, operand) == (128, 2, "b") else 32 // group)


def test_no_shape_is_missing() -> None:
    """As the ISA's table of shapes has them."""
    assert list(SHAPES) == [
        (kind, m, group) for kind in VECTORS for m, group in ((128, 1), (128, 2), (256, 2))
    ]


def atoms_in_tensor_memory(scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Tensor memory after tcgen05.cp.32x128b.warpx4 of the 128x4 atoms of scales [rows, 4]: uint32 [128,
    columns]."""
    rows = len(scales)
    columns = -(-rows // 128) * 4
    memory = np.zeros((128, columns), np.uint32)
    for row in range(rows):
        # An atom is 512 bytes: 16 for each of 32 lanes, of which 4 are row 32 * i + lane.
        atom = row // 128
        lane, word = row % 32, row % 128 // 32
        memory[lane::32, 4 * atom + word] = np.ascontiguousarray(scales[row]).view(np.uint32)[0]
    return memory


@pytest.mark.parametrize(
    ("kind", "scale_id", "count"), [("mxf4", 2, 2), ("mxf4nvf4", 0, 4), ("mxf8f6f4", 3, 1)]
)
def test_factors_of_copied_atoms(kind: str, scale_id: int, count: int) -> None:
    scales = np.random.default_rng(0).integers(0, 255, (200, 4), dtype=np.uint8)
    memory = atoms_in_tensor_memory(scales)
    d = descriptor(kind, 128, 200, 1, scale_id)
    for operand, rows in (("a", 128), ("b", 200)):
        at = umma_scales.scale_words(d, operand)
        factors = umma_scales.scales_of_words(memory[at.lanes, at.columns[None, :]], at)
        np.testing.assert_array_equal(factors, scales[:rows, scale_id : scale_id + count])


def test_replicas_must_agree() -> None:
    at = umma_scales.scale_words(descriptor("mxf4", 128, 128, 1, 2), "a")
    words = np.full((4, 128), 0x7F7F7F7F, np.uint32)
    words[2, 77] ^= 0xFF  # a byte that scale id 2 does not read
    umma_scales.scales_of_words(words, at)
    words[2, 77] ^= 0xFF << 16
    with pytest.raises(
        EmulationError, match=r"row 77 .* lane 13 holds \[127, 127\], lane 77 holds \[128, 127\]"
    ):
        umma_scales.scales_of_words(words, at)


def test_refused() -> None:
    with pytest.raises(DescriptorError, match="lane 32"):
        umma_scales.scale_words(descriptor("mxf4", 128, 128, 1), "a", 32)
    with pytest.raises(UnsupportedForm, match="N = 192"):
        umma_scales.scale_words(descriptor("mxf4", 128, 192, 2), "b")
