"""The build as its users call it, on kernels small enough to compile in every test."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = Path(__file__).parent / "packages"
UP_TO_DATE = "0 compiled, 2 up to date, 0 failed"


def command_line(
    source: Path, *arguments: str, package: str | None = "tiny_kernels", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m cute_kernels ...` with the kernel packages of a folder."""
    paths = os.pathsep.join([str(source), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "cute_kernels", *arguments, *(["--package", package] if package else [])],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )


def build(source: Path, out: Path, *arguments: str, **environment: str) -> str:
    """What a build that must succeed printed."""
    result = command_line(source, "build", "--out", str(out), *arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def copy_packages(folder: Path) -> Path:
    shutil.copytree(PACKAGES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((out / "manifest.json").read_text())["kernels"]
    return {f"{entry['arch']}/{entry['name']}": entry for entry in entries}


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the packages, and the two kernels of one architecture built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = copy_packages(folder / "source")
    assert "2 compiled" in build(source, folder / "out", "--arch", "sm_100a")
    return source, folder / "out"


@pytest.fixture
def own(built: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `built` that a test may change. Copied as built, so that it starts up to date."""
    for path, name in zip(built, ("source", "out"), strict=True):
        shutil.copytree(path, tmp_path / name)
    return tmp_path / "source", tmp_path / "out"


def test_manifest_says_what_was_built(built: tuple[Path, Path]) -> None:
    _, out = built
    entries = manifest(out)
    assert list(entries) == ["sm_100a/tiny_scale_x1", "sm_100a/tiny_scale_x4"]
    entry = entries["sm_100a/tiny_scale_x4"]
    assert entry["kernel"] == "scale"
    assert entry["config"] == {"per_thread": 4, "threads": 128, "held": 0, "tile": 512}
    kinds = [("pointer", 8), ("pointer", 8), ("f32", 4), ("i32", 4)]
    assert [(p["kind"], p["nbytes"]) for p in entry["params"]] == kinds
    assert (entry["block"], entry["cluster"], entry["dynamic_shared"]) == ([128, 1, 1], [1, 1, 1], 0)
    assert f".entry {entry['entry']}(" in (out / entry["ptx"]).read_text()
    for kind in ("cubin", "ptx"):
        assert hashlib.sha256((out / entry[kind]).read_bytes()).hexdigest() == entry[f"{kind}_sha256"]
    assert 8 <= entry["registers"] <= 40
    assert entry["spill_bytes"] == entry["local_bytes"] == 0
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".cubin", ".ptx", ".json", ""}


def test_an_earlier_build_is_reused_where_its_sources_are_the_same(
    own: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = own
    arguments = ("--arch", "sm_100a", "--reuse", str(out))
    assert UP_TO_DATE in build(source, tmp_path / "copied", *arguments)
    assert {**content(tmp_path / "copied"), ".lock": b""} == {**content(out), ".lock": b""}
    only = build(source, tmp_path / "one", *arguments, "--only", "tiny_scale_x1")
    assert "0 compiled, 1 up to date" in only
    assert list(manifest(tmp_path / "one")) == ["sm_100a/tiny_scale_x1"]
    (out / "sm_100a/tiny_scale_x1.cubin").write_bytes(b"not as it was")
    assert "1 compiled, 1 up to date" in build(source, tmp_path / "damaged", *arguments)
    kernel = source / "tiny_kernels/scale.py"
    kernel.write_text(kernel.read_text() + "\n# changed\n")
    assert "2 compiled, 0 up to date" in build(source, tmp_path / "changed", *arguments)
    build(source, out, "--arch", "sm_100a")
    assert UP_TO_DATE in build(source, tmp_path / "copied", *arguments), (
        "what has become stale is copied anew"
    )


def test_ptx_names_source_lines_by_relative_path(built: tuple[Path, Path]) -> None:
    source, out = built
    text = (out / "sm_100a/tiny_scale_x1.ptx").read_text()
    assert re.findall(r'\.file\s+\d+\s+"(.*)"', text) == ["tiny_kernels/scale.py"]
    lines = {int(line) for line in re.findall(r"\.loc\s+1\s+(\d+)", text)}
    product = (
        (source / "tiny_kernels/scale.py")
        .read_text()
        .splitlines()
        .index("            (target + first + i).store((source + first + i).load() * factor)")
    )
    assert product + 1 in lines
    assert str(source.parent) not in text


def test_same_bytes_from_another_folder_and_other_settings(built: tuple[Path, Path], tmp_path: Path) -> None:
    source = copy_packages(tmp_path / "far" / "away")
    build(source, tmp_path / "out", "--arch", "sm_100a", CUTE_DSL_LINEINFO="1", PYTHONHASHSEED="7")
    assert content(tmp_path / "out") == content(built[1])


def test_up_to_date_build_needs_neither_dsl_nor_torch(own: tuple[Path, Path]) -> None:
    source, out = own
    before = content(out)
    program = (
        "import sys; from cute_kernels.__main__ import main; status = main(sys.argv[1:]); "
        "print(sorted({'cutlass', 'torch', 'numpy'} & set(sys.modules))); sys.exit(status)"
    )
    arguments = ["build", "--out", str(out), "--arch", "sm_100a", "--package", "tiny_kernels"]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(ROOT)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert UP_TO_DATE in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
    assert content(out) == before


def test_only_what_changed_is_rebuilt(own: tuple[Path, Path]) -> None:
    source, out = own
    (source / "tiny_kernels" / "neighbour.py").write_text("x = 1\n")  # nothing imports it
    assert UP_TO_DATE in build(source, out, "--arch", "sm_100a")

    (out / "sm_100a/tiny_scale_x1.cubin").write_bytes(b"damaged")
    (out / "sm_100a/tiny_scale_x4.ptx").unlink()
    assert "2 compiled, 0 up to date" in build(source, out, "--arch", "sm_100a")

    kernel = source / "tiny_kernels/scale.py"
    kernel.write_text(kernel.read_text().replace(".load() * factor", ".load() + factor"))
    before = content(out)
    assert "1 compiled, 0 up to date" in build(source, out, "--arch", "sm_100a", "--only", "x4")
    after = content(out)
    assert "add.f32" in after["sm_100a/tiny_scale_x4.ptx"].decode()
    assert after["sm_100a/tiny_scale_x1.cubin"] == before["sm_100a/tiny_scale_x1.cubin"]
    said = build(source, out, "--arch", "sm_100a", "--only", "x4")
    assert "1 outside this selection kept (1 of them out of date)" in said


def test_ptx_is_left_out_on_request_and_comes_back(own: tuple[Path, Path]) -> None:
    source, out = own
    assert UP_TO_DATE in build(source, out, "--arch", "sm_100a", "--no-ptx")
    assert not list(out.rglob("*.ptx"))
    assert {entry["ptx"] for entry in manifest(out).values()} == {None}
    assert "1 compiled" in build(source, out, "--arch", "sm_100a", "--only", "x1")
    assert [path.name for path in out.rglob("*.ptx")] == ["tiny_scale_x1.ptx"]


def test_another_architecture_joins_the_manifest(own: tuple[Path, Path]) -> None:
    source, out = own
    assert "1 compiled, 0 up to date" in build(source, out, "--arch", "sm_80", "--only", "*_x1")
    assert sorted(manifest(out)) == ["sm_100a/tiny_scale_x1", "sm_100a/tiny_scale_x4", "sm_80/tiny_scale_x1"]
    module = source / "tiny_kernels/__init__.py"
    module.write_text(module.read_text().replace("for per_thread in (1, 4)", "for per_thread in (1,)"))
    build(source, out, "--arch", "sm_80")
    assert sorted(manifest(out)) == ["sm_100a/tiny_scale_x1", "sm_80/tiny_scale_x1"]
    assert not (out / "sm_100a/tiny_scale_x4.cubin").exists()


def test_kernels_of_another_package_stay(own: tuple[Path, Path]) -> None:
    source, out = own
    package = source / "other_kernels"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from dataclasses import replace\n"
        "from tiny_kernels import scale_variant\n"
        "from tiny_kernels.shape import Shape\n"
        "def variants(arch):\n"
        "    variant = scale_variant(Shape(1))\n"
        "    return [replace(variant, name='other', compile=compile_it)] if arch == 'sm_80' else []\n"
        "def compile_it(arch, options):\n"
        "    return scale_variant(Shape(1)).compile(arch, options)\n"
    )
    arguments = (
        "build",
        "--out",
        str(out),
        "--package",
        "tiny_kernels",
        "--arch",
        "sm_80",
        "--only",
        "other",
    )
    result = command_line(source, *arguments, package="other_kernels")
    assert "1 compiled, 0 up to date, 0 failed, 2 outside this selection kept" in result.stdout, result.stderr
    result = command_line(source, "build", "--out", str(out), "--arch", "sm_100a")
    assert "0 compiled, 2 up to date, 0 failed, 1 outside this selection kept" in result.stdout, result.stderr
    assert sorted(manifest(out))[-1] == "sm_80/other"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A build of one good kernel among bad ones."""
    out = tmp_path_factory.mktemp("refused") / "out"
    arguments = (
        "build",
        "--out",
        str(out),
        "--arch",
        "sm_90a",
        "--only",
        "bad",
        "--package",
        "tiny_kernels",
    )
    return out, command_line(PACKAGES, *arguments, package="bad_kernels")


def test_good_kernels_are_built_beside_bad_ones(
    refused: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = refused
    assert result.returncode == 1
    assert sorted(manifest(out)) == ["sm_90a/good", "sm_90a/spills_and_says_why"]
    assert sorted(path.name for path in out.rglob("*.cubin")) == ["good.cubin", "spills_and_says_why.cubin"]
    assert "2 compiled, 0 up to date, 8 failed" in result.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spills", r"uses local memory: \d\d+ bytes of spill stores.*allow_spills"),
        ("raises", "ValueError: no such thing on sm_90a"),
        ("dies", "process died"),
        ("changes_with_lines", "line information changes the code: .* became "),
        ("hides_an_import", "compiling loads bad_kernels.hidden"),
        ("misstates_params", r"parameters of \[8, 8, 4\] bytes.*the compiled kernel has \[8, 8, 4, 4\]"),
        ("misstates_sizes", r"parameters of \[8, 8, 4, 8\] bytes.*the compiled kernel has \[8, 8, 4, 4\]"),
        ("misstates_block", r"\(64, 1, 1\) for .reqntid; the compiled kernel has \(128, 1, 1\)"),
    ],
)
def test_bad_kernel_is_refused_by_name(
    refused: tuple[Path, subprocess.CompletedProcess[str]], name: str, reason: str
) -> None:
    _, result = refused
    assert re.search(rf"^{name} \(sm_90a\) was not built: .*{reason}", result.stderr, re.M), result.stderr


def test_accepted_spills_are_counted(refused: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    entry = manifest(refused[0])["sm_90a/spills_and_says_why"]
    assert entry["registers"] == 255
    assert 0 < entry["spill_bytes"] <= entry["local_bytes"]
    assert entry["allow_spills"]


def test_inspect_prints_a_row_a_kernel(built: tuple[Path, Path]) -> None:
    source, out = built
    result = command_line(source, "inspect", str(out), package=None)
    assert result.returncode == 0, result.stderr
    header, _, *rows = (line.split() for line in re.sub(" B ", "B ", result.stdout).splitlines())
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [cell["kernel"] for cell in cells] == ["tiny_scale_x1", "tiny_scale_x4"]
    assert cells[0]["NOP"] == "0"  # the padding after the code does not count
    for cell, accesses in zip(cells, (2, 8), strict=True):
        assert int(cell["LDG/STG"]) == accesses
        assert int(cell["MMA"]) == int(cell["local"]) == int(cell["other"]) == 0
        assert sum(int(cell[name]) for name in header[header.index("instr") + 1 :]) == int(cell["instr"])


def test_inspect_refuses_a_changed_cubin(own: tuple[Path, Path]) -> None:
    source, out = own
    with (out / "sm_100a/tiny_scale_x1.cubin").open("ab") as file:
        file.write(b"\0")
    result = command_line(source, "inspect", str(out), package=None)
    assert result.returncode == 1
    assert "not the file that the manifest records" in result.stderr


def test_list_names_variants_and_architectures() -> None:
    result = command_line(PACKAGES, "list")
    assert re.search(r"^scale +tiny_scale_x4 +0 +sm_80 sm_90a sm_100a$", result.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--arch", "sm_99"), "'sm_99' is not supported; supported are sm_80"),
        (("--only", "nothing"), "no kernel to build for .* matches 'nothing'"),
        (("--package", "no_such_package"), "'no_such_package' cannot be imported"),
    ],
)
def test_senseless_request_is_refused(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    result = command_line(PACKAGES, "build", "--out", str(tmp_path / "out"), *arguments)
    assert result.returncode == 1
    assert re.search(reason, result.stderr)
    assert not (tmp_path / "out").exists()
