"""The way to a machine that has neither the DSL nor a compiler: a wheel, a folder of cubins, nothing else.

A new environment gets the wheel and its runtime dependencies and runs the operations on the emulator. The
project's own checkout is out of its reach: it runs in another folder, with no PYTHONPATH.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPENDENCIES = ("numpy", "torch", "cuda-python")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "cute_kernels", "sm80", "sm100", "sm120")

# What a deployed program does. It sees an installed package only.
PROGRAM = """
import importlib.util, sys
import cute_kernels
assert not {"torch", "numpy", "cuda"} & set(sys.modules), "import cute_kernels is not light"

import torch
from cute_kernels.formats import dequantize, quantize_mxfp4, quantize_nvfp4
from cute_kernels.scale_factors import pack_for_kernel

torch.manual_seed(0)

def operand(rows, k):
    data, scales = quantize_mxfp4(torch.randn(rows, k) * torch.randn(rows, 1).exp())
    return (data, pack_for_kernel(scales, rows, k)), dequantize(data, scales, group=(1, 32), dtype=torch.float64)

(a, exact_a), (b, exact_b) = operand(129, 288), operand(200, 288)
with cute_kernels.emulate("sm_100a", schedule="lazy"):
    d = cute_kernels.gemm_nt(a, b, out_dtype=torch.float32)
exact = exact_a @ exact_b.T
error = (d.double() - exact).norm() / exact.norm()
assert error < 1e-5, f"gemm_nt is off by {error:.1e}"

data, scales, factor = quantize_nvfp4(torch.randn(40, 96))
with cute_kernels.emulate("sm_80"):
    out = cute_kernels.nvfp4_dequantize(data, scales, factor)
expected = dequantize(data, scales, group=(1, 16), global_scale=factor).to(torch.bfloat16)
assert torch.equal(out, expected)

for missing in ("cutlass", "nvidia_cutlass_dsl", "pytest"):
    assert importlib.util.find_spec(missing) is None, f"{missing} is importable"
foreign = [name for name in sys.modules if name.partition(".")[0] in ("sm80", "sm100", "sm120")]
assert not foreign, f"the runtime imported {foreign}"
print("from", cute_kernels.__file__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command that must succeed printed; no path of this checkout goes with it."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CUTE_"))
    }
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cubins that the program needs."""
    out = tmp_path_factory.mktemp("cubins")
    for arch, only in (("sm_100a", "*_f32"), ("sm_80", "nvfp4_dequantize")):
        command = (
            sys.executable,
            "-m",
            "cute_kernels",
            "build",
            "--arch",
            arch,
            "--only",
            only,
            "--out",
            out,
        )
        run(*command, cwd=ROOT)
    return out


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and what it depends on, at the versions that are here."""
    folder = tmp_path_factory.mktemp("deployed")
    source = folder / "source"  # building a wheel writes into its source
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("cute_kernels-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    pins = folder / "constraints.txt"
    # A local version such as +cpu is only on the index that it came from; the public one matches it too.
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in DEPENDENCIES}
    pins.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    run(python, *pip, "install", "--no-compile", "-c", pins, wheel, cwd=folder)
    return python


def test_operations_run_from_a_wheel_and_cubins_alone(
    interpreter: Path, cubins: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    said = run(interpreter, program, cwd=tmp_path, CUTE_KERNELS_CUBINS=str(cubins))
    assert str(interpreter.parents[1]) in said


def test_without_cubins_it_says_where_they_come_from(interpreter: Path, tmp_path: Path) -> None:
    program = "import cute_kernels, torch; cute_kernels.runtime.library()"
    command = (
        interpreter,
        "-c",
        f"import cute_kernels.runtime\ntry:\n    {program}\nexcept Exception as e: print(e)",
    )
    said = run(*command, cwd=tmp_path)
    assert "no cubins: CUTE_KERNELS_CUBINS is not set" in said
    assert "python -m cute_kernels build" in said
