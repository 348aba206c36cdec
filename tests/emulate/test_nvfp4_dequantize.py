"""NVFP4 to BF16 on the emulator, bit for bit, within the tensors' bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import cute_kernels
from cute_kernels import formats, ops
from sm80.shape import ARCHS
from tests.building import Request, build
from tests.nvfp4_cases import GLOBAL_SCALES, differing, every_code, random_operands

POISON = 1234.0


@pytest.fixture(scope="module", autouse=True)
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernel for every architecture, as what operations run."""
    out = tmp_path_factory.mktemp("cubins")
    assert not build(
        Request(out, packages=("sm80",), only="nvfp4_dequantize"), say=lambda line: None
    ).failures
    cute_kernels.set_cubins(out)
    yield
    cute_kernels.set_cubins(None)


@pytest.mark.parametrize("global_scale", GLOBAL_SCALES)
def test_every_code_under_every_scale(global_scale: float) -> None:
    given = every_code(global_scale)
    with cute_kernels.emulate("sm_90a"):
        assert differing(ops.nvfp4_dequantize(*given), given) == ""


@pytest.mark.parametrize("arch", ARCHS)
def test_each_architecture(arch: str) -> None:
    given = random_operands(9, 256, seed=3)
    with cute_kernels.emulate(arch):
        assert differing(ops.nvfp4_dequantize(*given), given) == ""


# A CTA decodes 128 blocks of 16: below, at and above one CTA and two.
@pytest.mark.parametrize("blocks", [1, 2, 3, 63, 64, 65, 127, 128, 129, 255, 256, 257])
def test_tails(blocks: int) -> None:
    given = random_operands(1, 16 * blocks, seed=blocks)
    out = torch.full((1, 16 * blocks), POISON, dtype=torch.bfloat16)
    with cute_kernels.emulate("sm_90a"):
        assert ops.nvfp4_dequantize(*given, out=out) is out
    assert differing(out, given) == ""


@pytest.mark.parametrize(("rows", "k"), [(7, 16), (5, 48), (3, 1040), (130, 16)])
def test_odd_matrices(rows: int, k: int) -> None:
    given = random_operands(rows, k, seed=rows)
    with cute_kernels.emulate("sm_90a"):
        assert differing(ops.nvfp4_dequantize(*given), given) == ""


def test_nothing_outside_the_result_is_written() -> None:
    given = random_operands(3, 48)
    memory = torch.full((5, 48), POISON, dtype=torch.bfloat16)
    with cute_kernels.emulate("sm_90a"):
        ops.nvfp4_dequantize(*given, out=memory[1:4])
    assert differing(memory[1:4], given) == ""
    assert (memory[[0, 4]] == POISON).all()


# Odd numbers of blocks an expert: all tensors of the second expert start off 16-byte boundaries but out.
@pytest.mark.parametrize(("experts", "rows", "k"), [(2, 1, 16), (3, 5, 432), (2, 129, 16)])
def test_experts_have_global_scales_of_their_own(experts: int, rows: int, k: int) -> None:
    given = random_operands(experts, rows, k, experts=True)
    with cute_kernels.emulate("sm_90a"):
        assert differing(ops.nvfp4_dequantize(*given), given) == ""


def test_leading_dimensions_share_one_global_scale() -> None:
    given = random_operands(2, 3, 64)
    with cute_kernels.emulate("sm_90a"):
        assert differing(ops.nvfp4_dequantize(*given), given) == ""


def test_quantized_values_come_back() -> None:
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    packed, scales, global_scale = formats.quantize_nvfp4(x)
    with cute_kernels.emulate("sm_90a"):
        back = ops.nvfp4_dequantize(packed, scales, global_scale)
    reference = formats.dequantize(packed, scales, group=(1, 16), global_scale=global_scale)
    assert torch.equal(back, reference.to(torch.bfloat16))
    assert (back.float() - x).norm() < 0.15 * x.norm()


def test_nothing_to_do() -> None:
    with cute_kernels.emulate("sm_90a") as emulation:
        for shape in ((0, 32), (4, 0), (0, 4, 16)):
            given = random_operands(*shape)
            assert ops.nvfp4_dequantize(*given).shape == shape
        assert not emulation.reports
