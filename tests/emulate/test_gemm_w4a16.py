"""NVFP4 weights times BF16 and FP16 activations on the emulator: every configuration, tails, shares, schedules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import cute_kernels
import sm80
from cute_kernels import nvfp4_weight, ops
from cute_kernels.heuristics import candidates
from cute_kernels.runtime import ArgumentError, plan
from tests.building import Request, build
from tests.w4a16_cases import POISON, Case, random_case, wrong

VARIANTS = [v for v in map(sm80.w4a16_variant, sm80.w4a16_shapes()) if v.shape.layout == "dense"]
SCHEDULES = ("eager", "lazy", "random")


@pytest.fixture(scope="module", autouse=True)
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernels as what operations run."""
    out = tmp_path_factory.mktemp("cubins")
    for only in ("*gemm_w4a16_*[0-9]", "*[0-9]_wgmma"):
        request = Request(out, archs=("sm_90a",), packages=("sm80",), only=only)
        assert not build(request, say=lambda line: None).failures
    cute_kernels.set_cubins(out)
    yield
    cute_kernels.set_cubins(None)


def force(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let every call take one configuration."""
    ops._w4a16_requests.clear()
    monkeypatch.setattr(
        plan, "candidates", lambda *given: [each for each in candidates(*given) if each.name == name]
    )


def run(
    case: Case,
    num_sms: int = 8,
    schedule: str = "random",
    seed: int = 0,
    pad: int = 8,
    arch: str = "sm_90a",
) -> str:
    """Run into poisoned memory with `pad` columns more than D has; what is wrong with D, or around it."""
    m, n = case.product.shape
    room = torch.full((m + 2, n + pad), POISON, dtype=case.x.dtype)
    out = room[1:-1, :n]
    with cute_kernels.emulate(arch, schedule=schedule, seed=seed, num_sms=num_sms) as emulation:
        assert ops.w4a16_gemm_nt(case.x, case.weight, out) is out
        first = out.clone()
        ops.w4a16_gemm_nt(case.x, case.weight, out)
        # W is constant, so it may be loaded while kernels before are at their end.
        warnings = [w for w in emulation.reports[-1].warnings if "griddepcontrol.wait" not in w]
        if warnings:
            return f"warnings: {warnings}"
    if not torch.equal(first.view(torch.int16), out.view(torch.int16)):
        return "two runs differ"
    if not ((room[[0, -1]] == POISON).all() and (room[:, n:] == POISON).all()):
        return "wrote outside D"
    return wrong(out, case)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_each_configuration(variant: sm80.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tails in all dimensions, and shares that begin and end inside tiles; the ring goes round."""
    force(monkeypatch, variant.name)
    s = variant.shape
    dtype = torch.bfloat16 if s.x_dtype == "bf16" else torch.float16
    case = random_case(s.tile_m + 3, s.tile_n + 21, s.tile_k * (s.stages + 1) // 3 + 16 & ~15, dtype)
    seed = len(variant.name)
    assert run(case, num_sms=3, schedule=SCHEDULES[s.tile_n // 32 % 3], seed=seed) == ""


M = (1, 3, 5, 16, 17, 33, 64, 100, 128, 257)
N = (64, 100, 192, 16, 8, 1)
K = (16, 48, 256, 272, 1040, 2064)
SIZES = [(m, N[i % len(N)], K[(i * 5 + i // 6) % len(K)]) for i, m in enumerate(M)]
SIZES += [(M[-1 - i], N[(i + 3) % len(N)], K[i]) for i in range(len(K))]


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(size, (torch.bfloat16, torch.float16)[i % 2]) for i, size in enumerate(SIZES)],
    ids=str,
)
def test_sizes(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    ops._w4a16_requests.clear()
    m, n, k = size
    schedule = SCHEDULES[(m + n + k // 16) % 3]
    assert run(random_case(m, n, k, dtype), schedule=schedule, seed=m, pad=(8, 3, 0)[m % 3]) == ""


@pytest.mark.parametrize("num_sms", [1, 2, 5, 7, 13])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares(num_sms: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of one CTA, of two, of many, and several tiles of one."""
    force(monkeypatch, "sm80_gemm_w4a16_bf16_64x16x512")
    assert run(random_case(20, 72, 5136), num_sms=num_sms, seed=seed) == ""


def test_every_code_and_scale() -> None:
    """One k at a time: D is a column of W, so every code under every scale is seen on its own."""
    ops._w4a16_requests.clear()
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).expand(128, 256).contiguous()
    scales = torch.arange(0x7F, dtype=torch.uint8).view(-1, 1).expand(0x7F, 32).contiguous()
    weight = nvfp4_weight.pack(codes[:0x7F], scales.view(torch.float8_e4m3fn), 1.0)
    low, high = [list(range(16)) * 16, [v for v in range(16) for _ in range(16)]]
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    values = torch.stack((table[low], table[high]), -1).flatten()
    expected = values[:, None] * scales[:, 0].view(torch.float8_e4m3fn).float()
    for dtype in (torch.bfloat16, torch.float16):
        with cute_kernels.emulate("sm_90a"):
            result = ops.w4a16_gemm_nt(torch.eye(512, dtype=dtype), weight)
        assert torch.equal(result.float(), expected)


def test_leading_dimensions_and_nothing_to_do() -> None:
    ops._w4a16_requests.clear()
    case = random_case(6, 40, 64)
    with cute_kernels.emulate("sm_90a"):
        result = ops.w4a16_gemm_nt(case.x.view(2, 3, 64), case.weight)
        assert ops.w4a16_gemm_nt(case.x[:0], case.weight).shape == (0, 40)
    assert result.shape == (2, 3, 40) and wrong(result.view(6, 40), case) == ""


def test_refusals() -> None:
    case = random_case(4, 32, 64)
    x, weight = case.x, case.weight
    experts = nvfp4_weight.pack(
        torch.zeros(2, 16, 32, dtype=torch.uint8), torch.zeros(2, 16, 4).to(torch.float8_e4m3fn), 1.0
    )
    wide = torch.zeros(4, 72, dtype=torch.bfloat16)
    for arguments, message in (
        ((x.float(), weight), "x is float32.*bfloat16 or float16"),
        ((x[:, :48], weight), r"takes bfloat16 or float16 \[M, 64\]"),
        ((wide[:, 4:68], weight), "x starts at address"),
        ((torch.zeros(4, 68, dtype=torch.bfloat16)[:, :64], weight), "x is .*136 bytes apart"),
        ((x, weight.data), "must be a PackedNvfp4Weight"),
        ((x, experts), "holds 2 experts"),
        ((x, weight, torch.zeros(4, 31, dtype=torch.bfloat16)), r"out is .*takes bfloat16 \[4, 32\]"),
        ((x, weight, torch.zeros(4, 32)), "out is float32"),
        ((x, weight, torch.zeros(32, 4, dtype=torch.bfloat16).T), "out is .*last dimension"),
        ((x, weight, x[:, :32]), "out shares memory with x"),
    ):
        with cute_kernels.emulate("sm_90a"), pytest.raises(ArgumentError, match=message):
            ops.w4a16_gemm_nt(*arguments)


def test_an_architecture_without_the_kernel_says_so() -> None:
    case = random_case(1, 16, 16)
    with cute_kernels.emulate("sm_80"), pytest.raises(cute_kernels.KernelNotFoundError, match="sm_90a"):
        ops.w4a16_gemm_nt(case.x, case.weight)
