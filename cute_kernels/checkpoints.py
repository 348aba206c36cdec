"""Read tensors by name out of safetensors checkpoints: one file, or shards with an index.

Needs the safetensors library, which the `example` extra brings.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class CheckpointError(Exception):
    """A checkpoint that cannot be read, or a tensor that it does not hold."""


@dataclass(frozen=True)
class Checkpoint:
    """Where each tensor of a checkpoint lies; nothing is read before `load`."""

    path: Path
    files: Mapping[str, Path]  # tensor name -> the safetensors file that holds it

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.files)

    def load(self, names: Iterable[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read the named tensors, each file opened once and only these tensors read: {name: tensor on
        `device`}.

        Raises CheckpointError, before anything is read, for a name that the checkpoint does not have, and for
        a file that is damaged or lacks a tensor that the index promises.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of(name), []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        for file, wanted in by_file.items():
            with _open(file, device) as opened:
                missing = set(wanted) - set(opened.keys())
                if missing:
                    raise CheckpointError(
                        f"{file} does not hold {sorted(missing)}, which the index of {self.path} says it "
                        "does: the files are not of one checkpoint"
                    )
                tensors.update((name, opened.get_tensor(name)) for name in wanted)
        return tensors

    def _file_of(self, name: str) -> Path:
        if name not in self.files:
            near = difflib.get_close_matches(name, self.files, n=3, cutoff=0.5)
            hint = f"; the nearest names are {near}" if near else ""
            raise CheckpointError(f"{self.path} has no tensor {name!r} among its {len(self.files)}{hint}")
        return self.files[name]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a safetensors file, an index (*.safetensors.index.json), or a folder that has either under its
    usual name.

    Reads only the list of names. Raises CheckpointError, saying what was found, if there is no such
    checkpoint, if it is damaged, or if a shard is missing.
    """
    path = Path(path)
    if path.is_dir():
        present = [candidate for name in (_INDEX, _SINGLE) if (candidate := path / name).is_file()]
        if not present:
            raise CheckpointError(f"{path} has neither {_SINGLE} nor {_INDEX}; name the file itself")
        path = present[0]
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.name.endswith(".json"):
        return Checkpoint(path, _read_index(path))
    with _open(path, "cpu") as opened:
        return Checkpoint(path, dict.fromkeys(opened.keys(), path))


def _read_index(path: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{path} is no safetensors index: it needs a "weight_map" object: {error!r}'
        ) from error
    for file in sorted(set(files.values())):
        # An index comes from strangers: it may name files beside it, and nothing else.
        if Path(file).name != file:
            raise CheckpointError(f"{path} names the shard {file!r}; shards must lie beside their index")
        if not (path.parent / file).is_file():
            raise CheckpointError(
                f"{path} names the shard {file!r}, which is not there: the download is incomplete"
            )
    return {name: path.parent / file for name, file in files.items()}


def _open(file: Path, device: str) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError("checkpoints need the safetensors library: pip install safetensors") from error
    try:
        return safe_open(file, framework="pt", device=device)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is no safetensors file, or is cut short: {error}") from error
