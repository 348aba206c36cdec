"""mma.sync: fragments by CUTLASS' thread-value layouts (which the DSL's atoms repeat), values by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cute_kernels.emulator import mma_sync, number_formats
from cute_kernels.emulator.umma_descriptors import DescriptorError, UnsupportedForm
from tests.instructions.dsl_oracle import cutlass, offsets, traced

warp = pytest.importorskip("cutlass.cute.nvgpu.warp")
cute = pytest.importorskip("cutlass.cute")

# CUTLASS' MMA_Traits (cute/atom/mma_traits_sm80.hpp, _sm90.hpp, _sm120.hpp): (m, k, bits of an element) ->
# layouts of A and B as (shape, stride) of (thread, value) -> row + rows * k.
LANES = (4, 8)
LAYOUTS: dict[tuple[int, int, int], tuple[Any, Any]] = {
    (16, 8, 16): (((LANES, (2, 2)), ((32, 1), (16, 8))), ((LANES, 2), ((16, 1), 8))),
    (16, 16, 16): (((LANES, (2, 2, 2)), ((32, 1), (16, 8, 128))), ((LANES, (2, 2)), ((16, 1), (8, 64)))),
    (16, 4, 32): (((LANES, 2), ((16, 1), 8)), ((LANES, 1), ((8, 1), 0))),
    (16, 8, 32): (((LANES, (2, 2)), ((16, 1), (8, 64))), ((LANES, 2), ((8, 1), 32))),
    (8, 16, 8): (((LANES, 4), ((32, 1), 8)), ((LANES, 4), ((32, 1), 8))),
    (16, 16, 8): (((LANES, (4, 2)), ((64, 1), (16, 8))), ((LANES, 4), ((32, 1), 8))),
    (16, 32, 8): (((LANES, (4, 2, 2)), ((64, 1), (16, 8, 256))), ((LANES, (4, 2)), ((32, 1), (8, 128)))),
    (8, 32, 4): (((LANES, 8), ((64, 1), 8)), ((LANES, 8), ((64, 1), 8))),
    (16, 32, 4): (((LANES, (8, 2)), ((128, 1), (16, 8))), ((LANES, 8), ((64, 1), 8))),
    (16, 64, 4): (((LANES, (8, 2, 2)), ((128, 1), (16, 8, 512))), ((LANES, (8, 2)), ((64, 1), (8, 256)))),
    (8, 4, 64): (((LANES, 1), ((8, 1), 0)), ((LANES, 1), ((8, 1), 0))),
    (16, 4, 64): (((LANES, 2), ((16, 1), 8)), ((LANES, 1), ((8, 1), 0))),
    (16, 8, 64): (((LANES, (2, 2)), ((16, 1), (8, 64))), ((LANES, 2), ((8, 1), 32))),
    (16, 16, 64): (((LANES, (2, 4)), ((16, 1), (8, 64))), ((LANES, 4), ((8, 1), 32))),
}
ACCUMULATORS = {8: ((LANES, 2), ((16, 1), 8)), 16: ((LANES, (2, 2)), ((32, 1), (16, 8)))}


def places(layout: Any) -> npt.NDArray[np.int64]:
    """[thread, value] -> row + rows * column."""
    (threads, values), (thread_stride, value_stride) = layout
    return offsets(threads, thread_stride)[:, None] + offsets(values, value_stride)[None, :]


def test_layouts_are_those_of_the_atoms() -> None:
    fp4, fp8, wide = cutlass.Float4E2M1FN, cutlass.Float8E4M3FN, cutlass.Float32

    def body() -> list[Any]:
        operations = [
            ((16, 8, 16), warp.MmaF16BF16Op(cutlass.BFloat16, wide, (16, 8, 8))),
            ((16, 16, 16), warp.MmaF16BF16Op(cutlass.Float16, wide, (16, 8, 16))),
            ((16, 4, 32), warp.MmaTF32Op((16, 8, 4))),
            ((16, 8, 32), warp.MmaTF32Op((16, 8, 8))),
            ((16, 32, 8), warp.MmaFP8Op(fp8, wide, (16, 8, 32))),
            ((16, 64, 4), warp.MmaMXF4NVF4Op(fp4, wide, fp8)),
        ]
        found = []
        for key, operation in operations:
            atom = cute.make_mma_atom(operation)
            tv = (atom.tv_layout_A, atom.tv_layout_B, atom.tv_layout_C)
            found.append((key, [(layout.shape, layout.stride) for layout in tv]))
        return found

    for key, (a, b, c) in traced(body, arch="sm_120a"):
        for wanted, given in zip((*LAYOUTS[key], ACCUMULATORS[16]), (a, b, c), strict=True):
            np.testing.assert_array_equal(places(wanted), places(given))


def pack(codes: npt.NDArray[Any], layout: Any, bits: int) -> list[npt.NDArray[Any]]:
    """Registers of the warp for a matrix of codes [rows, columns]: 32-bit ones, 64-bit ones for f64."""
    elements = np.ascontiguousarray(codes.T).reshape(-1)[places(layout)].astype(np.uint64)
    width = 64 if bits == 64 else 32
    per = width // bits
    shifted = elements.reshape(32, -1, per) << (bits * np.arange(per, dtype=np.uint64))
    registers = np.bitwise_or.reduce(shifted, axis=-1)
    return list(registers.T.astype(np.uint64 if width == 64 else np.uint32))


def draw(random: np.random.Generator, shape: tuple[int, int], name: str, container: bool) -> tuple[Any, Any]:
    """Random codes as they lie in registers, unsigned, and their values in float64."""
    if name in ("u4", "s4", "u8", "s8"):
        bits = int(name[1:])
        codes = random.integers(0, 1 << bits, shape)
        return codes, (
            codes if name[0] == "u" else (codes + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
        ) * 1.0
    if name == "f64":
        values = random.standard_normal(shape)
        return values.view(np.uint64), values
    if name in ("f16", "bf16", "tf32"):
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[name]
        stored = torch.from_numpy(random.standard_normal(shape)).to(dtype)
        if name == "tf32":
            stored = (stored.view(torch.int32) & ~0x1FFF).view(torch.float32)
        unsigned = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}[stored.element_size()]
        return stored.view(unsigned[0]).numpy().view(unsigned[1]), stored.double().numpy()
    table = number_formats.TABLES[name].astype(np.float64)
    codes = random.integers(0, len(table), shape)
    codes = np.where(np.isfinite(table[codes]), codes, 0)
    values = table[codes]
    if container and len(table) < 256:
        # One byte an element: e2m1 in its middle, 6 bits at its low end. The other bits must not matter.
        low = 2 if name == "e2m1" else 0
        noise = random.integers(0, 256, shape)
        used = (len(table) - 1) << low
        codes = codes << low | noise & ~used & 0xFF
    return codes, values


def check(
    text: str,
    a: str,
    b: str,
    d: str,
    seed: int,
    scale: tuple[int, str] = (0, ""),
    select: tuple[int, ...] = (),
) -> None:
    """One random product of the form `text`."""
    random = np.random.default_rng(seed)
    f = mma_sync.form(("sync", "aligned", *text.split(".")))
    container = "f8f6f4" in text
    bits = 8 if container else {"u4": 4, "s4": 4, "f64": 64}.get(a) or number_formats.BITS[a]
    layout_a, layout_b = LAYOUTS[f.m, f.k, bits]
    codes_a, values_a = draw(random, (f.m, f.k), a, container)
    codes_b, values_b = draw(random, (f.n, f.k), b, container)
    extra: list[Any] = []
    count, scale_format = scale
    if count:
        byte_a, thread_a, byte_b, thread_b = select
        words_a, words_b = random.integers(0, 1 << 32, (2, 32), dtype=np.uint32)
        low, high = (120, 135) if scale_format == "ue8m0" else (0x10, 0x70)
        table = number_formats.TABLES[scale_format].astype(np.float64)
        factors_a, factors_b = (
            random.integers(low, high, (rows, count), dtype=np.uint8) for rows in (f.m, f.n)
        )
        # CUTLASS' SFALayout: thread (2, 2, 8) with strides (8, 0, 1); SFBLayout: thread (4, 8) with strides
        # (0, 1).
        for lane in range(32):
            t, g = lane % 4, lane // 4
            if t // 2 == thread_a:
                words_a[lane : lane + 1].view(np.uint8)[byte_a : byte_a + count] = factors_a[g + 8 * (t % 2)]
            if t == thread_b:
                words_b[lane : lane + 1].view(np.uint8)[byte_b : byte_b + count] = factors_b[g]
        values_a = values_a * np.repeat(table[factors_a], f.k // count, axis=1)
        values_b = values_b * np.repeat(table[factors_b], f.k // count, axis=1)
        full = [np.full(32, x) for x in select]
        extra = [[words_a], full[:2], [words_b], full[2:]]
    kind = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "s32": np.int32}[d]
    before = (random.standard_normal((f.m, f.n)) * 10).astype(kind)
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[before.itemsize]
    layout_c = ACCUMULATORS[f.m]
    registers_c = pack(before.view(unsigned), layout_c, 8 * before.itemsize)
    registers_a, registers_b = pack(codes_a, layout_a, bits), pack(codes_b, layout_b, bits)
    assert f.registers == (len(registers_a), len(registers_b), len(registers_c))
    with np.errstate(over="ignore"):
        wanted = (values_a @ values_b.T + before).astype(kind)
    result = mma_sync.multiply(f, registers_a, registers_b, registers_c, *extra)
    given = np.stack(result, axis=1)
    flat = np.ascontiguousarray(wanted.T).reshape(-1)[places(layout_c)]
    got = np.ascontiguousarray(given).view(kind).reshape(32, -1)
    if d == "f64":
        np.testing.assert_allclose(got, flat, rtol=1e-14, atol=1e-14)
    else:
        np.testing.assert_array_equal(got, flat)


@pytest.mark.parametrize(
    ("text", "a", "b", "d"),
    [
        ("m16n8k8.row.col.f32.f16.f16.f32", "f16", "f16", "f32"),
        ("m16n8k8.row.col.f16.f16.f16.f16", "f16", "f16", "f16"),
        ("m16n8k16.row.col.f32.f16.f16.f32", "f16", "f16", "f32"),
        ("m16n8k16.row.col.f16.f16.f16.f16", "f16", "f16", "f16"),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", "bf16", "bf16", "f32"),
        ("m16n8k16.row.col.f32.bf16.bf16.f32", "bf16", "bf16", "f32"),
        ("m16n8k4.row.col.f32.tf32.tf32.f32", "tf32", "tf32", "f32"),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", "tf32", "tf32", "f32"),
        ("m16n8k16.row.col.f32.e4m3.e5m2.f32", "e4m3", "e5m2", "f32"),
        ("m16n8k32.row.col.f32.e5m2.e4m3.f32", "e5m2", "e4m3", "f32"),
        ("m16n8k32.row.col.f16.e4m3.e4m3.f16", "e4m3", "e4m3", "f16"),
        ("m8n8k16.row.col.s32.s8.u8.s32", "s8", "u8", "s32"),
        ("m16n8k16.row.col.s32.u8.s8.s32", "u8", "s8", "s32"),
        ("m16n8k32.row.col.satfinite.s32.s8.s8.s32", "s8", "s8", "s32"),
        ("m8n8k32.row.col.s32.s4.s4.s32", "s4", "s4", "s32"),
        ("m16n8k32.row.col.s32.u4.s4.s32", "u4", "s4", "s32"),
        ("m16n8k64.row.col.satfinite.s32.s4.u4.s32", "s4", "u4", "s32"),
        ("m8n8k4.row.col.f64.f64.f64.f64", "f64", "f64", "f64"),
        ("m16n8k4.row.col.f64.f64.f64.f64.rn", "f64", "f64", "f64"),
        ("m16n8k8.row.col.f64.f64.f64.f64", "f64", "f64", "f64"),
        ("m16n8k16.row.col.f64.f64.f64.f64", "f64", "f64", "f64"),
        ("m16n8k32.row.col.kind::f8f6f4.f32.e3m2.e2m3.f32", "e3m2", "e2m3", "f32"),
        ("m16n8k32.row.col.kind::f8f6f4.f16.e2m3.e2m1.f16", "e2m3", "e2m1", "f16"),
        ("kind::f8f6f4.m16n8k32.row.col.f32.e2m1.e4m3.f32", "e2m1", "e4m3", "f32"),
    ],
)
def test_product(text: str, a: str, b: str, d: str) -> None:
    check(text, a, b, d, len(text))


MX8 = "m16n8k32.row.col.kind::mxf8f6f4.block_scale"
MX4 = "m16n8k64.row.col.kind::mxf4.block_scale"
NV4 = "m16n8k64.row.col.kind::mxf4nvf4.block_scale"


@pytest.mark.parametrize(
    ("form", "types", "count", "scale", "select"),
    [
        (f"{MX8}.scale_vec::1X", ("e4m3", "e5m2"), 1, "ue8m0", (0, 0, 0, 0)),
        (f"{MX8}.scale_vec::1X", ("e4m3", "e4m3"), 1, "ue8m0", (3, 1, 2, 3)),
        (MX8, ("e3m2", "e2m1"), 1, "ue8m0", (2, 1, 1, 2)),
        (MX4, ("e2m1", "e2m1"), 2, "ue8m0", (2, 1, 0, 3)),
        (f"{MX4}.scale_vec::2X", ("e2m1", "e2m1"), 2, "ue8m0", (0, 0, 2, 0)),
        (f"{NV4}.scale_vec::2X", ("e2m1", "e2m1"), 2, "ue8m0", (0, 1, 2, 1)),
        (f"{NV4}.scale_vec::4X", ("e2m1", "e2m1"), 4, "ue4m3", (0, 0, 0, 2)),
        (f"{NV4}.scale_vec::4X", ("e2m1", "e2m1"), 4, "ue8m0", (0, 1, 0, 1)),
    ],
)
def test_block_scaled(
    form: str, types: tuple[str, str], count: int, scale: str, select: tuple[int, ...]
) -> None:
    text = f"{form}.f32.{types[0]}.{types[1]}.f32.{scale}"
    check(text, *types, "f32", len(text) + sum(select), (count, scale), select)


def test_saturation() -> None:
    ones = [np.full(32, 0x7F7F7F7F, np.uint32)]
    before = [np.full(32, 2**31 - 1, np.uint32)] * 2
    for text, wanted in (("satfinite.s32", 2**31 - 1), ("s32", 2**31 - 1 + 16 * 127 * 127 - 2**32)):
        f = mma_sync.form(("sync", "aligned", *f"m8n8k16.row.col.{text}.s8.s8.s32".split(".")))
        for register in mma_sync.multiply(f, ones, ones, before):
            assert (register.view(np.int32) == wanted).all()


@pytest.mark.parametrize(
    "text",
    [
        "m8n8k4.row.col.f32.f16.f16.f32",
        "m16n8k16.col.row.f32.f16.f16.f32",
        "m16n8k16.row.col.f32.f16.bf16.f32",
        "m16n8k16.row.col.f16.bf16.bf16.f16",
        "m16n8k16.row.col.f16.f16.f16.f32",
        "m16n8k32.row.col.f32.f16.f16.f32",
        "m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "m16n8k32.row.col.f32.e3m2.e2m3.f32",
        "m16n8k256.row.col.s32.b1.b1.s32.xor.popc",
        "m16n8k16.row.col.f32.f16.f16.f32.rn",
        "m16n8k64.row.col.kind::mxf4nvf4.block_scale.f32.e2m1.e2m1.f32.ue8m0",
        "m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue4m3",
        "m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0",
        "m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue4m3",
        "m16n8k32.row.col.kind::mxf8f6f4.f32.e4m3.e4m3.f32",
    ],
)
def test_unknown_forms(text: str) -> None:
    with pytest.raises(UnsupportedForm, match=f"mma.sync.aligned.{text}".replace(".", r"\.")):
        mma_sync.form(("sync", "aligned", *text.split(".")))


def test_selectors_are_checked() -> None:
    f = mma_sync.form(("sync", "aligned", *f"{MX4}.f32.e2m1.e2m1.f32.ue8m0".split(".")))
    zero = np.zeros(32, np.uint32)
    data = ([zero] * 4, [zero] * 2, [zero] * 4, [zero])

    def run(a: tuple[int, int], b: tuple[int, int]) -> None:
        wide = [[np.full(32, x) for x in pair] for pair in (a, b)]
        mma_sync.multiply(f, *data, wide[0], [zero], wide[1])

    run((2, 1), (0, 3))
    for a, b, operand in (
        ((1, 0), (0, 0), "A"),
        ((0, 2), (0, 0), "A"),
        ((0, 0), (3, 0), "B"),
        ((0, 0), (0, 4), "B"),
    ):
        with pytest.raises(DescriptorError, match=f"of {operand}"):
            run(a, b)
    with pytest.raises(DescriptorError, match="differ between lanes"):
        mma_sync.multiply(f, *data, [np.arange(32) % 2 * 2, zero], [zero], [zero, zero])
