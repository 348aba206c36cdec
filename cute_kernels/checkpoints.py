"""Read tensors by name out of safetensors checkpoints: one file, or shards with an index.

Needs the safetensors library, which the `example` extra brings.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class CheckpointError(Exception):
    """A checkpoint that cannot be read, or a tensor that it does not hold."""


class TensorHeader(NamedTuple):
    """What a file says of a tensor; dtype in safetensors' words: "BF16", "U8", "F8_E4M3", ..."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Where each tensor of a checkpoint lies; nothing is read before `load`."""

    path: Path
    files: Mapping[str, Path]  # tensor name -> the safetensors file that holds it

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self.files)

    def headers(self) -> dict[str, TensorHeader]:
        """Return the types and shapes of all tensors, of which none is read.

        Raises CheckpointError for a file that is damaged or lacks a tensor that the index promises.
        """
        found: dict[str, TensorHeader] = {}
        for file, wanted in self.by_file(self.files).items():
            with self._holding(file, wanted, "cpu") as opened:
                for name in wanted:
                    header = opened.get_slice(name)
                    found[name] = TensorHeader(header.get_dtype(), tuple(header.get_shape()))
        return found

    def metadata(self) -> list[dict[str, str]]:
        """Return the text that each file carries beside its tensors, by key."""
        texts = []
        for file in dict.fromkeys(self.files.values()):
            with _open(file, "cpu") as opened:
                texts.append(dict(opened.metadata() or {}))
        return texts

    def by_file(self, names: Iterable[str]) -> dict[Path, list[str]]:
        """Sort names by the file that holds them. Raises CheckpointError for a name that there is not."""
        files: dict[Path, list[str]] = {}
        for name in names:
            files.setdefault(self._file_of(name), []).append(name)
        return files

    def load(self, names: Iterable[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """Read the named tensors, each file opened once and only these tensors read: {name: tensor on
        `device`}.

        Raises CheckpointError, before anything is read, for a name that the checkpoint does not have, and for
        a file that is damaged or lacks a tensor that the index promises.
        """
        tensors: dict[str, torch.Tensor] = {}
        for file, wanted in self.by_file(names).items():
            with self._holding(file, wanted, device) as opened:
                tensors.update((name, opened.get_tensor(name)) for name in wanted)
        return tensors

    @contextmanager
    def _holding(self, file: Path, wanted: Iterable[str], device: str) -> Iterator[Any]:
        """The file, opened, after making sure that it has these tensors."""
        with _open(file, device) as opened:
            missing = set(wanted) - set(opened.keys())
            if missing:
                raise CheckpointError(
                    f"{file} does not hold {sorted(missing)}, which the index of {self.path} says it "
                    "does: the files are not of one checkpoint"
                )
            yield opened

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
        present = [candidate for name in (INDEX, SINGLE) if (candidate := path / name).is_file()]
        if not present:
            raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}; name the file itself")
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
