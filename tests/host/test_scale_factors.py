"""Scale-factor layouts: formulas against loops and torchao, transforms against their inverses, and
refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from cute_kernels import scale_factors as sf
from cute_kernels import scale_layout as layout

SIZES = [(1, 1), (2, 4), (3, 5), (31, 7), (127, 16), (128, 4), (129, 9), (300, 1), (384, 13)]


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    """Bytes 1..255, so that padding zeros are told from scales."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def byte_memory(packed: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The memory from a packed tensor's first word on, as bytes."""
    storage = torch.empty(0, dtype=torch.uint8).set_(packed.untyped_storage())
    return storage[packed.storage_offset() * 4 :][:nbytes]


# Formulas


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_packed_offsets_written_as_loops(rows: int, columns: int) -> None:
    """A column of words after the other, each word four scales of a row, each column rounded up to 16
    bytes."""
    expected = {}
    for word in range(-(-columns // 4)):
        column_start = word * (-(-rows // 4) * 16)
        for row, byte in itertools.product(range(rows), range(4)):
            if 4 * word + byte < columns:
                expected[row, 4 * word + byte] = column_start + row * 4 + byte
    actual = {
        (row, column): layout.packed_offset(row, column, rows)
        for row, column in itertools.product(range(rows), range(columns))
    }
    assert actual == expected


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_blocked_offsets_written_as_a_reshape(rows: int, columns: int) -> None:
    tiles_m, tiles_k = -(-rows // 128), -(-columns // 4)
    # Indexed [tile of rows, tile of columns, row % 32, row // 32 of the tile, column % 4], as the atoms lie.
    memory = np.arange(tiles_m * tiles_k * 512).reshape(tiles_m, tiles_k, 32, 4, 4)
    for row, column in itertools.product(range(rows), range(columns)):
        expected = memory[row // 128, column // 4, row % 32, row % 128 // 32, column % 4]
        assert layout.blocked_offset(row, column, columns) == expected
    assert layout.blocked_bytes(rows, columns) == memory.size


def test_utccp_positions() -> None:
    first = [layout.utccp_position(row) for row in range(128)]
    assert first[:4] == [0, 4, 8, 12]
    assert [first[32], first[64], first[96], first[127]] == [1, 2, 3, 127]
    for row in range(512):
        assert layout.utccp_row(layout.utccp_position(row)) == row
        assert layout.utccp_position(row + 128) == layout.utccp_position(row) + 128
    assert sorted(first) == list(range(128))


def test_formulas_need_no_torch() -> None:
    """Kernels import them on machines and in compilers where torch would be in the way."""
    code = "import sys, cute_kernels.scale_layout; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Packed


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_pack_and_unpack(rows: int, columns: int, leading: tuple[int, ...]) -> None:
    scales = random_bytes(*leading, rows, columns)
    packed = sf.pack(scales)
    words, stride = -(-columns // 4), -(-rows // 4) * 4
    assert (packed.dtype, packed.shape) == (torch.int32, (*leading, rows, words))
    sf.require_packed(packed, rows, columns)
    memory = byte_memory(packed, math.prod(leading) * words * stride * 4)
    assert memory.count_nonzero() == scales.numel(), "the tails of rows and of words are zero"
    for group in range(math.prod(leading)):
        of_group = scales.reshape(-1, rows, columns)[group]
        group_memory = memory[group * words * stride * 4 :]
        for row, column in [(0, 0), (rows - 1, 0), (0, columns - 1), (rows - 1, columns - 1)]:
            assert group_memory[layout.packed_offset(row, column, rows)] == of_group[row, column]
    assert torch.equal(sf.unpack(packed, columns), scales)
    assert torch.equal(sf.unpack(packed.contiguous(), columns), scales), (
        "the layout in memory does not matter"
    )


def test_first_scale_is_the_low_byte() -> None:
    packed = sf.pack(torch.tensor([[0x11, 0x22, 0x33, 0x44, 0x55]], dtype=torch.uint8))
    assert packed.tolist() == [[0x44332211, 0x55]]


def test_pack_nothing() -> None:
    for shape in ((3, 0, 9), (3, 9, 0), (0, 9, 4)):
        packed = sf.pack(torch.zeros(shape, dtype=torch.uint8))
        assert packed.shape == (*shape[:2], -(-shape[2] // 4))


def test_pack_takes_scale_dtypes_and_strides() -> None:
    scales = random_bytes(6, 9)
    for dtype in (torch.float8_e8m0fnu, torch.float8_e4m3fn):
        assert torch.equal(sf.pack(scales.view(dtype)), sf.pack(scales))
    assert torch.equal(sf.pack(scales.T), sf.pack(scales.T.contiguous()))
    with pytest.raises(TypeError, match=r"scales are torch.float32; supported are float8_e8m0fnu"):
        sf.pack(scales.float())


def test_require_packed_refuses() -> None:
    packed = sf.pack(random_bytes(2, 6, 9))
    with pytest.raises(ValueError, match=r"shape \(2, 6, 3\); packed scales of 7 rows and 9 scales a row"):
        sf.require_packed(packed, 7, 9)
    with pytest.raises(ValueError, match=r"int32 \[\.\.\., 6, 4\]"):
        sf.require_packed(packed, 6, 13)
    for wrong in (
        packed.contiguous(),
        sf.pack(random_bytes(4, 6, 9))[::2],
        sf.pack(random_bytes(2, 12, 9))[:, :6],
    ):
        with pytest.raises(ValueError, match="packed layout is MN-major"):
            sf.require_packed(wrong, 6, 9)
    sf.require_packed(sf.pack(random_bytes(1, 1)), 1, 1)
    with pytest.raises(ValueError, match="packed as int32"):
        sf.unpack(packed, 13)


# K-grouped


@pytest.mark.parametrize("gran_k", [32, 128])
@pytest.mark.parametrize("mn", [1, 4, 130])
@pytest.mark.parametrize("ks", [[], [0], [512], [128, 0, 640, 33, 1024, 1]])
def test_k_grouped(ks: list[int], mn: int, gran_k: int) -> None:
    counts = [-(-k // gran_k) for k in ks]
    scales = random_bytes(sum(counts), mn)
    packed = sf.pack_k_grouped(scales, ks, gran_k)
    assert packed.shape == (sum(-(-k // (4 * gran_k)) for k in ks), mn)
    assert packed.stride() == (-(-mn // 4) * 4, 1)
    assert torch.equal(sf.unpack_k_grouped(packed, ks, gran_k), scales)
    starts = layout.packed_group_starts(ks, gran_k)
    for group, (count, end) in enumerate(zip(counts, itertools.accumulate(counts), strict=True)):
        if count:
            # Alone, a group is packed as a matrix [mn, count] would be.
            alone = sf.pack(scales[end - count : end].T)
            assert torch.equal(packed[starts[group] : starts[group + 1]].T, alone)


def test_k_grouped_refuses() -> None:
    with pytest.raises(
        ValueError, match=r"scales have shape \(5, 4\); groups of \[128, 64\].*have \[6, MN\]"
    ):
        sf.pack_k_grouped(random_bytes(5, 4), [128, 64], 32)
    with pytest.raises(ValueError, match="none may be negative"):
        sf.pack_k_grouped(random_bytes(5, 4), [128, -64], 32)
    with pytest.raises(ValueError, match=r"packed as int32 \[2, MN\]"):
        sf.unpack_k_grouped(torch.zeros(3, 4, dtype=torch.int32), [128, 64], 32)


# UTCCP and blocked


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (128, 5), (384, 13)])
def test_utccp(rows: int, columns: int, leading: tuple[int, ...]) -> None:
    packed = sf.pack(random_bytes(*leading, rows, columns))
    permuted = sf.to_utccp(packed)
    sf.require_packed(permuted, rows, columns)
    for row in (0, 1, 33, 127, rows - 1):
        assert torch.equal(permuted[..., layout.utccp_position(row), :], packed[..., row, :])
    assert torch.equal(sf.from_utccp(permuted), packed)
    assert sf.from_utccp(permuted).stride() == packed.stride()


def test_a_packed_column_in_utccp_order_is_a_blocked_atom() -> None:
    scales = random_bytes(256, 8)
    permuted = byte_memory(sf.to_utccp(sf.pack(scales)), 2048).reshape(2, 2, 512)  # [word, tile of rows]
    blocked = sf.to_blocked(scales).reshape(2, 2, 512)  # [tile of rows, word]
    assert torch.equal(permuted, blocked.transpose(0, 1))


def test_utccp_refuses() -> None:
    with pytest.raises(ValueError, match="MN a multiple of 128: pad the rows first"):
        sf.to_utccp(sf.pack(random_bytes(130, 4)))


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_blocked(rows: int, columns: int, leading: tuple[int, ...]) -> None:
    scales = random_bytes(*leading, rows, columns)
    blocked = sf.to_blocked(scales)
    assert blocked.shape == (*leading, -(-rows // 128) * 128 * -(-columns // 4) * 4)
    assert blocked.count_nonzero() == scales.numel(), "padding is zero"
    assert torch.equal(sf.from_blocked(blocked, rows, columns), scales)
    for dtype in (torch.float8_e8m0fnu, torch.float8_e4m3fn):
        typed = sf.to_blocked(scales.view(dtype))
        assert typed.dtype == dtype
        assert torch.equal(typed.view(torch.uint8), blocked)
        assert sf.from_blocked(typed, rows, columns).dtype == dtype
    with pytest.raises(ValueError, match="scales take"):
        sf.from_blocked(blocked[..., 1:], rows, columns)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_blocked_equals_torchao(rows: int, columns: int) -> None:
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = random_bytes(rows, columns)
    assert torch.equal(sf.to_blocked(scales), utils.to_blocked(scales))


# float32 scales


def test_every_power_of_two() -> None:
    exponents = torch.arange(-127, 128)
    assert torch.equal(
        sf.encode_scales(torch.exp2(exponents.double()).float()), (exponents + 127).to(torch.uint8)
    )
    assert sf.encode_scales(torch.zeros(1)).tolist() == [0]


def test_rounding_up() -> None:
    """Just above each power of two, and just below the next, the next one is the scale."""
    powers = np.ldexp(np.float32(1), np.arange(-127, 127)).astype(np.float32)
    above, below_next = np.nextafter(powers, np.float32(np.inf)), np.nextafter(2 * powers, np.float32(0))
    for scales in (above, below_next):
        encoded = sf.encode_scales(torch.from_numpy(scales), check="finite")
        assert encoded.tolist() == list(range(1, 255))
    tiny = torch.tensor([2.0**-149, 2.0**-128])
    assert sf.encode_scales(tiny, check="finite").tolist() == [0, 0]


@pytest.mark.parametrize("bad", [-1.0, -0.5, math.nan, math.inf, -math.inf, 2.0**127 * 1.5])
def test_scales_without_a_ue8m0_are_refused(bad: float) -> None:
    scales = torch.ones(3, 4)
    scales[2, 1] = bad
    for check in ("power_of_two", "finite"):
        with pytest.raises(ValueError, match=r"the scale at \(2, 1\) is"):
            sf.encode_scales(scales, check=check)
    assert sf.encode_scales(scales, check="none")[0].tolist() == [127] * 4


def test_scales_that_are_no_powers_of_two_are_refused() -> None:
    scales = torch.tensor([[1.0, 2.0**-130, 0.3]])
    with pytest.raises(ValueError, match=r"the scale at \(0, 1\) is .*must be powers of two: quantize with"):
        sf.encode_scales(scales)
    scales[0, 1] = 2.0**-127
    with pytest.raises(ValueError, match=r"the scale at \(0, 2\)"):
        sf.encode_scales(scales)
    assert sf.encode_scales(scales, check="finite").tolist() == [[127, 0, 126]]
    with pytest.raises(TypeError, match=r"scales are torch.bfloat16; encode_scales takes float32"):
        sf.encode_scales(scales.bfloat16())


# What kernels take


def test_pack_for_kernel_takes_every_form() -> None:
    as_bytes = random_bytes(2, 70, 9).clamp(max=254)
    as_float = torch.exp2(as_bytes.float() - 127)
    packed = sf.pack(as_bytes)
    for scales in (as_bytes, as_bytes.view(torch.float8_e8m0fnu), as_float, packed):
        assert torch.equal(sf.pack_for_kernel(scales, 70, 9 * 32 - 31, gran_k=32), packed)
    assert sf.pack_for_kernel(packed, 70, 288) is packed


def test_pack_for_kernel_repeats_block_scales() -> None:
    blocks = random_bytes(3, 5)
    packed = sf.pack_for_kernel(blocks, 300, 5 * 128, gran_mn=128, gran_k=128)
    assert torch.equal(sf.unpack(packed, 5), blocks.repeat_interleave(128, dim=0)[:300])
    assert torch.equal(sf.repeat_rows(blocks, 128, 300)[::128], blocks), (
        "the first row of each block gives it back"
    )


def test_pack_for_kernel_refuses() -> None:
    packed = sf.pack(random_bytes(70, 9))
    with pytest.raises(ValueError, match="gran_mn is 128"):
        sf.pack_for_kernel(packed, 70, 288, gran_mn=128)
    with pytest.raises(ValueError, match="packed scales of 70 rows and 3 scales a row"):
        sf.pack_for_kernel(packed, 70, 288, gran_k=128)
    with pytest.raises(
        ValueError, match=r"70 x 288 elements with a scale every 1 x 32 have \[\.\.\., 70, 9\]"
    ):
        sf.pack_for_kernel(torch.ones(70, 8), 70, 288)
    with pytest.raises(ValueError, match=r"300 rows in blocks of 128 have \[\.\.\., 3, SFK\]"):
        sf.repeat_rows(torch.ones(2, 5), 128, 300)
    with pytest.raises(ValueError, match="the scale at"):
        sf.pack_for_kernel(torch.full((70, 9), 0.3), 70, 288)


def test_scales_of_nothing_are_packed() -> None:
    for shape in ((8, 0), (2, 8, 0), (0, 8, 3), (2, 0, 3)):
        packed = sf.pack(torch.zeros(shape, dtype=torch.uint8))
        assert packed.shape == (*shape[:-1], -(-shape[-1] // 4))
