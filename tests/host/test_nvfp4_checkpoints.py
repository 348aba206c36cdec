"""NVFP4 layers of checkpoints: both schemas, shards, conversion and its way back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cute_kernels.__main__ import main
from cute_kernels.checkpoints import CheckpointError, open_checkpoint
from cute_kernels.nvfp4_checkpoints import load_layers, survey
from cute_kernels.nvfp4_convert import convert
from cute_kernels.nvfp4_weight import PackedNvfp4Weight, pack
from tests.nvfp4_cases import packable
from tests.nvfp4_files import LAYERS, PLAIN, SCHEMAS, layer, tensors_of, weight, write

DOWN = "model.layers.0.mlp.down_proj"


def loaded(path: Path) -> dict[str, PackedNvfp4Weight]:
    checkpoint = open_checkpoint(path)
    layers = survey(checkpoint).layers.values()
    return {layer.name: weight for layer, weight in load_layers(checkpoint, layers)}


def assert_all_layers(path: Path) -> None:
    found = loaded(path)
    assert set(found) == set(LAYERS)
    for name, got in found.items():
        expected = weight(name)
        assert (got.n, got.k) == (expected.n, expected.k)
        assert torch.equal(got.data, expected.data)
        assert torch.equal(got.global_scale, expected.global_scale)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_layers_of_both_schemas(tmp_path: Path, schema: str, shards: int) -> None:
    path = write(tmp_path, tensors_of(schema), shards)
    contents = survey(open_checkpoint(path))
    assert {found.schema for found in contents.layers.values()} == {schema}
    assert set(contents.others) == set(PLAIN)
    assert_all_layers(path)


def test_progress_counts_layers(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path, tensors_of("modelopt"), 2))
    seen: list[tuple[int, int, str]] = []
    layers = survey(checkpoint).layers.values()
    for _ in load_layers(checkpoint, layers, progress=lambda *step: seen.append(step)):
        pass
    assert [step[:2] for step in seen] == [(i + 1, len(LAYERS)) for i in range(len(LAYERS))]
    assert {step[2] for step in seen} == set(LAYERS)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_reciprocal_is_rounded_once(tmp_path: Path, schema: str) -> None:
    path = write(tmp_path, layer("x", schema, (16, 16), 1.0))
    file = path / "model.safetensors"
    tensors = load_file(file)
    name = "x.weight_scale_2" if schema == "modelopt" else "x.weight_global_scale"
    tensors[name] = torch.full_like(tensors[name], 3000.1)
    save_file(tensors, file)
    exact = torch.tensor([3000.1])
    wanted = exact if schema == "modelopt" else (1 / exact.double()).float()
    assert torch.equal(loaded(path)["x"].global_scale, wanted)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("factors", [(0.5,), (0.5, 4.0, 0.125)])
def test_experts_in_one_tensor(tmp_path: Path, schema: str, factors: tuple[float, ...]) -> None:
    tensors = layer("experts", schema, (3, 33, 48), 1.0)
    name = "experts.weight_scale_2" if schema == "modelopt" else "experts.weight_global_scale"
    given = torch.tensor(factors)
    tensors[name] = given if schema == "modelopt" else 1 / given
    got = loaded(write(tmp_path, tensors))["experts"]
    assert torch.equal(got.data, pack(*packable(3, 33, 48, seed=len("experts")), 1.0).data)
    assert got.global_scale.tolist() == list(factors) * (3 // len(factors))


def test_a_checkpoint_without_prefixes(tmp_path: Path) -> None:
    tensors = {name.removeprefix("x."): t for name, t in layer("x", "modelopt", (16, 16), 1.0).items()}
    assert list(loaded(write(tmp_path, tensors))) == [""]


# Refusals


def broken(schema: str, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A checkpoint whose layer down_proj has these leaves changed, or without them."""
    tensors = tensors_of(schema)
    for leaf, tensor in changes.items():
        if tensor is None:
            del tensors[f"{DOWN}.{leaf}"]
        else:
            tensors[f"{DOWN}.{leaf}"] = tensor
    return tensors


def e4m3(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to(torch.float8_e4m3fn)


U8 = torch.uint8
UNREADABLE: list[tuple[str, dict[str, Any], str]] = [
    (
        "modelopt",
        {"weight_scale": e4m3(64, 3)},
        r"are F8_E4M3 \[64, 3\]: blocks of 48; row-major .*\[64, 9\]",
    ),
    ("modelopt", {"weight_scale": e4m3(128, 12)}, r"swizzled or padded for a kernel; row-major .*\[64, 9\]"),
    ("modelopt", {"weight_scale": e4m3(1, 3, 32, 4, 4)}, "swizzled or padded"),
    ("modelopt", {"weight_scale": e4m3(64 * 9)}, "swizzled or padded"),
    ("modelopt", {"weight_scale": torch.ones(64, 9, dtype=U8)}, r"are U8 \[64, 9\]; row-major"),
    ("modelopt", {"weight_scale": None}, r"looks like NVFP4 \(modelopt\), but lacks \['weight_scale'\]"),
    (
        "modelopt",
        {"weight_scale_2": None},
        r"weight.* beside .*weight_scale.* is of a quantization that is not understood",
    ),
    (
        "modelopt",
        {"weight_scale_2": torch.ones(64)},
        r"weight_scale_2 is F32 \[64\]; it must be F32 \[\] or \[1\]",
    ),
    ("modelopt", {"weight_scale_2": torch.ones((), dtype=torch.bfloat16)}, "must be F32"),
    ("modelopt", {"weight": torch.zeros(64, 72, dtype=torch.int8)}, "codes of layer .* are I8"),
    ("modelopt", {"weight": torch.zeros(64, 20, dtype=U8)}, "has K 40; it must be a multiple of 16"),
    ("modelopt", {"weight": torch.zeros(64 * 72, dtype=U8)}, r"NVFP4 codes are U8 \[N, K/2\]"),
    (
        "modelopt",
        {"pre_quant_scale": torch.ones(144)},
        r"has \['pre_quant_scale'\], whose meaning is not known",
    ),
    ("modelopt", {"weight_scale_swizzled": e4m3(128, 12)}, r"has \['weight_scale_swizzled'\]"),
    ("modelopt", {"weight_packed": torch.zeros(64, 72, dtype=U8)}, r"\(compressed-tensors\), but lacks"),
    ("compressed-tensors", {"weight_global_scale": None}, r"lacks \['weight_global_scale'\]"),
    ("compressed-tensors", {"weight_packed": None}, r"scale.* is of a quantization"),
    (
        "compressed-tensors",
        {"weight_packed": torch.zeros(64, 18, dtype=torch.int32)},
        "codes of layer .* are I32",
    ),
    ("compressed-tensors", {"weight_zero_point": e4m3(64, 9)}, r"has \['weight_zero_point'\]"),
]


@pytest.mark.parametrize(("schema", "changes", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_other_schemas_are_refused_before_anything_is_read(
    tmp_path: Path, schema: str, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "given", broken(schema, **changes), 2)
    with pytest.raises(CheckpointError, match=message):
        survey(open_checkpoint(path))
    with pytest.raises(CheckpointError, match=message):
        convert(path, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    "tensors",
    [
        {"x.weight": e4m3(16, 16), "x.weight_scale": torch.ones(())},  # FP8
        {"x.weight": e4m3(16, 16), "x.weight_scale_inv": torch.ones(1, 1)},
        {"x.qweight": torch.zeros(16, 2, dtype=torch.int32), "x.scales": torch.ones(16, 1)},  # GPTQ
        {"x.weight": torch.zeros(16, 8, dtype=U8)},
        {"experts.gate_up_proj_blocks": torch.zeros(2, 16, 1, 16, dtype=U8)},  # MXFP4
    ],
    ids=["fp8", "fp8 blocks", "gptq", "bytes", "mxfp4"],
)
def test_other_quantizations_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = write(tmp_path, tensors_of("modelopt") | tensors)
    with pytest.raises(
        CheckpointError, match=r"of a quantization that is not understood\. NVFP4 layers have"
    ):
        survey(open_checkpoint(path))


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("value", [0.0, -0.0, -2.0, float("inf"), float("-inf"), float("nan"), 1e-45])
def test_global_scales_that_are_refused(tmp_path: Path, schema: str, value: float) -> None:
    leaf = "weight_scale_2" if schema == "modelopt" else "weight_global_scale"
    path = write(tmp_path, broken(schema, **{leaf: torch.full((1,), value)}))
    if schema == "modelopt" and value == 1e-45:  # tiny, but a multiplier; its reciprocal is infinite
        assert loaded(path)[DOWN].global_scale.item() > 0
        return
    with pytest.raises(CheckpointError, match=f"{DOWN} of .*must be positive and finite"):
        loaded(path)


@pytest.mark.parametrize("byte", [0x7F, 0x80, 0xC0])
def test_block_scales_that_are_refused(tmp_path: Path, byte: int) -> None:
    scales = packable(64, 144)[1]
    scales.view(torch.uint8)[63, 8] = byte
    path = write(tmp_path / "given", broken("modelopt", weight_scale=scales), 2)
    with pytest.raises(CheckpointError, match=rf"{DOWN} of .* negative or NaN, .* at \[63, 8\]"):
        loaded(path)
    with pytest.raises(CheckpointError, match=DOWN):
        convert(path, tmp_path / "packed")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["given"]


# Conversion


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("shards", [1, 3])
def test_converted_checkpoints_read_back(tmp_path: Path, schema: str, shards: int) -> None:
    source, packed = write(tmp_path / "given", tensors_of(schema), shards), tmp_path / "deep" / "packed"
    steps: list[tuple[int, int, str]] = []
    result = convert(source, packed, progress=lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(i + 1, len(LAYERS)) for i in range(len(LAYERS))]
    assert (result.layers, result.others) == (len(LAYERS), len(PLAIN))
    assert_all_layers(packed)
    checkpoint = open_checkpoint(packed)
    contents = survey(checkpoint)
    assert {found.schema for found in contents.layers.values()} == {"packed"}
    assert len(set(checkpoint.files.values())) == result.files <= shards
    copied = checkpoint.load(contents.others)
    assert set(copied) == set(PLAIN)
    assert all(torch.equal(copied[name], PLAIN[name]) for name in PLAIN)
    everything = checkpoint.load(checkpoint.names)
    assert set(everything) == set(PLAIN) | {
        f"{n}.{leaf}" for n in LAYERS for leaf in ("packed_weight", "global_scale")
    }
    assert sum(tensor.nbytes for tensor in everything.values()) == result.nbytes


def test_metadata_name_the_layout(tmp_path: Path) -> None:
    convert(write(tmp_path / "given", tensors_of("modelopt")), tmp_path / "packed")
    with safe_open(tmp_path / "packed" / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # what transformers asks for
    assert json.loads(metadata["cute_kernels"]) == {
        "layout": "w4a16",
        "version": 1,
        "layers": {name: list(shape) for name, (shape, _) in LAYERS.items()},
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "metadata do not tell N and K of the packed layer x"),
        ("{", "are damaged"),
        ('{"layout": "w4a16", "version": 1, "layers": 3}', "are damaged"),
        ('{"layout": "w4a16", "version": 2, "layers": {"x": [16, 16]}}', "'version': 2}; this version reads"),
        ('{"layout": "w4a16", "version": 1, "layers": {"x": [17, 16]}}', r"must be U8 \[2, 1, 1152\]"),
    ],
)
def test_packed_files_that_are_refused(tmp_path: Path, metadata: str | None, message: str) -> None:
    tensors = {"x.packed_weight": torch.zeros(1, 1, 1152, dtype=U8), "x.global_scale": torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors", None if metadata is None else {"cute_kernels": metadata})
    with pytest.raises(CheckpointError, match=message):
        survey(open_checkpoint(tmp_path / "a.safetensors"))


def test_conversions_that_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "given", tensors_of("modelopt"))
    convert(source, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="packed exists; name a folder that does not"):
        convert(source, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="has packed layers; convert the original"):
        convert(tmp_path / "packed", tmp_path / "again")
    with pytest.raises(CheckpointError, match="has no NVFP4 layers"):
        convert(write(tmp_path / "plain", PLAIN), tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "given", tensors_of("compressed-tensors"), 2)
    assert main(["convert", str(source), str(tmp_path / "packed")]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{len(LAYERS)} layers packed, {len(PLAIN)} tensors copied")
    assert f"[{len(LAYERS)}/{len(LAYERS)}] " in shown.err
    assert_all_layers(tmp_path / "packed")
    assert main(["convert", str(source), str(tmp_path / "packed")]) == 1
    assert "exists; name a folder" in capsys.readouterr().err
