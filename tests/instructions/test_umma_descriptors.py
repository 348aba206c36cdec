"""Instruction and matrix descriptors: the fields of CUTLASS' header, the DSL's builders, and what is
refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cute_kernels.emulator.umma_descriptors import (
    DescriptorError,
    MatrixDescriptor,
    Swizzle,
    UnsupportedForm,
    decode_instruction_descriptor,
    decode_matrix_descriptor,
)
from tests.instructions.dsl_oracle import constants, cutlass, traced

prims = pytest.importorskip("cutlass.experimental.primitives")

# Fields as CUTLASS' unions InstrDescriptor and InstrDescriptorBlockScaled declare them: name -> (low bit,
# width).
DENSE = {
    "sparse_id2": (0, 2),
    "sparse_flag": (2, 1),
    "saturate": (3, 1),
    "c_format": (4, 2),
    "a_format": (7, 3),
    "b_format": (10, 3),
    "a_negate": (13, 1),
    "b_negate": (14, 1),
    "a_major": (15, 1),
    "b_major": (16, 1),
    "n_dim": (17, 6),
    "m_dim": (24, 5),
    "max_shift": (30, 2),
}
SCALED = {
    **{k: v for k, v in DENSE.items() if k not in ("saturate", "c_format", "max_shift")},
    "b_sf_id": (4, 2),
    "scale_format": (23, 1),
    "a_sf_id": (29, 2),
    "k_size": (31, 1),
}
F8F6F4 = {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5}


def encode(fields: dict[str, tuple[int, int]], **values: int) -> int:
    bits = 0
    for name, value in values.items():
        low, width = fields[name]
        assert 0 <= value < 1 << width, name
        bits |= value << low
    return bits


def dense(m: int = 128, n: int = 128, **values: int) -> int:
    return encode(DENSE, m_dim=m >> 4, n_dim=n >> 3, **{"c_format": 1, **values})


def scaled(m: int = 128, n: int = 128, **values: int) -> int:
    base = {"scale_format": 1, "a_format": 1, "b_format": 1}
    return encode(SCALED, m_dim=m >> 4, n_dim=n >> 3, **{**base, **values})


def test_dense_fields_agree_with_the_builder() -> None:
    kinds: dict[str, tuple[Any, Any, int]] = {
        "f16": (cutlass.BFloat16, cutlass.Float32, 1),
        "tf32": (cutlass.Float32, cutlass.Float32, 2),
        "f8f6f4": (cutlass.Float8E5M2, cutlass.Float16, 1),
        "i8": (cutlass.Int8, cutlass.Int32, 1),
    }
    names = {"f16": "bf16", "tf32": "tf32", "f8f6f4": "e5m2", "i8": "s8"}
    results = {"f16": ("f32", 1), "tf32": ("f32", 1), "f8f6f4": ("f16", 0), "i8": ("s32", 2)}
    draw = random.Random(0)
    for kind, (operand, result, code) in kinds.items():
        for _ in range(20):
            group = draw.choice((1, 2))
            m, n = draw.choice((64, 128)) * group, 32 * group * draw.randint(1, 8 // group)
            flags: dict[str, Any] = {
                name: draw.choice((0, 1)) if kind != "i8" or "major" in name else 0
                for name in ("a_negate", "b_negate", "a_major", "b_major")
            }
            built = traced(
                prims.Tcgen05InstrDesc.build,
                c_dtype=result,
                a_dtype=operand,
                b_dtype=operand,
                n_dim=n,
                m_dim=m,
                **flags,
            )
            bits = int(built.value) & 0xFFFFFFFF
            assert bits == dense(
                m, n, a_format=code, b_format=code, **{**flags, "c_format": results[kind][1]}
            )
            d = decode_instruction_descriptor(bits, kind, group)
            assert (d.m, d.n, d.a_format, d.b_format) == (m, n, names[kind], names[kind])
            assert d.d_format == results[kind][0]
            assert (d.negate_a, d.negate_b) == (flags["a_negate"], flags["b_negate"])
            assert (d.transpose_a, d.transpose_b) == (flags["a_major"], flags["b_major"])
            assert d.k * d.element_bits("a") == 256
            assert d.scale_block == 0


@pytest.mark.parametrize(
    ("kind", "vector", "block", "formats", "ids"),
    [
        ("mxf8f6f4", "block32", 32, (1,), (0, 1, 2, 3)),
        ("mxf8f6f4", "scale_vec::1X", 32, (1,), (0, 1, 2, 3)),
        ("mxf4", "", 32, (1,), (0, 2)),
        ("mxf4", "scale_vec::2X", 32, (1,), (0, 2)),
        ("mxf4nvf4", "block32", 32, (1,), (0, 2)),
        ("mxf4nvf4", "block16", 16, (0, 1), (0,)),
        ("mxf4nvf4", "scale_vec::4X", 16, (0, 1), (0,)),
    ],
)
def test_scaled_fields_agree_with_the_builder(
    kind: str, vector: str, block: int, formats: tuple[int, ...], ids: tuple[int, ...]
) -> None:
    draw = random.Random(1)
    fp4, fp8 = cutlass.Float4E2M1FN, cutlass.Float8E4M3FN
    for _ in range(20):
        group = draw.choice((1, 2))
        m, n = draw.choice((128, 256)) if group == 2 else 128, 16 * draw.randint(1, 16)
        fields: dict[str, Any] = {
            "a_sf_id": draw.choice(ids),
            "b_sf_id": draw.choice(ids),
            "scale_format": draw.choice(formats),
            "a_negate": draw.choice((0, 1)),
            "b_negate": draw.choice((0, 1)),
        }
        mixed = kind == "mxf8f6f4"
        builder = prims.Tcgen05MxInstrDesc if mixed else prims.Tcgen05MxOmmaInstrDesc
        extra: dict[str, Any] = {} if mixed else {"sparsity_version": 0}
        operand = fp8 if mixed else fp4
        built = traced(builder.build, a_dtype=operand, b_dtype=fp4, n_dim=n, m_dim=m, **fields, **extra)
        bits = int(built.value) & 0xFFFFFFFF
        codes = {"a_format": 0, "b_format": 5} if mixed else {"a_format": 1, "b_format": 1}
        assert bits == scaled(m, n, **codes, **fields)
        d = decode_instruction_descriptor(bits, kind, group, vector)
        assert (d.m, d.n, d.k, d.d_format) == (m, n, 32 if mixed else 64, "f32")
        assert (d.a_format, d.b_format) == ("e4m3" if mixed else "e2m1", "e2m1")
        assert (d.scale_id_a, d.scale_id_b) == (fields["a_sf_id"], fields["b_sf_id"])
        assert d.scale_format == ("ue4m3", "ue8m0")[fields["scale_format"]]
        assert (d.scale_block, d.scales_per_row) == (block, d.k // block)
        assert (d.negate_a, d.negate_b) == (fields["a_negate"], fields["b_negate"])


def test_default_sparsity_version_of_the_builder_is_accepted() -> None:
    fp4 = cutlass.Float4E2M1FN
    build = prims.Tcgen05MxOmmaInstrDesc.build
    built = traced(build, a_dtype=fp4, b_dtype=fp4, n_dim=64, m_dim=128, scale_format=1)
    bits = int(built.value) & 0xFFFFFFFF
    assert bits >> 12 & 1
    assert decode_instruction_descriptor(bits, "mxf4", 1).n == 64


REFUSED = [
    (dense(), "f64", 1, "", "no .kind::f64"),
    (dense(), "f16", 3, "", "cta_group::3"),
    (dense(sparse_flag=1), "f16", 1, "", "sparse"),
    (dense() | 1 << 6, "f16", 1, "", "reserved bits 6"),
    (dense() | 1 << 23, "f16", 1, "", "reserved bits 23"),
    (dense() | 1 << 29, "f16", 1, "", "reserved bits 29"),
    (dense(sparse_id2=1), "f16", 1, "", "bits 0-1"),
    (dense(max_shift=1), "f16", 1, "", "30-31"),
    (dense(saturate=1), "f16", 1, "", "saturation"),
    (dense(c_format=2), "f16", 1, "", "D type"),
    (dense(c_format=0), "tf32", 1, "", "D type"),
    (dense(c_format=1), "i8", 1, "", "D type"),
    (dense(a_format=2), "f16", 1, "", "A type"),
    (dense(b_format=2), "f8f6f4", 1, "", "B type"),
    (dense(a_format=1, c_format=0), "f16", 1, "", "F16 result"),
    (dense(c_format=2, a_negate=1), "i8", 1, "", "negate"),
    (dense(a_format=5, a_major=1), "f8f6f4", 1, "", "A cannot be transposed"),
    (dense(b_format=3, b_major=1), "f8f6f4", 1, "", "B cannot be transposed"),
    (dense(m=256), "f16", 1, "", "M = 256"),
    (dense(m=64), "f16", 2, "", "M = 64"),
    (dense(m=96), "f16", 1, "", "M = 96"),
    (dense(n=0), "f16", 1, "", "N = 0"),
    (dense(m=256, n=24), "f16", 2, "", "N = 24"),
    (dense(n=264), "f16", 1, "", "N = 264"),
    (dense(n=40, c_format=2), "i8", 1, "", "N = 40"),
    (dense(n=24, b_major=1), "f8f6f4", 1, "", "8-bit transposed B"),
    (dense(), "f16", 1, "block32", "no block scaling"),
    (scaled(sparse_flag=1), "mxf4", 1, "", "sparse"),
    (scaled() | 1 << 3, "mxf4", 1, "", "reserved bits 3"),
    (scaled() | 1 << 24, "mxf4", 1, "", "reserved bits 24"),
    (scaled(sparse_id2=2), "mxf4", 1, "", "reserved bits 0"),
    (scaled(k_size=1), "mxf4", 1, "", "K = 96"),
    (scaled(k_size=1), "mxf8f6f4", 1, "", "reserved bit 31"),
    (scaled(scale_format=0), "mxf4", 1, "", "UE4M3"),
    (scaled(scale_format=0), "mxf8f6f4", 1, "", "UE4M3"),
    (scaled(scale_format=0), "mxf4nvf4", 1, "block32", "UE4M3"),
    (scaled(), "mxf4nvf4", 1, "", "scale vector none"),
    (scaled(), "mxf4", 1, "block16", "scale vector block16"),
    (scaled(), "mxf8f6f4", 1, "scale_vec::2X", "scale vector scale_vec::2X"),
    (scaled(a_sf_id=1), "mxf4", 1, "", "scale factor id 1 of A"),
    (scaled(b_sf_id=3), "mxf4nvf4", 1, "block32", "scale factor id 3 of B"),
    (scaled(a_sf_id=2), "mxf4nvf4", 1, "block16", "scale factor id 2 of A"),
    (scaled(a_format=5), "mxf4", 1, "", "A type"),
    (scaled(b_format=2), "mxf4", 1, "", "B type"),
    (scaled(a_major=1), "mxf4", 1, "", "transposed"),
    (scaled(m=0), "mxf4", 1, "", "M = 0"),
    (scaled(m=64), "mxf4", 1, "", "reserved bits 24"),
    (scaled(m=256), "mxf4", 1, "", "M = 256"),
]


@pytest.mark.parametrize(("bits", "kind", "group", "vector", "message"), REFUSED)
def test_refused(bits: int, kind: str, group: int, vector: str, message: str) -> None:
    with pytest.raises((DescriptorError, UnsupportedForm), match=message):
        decode_instruction_descriptor(bits, kind, group, vector)


def test_tensor_memory_operand_cannot_be_transposed() -> None:
    bits = dense(a_major=1)
    assert decode_instruction_descriptor(bits, "f16", 1).transpose_a
    with pytest.raises(DescriptorError, match="A in tensor memory"):
        decode_instruction_descriptor(bits, "f16", 1, a_in_tensor_memory=True)


def test_matrix_descriptor_agrees_with_the_builder() -> None:
    draw = random.Random(2)
    wanted = [
        MatrixDescriptor(
            start=16 * draw.randrange(1 << 14),
            leading=16 * draw.randrange(1 << 14),
            stride=16 * draw.randrange(1 << 14),
            swizzle=swizzle,
        )
        for swizzle in Swizzle
        for _ in range(3)
    ]
    built = constants(
        lambda: [
            prims.Tcgen05SmemDesc.build(
                d.start, leading_byte_offset=d.leading, stride_byte_offset=d.stride, layout=int(d.swizzle)
            )
            for d in wanted
        ]
    )
    assert [decode_matrix_descriptor(bits) for bits in built] == wanted


VALID = 1 << 46 | 2 << 61 | 64 << 32 | 1 << 16 | 0x100


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (VALID ^ 1 << 46, "0b001"),
        (VALID | 1 << 47, "0b001"),
        (VALID | 1 << 48, "0b001"),
        (VALID | 1 << 14, "bits 14-15"),
        (VALID | 1 << 31, "bits 30-31"),
        (VALID | 1 << 53, "bits 53-60"),
        (VALID | 1 << 60, "bits 53-60"),
        (VALID | 1 << 61, "swizzling mode 3"),
        (VALID | 7 << 61, "swizzling mode 7"),
        (VALID | 1 << 52, "absolute leading"),
        (VALID | 5 << 49, "base offset 5"),
    ],
)
def test_refused_matrix_descriptor(bits: int, message: str) -> None:
    assert decode_matrix_descriptor(VALID) == MatrixDescriptor(0x1000, 16, 1024, Swizzle.B128)
    with pytest.raises((DescriptorError, UnsupportedForm), match=message):
        decode_matrix_descriptor(bits)
