"""The cubin folder: manifest.json and the files that it names, checked before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cute_kernels.build.manifest import FORMAT
from cute_kernels.build.manifest import NAME as MANIFEST
from cute_kernels.build.variant import PARAM_NBYTES, Param, TensorMapSpec

from .errors import ManifestError

BUILD_HINT = "python -m cute_kernels build --arch ARCH --out DIR"


@dataclass(frozen=True, eq=False)
class KernelRecord:
    """One compiled kernel as the manifest states it. Two records are equal only if they are the same object.

    kernel: family, e.g. "gemm_blockscaled"; name: unique in its architecture; entry: symbol in cubin and PTX.
    config: the kernel's compile-time figures, verbatim from its Shape.
    params: launch parameters in order. block, cluster: (x, y, z).
    dynamic_shared: bytes a CTA. registers: of a thread.
    cubin, ptx: paths relative to the folder; ptx is None in folders built without PTX.
    """

    kernel: str
    name: str
    arch: str
    config: Mapping[str, Any]
    entry: str
    params: tuple[Param, ...]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    dynamic_shared: int
    registers: int
    cubin: str
    cubin_sha256: str
    ptx: str | None
    ptx_sha256: str | None


class Library:
    """The kernels of one cubin folder.

    Opening one reads the manifest alone; `read_cubin` and `read_ptx` check each file's hash when a kernel is
    first used. Raises ManifestError for a folder without a manifest, or with one of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(
                f"{self.folder} is not a cubin folder: it holds no {MANIFEST}. Build one with "
                f"`{BUILD_HINT}`, or point "
                "CUTE_KERNELS_CUBINS or cute_kernels.set_cubins() at one"
            ) from None
        except (OSError, ValueError) as error:
            raise ManifestError(
                f"{path} cannot be read: {error}. Build it again with `{BUILD_HINT}`"
            ) from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ManifestError(
                f"{path} has format {found!r}; this version reads format {FORMAT}. Build the folder again "
                "with "
                f"`{BUILD_HINT}`"
            )
        try:
            self.records = tuple(_record(entry) for entry in content["kernels"])
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ManifestError(
                f"{path} is not a manifest of format {FORMAT}: {type(error).__name__}: {error}. Build the "
                "folder "
                f"again with `{BUILD_HINT}`"
            ) from error

    def archs(self, kernel: str | None = None) -> list[str]:
        """Return the architectures in the folder, or only those that a kernel family is built for."""
        return sorted({r.arch for r in self.records if kernel in (None, r.kernel)})

    def find(self, kernel: str, archs: Iterable[str]) -> list[KernelRecord]:
        """Return the kernels of a family for the first of `archs` that the folder holds it for, or []."""
        for arch in archs:
            records = [r for r in self.records if r.kernel == kernel and r.arch == arch]
            if records:
                return records
        return []

    def read_cubin(self, record: KernelRecord) -> bytes:
        """Return a kernel's cubin. Raises ManifestError if it is missing or not what the manifest was written
        for.
        """
        return self._read(record, record.cubin, record.cubin_sha256)

    def read_ptx(self, record: KernelRecord) -> str:
        """Return a kernel's PTX, which the emulator runs. Raises ManifestError as `read_cubin` does."""
        if record.ptx is None or record.ptx_sha256 is None:
            raise ManifestError(
                f"{self.folder} holds no PTX for {record.name}, and the emulator runs PTX. Build the folder "
                "without "
                "--no-ptx"
            )
        return self._read(record, record.ptx, record.ptx_sha256).decode("utf-8")

    def _read(self, record: KernelRecord, relative: str, sha256: str) -> bytes:
        path = self.folder / relative
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ManifestError(
                f"{path}, which {self.folder / MANIFEST} lists for {record.name} on {record.arch}, cannot be "
                "read: "
                f"{error.strerror}. Copy the whole folder, or build it again with `{BUILD_HINT}`"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise ManifestError(
                f"{path} has SHA-256 {found}, but the manifest was written for {sha256}: the file is damaged "
                "or of "
                f"another build. Copy the whole folder, or build it again with `{BUILD_HINT}`"
            )
        return data


def _record(entry: Mapping[str, Any]) -> KernelRecord:
    return KernelRecord(
        kernel=entry["kernel"],
        name=entry["name"],
        arch=entry["arch"],
        config=dict(entry["config"]),
        entry=entry["entry"],
        params=tuple(_param(p) for p in entry["params"]),
        block=_triple(entry["block"]),
        cluster=_triple(entry["cluster"]),
        dynamic_shared=int(entry["dynamic_shared"]),
        registers=int(entry["registers"]),
        cubin=entry["cubin"],
        cubin_sha256=entry["cubin_sha256"],
        ptx=entry["ptx"],
        ptx_sha256=entry["ptx_sha256"],
    )


def _param(entry: Mapping[str, Any]) -> Param:
    spec = entry["tensor_map"]
    if spec is not None:
        spec = TensorMapSpec(
            **{
                **spec,
                "box": tuple(spec["box"]),
                "element_strides": tuple(spec.get("element_strides", ())),
            }
        )
    param = Param(entry["name"], entry["kind"], spec)
    if entry["nbytes"] != PARAM_NBYTES[param.kind]:
        raise ValueError(f"parameter {param.name} of kind {param.kind} has {entry['nbytes']} bytes")
    return param


def _triple(values: Iterable[int]) -> tuple[int, int, int]:
    x, y, z = values
    return int(x), int(y), int(z)
