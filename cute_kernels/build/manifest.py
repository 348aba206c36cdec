"""manifest.json beside the cubins: what each one is and how it is launched, for a runtime that has no DSL."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from cute_kernels.build.errors import BuildError
from cute_kernels.build.families import Target

FORMAT = 1
NAME = "manifest.json"
Entry = dict[str, Any]


def read(folder: Path) -> list[Entry]:
    """Entries of the manifest in a folder; [] where there is none yet.

    Raises BuildError for a file that is no manifest of this format.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        entries, format_ = content["kernels"], content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{path} is not a manifest of kernels ({error!r}); delete it or choose another folder"
        ) from None
    if format_ != FORMAT:
        raise BuildError(
            f"{path} has format {format_}, and this build writes {FORMAT}; choose another folder"
        )
    return list(entries)


def text(entries: list[Entry], dsl_version: str) -> str:
    """The manifest as text; in a fixed order and without dates: the same sources give the same bytes."""
    ordered = sorted(entries, key=lambda entry: (entry["arch"], entry["name"]))
    return json.dumps({"format": FORMAT, "dsl_version": dsl_version, "kernels": ordered}, indent=1) + "\n"


def entry_of(target: Target, figures: Entry, source_hash: str, dsl_version: str) -> Entry:
    """One entry: what the variant states, and the figures that its compile gave."""
    variant = target.variant
    return {
        "kernel": variant.kernel,
        "name": variant.name,
        "arch": target.arch,
        "package": target.package,
        "config": variant.shape.config(),
        "entry": figures["entry"],
        "params": [
            {
                "name": param.name,
                "kind": param.kind,
                "nbytes": param.nbytes,
                "tensor_map": dataclasses.asdict(param.tensor_map) if param.tensor_map else None,
            }
            for param in variant.params
        ],
        "block": list(variant.block),
        "cluster": list(variant.cluster),
        "dynamic_shared": variant.dynamic_shared,
        "allow_spills": variant.allow_spills,
        **{key: value for key, value in figures.items() if key != "entry"},
        "source_hash": source_hash,
        "dsl_version": dsl_version,
    }


def stem(entry: Entry) -> str:
    """Path of its files below the folder, without their endings."""
    return f"{entry['arch']}/{entry['name']}"


def files_intact(folder: Path, entry: Entry, with_ptx: bool) -> bool:
    """Whether the files that an entry names are there with the bytes that it records."""
    kinds = ("cubin", "ptx") if with_ptx else ("cubin",)
    for kind in kinds:
        if entry[kind] is None or not (folder / entry[kind]).is_file():
            return False
        if hashlib.sha256((folder / entry[kind]).read_bytes()).hexdigest() != entry[f"{kind}_sha256"]:
            return False
    return True
