"""Write a checkpoint whose NVFP4 layers are packed, so that loading it packs nothing: `cute_kernels convert`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from .checkpoints import INDEX, SINGLE, Checkpoint, CheckpointError, open_checkpoint
from .nvfp4_checkpoints import (
    LAYOUT,
    METADATA_KEY,
    Contents,
    Nvfp4Layer,
    Progress,
    load_layers,
    packed_names,
    survey,
)


@dataclass(frozen=True)
class Converted:
    """layers: packed. others: tensors that passed through. nbytes: of all tensors written. files: written."""

    layers: int
    others: int
    nbytes: int
    files: int


def convert(
    source: str | Path,
    destination: str | Path,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Converted:
    """Pack the NVFP4 layers of a checkpoint, in either plain schema, into a new folder.

    Every file keeps its share of the tensors (a single one is called model.safetensors), so that one file's are in
    memory at a time. Layers get the tensors and metadata of nvfp4_checkpoints' packed schema; scales for quantized
    activations are left out; everything else is copied as it is. Only safetensors files and their index are
    written. The folder appears when it is complete.

    device: where weights are packed.

    Raises CheckpointError, and leaves nothing behind, where the destination exists, where nothing is to be packed,
    and for what `survey` and `load_layers` refuse.
    """
    checkpoint, destination = open_checkpoint(source), Path(destination)
    contents = survey(checkpoint)
    if destination.exists():
        raise CheckpointError(f"{destination} exists; name a folder that does not")
    if not contents.layers:
        raise CheckpointError(f"{checkpoint.path} has no NVFP4 layers; there is nothing to convert")
    if any(layer.schema == "packed" for layer in contents.layers.values()):
        raise CheckpointError(f"{checkpoint.path} has packed layers; convert the original")
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        result = _write(checkpoint, contents, unfinished, device, progress)
        unfinished.chmod(0o755)  # mkdtemp's folder is for its owner alone
        unfinished.rename(destination)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return result


def _write(
    checkpoint: Checkpoint,
    contents: Contents,
    folder: Path,
    device: torch.device | str,
    progress: Progress | None,
) -> Converted:
    from safetensors.torch import save_file

    by_codes = {layer.codes: layer for layer in contents.layers.values()}
    sharded = len(set(checkpoint.files.values())) > 1 or checkpoint.path.name.endswith(".json")
    weight_map: dict[str, str] = {}
    nbytes = done = 0
    for file, names in checkpoint.by_file([*by_codes, *contents.others]).items():
        layers = [by_codes[name] for name in names if name in by_codes]
        tensors = checkpoint.load(name for name in names if name not in by_codes)
        tensors |= _packed(
            checkpoint, layers, device, progress and partial(_later, progress, done, len(by_codes))
        )
        done += len(layers)
        name = file.name if sharded else SINGLE
        save_file(tensors, folder / name, _metadata(layers))
        weight_map |= dict.fromkeys(tensors, name)
        nbytes += sum(tensor.nbytes for tensor in tensors.values())
    if sharded:
        index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return Converted(done, len(contents.others), nbytes, len(set(weight_map.values())))


def _packed(
    checkpoint: Checkpoint,
    layers: Iterable[Nvfp4Layer],
    device: torch.device | str,
    progress: Progress | None,
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for layer, weight in load_layers(checkpoint, layers, device, progress):
        data, factor = packed_names(layer.name)
        tensors |= {data: weight.data.cpu(), factor: weight.global_scale.cpu()}
    return tensors


def _later(progress: Progress, before: int, total: int, done: int, _: int, name: str) -> None:
    progress(before + done, total, name)


def _metadata(layers: Iterable[Nvfp4Layer]) -> dict[str, str]:
    manifest = {**LAYOUT, "layers": {layer.name: list(layer.shape) for layer in layers}}
    return {"format": "pt", METADATA_KEY: json.dumps(manifest)}
