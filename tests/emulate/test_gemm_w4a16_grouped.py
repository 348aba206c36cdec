"""NVFP4 weights of experts on the emulator: contiguous and masked groups, empty ones, all of none, replays."""

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
from tests.w4a16_cases import POISON, Grouped, contiguous_case, masked_case, random_case, wrong_groups

ARCHS = ("sm_90a", "sm_80")  # by TMA, and by cp.async
VARIANTS = [
    pytest.param(arch, v, id=f"{arch}-{v.name}")
    for arch in ARCHS
    for v in sm80.variants(arch)
    if v.kernel == "gemm_w4a16" and v.shape.layout != "dense"
]
SCHEDULES = ("eager", "lazy", "random")


@pytest.fixture(scope="module", params=ARCHS)
def arch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An architecture whose kernels operations run."""
    out, name = tmp_path_factory.mktemp("cubins"), str(request.param)
    for only in ("contiguous", "masked"):
        assert not build(Request(out, (name,), only, packages=("sm80",)), say=lambda line: None).failures
    cute_kernels.set_cubins(out)
    ops._w4a16_requests.clear()
    yield name
    cute_kernels.set_cubins(None)


def run(
    arch: str,
    case: Grouped,
    alignment: int = 128,
    schedule: str = "random",
    seed: int = 0,
    num_sms: int = 8,
) -> str:
    """Run into poisoned memory, rows of D apart; what is wrong."""
    *lead, n = case.product.shape
    room = torch.full((*lead, n + 8), POISON, dtype=case.x.dtype)
    out = room[..., :n]
    with cute_kernels.emulate(arch, schedule=schedule, seed=seed, num_sms=num_sms) as emulation:
        if case.x.dim() == 2:
            ops.m_grouped_w4a16_gemm_nt_contiguous(case.x, case.weight, case.layout, out, alignment)
        else:
            ops.m_grouped_w4a16_gemm_nt_masked(case.x, case.weight, case.layout, 16, out)
    if warnings := [warning for report in emulation.reports for warning in report.warnings]:
        return f"warnings: {warnings}"
    if not (room[..., n:] == POISON).all():
        return "wrote outside D"
    return wrong_groups(out, case)


@pytest.mark.parametrize(("arch", "variant"), VARIANTS, indirect=["arch"])
def test_each_configuration(arch: str, variant: sm80.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    ops._w4a16_requests.clear()
    monkeypatch.setattr(
        plan, "candidates", lambda *given: [each for each in candidates(*given) if each.name == variant.name]
    )
    s = variant.shape
    dtype = torch.bfloat16 if s.x_dtype == "bf16" else torch.float16
    sizes = (s.tile_n + 21, s.tile_k + 48, dtype, len(variant.name))
    if s.layout == "contiguous":
        case = contiguous_case([3, 0, s.tile_m + 1], s.tile_m, *sizes)
    else:
        case = masked_case([3, 0, s.tile_m + 1], s.tile_m + 5, *sizes)
    schedule = SCHEDULES[(s.tile_n // 32 + s.tile_m // 16) % 3]
    assert run(arch, case, s.tile_m, schedule, num_sms=3) == ""


ROWS = [[1], [0], [0, 0, 5], [16, 1, 0, 33], [7] * 40, [0] * 35 + [20], [130, 3]]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("kind", ["contiguous", "masked"])
def test_groups(rows: list[int], kind: str, arch: str) -> None:
    """Few and many experts, more than a warp has lanes; one row, none, several tiles."""
    seed = sum(rows) + len(rows)
    if kind == "contiguous":
        case, alignment = contiguous_case(rows, 32, 40, 272, seed=seed), 32
    else:
        case, alignment = masked_case(rows, max(*rows, 2), 40, 272, seed=seed), 0
    assert run(arch, case, alignment, SCHEDULES[seed % 3], seed, (2, 5, 8)[seed % 3]) == ""


def test_rows_of_nobody_only(arch: str) -> None:
    case = contiguous_case([5, 0], 64, 40, 64)
    none = case._replace(layout=torch.full_like(case.layout, -1), used=torch.zeros_like(case.used))
    assert run(arch, none, 64) == ""
    case = masked_case([0, 0, 0], 9, 40, 64)
    assert run(arch, case) == ""


def test_the_same_launch_serves_other_sizes(arch: str) -> None:
    """Sizes change in place, as between replays of a graph."""
    first, second = masked_case([4, 0, 17], 20, 40, 272), masked_case([20, 9, 1], 20, 40, 272)
    layout, x = first.layout.clone(), first.x.clone()
    out = torch.empty(3, 20, 40, dtype=torch.bfloat16)
    with cute_kernels.emulate(arch):
        for case in (first, second, first):
            layout.copy_(case.layout)
            x.copy_(case.x)
            out.fill_(POISON)
            ops.m_grouped_w4a16_gemm_nt_masked(x, case.weight, layout, 4, out)
            assert wrong_groups(out, case) == ""


def test_sizes_beyond_the_room_are_cut_off(arch: str) -> None:
    case = masked_case([6, 6], 6, 40, 64)
    case = case._replace(layout=torch.tensor([6, 900], dtype=torch.int32))
    assert run(arch, case) == ""


def test_refusals(arch: str) -> None:
    case = contiguous_case([3, 2], 32, 40, 64)
    x, weight, layout = case.x, case.weight, case.layout
    dense = random_case(4, 40, 64)
    masked = ops.m_grouped_w4a16_gemm_nt_masked
    contiguous = ops.m_grouped_w4a16_gemm_nt_contiguous
    for call, message in (
        (lambda: contiguous(x, dense.weight, layout), "weight holds one matrix.*takes experts"),
        (lambda: contiguous(x, weight, layout.long()), "m_indices is int64"),
        (lambda: contiguous(x, weight, layout[:5]), r"takes contiguous int32 \[64\]"),
        (lambda: contiguous(x, weight, layout, alignment=0), "alignment is 0"),
        (lambda: contiguous(x, weight, layout, alignment=24), "no kernel .* serves"),
        (lambda: masked(x, weight, layout, 4), r"takes bfloat16 or float16 \[2, M, 64\]"),
        (lambda: masked(x.view(2, 32, 64), weight, layout[:3], 4), r"masked_m is .*int32 \[2\]"),
        (lambda: masked(x.view(2, 32, 64), weight, layout[:2], 0), "expected_m is 0"),
        (lambda: ops.w4a16_gemm_nt(x, weight), "takes one matrix"),
    ):
        with (
            cute_kernels.emulate(arch),
            pytest.raises((ArgumentError, cute_kernels.KernelNotFoundError), match=message),
        ):
            call()


def test_packed_experts_are_those_of_each() -> None:
    """`nvfp4_weight.pack` of [E, N, K] is what the cases stack."""
    codes = torch.randint(0, 256, (2, 24, 32), dtype=torch.uint8)
    scales = torch.randint(0, 0x7F, (2, 24, 4), dtype=torch.uint8).view(torch.float8_e4m3fn)
    both = nvfp4_weight.pack(codes, scales, 1.0)
    for expert in range(2):
        assert torch.equal(both.data[expert], nvfp4_weight.pack(codes[expert], scales[expert], 1.0).data)
