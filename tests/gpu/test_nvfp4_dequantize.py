"""NVFP4 to BF16 on a GPU through the runtime, from cubins of CUTE_KERNELS_CUBINS or build/; no DSL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cute_kernels import formats, ops
from cute_kernels.runtime import context
from cute_kernels.runtime.errors import ManifestError
from tests.nvfp4_cases import GLOBAL_SCALES, Operands, differing, every_code, random_operands

POISON = 1234.0
ROOT = Path(__file__).parents[2]


def _missing() -> str:
    """Why these tests cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        found = context.library().find("nvfp4_dequantize", context.backend_for(torch.device("cuda", 0)).archs)
    except ManifestError as error:
        return str(error)
    return "" if found else f"the cubin folder has no nvfp4_dequantize for {torch.cuda.get_device_name(0)}"


MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.mark.parametrize("global_scale", GLOBAL_SCALES)
def test_every_code_under_every_scale(global_scale: float) -> None:
    given = every_code(global_scale).to("cuda")
    assert differing(ops.nvfp4_dequantize(*given), given) == ""


@pytest.mark.parametrize(
    "shape", [(1, 16), (1, 2032), (1, 2048), (1, 2064), (7, 48), (130, 16), (1000, 1040), (2048, 7168)]
)
def test_random_matrices(shape: tuple[int, ...]) -> None:
    given = random_operands(*shape).to("cuda")
    rows, k = shape
    memory = torch.full((rows + 2, k), POISON, dtype=torch.bfloat16, device="cuda")
    ops.nvfp4_dequantize(*given, out=memory[1:-1])
    assert differing(memory[1:-1], given) == ""
    assert (memory[[0, -1]] == POISON).all()


def test_experts_have_global_scales_of_their_own() -> None:
    given = random_operands(5, 33, 432, experts=True).to("cuda")
    assert differing(ops.nvfp4_dequantize(*given), given) == ""


def test_equals_the_torch_reference_on_the_gpu() -> None:
    x = torch.randn(512, 4096, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    packed, scales, global_scale = formats.quantize_nvfp4(x)
    reference = formats.dequantize(packed, scales, group=(1, 16), global_scale=global_scale)
    assert torch.equal(ops.nvfp4_dequantize(packed, scales, global_scale), reference.to(torch.bfloat16))


def test_offsets_past_32_bits() -> None:
    # 4.3 GB of result, 2^31 + 2^20 elements: the same 32 rows over and over.
    copies, k = 2**11 + 1, 2**15
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    part = random_operands(32, k).to("cuda")
    packed = part.packed.repeat(copies, 1)
    scales = part.scales.view(torch.uint8).repeat(copies, 1).view(torch.float8_e4m3fn)
    out = torch.full((32 * copies, k), POISON, dtype=torch.bfloat16, device="cuda")
    ops.nvfp4_dequantize(packed, scales, part.global_scale, out=out)
    first, *others = out.split(32)
    assert differing(first, part) == ""
    assert all(torch.equal(other.view(torch.int16), first.view(torch.int16)) for other in others)


def test_graph_reads_the_scale_at_replay() -> None:
    given = random_operands(64, 1024).to("cuda")
    out = torch.empty(64, 1024, dtype=torch.bfloat16, device="cuda")
    ops.nvfp4_dequantize(*given, out=out)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.nvfp4_dequantize(*given, out=out)
    given.global_scale.fill_(0.375)
    out.fill_(POISON)
    graph.replay()
    assert differing(out, Operands(given.packed, given.scales, torch.tensor(0.375))) == ""


def test_runs_on_the_current_stream() -> None:
    given = random_operands(4096, 4096).to("cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # so that a launch on another stream would be over first
        given.global_scale.fill_(2.0)
        out = ops.nvfp4_dequantize(*given)
    stream.synchronize()
    assert differing(out, given) == ""


def test_needs_no_dsl() -> None:
    program = (
        "import sys; sys.modules['cutlass'] = None\n"  # importing it fails
        "from cute_kernels import ops\n"
        "from tests.nvfp4_cases import differing, random_operands\n"
        "given = random_operands(3, 48).to('cuda')\n"
        "assert differing(ops.nvfp4_dequantize(*given), given) == ''\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
