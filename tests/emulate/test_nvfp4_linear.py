"""A model on the emulator whose linear layers come from a checkpoint: the modules and the kernel together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")
import cute_kernels
from cute_kernels import formats
from cute_kernels.nvfp4_linear import replace_linears
from cute_kernels.nvfp4_weight import unpack
from tests.building import Request, build
from tests.nvfp4_files import LAYERS, SCHEMAS, layer, weight, write

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


class Model(nn.Module):
    """Q and V projections as one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qv_proj = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.qv_proj(x)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_fused_layer_with_two_global_scales(tmp_path: Path, schema: str) -> None:
    assert not build(
        Request(tmp_path / "cubins", ("sm_90a",), "*gemm_w4a16_bf16_64x8x*"), say=lambda line: None
    ).failures
    tensors: dict[str, torch.Tensor] = {}
    bias = torch.linspace(-2, 2, 64).to(torch.bfloat16)
    for name, part in zip(NAMES, bias.split([48, 16]), strict=True):
        leaf = name.rpartition(".")[2]
        tensors |= {key.replace(name, leaf): t for key, t in layer(name, schema, *LAYERS[name]).items()}
        tensors[f"{leaf}.bias"] = part.clone()
    model = Model()
    replace_linears(model, write(tmp_path, tensors), fused_from={"qv_proj": ["q_proj", "v_proj"]})
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    cute_kernels.set_cubins(tmp_path / "cubins")
    try:
        with cute_kernels.emulate("sm_90a"), torch.no_grad():
            y = model(x)
    finally:
        cute_kernels.set_cubins(None)
    exact = torch.cat([x.double() @ values(name).T for name in NAMES], dim=-1)
    magnitude = torch.cat([x.double().abs() @ values(name).abs().T for name in NAMES], dim=-1)
    # The product and the sum are each rounded to BF16.
    bound = 2.0**-8 * (exact.abs() + (exact + bias.double()).abs()) + 2.0**-20 * magnitude
    assert ((y.double() - exact - bias.double()).abs() <= bound).all()


def values(name: str) -> torch.Tensor:
    """A layer's weight, float64 [N, K]."""
    codes, scales, factor = unpack(weight(name))
    return formats.dequantize(codes, scales, group=(1, 16), dtype=torch.float64) * factor.double()
