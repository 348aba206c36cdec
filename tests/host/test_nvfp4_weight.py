"""Packed NVFP4 weights: the layout read back as the kernels decode it, the inverse, tails and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cute_kernels import formats
from cute_kernels.nvfp4_weight import PackedNvfp4Weight, concatenate, pack, unpack
from cute_kernels.runtime.errors import ArgumentError
from tests.nvfp4_cases import packable

WORD = 2**32 - 1


def bf16(pattern: int, half: int) -> float:
    """The value of one half of a BF16 pair, exactly."""
    bits = torch.tensor(pattern >> 16 * half & 0xFFFF, dtype=torch.int32) << 16
    return bits.view(torch.float32).double().item()


def fragments(word: int) -> tuple[int, int, int, int]:
    """The four BF16 pairs that a kernel makes of a word."""
    rotated = (word << 12 | word >> 20) & WORD
    return (
        word << 2 & 0x81C081C0,
        word << 6 & 0x81C081C0,
        rotated & 0x81C081C0,
        word & 0x81808180 | word >> 8 & 0x00400040,
    )


def decoded_by_the_kernels_rules(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes' values and scales' values, float64 [16 NB, 128 KB] and [16 NB, 8 KB], element by element."""
    nb, kb, _ = data.shape
    values = torch.full((16 * nb, 128 * kb), torch.nan, dtype=torch.float64)
    scales = torch.full((16 * nb, 8 * kb), torch.nan, dtype=torch.float64)
    for row_block in range(nb):
        for unit in range(kb):
            content = data[row_block, unit].numpy().tobytes()
            for lane in range(32):
                g, t = divmod(lane, 4)
                for chunk in range(2):
                    for j in range(4):
                        at = 512 * chunk + 16 * lane + 4 * j
                        pairs = fragments(int.from_bytes(content[at : at + 4], "little"))
                        for i, pair in enumerate(pairs):
                            for half in (0, 1):
                                row = 16 * row_block + g + 8 * (i % 2)
                                k = 128 * unit + 64 * chunk + 16 * t + 4 * j + 2 * (i // 2) + half
                                values[row, k] = bf16(pair, half) * 2.0**126
                at = 1024 + 4 * lane
                word = int.from_bytes(content[at : at + 4], "little")
                for chunk, pair in enumerate((word << 4 & 0x07F007F0, word >> 4 & 0x07F007F0)):
                    for half in (0, 1):
                        column = 8 * unit + 4 * chunk + t
                        scales[16 * row_block + g + 8 * half, column] = bf16(pair, half) * 2.0**120
    return values, scales


@pytest.mark.parametrize(("n", "k"), [(16, 128), (32, 256), (1, 16), (17, 144), (40, 64), (15, 240)])
def test_layout_is_what_the_kernels_decode(n: int, k: int) -> None:
    codes, scales = packable(n, k, seed=n + k)
    weight = pack(codes, scales, 0.5)
    values, block_scales = decoded_by_the_kernels_rules(weight.data)
    assert weight.data.shape == (-(-n // 16), -(-k // 128), 1152)
    assert torch.equal(values[:n, :k], formats.decode_e2m1(formats.unpack_e2m1(codes), torch.float64))
    assert torch.equal(block_scales[:n, : k // 16], scales.double())
    for past in (values[n:], values[:, k:], block_scales[n:], block_scales[:, k // 16 :]):
        assert (past == 0).all()


def test_signs_of_zero_survive() -> None:
    codes = torch.full((16, 64), 0x80, dtype=torch.uint8)  # 0 and -0
    values, _ = decoded_by_the_kernels_rules(pack(codes, packable(16, 128)[1], 1.0).data)
    assert torch.equal(torch.signbit(values), torch.tensor([False, True]).repeat(16, 64))


# The last takes several steps of several threads, with rows left over.
@pytest.mark.parametrize("shape", [(16, 16), (7, 48), (129, 400), (3, 33, 272), (1, 16, 128), (2059, 2064)])
@pytest.mark.parametrize("threads", [1, 3, None])
def test_unpack_gives_back_every_byte(shape: tuple[int, ...], threads: int | None) -> None:
    codes, scales = packable(*shape, seed=len(shape))
    factors = torch.rand(shape[0] if len(shape) == 3 else 1) + 0.1
    weight = pack(codes, scales, factors, threads=threads)
    assert weight.shape == shape
    assert weight.experts == (shape[0] if len(shape) == 3 else None)
    assert weight.nbytes == weight.data.numel() + 4 * len(factors)
    back = unpack(weight, threads=threads)
    assert torch.equal(back[0], codes)
    assert torch.equal(back[1].view(torch.uint8), scales.view(torch.uint8))
    assert torch.equal(back[2], factors)


def test_experts_are_packed_one_after_another() -> None:
    codes, scales = packable(3, 33, 272)
    together = pack(codes, scales, 2.0)
    for expert in range(3):
        assert torch.equal(together.data[expert], pack(codes[expert], scales[expert], 2.0).data)
    assert together.global_scale.tolist() == [2.0] * 3


def test_rows_of_a_larger_matrix() -> None:
    codes, scales = packable(64, 288)
    rows, columns = slice(5, 38), slice(8, 136)
    view = pack(codes[rows, columns], scales[rows, 1:17], 1.0)
    assert torch.equal(
        view.data, pack(codes[rows, columns].contiguous(), scales[rows, 1:17].contiguous(), 1.0).data
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float4_e2m1fn_x2])
def test_codes_of_other_types(dtype: torch.dtype) -> None:
    codes, scales = packable(16, 128)
    assert torch.equal(pack(codes.view(dtype), scales, 1.0).data, pack(codes, scales, 1.0).data)


def test_the_weight_keeps_a_global_scale_of_its_own() -> None:
    factor = torch.ones(1)
    weight = pack(*packable(16, 16), factor)
    factor.fill_(3.0)
    assert weight.global_scale.item() == 1.0


def test_to() -> None:
    weight = pack(*packable(16, 16), 1.0)
    assert weight.to("cpu") is weight
    moved = weight.to("meta")
    assert (moved.device.type, moved.shape, moved.nbytes) == ("meta", weight.shape, weight.nbytes)


@pytest.mark.parametrize("byte", [0x7F, 0x80, 0x81, 0xFF])
def test_scales_that_ue4m3_does_not_have(byte: int) -> None:
    codes, scales = packable(33, 272)
    scales.view(torch.uint8)[31, 9] = byte
    with pytest.raises(ArgumentError, match=r"1 block scales are negative or NaN, .* at \[31, 9\]"):
        pack(codes, scales, 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_global_scales_that_no_weight_has(scale: float) -> None:
    for given in (scale, torch.tensor([1.0, scale])):
        with pytest.raises(ArgumentError, match="must be positive and finite"):
            pack(*packable(2, 16, 16), given)


@pytest.mark.parametrize(
    ("codes", "scales", "message"),
    [
        (torch.zeros(16, 20, dtype=torch.uint8), None, "K is 40 .*must be a multiple of 16"),
        (torch.zeros(16, 8), None, "codes are float32.*supported are uint8, int8"),
        (torch.zeros(8, dtype=torch.uint8), None, r"supported are .* of \[N, K/2\] or \[E, N, K/2\]"),
        (torch.zeros(2, 2, 2, 8, dtype=torch.uint8), None, r"supported are .* of \[N, K/2\] or"),
        (torch.zeros(0, 8, dtype=torch.uint8), (0, 1), "there is nothing to pack"),
        (torch.zeros(16, 0, dtype=torch.uint8), (16, 0), "there is nothing to pack"),
        (None, (16, 7), r"take float8_e4m3fn \[16, 8\]"),
        (None, (8, 16), r"take float8_e4m3fn \[16, 8\]"),
        (None, (128,), r"take float8_e4m3fn \[16, 8\]"),
        (torch.zeros(64, 16, dtype=torch.uint8).T, None, "codes is .*last dimension must be contiguous"),
        (torch.zeros(16, 64, dtype=torch.uint8, device="meta"), None, "codes is on meta"),
    ],
)
def test_codes_and_scales_that_are_refused(
    codes: torch.Tensor | None, scales: tuple[int, ...] | None, message: str
) -> None:
    right = packable(16, 128)
    given = right[0] if codes is None else codes
    with pytest.raises(ArgumentError, match=message):
        pack(given, right[1] if scales is None else torch.zeros(scales).to(torch.float8_e4m3fn), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float8_e8m0fnu])
def test_scales_of_other_types(dtype: torch.dtype) -> None:
    with pytest.raises(ArgumentError, match="take float8_e4m3fn"):
        pack(packable(16, 128)[0], torch.ones(16, 8).to(dtype), 1.0)


@pytest.mark.parametrize("given", [torch.ones(1, dtype=torch.float64), torch.ones(3), torch.ones(0)])
def test_global_scales_of_wrong_types_and_shapes(given: torch.Tensor) -> None:
    with pytest.raises(
        ArgumentError, match=r"a weight of \[2, 16, 16\] takes float32 of one element or \[2\]"
    ):
        pack(*packable(2, 16, 16), given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 33}, r"take uint8 \[3, 2, 1152\]"),
        ({"k": 272}, r"take uint8 \[2, 3, 1152\]"),
        ({"k": 250}, "k a multiple of 16"),
        ({"n": 0}, "both must be positive"),
        ({"data": torch.zeros(2, 2, 1152, dtype=torch.int8)}, r"take uint8 \[2, 2, 1152\]"),
        ({"data": torch.zeros(2, 2, 2304, dtype=torch.uint8)[..., ::2]}, "must be contiguous"),
        ({"global_scale": torch.ones(2)}, r"takes float32 \[1\]"),
        ({"global_scale": torch.ones(())}, r"takes float32 \[1\]"),
        ({"global_scale": torch.ones(1, device="meta")}, "different devices"),
    ],
)
def test_fields_that_do_not_belong_together(changed: dict[str, Any], message: str) -> None:
    weight = pack(*packable(20, 256), 1.0)
    fields: dict[str, Any] = {"data": weight.data, "n": 20, "k": 256, "global_scale": weight.global_scale}
    PackedNvfp4Weight(**fields)
    with pytest.raises(ArgumentError, match=message):
        PackedNvfp4Weight(**(fields | changed))


def test_concatenate() -> None:
    codes, scales = packable(48 + 16 + 5, 272)
    together = pack(codes, scales, 0.5)
    parts = [pack(codes[rows], scales[rows], 0.5) for rows in (slice(48), slice(48, 64), slice(64, 69))]
    joined = concatenate(parts)
    assert joined.shape == (69, 272)
    assert torch.equal(joined.data, together.data)
    assert concatenate(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (pack(*packable(16, 64), 0.75), r"have global scales \[0.5, 0.75\].*Keep the weights apart"),
        (pack(*packable(16, 80), 0.5), r"the weights are .*\(16, 80\).*of the same K become one"),
        (pack(*packable(1, 16, 64), 0.5), r"only matrices \[N, K\]"),
    ],
    ids=["global scale", "K", "experts"],
)
def test_weights_that_do_not_become_one(second: PackedNvfp4Weight, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        concatenate([pack(*packable(16, 64), 0.5), second])


def test_a_part_of_a_unit_in_the_middle() -> None:
    part = pack(*packable(17, 64), 0.5)
    with pytest.raises(ArgumentError, match=r"N is \[17, 17\]; all but the last must be multiples of 16"):
        concatenate([part, part])
