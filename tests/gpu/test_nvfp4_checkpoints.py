"""Checkpoints loaded onto a GPU, where layers are packed; from cubins of CUTE_KERNELS_CUBINS or build/."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")
from cute_kernels import nvfp4_weight
from cute_kernels.checkpoints import CheckpointError, open_checkpoint
from cute_kernels.nvfp4_checkpoints import load_layers, survey
from cute_kernels.nvfp4_convert import convert
from cute_kernels.nvfp4_linear import Nvfp4Linear, replace_linears
from cute_kernels.runtime import context
from cute_kernels.runtime.errors import ManifestError
from tests.nvfp4_cases import packable
from tests.nvfp4_files import LAYERS, SCHEMAS, layer, tensors_of, weight, write
from tests.w4a16_cases import random_case, wrong


def _missing(kernel: str) -> str:
    """Why tests of a kernel cannot run here; "" if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        found = context.library().find(kernel, context.backend_for(torch.device("cuda", 0)).archs)
    except ManifestError as error:
        return str(error)
    return "" if found else f"the cubin folder has no {kernel} for {torch.cuda.get_device_name(0)}"


MISSING = _missing("nvfp4_repack")
NO_GEMM = _missing("gemm_w4a16")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.mark.parametrize("schema", [*SCHEMAS, "packed"])
def test_layers_are_the_hosts(tmp_path: Path, schema: str) -> None:
    path = write(tmp_path / "given", tensors_of("modelopt" if schema == "packed" else schema), 2)
    if schema == "packed":
        convert(path, tmp_path / "packed", device="cuda")
        path = tmp_path / "packed"
    checkpoint = open_checkpoint(path)
    found = dict(load_layers(checkpoint, survey(checkpoint).layers.values(), "cuda"))
    assert {each.name for each in found} == set(LAYERS)
    for each, got in found.items():
        assert got.device.type == "cuda"
        assert torch.equal(got.data.cpu(), weight(each.name).data)
        assert torch.equal(got.global_scale.cpu(), weight(each.name).global_scale)


def test_scales_are_checked_before_they_are_packed(tmp_path: Path) -> None:
    tensors = layer("x", "modelopt", (16, 64), 1.0)
    tensors["x.weight_scale"].view(torch.uint8)[3, 2] = 0x80
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    with pytest.raises(CheckpointError, match=r"negative or NaN, .* at \[3, 2\]"):
        list(load_layers(checkpoint, survey(checkpoint).layers.values(), "cuda"))


@pytest.mark.skipif(bool(NO_GEMM), reason=NO_GEMM)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear(dtype: torch.dtype) -> None:
    case = random_case(35, 96, 272, dtype)
    linear = Nvfp4Linear.of(case.weight).to("cuda")
    y = linear(case.x.cuda().view(5, 7, 272))
    assert wrong(y.view(35, 96).cpu(), case) == ""
    linear.bias = nn.Parameter(torch.ones(96, dtype=dtype, device="cuda"), requires_grad=False)
    assert torch.equal(linear(case.x.cuda().view(5, 7, 272)), y + 1)


def test_a_model_from_the_meta_device(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(272, 96))
    codes, scales = packable(96, 272)
    tensors = {"0.weight": codes, "0.weight_scale": scales, "0.weight_scale_2": torch.tensor(0.5)}
    tensors["0.bias"] = torch.arange(96.0).to(torch.bfloat16)
    assert replace_linears(model, write(tmp_path, tensors), "cuda") == []
    expected = nvfp4_weight.pack(codes, scales, 0.5)
    assert {name: tensor.device.type for name, tensor in model.state_dict().items()} == dict.fromkeys(
        ("0.packed_weight", "0.global_scale", "0.bias"), "cuda"
    )
    assert torch.equal(model.state_dict()["0.packed_weight"].cpu(), expected.data)
