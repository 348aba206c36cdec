"""Cubin folders with a mistake in a kernel's PTX."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path


def changed(built: Path, out: Path, name: str, old: str, new: str) -> Path:
    """The cubins with one piece of one kernel's PTX replaced, and its hash with it."""
    return rewritten(built, out, name, lambda text: text.replace(old, new))


def rewritten(built: Path, out: Path, name: str, change: Callable[[str], str]) -> Path:
    """The cubins with one kernel's PTX changed, and its hash with it."""
    shutil.copytree(built, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (entry,) = (entry for entry in manifest["kernels"] if entry["name"] == name)
    text = (out / entry["ptx"]).read_text()
    before, text = text, change(text)
    assert text != before
    (out / entry["ptx"]).write_text(text)
    entry["ptx_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out
