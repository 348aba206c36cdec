"""Packing NVFP4 weights on the emulated device: byte for byte what the host packs, within the tensors' bounds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import cute_kernels
from cute_kernels import nvfp4_weight, ops
from sm80.shape import ARCHS
from tests.building import Request, build
from tests.nvfp4_cases import packable

POISON = 0xA5


@pytest.fixture(scope="module", autouse=True)
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The kernel for every architecture, as what operations run."""
    out = tmp_path_factory.mktemp("cubins")
    assert not build(Request(out, packages=("sm80",), only="nvfp4_repack"), say=lambda line: None).failures
    cute_kernels.set_cubins(out)
    yield
    cute_kernels.set_cubins(None)


def differing(shape: tuple[int, ...], arch: str = "sm_90a", schedule: str = "random") -> str:
    """Pack a random weight into poisoned memory; what differs from the host's, and what else was written."""
    codes, scales = packable(*shape, seed=sum(shape))
    expected = nvfp4_weight.pack(codes, scales, 0.75)
    room = torch.full((expected.data.nbytes + 256,), POISON, dtype=torch.uint8)
    out = room[128:-128].view(expected.data.shape)
    with cute_kernels.emulate(arch, schedule=schedule):
        weight = ops.nvfp4_repack(codes, scales, 0.75, out=out)
    assert weight.data is out
    assert (weight.shape, weight.global_scale.tolist()) == (shape, expected.global_scale.tolist())
    assert (room[:128] == POISON).all() and (room[-128:] == POISON).all()
    places = (out != expected.data).nonzero()[:5].tolist()
    return "; ".join(f"{place}: {out[tuple(place)]} not {expected.data[tuple(place)]}" for place in places)


@pytest.mark.parametrize("arch", ARCHS)
def test_each_architecture(arch: str) -> None:
    assert differing((33, 272), arch) == ""


# A CTA packs 8 units of 128 k: below, at and above one CTA; rows that fill no unit; a single block.
@pytest.mark.parametrize(
    "shape", [(16, 128), (1, 16), (7, 48), (17, 1024), (16, 1040), (31, 2064), (64, 1008), (130, 144)]
)
@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_sizes(shape: tuple[int, ...], schedule: str) -> None:
    assert differing(shape, schedule=schedule) == ""


# Odd rows of an odd number of blocks: the second expert's tensors start off 16-byte boundaries.
@pytest.mark.parametrize("shape", [(1, 16, 128), (2, 3, 48), (5, 17, 1040)])
def test_experts(shape: tuple[int, ...]) -> None:
    assert differing(shape) == ""


def test_every_scale_byte_is_moved_as_it_is() -> None:
    codes = packable(32, 128)[0]
    scales = torch.arange(256, dtype=torch.uint8).view(32, 8)
    with cute_kernels.emulate("sm_90a"):
        weight = ops.nvfp4_repack(codes, scales.view(torch.float8_e4m3fn), 1.0)
    assert torch.equal(nvfp4_weight.unpack(weight)[1].view(torch.uint8), scales)


def test_global_scales() -> None:
    codes, scales = packable(3, 16, 64)
    factors = torch.tensor([0.5, 2.0, 3.0])
    with cute_kernels.emulate("sm_90a"):
        own = ops.nvfp4_repack(codes, scales, factors)
        shared = ops.nvfp4_repack(codes, scales, torch.tensor(0.25))
    assert own.global_scale.data_ptr() == factors.data_ptr()  # no kernel to copy it
    assert own.global_scale.tolist() == [0.5, 2.0, 3.0]
    assert shared.global_scale.tolist() == [0.25] * 3
