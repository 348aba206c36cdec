"""Small NVFP4 checkpoints in the schemas of the field, written by the tests that read them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from cute_kernels.nvfp4_weight import PackedNvfp4Weight, pack
from tests.nvfp4_cases import packable

SCHEMAS = ("modelopt", "compressed-tensors")
Tensors = dict[str, torch.Tensor]

# Powers of two have exact reciprocals, so both schemas hold the same multipliers.
LAYERS: dict[str, tuple[tuple[int, ...], float]] = {
    "model.layers.0.self_attn.q_proj": ((48, 64), 2.0**-9),
    "model.layers.0.self_attn.k_proj": ((16, 64), 2.0**-9),
    "model.layers.0.self_attn.v_proj": ((16, 64), 2.0**-7),
    "model.layers.0.mlp.down_proj": ((64, 144), 2.0**-8),
}
PLAIN: Tensors = {
    "model.layers.0.self_attn.q_proj.bias": torch.arange(48.0).to(torch.bfloat16),
    "model.layers.0.self_attn.k_proj.k_scale": torch.tensor(0.5),
    "model.layers.0.norm.weight": torch.ones(64, dtype=torch.bfloat16),
    "lm_head.weight": torch.arange(640.0).view(10, 64).to(torch.bfloat16),
}


def weight(name: str) -> PackedNvfp4Weight:
    """What a layer of LAYERS is, packed."""
    shape, factor = LAYERS[name]
    return pack(*packable(*shape, seed=len(name)), factor)


def layer(name: str, schema: str, shape: tuple[int, ...], factor: float) -> Tensors:
    """A layer's tensors."""
    codes, scales = packable(*shape, seed=len(name))
    if schema == "modelopt":
        tensors = {
            "weight": codes,
            "weight_scale": scales,
            "weight_scale_2": torch.tensor(factor),
            "input_scale": torch.tensor(0.01),
        }
    else:
        tensors = {
            "weight_packed": codes,
            "weight_scale": scales,
            "weight_global_scale": torch.tensor([1 / factor]),
            "input_global_scale": torch.tensor([100.0]),
        }
    return {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}


def tensors_of(schema: str) -> Tensors:
    """All tensors of a checkpoint with LAYERS and PLAIN."""
    tensors = dict(PLAIN)
    for name, (shape, factor) in LAYERS.items():
        tensors |= layer(name, schema, shape, factor)
    return tensors


def write(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    """Write a checkpoint; with several shards, tensors are dealt out, so that layers lie in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = dict(list(tensors.items())[shard::shards])
        save_file(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
