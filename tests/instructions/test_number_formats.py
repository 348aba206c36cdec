"""The value tables against torch's dtypes and the figures of the OCP specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cute_kernels.emulator import number_formats as formats

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2), ("ue8m0", torch.float8_e8m0fnu)],
)
def test_byte_tables_agree_with_torch(name: str, dtype: torch.dtype) -> None:
    wanted = torch.from_numpy(BYTES.copy()).view(dtype).to(torch.float32).numpy()
    np.testing.assert_array_equal(formats.TABLES[name], wanted)


def test_scales_without_a_sign() -> None:
    np.testing.assert_array_equal(formats.UE4M3[:128], formats.E4M3[:128])
    assert np.isnan(formats.UE4M3[128:]).all()


def test_e2m1_is_the_list_of_the_specification() -> None:
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert formats.E2M1.tolist() == positive + [-x for x in positive]
    assert np.signbit(formats.E2M1[8])


@pytest.mark.parametrize(
    ("name", "smallest", "smallest_normal", "largest"),
    [("e2m3", 0.125, 1.0, 7.5), ("e3m2", 0.0625, 0.25, 28.0)],  # OCP MX v1.0, table 2
)
def test_six_bit_tables(name: str, smallest: float, smallest_normal: float, largest: float) -> None:
    table = formats.TABLES[name]
    mantissa = {"e2m3": 3, "e3m2": 2}[name]
    assert len(table) == 64
    assert table[0] == 0
    assert table[1] == smallest
    assert table[1 << mantissa] == smallest_normal
    assert table[31] == largest
    assert (np.diff(table[:32]) > 0).all()
    np.testing.assert_array_equal(table[32:], -table[:32])


def test_wide_formats_agree_with_torch() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wanted = torch.from_numpy(bits.view(np.int16).copy())
    np.testing.assert_array_equal(formats.decode_f16(bits), wanted.view(torch.float16).float().numpy())
    np.testing.assert_array_equal(formats.decode_bf16(bits), wanted.view(torch.bfloat16).float().numpy())


def test_tf32_ignores_13_bits() -> None:
    bits = np.array([0x3F801FFF, 0x3F802000, 0xFF800000], np.uint32)
    assert formats.decode_tf32(bits).tolist() == [1.0, 1.0 + 2.0**-10, -np.inf]


def test_packed_e2m1_starts_with_the_low_nibble() -> None:
    assert formats.unpack_e2m1(np.array([[0x21, 0xF0]], np.uint8)).tolist() == [[0.5, 1.0, 0.0, -6.0]]
    assert formats.unpack_nibbles(np.array([0x21, 0xF0], np.uint8)).tolist() == [1, 2, 0, 15]


@pytest.mark.parametrize(("name", "bits"), [("e2m1", 4), ("e2m3", 6), ("e3m2", 6)])
def test_padded_chunks(name: str, bits: int) -> None:
    """Bit i of a chunk is bit i % bits of code i // bits, whatever the padding holds."""
    random = np.random.default_rng(0)
    chunks = random.integers(0, 256, (5, 3, 16), dtype=np.uint8)
    stream = np.unpackbits(chunks, axis=-1, bitorder="little")[..., : 16 * bits].reshape(5, 3, 16, bits)
    wanted = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=-1).reshape(5, 48)
    np.testing.assert_array_equal(formats.unpack_padded(chunks.reshape(5, 48), name), wanted)
