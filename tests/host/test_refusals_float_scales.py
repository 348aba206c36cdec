"""Scale factors in float32 that are not those of the recipe, refused with nothing launched; and no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cute_kernels
from cute_kernels import recipes
from cute_kernels.runtime import ArgumentError
from cute_kernels.runtime.emulated import EmulatorBackend
from cute_kernels.scale_factors import encode_scales, pack, pack_k_grouped, unpack_k_grouped
from tests.host.conftest import FakeDevice, MakeFolder, OnCpu, gemm_entry

M, N, K = 130, 96, 272
POISON = 77.0


@pytest.fixture(autouse=True)
def backend(on_cpu: OnCpu, folder: MakeFolder, device: FakeDevice) -> Iterator[FakeDevice]:
    with on_cpu(EmulatorBackend("sm_100a", device=device), folder([gemm_entry()])):
        yield device


def fp8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(torch.float8_e4m3fn)


def words(mn: int) -> torch.Tensor:
    return pack(torch.full((mn, -(-K // 128)), 127, dtype=torch.uint8))


A, B = (fp8(M, K), torch.ones(M, 3)), (fp8(N, K), torch.ones(1, 3))
NVFP4 = torch.zeros(M, K // 2, dtype=torch.uint8), torch.ones(M, K // 16), torch.ones(1)
CASES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "rows of a": (
        (fp8(M, K), torch.ones(2, 3)),
        B,
        {},
        r"a's scale .* recipe \(1, 128\), .* float32 \[130, 3\]",
    ),
    "columns of a": ((fp8(M, K), torch.ones(M, 2)), B, {}, r"a's scale factors .* float32 \[130, 3\]"),
    "rows of b": (
        A,
        (fp8(N, K), torch.ones(N, 3)),
        {},
        r"b's scale .* recipe \(128, 128\), .* \[1, 3\]\. Say the",
    ),
    "dimensions": (A, (fp8(N, K), torch.ones(1, 1, 3)), {}, r"b's scale factors .* float32 \[1, 3\]"),
    "another recipe": (A, B, {"recipe": (1, 1, 32)}, r"a's scale .* recipe \(1, 32\), .* \[130, 9\]"),
    "recipe of zero": (A, B, {"recipe": (0, 128, 128)}, r"recipe \(0, 128\); .* positive"),
    "recipe of no elements": (A, B, {"recipe": (1, 128, 0)}, r"recipe \(1, 0\); .* positive"),
    "a granularity of none": (
        (A[0], torch.ones(M, 5)),
        (B[0], torch.ones(1, 5)),
        {"recipe": (1, 128, 64)},
        "recipe of 64 elements",
    ),
    "blocks that are packed": (
        A,
        (fp8(N, K), words(N)),
        {"recipe": (1, 128, 128)},
        "b has no scale .* in float32",
    ),
    "NVFP4": (NVFP4, NVFP4, {}, "a's scale factors are float32 .* NVFP4 takes int32: "),
    "a vector": ((fp8(K), torch.ones(3)), B, {}, "two dimensions or three"),
    "elsewhere": ((A[0], torch.ones(M, 3, device="meta")), B, {}, "different devices"),
}


@pytest.mark.parametrize("case", CASES)
def test_dense(backend: FakeDevice, case: str) -> None:
    a, b, options, message = CASES[case]
    d = torch.full((M, N), POISON)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.gemm_nt(a, b, d, **options)
    assert not backend.launches
    assert bool((d == POISON).all())


ALONG_K = fp8(384, 32), torch.ones(3, 32)
LENGTHS = torch.tensor([256, 128], dtype=torch.int32)
K_CASES: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "rows": ((fp8(384, 32), torch.ones(4, 32)), LENGTHS, {}, r"a's scale factors .* float32 \[3, 32\]"),
    "granularity": (ALONG_K, LENGTHS, {"recipe": (1, 1, 32)}, r"a's scale factors .* float32 \[12, 32\]"),
    "blocks": (ALONG_K, LENGTHS, {"recipe": (1, 128, 128)}, r"groups along K are one a row"),
    "no elements": (ALONG_K, LENGTHS, {"recipe": (1, 1, 0)}, r"groups along K are one a row"),
    "lengths' dtype": (ALONG_K, LENGTHS.long(), {}, r"ks_tensor is int64 .* int32 \[groups\]"),
    "lengths elsewhere": (ALONG_K, LENGTHS.to("meta"), {}, "different devices"),
    "lengths of numpy": (ALONG_K, LENGTHS.numpy(), {}, "ks_tensor is a ndarray"),
}


@pytest.mark.parametrize("case", K_CASES)
def test_groups_along_k(backend: FakeDevice, case: str) -> None:
    a, lengths, options, message = K_CASES[case]
    d = torch.full((2, 32, 32), POISON)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=message):
            cute_kernels.k_grouped_gemm_tn_contiguous(a, ALONG_K, d, [256, 128], lengths, **options)
    assert not backend.launches
    assert bool((d == POISON).all())


def test_batches(backend: FakeDevice) -> None:
    a, b = (fp8(4, 2, 272), torch.ones(4, 2, 3)), (fp8(2, 96, 272), torch.ones(2, 96, 3))
    d = torch.full((4, 2, 96), POISON)
    with pytest.raises(
        ArgumentError, match=r"b's scale factors .* recipe \(128, 128\), .* float32 \[2, 1, 3\]"
    ):
        cute_kernels.fp8_einsum("bhr,hdr->bhd", a, b, d)
    assert not backend.launches


def test_what_is_no_scale() -> None:
    """NaN where a scale has no UE8M0, since no call waits to refuse it."""
    finite = [1.0, -1.0, -0.0, 0.0, 2.0**127 * 1.5, 2.0**127, -(2.0**-140)]
    scales = torch.tensor([*finite, torch.nan, torch.inf, -torch.inf])
    assert encode_scales(scales, check="none").tolist() == [127, 255, 0, 0, 254, 254, 255, 255, 255, 255]


@pytest.mark.parametrize("ks", [[0, 640, 128, 0, 256], [], [0, 0], [128] * 70])
@pytest.mark.parametrize("more", [0, 3])
def test_groups_whose_lengths_are_on_the_device(ks: list[int], more: int) -> None:
    """As from the host, with scales behind the last group and room for words."""
    random = torch.Generator().manual_seed(1)
    rows = sum(ks) // 128
    scales = torch.randint(1, 255, (rows + more, 6), generator=random, dtype=torch.uint8)
    wanted = pack_k_grouped(scales[:rows], ks, 128)
    found = pack_k_grouped(scales, torch.tensor(ks, dtype=torch.int32), 128, words=len(wanted) + more)
    assert torch.equal(found[: len(wanted)], wanted) and not found[len(wanted) :].any()
    assert found.stride() == (8, 1)
    assert torch.equal(unpack_k_grouped(found[: len(wanted)], ks, 128), scales[:rows])


@pytest.mark.parametrize("lengths", [[10**9, 2**31 - 1], [-5, -(2**31)], [64, 1], [10**9, -7, 128]])
def test_lengths_that_are_nonsense_stay_inside(lengths: list[int]) -> None:
    scales = torch.ones(5, 4, dtype=torch.uint8)
    found = pack_k_grouped(scales, torch.tensor(lengths, dtype=torch.int32), 128, words=2)
    assert found.shape == (2, 4)


def test_nothing_is_read_on_the_host() -> None:
    """On the meta device there is nothing to read: whatever waits for a value raises."""
    a = fp8(M, K).to("meta"), torch.ones(M, 3, device="meta")
    b = fp8(3, N, K).to("meta"), torch.ones(3, 1, 3, device="meta")
    (_, of_a), (_, of_b), _, pack_both = recipes.packed(a, b, None)
    assert (of_a.shape, of_a.stride(), of_b.shape, of_b.stride()) == (
        (M, 1),
        (1, 132),
        (3, N, 1),
        (96, 1, 96),
    )
    along_k = torch.empty(384, 32, device="meta"), torch.ones(3, 32, device="meta")
    along_k = along_k[0].to(torch.float8_e4m3fn), along_k[1]
    (_, packed), pack_one = recipes.packed_k_grouped(along_k, (384, 32), None, LENGTHS.to("meta"), 128, "a")
    assert packed.shape == (2, 32)
    assert pack_both is not None and pack_one is not None
    pack_both()
    pack_one()
