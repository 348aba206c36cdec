"""tcgen05.mma: the product of every kind against torch, and where D and A lie in tensor memory."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cute_kernels.emulator import number_formats, tmem_access, umma, umma_layouts
from cute_kernels.emulator.errors import EmulationError
from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    InstructionDescriptor,
    decode_instruction_descriptor,
)
from tests.instructions.dsl_oracle import cute, cutlass, table, traced

Bytes = npt.NDArray[np.uint8]

A_CODES = {
    "f16": 0,
    "bf16": 1,
    "tf32": 2,
    "u8": 0,
    "s8": 1,
    "e4m3": 0,
    "e5m2": 1,
    "e2m3": 3,
    "e3m2": 4,
    "e2m1": 5,
}
D_CODES = {"f16": 0, "f32": 1, "s32": 2}


def instruction(
    kind: str, a: str, b: str, d: str = "f32", m: int = 128, n: int = 64, group: int = 1, **flags: Any
) -> InstructionDescriptor:
    """flags: negate_a, negate_b, saturate, vector, ue4m3, and extra bits."""
    bits = n >> 3 << 17 | flags.get("negate_a", 0) << 13 | flags.get("negate_b", 0) << 14
    if kind.startswith("mx"):
        codes = (1, 1) if "mxf4" in kind else (A_CODES[a], A_CODES[b])
        bits |= m >> 7 << 27 | (not flags.get("ue4m3", 0)) << 23
    else:
        codes = (A_CODES[a], A_CODES[b])
        bits |= m >> 4 << 24 | D_CODES[d] << 4 | flags.get("saturate", 0) << 3
    return decode_instruction_descriptor(
        bits | codes[0] << 7 | codes[1] << 10, kind, group, flags.get("vector", "")
    )


def draw(random: np.random.Generator, rows: int, name: str, packed: bool) -> tuple[Bytes, torch.Tensor]:
    """32 random bytes a row as tcgen05.mma reads them, and their values by torch."""
    data = random.integers(0, 256, (rows, 32), dtype=np.uint8)
    if name in ("u8", "s8"):
        return data, torch.from_numpy(data.view({"u8": np.uint8, "s8": np.int8}[name])).double()
    if name in ("e4m3", "e5m2"):
        data &= 0xBF  # neither NaN nor infinity
        return data, torch.from_numpy(data).view(
            {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
        ).double()
    if name in ("f16", "bf16", "tf32"):
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[name]
        values = torch.from_numpy(random.standard_normal((rows, 256 // number_formats.BITS[name]))).to(dtype)
        if name == "tf32":
            values = (values.view(torch.int32) & ~0x1FFF).view(torch.float32)
        # Bits that tf32 does not have must not matter.
        noise = torch.from_numpy(random.integers(0, 1 << 13, values.shape)).to(torch.int32)
        stored = values.view(torch.int32) | noise if name == "tf32" else values
        return stored.contiguous().view(torch.uint8).numpy(), values.double()
    bits = number_formats.BITS[name]
    table_ = torch.tensor(number_formats.TABLES[name].tolist(), dtype=torch.float64)
    if packed:
        return data, table_[np.stack([data & 15, data >> 4], -1).reshape(rows, 64).astype(np.int64)]
    # 16 codes in the first bytes of 16, random padding behind them.
    codes = random.integers(0, 1 << bits, (rows, 2, 16), dtype=np.uint8)
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, 2, -1)
    chunks = data.reshape(rows, 2, 16)
    chunks[:, :, : 2 * bits] = np.packbits(stream, axis=-1, bitorder="little")
    return data, table_[codes.reshape(rows, 32).astype(np.int64)]


def draw_scales(random: np.random.Generator, rows: int, count: int, name: str) -> tuple[Bytes, torch.Tensor]:
    # UE8M0 factors so close that the sum over K is exact in float64, whatever its order.
    low, high, dtype = (118, 136, torch.float8_e8m0fnu) if name == "ue8m0" else (1, 0x7F, torch.float8_e4m3fn)
    data = random.integers(low, high, (rows, count), dtype=np.uint8)
    return data, torch.from_numpy(data).view(dtype).double()


KINDS = [
    ("f16", "f16", "f16", "f32", "", 0),
    ("f16", "f16", "f16", "f16", "", 0),
    ("f16", "bf16", "bf16", "f32", "", 0),
    ("tf32", "tf32", "tf32", "f32", "", 0),
    ("f8f6f4", "e4m3", "e5m2", "f32", "", 0),
    ("f8f6f4", "e2m1", "e3m2", "f32", "", 0),
    ("f8f6f4", "e2m3", "e4m3", "f16", "", 0),
    ("i8", "u8", "s8", "s32", "", 0),
    ("mxf8f6f4", "e4m3", "e4m3", "f32", "block32", 0),
    ("mxf8f6f4", "e5m2", "e2m1", "f32", "", 0),
    ("mxf4", "e2m1", "e2m1", "f32", "block32", 0),
    ("mxf4nvf4", "e2m1", "e2m1", "f32", "block32", 0),
    ("mxf4nvf4", "e2m1", "e2m1", "f32", "block16", 0),
    ("mxf4nvf4", "e2m1", "e2m1", "f32", "block16", 1),
]
RESULTS = {"f32": torch.float32, "f16": torch.float16, "s32": torch.int32}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("kind", "a", "b", "d", "vector", "ue4m3"), KINDS)
def test_product(kind: str, a: str, b: str, d: str, vector: str, ue4m3: int, accumulate: bool) -> None:
    random = np.random.default_rng(KINDS.index((kind, a, b, d, vector, ue4m3)))
    negate = int(kind != "i8")
    at = instruction(kind, a, b, d, n=80, vector=vector, ue4m3=ue4m3, negate_b=negate)
    packed = "mxf4" in kind
    left, left_values = draw(random, at.m, a, packed)
    right, right_values = draw(random, at.n, b, packed)
    scales: list[Bytes | None] = [None, None]
    if at.scale_block:
        for i, (rows, values) in enumerate(((at.m, left_values), (at.n, right_values))):
            scales[i], factors = draw_scales(random, rows, at.scales_per_row, at.scale_format)
            values *= factors.repeat_interleave(at.scale_block, dim=1)
    wanted = left_values @ right_values.T * (-1 if negate else 1)
    before = None
    if accumulate:
        old = torch.from_numpy(random.standard_normal((at.m, at.n)) * 100).to(RESULTS[d])
        wanted = wanted + old.double()
        # 16-bit results occupy the low half of a word; the upper half must not matter.
        words = old.view(torch.int16).numpy().view(np.uint16) if d == "f16" else old.numpy().view(np.uint32)
        before = words.astype(np.uint32) | np.uint32(0xABCD0000 if d == "f16" else 0)
    words = umma.multiply(at, left, right, scales[0], scales[1], before)
    assert words.shape == (at.m, at.n)
    assert words.dtype == np.uint32
    if d == "f16":
        assert (words >> 16 == 0).all()
        got = words.astype(np.uint16).view(np.float16)
    else:
        got = words.view(np.float32 if d == "f32" else np.int32)
    # Not by torch, which rounds float64 to float16 twice.
    np.testing.assert_array_equal(got, wanted.numpy().astype(got.dtype))


@pytest.mark.parametrize(
    ("codes_a", "codes_b"),
    [((120, 134), (121, 135)), ((70, 84), (170, 184)), ((77, 90), (165, 178)), ((250, 255), (1, 6))],
)
def test_product_of_powers_of_two_far_from_one(codes_a: tuple[int, int], codes_b: tuple[int, int]) -> None:
    """Scale factors whose products are near 1 and that are not: the last are beyond float32 with an element."""
    random = np.random.default_rng(codes_a[0])
    at = instruction("mxf4", "e2m1", "e2m1", n=80, vector="block32")
    left, left_values = draw(random, at.m, "e2m1", packed=True)
    right, right_values = draw(random, at.n, "e2m1", packed=True)
    scales = []
    for values, codes in ((left_values, codes_a), (right_values, codes_b)):
        scales.append(random.integers(*codes, (len(values), 2), dtype=np.uint8))
        factors = torch.from_numpy(scales[-1]).view(torch.float8_e8m0fnu).double()
        values *= factors.repeat_interleave(32, dim=1)
    words = umma.multiply(at, left, right, scales[0], scales[1])
    wanted = (left_values @ right_values.T).numpy().astype(np.float32)
    np.testing.assert_array_equal(words.view(np.float32), wanted)


def test_negations_cancel() -> None:
    random = np.random.default_rng(3)
    left, right = draw(random, 128, "f16", False)[0], draw(random, 64, "f16", False)[0]
    plain = umma.multiply(instruction("f16", "f16", "f16"), left, right)
    both = umma.multiply(instruction("f16", "f16", "f16", negate_a=1, negate_b=1), left, right)
    one = umma.multiply(instruction("f16", "f16", "f16", negate_a=1), left, right)
    np.testing.assert_array_equal(both, plain)
    np.testing.assert_array_equal(one.view(np.float32), -plain.view(np.float32))


def test_input_scale() -> None:
    at = instruction("f16", "f16", "f16", m=64, n=8)
    zero, old = np.zeros((64, 32), np.uint8), np.full((64, 8), 3.0, np.float32).view(np.uint32)
    words = umma.multiply(at, zero, np.zeros((8, 32), np.uint8), None, None, old, 4)
    assert (words.view(np.float32) == 3.0 / 16).all()
    for kind, exponent in (("f16", 16), ("f8f6f4", 1)):
        operand = "f16" if kind == "f16" else "e4m3"
        with pytest.raises(DescriptorError, match="scale-input-d"):
            umma.multiply(
                instruction(kind, operand, operand, m=64, n=8), zero, zero[:8], None, None, old, exponent
            )


def test_integers_wrap_or_saturate() -> None:
    left, right = np.full((128, 32), 255, np.uint8), np.full((64, 32), 127, np.uint8)
    old = np.full((128, 64), 2**31 - 5, np.uint32)
    wrapped = umma.multiply(instruction("i8", "u8", "s8", "s32"), left, right, None, None, old)
    capped = umma.multiply(instruction("i8", "u8", "s8", "s32", saturate=1), left, right, None, None, old)
    assert (wrapped.view(np.int32) == (2**31 - 5 + 32 * 255 * 127) - 2**32).all()
    assert (capped.view(np.int32) == 2**31 - 1).all()


def test_extreme_scales_are_exact() -> None:
    """2**-127 underflows and 2**127 overflows float32 before the sum; the product of the two does not."""
    at = instruction("mxf4", "e2m1", "e2m1")
    ones = np.full((128, 32), 0x22, np.uint8)
    low, high = np.full((128, 2), 0, np.uint8), np.full((64, 2), 254, np.uint8)
    assert (umma.multiply(at, ones, ones[:64], low, high).view(np.float32) == 64).all()
    nan = np.full((64, 2), 255, np.uint8)
    assert np.isnan(umma.multiply(at, ones, ones[:64], low, nan).view(np.float32)).all()


def test_scales_are_required_and_checked() -> None:
    at = instruction("mxf4nvf4", "e2m1", "e2m1", vector="block16", ue4m3=1)
    data, scales = np.zeros((128, 32), np.uint8), np.full((128, 4), 0x38, np.uint8)
    with pytest.raises(DescriptorError, match="scale factors"):
        umma.multiply(at, data, data[:64])
    scales[5, 2] = 0xB8
    with pytest.raises(EmulationError, match="row 5 of A"):
        umma.multiply(at, data, data[:64], scales, scales[:64])


@pytest.mark.parametrize(
    ("name", "source"), [("e2m1", "b4x16_p64"), ("e2m3", "b6x16_p32"), ("e3m2", "b6x16_p32")]
)
def test_narrow_operand_through_tensor_memory(name: str, source: str) -> None:
    """A decompressed by tcgen05.cp gives what the same padded bytes give from shared memory."""
    random = np.random.default_rng(4)
    at = instruction("f8f6f4", name, "e4m3")
    left, right = draw(random, 128, name, False)[0], draw(random, 64, "e4m3", False)[0]
    words = tmem_access.copy_words(tmem_access.copy_plan("128x256b", "", source), left)
    np.testing.assert_array_equal(
        umma.multiply(at, words.view(np.uint8), right, a_in_tensor_memory=True),
        umma.multiply(at, left, right),
    )


tcgen05 = pytest.importorskip("cutlass.cute.nvgpu.tcgen05")
DSL_LANE = 1 << 16


SHAPES = [
    *((m, n, 1) for m in (64, 128) for n in range(8, 257, 8)),
    *((m, n, 2) for m in (128, 256) for n in range(16, 257, 16)),
]


@pytest.fixture(scope="module")
def fragments() -> dict[tuple[int, int, int, bool], npt.NDArray[np.int64]]:
    """The DSL's tensor memory addresses of one CTA's D [row, column], or of its A [row, k].

    By M, N and CTA group of an instruction, and whether it is A, which N does not matter to.
    """
    groups = {1: tcgen05.CtaGroup.ONE, 2: tcgen05.CtaGroup.TWO}
    major = cute.nvgpu.OperandMajorMode.K
    bf16, f32 = cutlass.BFloat16, cutlass.Float32

    def body() -> dict[tuple[int, int, int, bool], npt.NDArray[np.int64]]:
        found = {}
        for m, n, group in SHAPES:
            for is_a in (False, True) if n == 128 else (False,):
                source = tcgen05.OperandSource.TMEM if is_a else tcgen05.OperandSource.SMEM
                op = tcgen05.MmaF16BF16Op(bf16, f32, (m, n, 16), groups[group], source, major, major)
                mma = cute.make_tiled_mma(op)
                if is_a:
                    made = mma.make_fragment_A(mma.partition_shape_A((m, 16))).layout
                else:
                    made = mma.make_fragment_C(mma.partition_shape_C((m, n))).layout
                found[m, n, group, is_a] = table(cute.get(made, mode=[0]))
        return found

    return traced(body)


def test_no_shape_is_missing() -> None:
    """What instruction descriptors allow."""
    allowed = []
    for group, m, n in itertools.product((1, 2), (64, 128, 256), range(8, 257, 8)):
        with contextlib.suppress(DescriptorError):
            instruction("f16", "bf16", "bf16", m=m, n=n, group=group)
            allowed.append((m, n, group))
    assert allowed == SHAPES


@pytest.mark.parametrize(("m", "n", "group"), SHAPES)
def test_accumulator_agrees_with_the_fragment(m: int, n: int, group: int, fragments: Any) -> None:
    at = instruction("f16", "bf16", "bf16", m=m, n=n, group=group)
    got = np.full((m // group, n), -1)
    for block in umma_layouts.accumulator_blocks(at, 0):
        lanes = np.arange(block.lanes.start, block.lanes.stop)[:, None]
        width = block.columns.stop - block.columns.start
        got[block.rows, block.columns] = lanes * DSL_LANE + block.column + np.arange(width)
    np.testing.assert_array_equal(got, fragments[m, n, group, False])


def test_half_used_lanes_may_start_at_16() -> None:
    at = instruction("f16", "f16", "f16", m=64, n=64)
    lanes = [b.lanes.start for b in umma_layouts.accumulator_blocks(at, 16)]
    assert lanes == [16, 48, 80, 112]
    for m, group, lane in ((128, 1, 16), (64, 1, 32), (256, 2, 16), (128, 2, 64)):
        with pytest.raises(DescriptorError, match=f"lane {lane}"):
            umma_layouts.accumulator_blocks(instruction("f16", "f16", "f16", m=m, group=group), lane)


@pytest.mark.parametrize(("m", "group"), [(128, 1), (64, 1), (256, 2), (128, 2)])
def test_operand_in_tensor_memory_agrees_with_the_fragment(m: int, group: int, fragments: Any) -> None:
    # The DSL counts 16-bit elements: 2 to a column.
    wanted = fragments[m, 128, group, True][:, ::2] // 2
    at = instruction("f16", "bf16", "bf16", m=m, n=128, group=group)
    blocks = umma_layouts.operand_blocks(at, 0)
    copies = 2 if (m, group) == (128, 2) else 1
    got = np.full((copies * m // group, 8), -1)
    for i, block in enumerate(blocks):
        first = i * 64 if copies == 2 else block.rows.start
        lanes = np.arange(block.lanes.start, block.lanes.stop)[:, None]
        got[first : first + len(lanes)] = lanes * DSL_LANE + block.column + np.arange(8)
    np.testing.assert_array_equal(got, wanted)
