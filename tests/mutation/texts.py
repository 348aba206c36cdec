"""The PTX that mutants are made of: compiled once with the DSL into a folder, and read without it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from cute_kernels.build import ptx_text
from tests.emulate.direct import compile_ptx
from tests.mutation.mutants import ROOT
from tests.mutation.subjects import SUBJECTS


def write(folder: Path, names: Iterable[str]) -> None:
    """Compile subjects into NAME.ptx each, with source lines; paths are relative, so that any checkout can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        subject = SUBJECTS[name]
        ptx = ptx_text.relative_paths(compile_ptx(subject.variant, subject.arch), (ROOT,))
        (folder / f"{name}.ptx").write_text(ptx)


@lru_cache(maxsize=4)
def read(folder: Path, name: str) -> str:
    """A subject's PTX."""
    path = folder / f"{name}.ptx"
    if not path.is_file():
        raise SystemExit(
            f"{path} is not there; `python -m tests.mutation --build {folder}` makes it with the DSL"
        )
    return path.read_text()
