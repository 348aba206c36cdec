"""Packing NVFP4 weights on a GPU, from cubins of CUTE_KERNELS_CUBINS or build/: byte for byte the host's."""

from __future__ import annotations

import pytest
import torch

from cute_kernels import nvfp4_weight, ops
from cute_kernels.runtime import context
from cute_kernels.runtime.errors import ManifestError
from tests.nvfp4_cases import packable

POISON = 0xA5


def _missing() -> str:
    """Why these tests cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        found = context.library().find("nvfp4_repack", context.backend_for(torch.device("cuda", 0)).archs)
    except ManifestError as error:
        return str(error)
    return "" if found else f"the cubin folder has no nvfp4_repack for {torch.cuda.get_device_name(0)}"


MISSING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.mark.parametrize(
    "shape",
    [(16, 128), (1, 16), (7, 48), (17, 1040), (1000, 2064), (3, 33, 272), (128, 40, 1040), (21504, 5376)],
)
def test_equals_the_host(shape: tuple[int, ...]) -> None:
    codes, scales = packable(*shape)
    expected = nvfp4_weight.pack(codes, scales, 0.75)
    room = torch.full((expected.data.nbytes + 256,), POISON, dtype=torch.uint8, device="cuda")
    out = room[128:-128].view(expected.data.shape)
    weight = ops.nvfp4_repack(codes.cuda(), scales.cuda(), 0.75, out=out)
    assert torch.equal(weight.data.cpu(), expected.data)
    assert (room[:128] == POISON).all() and (room[-128:] == POISON).all()


def test_unpack_takes_a_weight_on_the_gpu() -> None:
    codes, scales = packable(2, 130, 528)
    factors = torch.tensor([0.5, 3.0])
    back = nvfp4_weight.unpack(ops.nvfp4_repack(codes.cuda(), scales.cuda(), factors.cuda()))
    assert torch.equal(back[0], codes)
    assert torch.equal(back[1].view(torch.uint8), scales.view(torch.uint8))
    assert torch.equal(back[2], factors)


def test_offsets_past_32_bits() -> None:
    # 4.4 GB of codes in 2,049 experts that are all alike.
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GiB of free GPU memory")
    codes, scales = packable(256, 16400)
    expected = nvfp4_weight.pack(codes, scales, 1.0).data.cuda()
    many = scales.view(torch.uint8).cuda().expand(2049, -1, -1).contiguous().view(torch.float8_e4m3fn)
    weight = ops.nvfp4_repack(codes.cuda().expand(2049, -1, -1).contiguous(), many, 1.0)
    assert all(torch.equal(expert, expected) for expert in weight.data)


def test_graph_replays_on_new_content() -> None:
    codes, scales = (tensor.cuda() for tensor in packable(64, 1024))
    out = torch.zeros(4, 8, 1152, dtype=torch.uint8, device="cuda")
    ops.nvfp4_repack(codes, scales, 1.0, out=out)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.nvfp4_repack(codes, scales, 1.0, out=out)
    later = packable(64, 1024, seed=1)
    codes.copy_(later[0])
    scales.view(torch.uint8).copy_(later[1].view(torch.uint8))
    out.fill_(POISON)
    graph.replay()
    assert torch.equal(out.cpu(), nvfp4_weight.pack(*later, 1.0).data)
