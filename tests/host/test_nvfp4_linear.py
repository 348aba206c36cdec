"""Linear modules with packed weights: state, types, fused projections, and models that get them from checkpoints."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")
from cute_kernels import formats, ops
from cute_kernels.checkpoints import CheckpointError, open_checkpoint
from cute_kernels.nvfp4_convert import convert
from cute_kernels.nvfp4_linear import Nvfp4Linear, Nvfp4Linears, fused, replace_linears
from cute_kernels.nvfp4_weight import PackedNvfp4Weight, pack, unpack
from cute_kernels.runtime.errors import ArgumentError
from tests.nvfp4_cases import packable
from tests.nvfp4_files import LAYERS, PLAIN, SCHEMAS, layer, tensors_of, weight, write


def product(x: torch.Tensor, w: PackedNvfp4Weight) -> torch.Tensor:
    """What the operation computes, in float64."""
    codes, scales, factor = unpack(w)
    values = formats.dequantize(codes, scales, group=(1, 16), dtype=torch.float64) * factor.double()
    return (x.double() @ values.T).to(x.dtype)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[PackedNvfp4Weight]:
    """Weights that the operation, which other tests judge, was called with."""
    seen: list[PackedNvfp4Weight] = []

    def w4a16_gemm_nt(x: torch.Tensor, w: PackedNvfp4Weight) -> torch.Tensor:
        seen.append(w)
        return product(x, w)

    monkeypatch.setattr(ops, "w4a16_gemm_nt", w4a16_gemm_nt)
    return seen


def some(n: int, k: int, factor: float = 0.25, seed: int = 0) -> PackedNvfp4Weight:
    return pack(*packable(n, k, seed=seed), factor)


def inputs(k: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(2, 3, k, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward(dtype: torch.dtype, with_bias: bool) -> None:
    w = some(40, 144, 2.0**-6)
    bias = torch.linspace(-900, 900, 40).to(dtype) if with_bias else None
    x = inputs(144, dtype)
    expected = product(x, w)
    y = Nvfp4Linear.of(w, bias)(x)
    assert (y.shape, y.dtype) == ((2, 3, 40), dtype)
    assert torch.equal(y, expected if bias is None else expected + bias)


def test_the_weight_is_wrapped_once_until_it_changes(calls: list[PackedNvfp4Weight]) -> None:
    w = some(16, 64)
    linear = Nvfp4Linear.of(w)
    for _ in range(3):
        linear(inputs(64))
    assert calls[0].data is w.data and calls[0].global_scale is w.global_scale
    assert calls[0] is calls[1] is calls[2]
    linear.packed_weight = w.data.clone()
    linear(inputs(64))
    assert calls[3].data is linear.packed_weight
    linear.global_scale = torch.ones(1)
    linear(inputs(64))
    assert calls[4].global_scale is linear.global_scale


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(assign: bool) -> None:
    linear = Nvfp4Linear.of(some(40, 144), torch.arange(40.0))
    state = copy.deepcopy(linear.state_dict())
    assert {name: tensor.dtype for name, tensor in state.items()} == {
        "bias": torch.float32,
        "packed_weight": torch.uint8,
        "global_scale": torch.float32,
    }
    other = Nvfp4Linear(144, 40)
    before = other(inputs(144))
    assert (before == 0).all()
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(inputs(144)), linear(inputs(144)))
    assert not torch.equal(other(inputs(144)), before)
    with pytest.raises(RuntimeError, match="size mismatch for packed_weight"):
        Nvfp4Linear(144, 64).load_state_dict(state)


def test_floating_point_types_leave_the_global_scale() -> None:
    linear = Nvfp4Linear.of(some(16, 64, 0.1234567), torch.ones(16))
    for changed in (linear.half(), linear.to(torch.bfloat16), linear.to("cpu", torch.float64)):
        assert changed is linear
        assert linear.global_scale.dtype == torch.float32
        assert linear.global_scale.item() == torch.tensor(0.1234567).item()
        assert linear.packed_weight.dtype == torch.uint8
    assert linear.bias is not None and linear.bias.dtype == torch.float64


def test_moves_between_devices(calls: list[PackedNvfp4Weight]) -> None:
    linear = nn.Sequential(Nvfp4Linear(64, 16, device="meta"))
    assert linear[0].weight.device.type == "meta"
    linear.to_empty(device="cpu")
    linear.load_state_dict(nn.Sequential(Nvfp4Linear.of(some(16, 64), torch.ones(16))).state_dict())
    linear(inputs(64))
    assert calls[0].device.type == "cpu" and calls[0].global_scale.item() == 0.25


def test_a_copy_has_a_weight_of_its_own(calls: list[PackedNvfp4Weight]) -> None:
    linear = Nvfp4Linear.of(some(16, 64))
    other = copy.deepcopy(linear)
    linear.packed_weight.zero_()
    assert (linear(inputs(64)) == 0).all()
    assert (other(inputs(64)) != 0).any()
    assert calls[1].data is other.packed_weight


def test_no_gradients() -> None:
    linear = Nvfp4Linear.of(some(16, 64), torch.ones(16))
    assert not any(p.requires_grad for p in linear.parameters())
    x = inputs(64).requires_grad_()
    with pytest.raises(ArgumentError, match="has no backward: call it under"):
        linear(x)
    with torch.no_grad():
        assert not linear(x).requires_grad


def test_repr() -> None:
    assert repr(Nvfp4Linear(64, 40, bias=False)) == (
        "Nvfp4Linear(in_features=64, out_features=40, bias=False, weight=NVFP4)"
    )


def test_weights_that_no_linear_holds() -> None:
    with pytest.raises(ArgumentError, match="one matrix"):
        Nvfp4Linear.of(pack(*packable(2, 16, 64), 1.0))
    with pytest.raises(ArgumentError, match=r"the bias is \[8\]"):
        Nvfp4Linear.of(some(16, 64), torch.ones(8))
    with pytest.raises(ArgumentError, match="k a multiple of 16"):
        Nvfp4Linear(40, 16)


# Global scales, and how many weights of the projections become how many; 17 rows leave a part of a unit.
@pytest.mark.parametrize(
    ("rows", "factors", "parts"),
    [
        ((32, 16, 16), (0.5, 0.5, 0.5), 1),
        ((32, 16, 16), (0.5, 0.5, 2.0), 2),
        ((32, 16, 16), (0.5, 2.0, 0.5), 3),
        ((17, 16), (0.5, 0.5), 2),
        ((16, 17), (0.5, 0.5), 1),
    ],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_fused_projections(
    rows: tuple[int, ...], factors: tuple[float, ...], parts: int, with_bias: bool
) -> None:
    weights = [some(n, 64, factor, seed=i) for i, (n, factor) in enumerate(zip(rows, factors, strict=True))]
    bias = torch.arange(float(sum(rows))).to(torch.bfloat16) if with_bias else None
    module = fused(weights, bias)
    assert (len(module.parts) if isinstance(module, Nvfp4Linears) else 1) == parts
    x = inputs(64)
    expected = torch.cat([product(x, w) for w in weights], dim=-1)
    assert torch.equal(module(x), expected if bias is None else expected + bias)


# Models


class Attention(nn.Module):
    def __init__(self, fused_projections: bool) -> None:
        super().__init__()
        if fused_projections:
            self.qkv_proj = nn.Linear(64, 80, bias=False)
        else:
            self.q_proj = nn.Linear(64, 48)
            self.k_proj = nn.Linear(64, 16, bias=False)
            self.v_proj = nn.Linear(64, 16, bias=False)


class Model(nn.Module):
    """The modules that the checkpoints of nvfp4_files have tensors for, and one that they have not."""

    def __init__(self, fused_projections: bool = False) -> None:
        super().__init__()
        block = nn.Module()
        block.self_attn = Attention(fused_projections)
        block.mlp = nn.Module()
        block.mlp.down_proj = nn.Linear(144, 64, bias=False)
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([block])
        self.lm_head = nn.Linear(64, 10, bias=False)


@pytest.fixture(params=[*SCHEMAS, "packed"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint in each schema."""
    if request.param != "packed":
        return write(tmp_path, tensors_of(request.param), 2)
    convert(write(tmp_path / "given", tensors_of("modelopt")), tmp_path / "packed")
    return tmp_path / "packed"


def test_replace_linears(checkpoint: Path) -> None:
    with torch.device("meta"):
        model = Model()
    steps: list[int] = []
    left = replace_linears(model, checkpoint, progress=lambda done, total, name: steps.append(done))
    assert steps == list(range(1, len(LAYERS) + 1))
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert set(left) == set(PLAIN) - {bias}
    for name in LAYERS:
        module, expected = model.get_submodule(name), weight(name)
        assert isinstance(module, Nvfp4Linear)
        assert torch.equal(module.packed_weight, expected.data)
        assert torch.equal(module.global_scale, expected.global_scale)
        assert (module.bias is not None) == (name + ".bias" in PLAIN)
    assert torch.equal(model.get_parameter(bias), PLAIN[bias])
    assert type(model.lm_head) is nn.Linear
    model.load_state_dict(open_checkpoint(checkpoint).load(left), strict=False, assign=True)
    assert torch.equal(model.lm_head.weight, PLAIN["lm_head.weight"])


def test_fused_modules_of_a_model(tmp_path: Path) -> None:
    tensors = tensors_of("modelopt")
    del tensors["model.layers.0.self_attn.q_proj.bias"]
    path, model = write(tmp_path, tensors), Model(fused_projections=True)
    replace_linears(model, path, fused_from={"qkv_proj": ["q_proj", "k_proj", "v_proj"]})
    module = model.get_submodule("model.layers.0.self_attn.qkv_proj")
    assert isinstance(module, Nvfp4Linears)  # V has another global scale
    assert [part.out_features for part in module.parts] == [64, 16]
    x = inputs(64)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    assert torch.equal(module(x), torch.cat([product(x, weight(name)) for name in names], dim=-1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fused", r"no nn.Linear for 3 NVFP4 layers of the checkpoint.*named with fused_from"),
        ("size", r"down_proj is \[64, 160\], but the checkpoint's layers are .*\(64, 144\)"),
        ("part", r"qkv_proj is to be made of .* of which only .* are NVFP4 layers"),
        ("bias", r"of which only \['model.layers.0.self_attn.q_proj.bias'\] have a bias"),
        ("experts", r"no nn.Linear for 1 NVFP4 layers .*'model.experts'"),
        ("scale", "must be positive and finite"),
    ],
)
def test_checkpoints_that_do_not_fit_leave_the_model_alone(tmp_path: Path, change: str, message: str) -> None:
    tensors, model = tensors_of("modelopt"), Model(fused_projections=change in ("fused", "part", "bias"))
    fused_from = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]} if change in ("part", "bias") else None
    if change == "size":
        model.get_submodule("model.layers.0.mlp").down_proj = nn.Linear(160, 64)
    elif change == "part":
        tensors = {name: t for name, t in tensors.items() if "k_proj" not in name}
    elif change == "experts":
        tensors |= layer("model.experts", "modelopt", (2, 16, 64), 1.0)
    elif change == "scale":
        tensors["model.layers.0.mlp.down_proj.weight_scale_2"] = torch.tensor(0.0)
    before = dict(model.named_modules())
    with pytest.raises(CheckpointError, match=message):
        replace_linears(model, write(tmp_path, tensors), fused_from=fused_from)
    assert dict(model.named_modules()) == before


def test_the_programs_of_the_documentation(tmp_path: Path, calls: list[PackedNvfp4Weight]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "w4a16.md").read_text()
    of_a_model, of_a_weight, of_fused = re.findall(r"```python\n(.*?)```", text, re.S)

    class Calling(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.get_submodule("model.layers.0.mlp.down_proj")(x))

    names: dict[str, Any] = {"Model": Calling, "DEVICE": "cpu", "x": inputs(144)}
    names["CHECKPOINT"] = write(tmp_path, tensors_of("modelopt"))
    exec(of_a_model, names)
    assert torch.equal(calls[0].data, weight("model.layers.0.mlp.down_proj").data)
    assert names["y"].shape == (2, 3, 10)
    exec(of_a_weight, names)
    assert calls[1].shape == (4096, 4096)
    tensors = tensors_of("modelopt")
    del tensors["model.layers.0.self_attn.q_proj.bias"]
    names |= {"model": Model(fused_projections=True), "CHECKPOINT": write(tmp_path / "fused", tensors)}
    exec(of_fused, names)
