"""NVFP4 weights times activations on a GPU, from cubins of CUTE_KERNELS_CUBINS or build/; no DSL."""

from __future__ import annotations

import threading

import pytest
import torch

from cute_kernels import ops
from cute_kernels.heuristics import candidates
from cute_kernels.runtime import context, plan
from cute_kernels.runtime.errors import ManifestError
from tests.w4a16_cases import (
    POISON,
    Case,
    contiguous_case,
    masked_case,
    random_case,
    wrong,
    wrong_groups,
)

M = (1, 3, 5, 16, 17, 33, 64, 100, 128, 257, 512, 4096)


def _names() -> list[str]:
    backend = context.backend_for(torch.device("cuda", 0))
    records = context.library().find("gemm_w4a16", backend.archs)
    return [record.name for record in records if record.config["layout"] == "dense"]


def _missing() -> str:
    """Why these tests cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        found = _names()
    except ManifestError as error:
        return str(error)
    return "" if found else f"the cubin folder has no gemm_w4a16 for {torch.cuda.get_device_name(0)}"


MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def on_gpu(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    return random_case(m, n, k, dtype).to("cuda")


def check(case: Case, pad: int = 8) -> str:
    """Run twice into poisoned memory; what is wrong with D, or around it."""
    m, n = case.product.shape
    room = torch.full((m + 2, n + pad), POISON, dtype=case.x.dtype, device="cuda")
    out = room[1:-1, :n]
    ops.w4a16_gemm_nt(case.x, case.weight, out)
    first = out.clone()
    ops.w4a16_gemm_nt(case.x, case.weight, out)
    if not torch.equal(first.view(torch.int16), out.view(torch.int16)):
        return "two runs differ"
    if not ((room[[0, -1]] == POISON).all() and (room[:, n:] == POISON).all()):
        return "wrote outside D"
    return wrong(out, case)


@pytest.mark.parametrize("m", M)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_sizes(m: int, dtype: torch.dtype) -> None:
    for i, (n, k) in enumerate(
        ((64, 16), (192, 48), (4096, 4096), (1000, 272), (4160, 1040), (5376, 2064), (1, 128))
    ):
        assert check(on_gpu(m, n, k, dtype), pad=(8, 3, 0)[i % 3]) == "", (m, n, k)


@pytest.mark.parametrize("name", [] if MISSING else _names())
def test_each_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ops._w4a16_requests.clear()
    monkeypatch.setattr(plan, "candidates", lambda *given: [c for c in candidates(*given) if c.name == name])
    dtype = torch.float16 if "_f16_" in name else torch.bfloat16
    for m, n, k in ((16, 4096, 4096), (70, 5376, 2064), (300, 1000, 8192)):
        assert check(on_gpu(m, n, k, dtype)) == "", (m, n, k)
    ops._w4a16_requests.clear()


@pytest.mark.parametrize(
    ("m", "n", "k"), [(4096, 4096, 14336), (1024, 14336, 4096), (128, 28672, 8192), (1, 28672, 8192)]
)
def test_equal_bits_however_warps_drift_apart(m: int, n: int, k: int) -> None:
    """CTAs wait for one another's sums here, so their warps fall behind by up to a ring of stages."""
    x = torch.randn(m, k, device="cuda").to(torch.bfloat16)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(0, 0x7F, (n, k // 16), dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    weight = ops.nvfp4_repack(codes, scales, 0.01)
    first = ops.w4a16_gemm_nt(x, weight)
    out = torch.empty_like(first)
    for _ in range(20):
        ops.w4a16_gemm_nt(x, weight, out)
        assert torch.equal(out.view(torch.int16), first.view(torch.int16))


def test_a_captured_graph_reads_what_its_inputs_hold_then() -> None:
    case = on_gpu(16, 4096, 4096)
    other = Case(case.x.flip(0), case.weight, case.product.flip(0), case.size.flip(0))
    x, out = torch.zeros_like(case.x), torch.empty(16, 4096, dtype=torch.bfloat16, device="cuda")
    ops._w4a16_requests.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # planned, loaded and given a workspace inside the capture
        for _ in range(3):  # back to back, so that each begins while the one before ends
            ops.w4a16_gemm_nt(x, case.weight, out)
    for given in (case, other):
        x.copy_(given.x)
        graph.replay()
        assert wrong(out, given) == ""


def test_a_chain_sees_what_the_call_before_wrote() -> None:
    """Programmatic dependent launch: weights are fetched early, activations are not."""
    a, b = on_gpu(8, 4096, 4096), on_gpu(8, 4096, 4096)
    expected = ops.w4a16_gemm_nt(ops.w4a16_gemm_nt(a.x, a.weight), b.weight)
    middle = torch.empty(8, 4096, dtype=torch.bfloat16, device="cuda")
    for _ in range(20):
        middle.fill_(POISON)
        ops.w4a16_gemm_nt(a.x, a.weight, middle)
        assert torch.equal(ops.w4a16_gemm_nt(middle, b.weight), expected)


def test_streams_and_threads_do_not_share_a_workspace() -> None:
    cases = [on_gpu(m, 4096, 8192) for m in (1, 16, 33, 128)]
    faults: list[str] = []

    def work(case: Case) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                result = ops.w4a16_gemm_nt(case.x, case.weight)
            faults.append(wrong(result, case))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [""] * len(cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("rows", [[1, 0, 40], [300, 7, 0, 128], [2] * 70, [0, 0]], ids=str)
def test_experts(rows: list[int], dtype: torch.dtype) -> None:
    case = contiguous_case(rows, 128, 1000, 2064, dtype).to("cuda")
    if len(case.x):
        out = torch.full(case.product.shape, POISON, dtype=dtype, device="cuda")
        ops.m_grouped_w4a16_gemm_nt_contiguous(case.x, case.weight, case.layout, out)
        assert wrong_groups(out, case) == ""
    for expected in (1, 64, 1000):
        case = masked_case(rows, max(*rows, 5), 1000, 2064, dtype).to("cuda")
        out = torch.full(case.product.shape, POISON, dtype=dtype, device="cuda")
        ops.m_grouped_w4a16_gemm_nt_masked(case.x, case.weight, case.layout, expected, out)
        assert wrong_groups(out, case) == ""


def test_a_captured_graph_serves_other_group_sizes() -> None:
    case = masked_case([64, 50, 3], 64, 1000, 2064).to("cuda")
    sizes, out = case.layout.clone(), torch.empty(case.product.shape, dtype=case.x.dtype, device="cuda")
    sizes.fill_(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.m_grouped_w4a16_gemm_nt_masked(case.x, case.weight, sizes, 16, out)
    for rows in ([64, 50, 3], [0, 0, 0], [1, 49, 2], [0, 17, 0]):
        sizes.copy_(torch.tensor(rows))
        out.fill_(POISON)
        graph.replay()
        used = torch.arange(64, device="cuda") < sizes[:, None]
        assert wrong_groups(out, case._replace(layout=sizes, used=used)) == ""
