"""The cubin folder: what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cute_kernels.runtime import Library, ManifestError
from tests.host.conftest import MakeEntry, MakeFolder


def test_reads_what_the_manifest_says(folder: MakeFolder, entry: MakeEntry) -> None:
    library = Library(folder([entry(64), entry(128, "bf16", True), entry(64, arch="sm_103a")]))
    assert library.archs() == ["sm_100a", "sm_103a"]
    assert library.archs("nvfp4_dequantize") == []
    found = library.find("gemm_blockscaled", ("sm_101a", "sm_100a"))
    assert [r.name for r in found] == ["gemm_64_bf16", "gemm_128_bf16_c"]
    record = found[1]
    assert [p.name for p in record.params] == [
        *("map_a", "map_b", "map_sfa", "map_sfb", "map_c", "map_d"),
        *("m", "n", "k"),
    ]
    assert [p.nbytes for p in record.params] == [128] * 6 + [4] * 3
    tensor_map = record.params[0].tensor_map
    assert tensor_map is not None
    assert tensor_map.swizzle == "128B"
    assert tensor_map.box == (32, 64)
    assert record.block == (224, 1, 1)
    assert record.dynamic_shared == 200000
    assert library.read_cubin(record) == b"cubin of gemm_128_bf16_c_0"
    assert library.read_ptx(record) == "ptx of gemm_128_bf16_c_0"


def test_takes_the_first_architecture_that_has_the_kernel(folder: MakeFolder, entry: MakeEntry) -> None:
    library = Library(folder([entry(64, arch="sm_80"), entry(128, arch="sm_86")]))
    assert [r.arch for r in library.find("gemm_blockscaled", ("sm_89", "sm_86", "sm_80"))] == ["sm_86"]
    assert library.find("gemm_blockscaled", ("sm_90a",)) == []
    assert library.find("another", ("sm_80",)) == []


def test_a_folder_without_manifest_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds no manifest.json.*cute_kernels build"):
        Library(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has format None"),
        ('{"format": 2, "kernels": []}', "has format 2; this version reads format 1"),
        ('{"format": 1}', "not a manifest of format 1: KeyError: 'kernels'"),
        ('{"format": 1, "kernels": [{"kernel": "x"}]}', "not a manifest of format 1: KeyError: 'name'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=message):
        Library(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("nbytes", 64), ("kind", "f16"), ("tensor_map", None), ("kind", "pointer")]
)
def test_parameters_that_contradict_themselves_are_refused(
    folder: MakeFolder, field: str, value: Any
) -> None:
    path = folder() / "manifest.json"
    content = json.loads(path.read_text())
    content["kernels"][0]["params"][0][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="not a manifest of format 1"):
        Library(path.parent)


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
def test_a_missing_file_is_refused(folder: MakeFolder, kind: str) -> None:
    library = Library(folder())
    record = library.records[0]
    (library.folder / getattr(record, kind)).unlink()
    with pytest.raises(ManifestError, match=rf"{record.name}\.{kind}.*cannot be read.*build it again"):
        getattr(library, f"read_{kind}")(record)


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
def test_a_file_of_another_build_is_refused(folder: MakeFolder, kind: str) -> None:
    library = Library(folder())
    record = library.records[0]
    path = library.folder / getattr(record, kind)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ManifestError, match=r"SHA-256.*damaged or of another build"):
        getattr(library, f"read_{kind}")(record)


def test_a_folder_without_ptx_says_so(folder: MakeFolder, entry: MakeEntry) -> None:
    library = Library(folder([{**entry(), "ptx": None, "ptx_sha256": None}]))
    assert library.read_cubin(library.records[0])
    with pytest.raises(ManifestError, match=r"holds no PTX for gemm_128_bf16.*without --no-ptx"):
        library.read_ptx(library.records[0])
