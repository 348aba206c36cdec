"""Checkpoints written here: one file and shards, read back lazily, and every way that one can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
from safetensors.torch import save_file

from cute_kernels.checkpoints import CheckpointError, open_checkpoint

FIRST = {
    "layer.0.weight": torch.arange(6.0).reshape(2, 3),
    "layer.0.bias": torch.ones(2, dtype=torch.bfloat16),
}
SECOND = {"layer.1.weight_packed": torch.arange(8, dtype=torch.uint8), "layer.1.scale": torch.tensor(0.5)}
SHARDS = {"model-00001-of-00002.safetensors": FIRST, "model-00002-of-00002.safetensors": SECOND}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(FIRST | SECOND, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    for file, tensors in SHARDS.items():
        save_file(tensors, tmp_path / file)
    weight_map = {name: file for file, tensors in SHARDS.items() for name in tensors}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def assert_holds_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    assert checkpoint.names == sorted(FIRST | SECOND)
    loaded = checkpoint.load(FIRST | SECOND)
    assert set(loaded) == set(FIRST | SECOND)
    for name, tensor in (FIRST | SECOND).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_single_file(single: Path) -> None:
    assert_holds_everything(single)
    assert_holds_everything(single.parent)
    assert list(open_checkpoint(single).load(["layer.1.scale"])) == ["layer.1.scale"]


def test_shards(index: Path) -> None:
    assert_holds_everything(index)
    assert_holds_everything(index.parent)


def test_only_the_shards_that_are_needed_are_read(index: Path) -> None:
    checkpoint = open_checkpoint(index)
    (index.parent / "model-00002-of-00002.safetensors").write_bytes(b"damaged")
    assert torch.equal(checkpoint.load(["layer.0.weight"])["layer.0.weight"], FIRST["layer.0.weight"])
    with pytest.raises(
        CheckpointError, match=r"00002-of-00002.safetensors is no safetensors file, or is cut short"
    ):
        checkpoint.load(["layer.1.scale"])


def test_unknown_name(single: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no tensor 'layer.0.weights' among its 4; the nearest.*layer.0.weight'"
    ):
        open_checkpoint(single).load(["layer.0.weight", "layer.0.weights"])
    with pytest.raises(CheckpointError, match=r"no tensor 'xyzzy' among its 4$"):
        open_checkpoint(single).load(["xyzzy"])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has neither model.safetensors nor model.safetensors.index.json"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "missing.safetensors")


def test_truncated_file(single: Path) -> None:
    single.write_bytes(single.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        open_checkpoint(single)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_malformed_index(index: Path, text: str) -> None:
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r'needs a "weight_map" object'):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "file", ["../model-00001-of-00002.safetensors", "/tmp/other.safetensors", "a/b.safetensors"]
)
def test_index_that_leaves_its_folder(index: Path, file: str) -> None:
    index.write_text(json.dumps({"weight_map": {"layer.0.weight": file}}))
    with pytest.raises(CheckpointError, match="shards must lie beside their index"):
        open_checkpoint(index)


def test_missing_shard(index: Path) -> None:
    (index.parent / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00001-of-00002.safetensors', which is not there"):
        open_checkpoint(index)


def test_index_that_promises_too_much(index: Path) -> None:
    content = json.loads(index.read_text())
    content["weight_map"]["layer.2.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"does not hold \['layer.2.weight'\]"):
        open_checkpoint(index).load(["layer.0.weight", "layer.2.weight"])
