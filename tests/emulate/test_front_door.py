"""Functions that the DSL compiled, called on the emulator as on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cutlass
import cutlass.cute as cute
import pytest
import torch
from cutlass.cute.runtime import from_dlpack

from cute_kernels.build import resources
from cute_kernels.emulator import DeviceTensor, EmulationError, cubin, run

N = 256


@cute.kernel
def scaled_sum(x: cute.Tensor, y: cute.Tensor, a: cutlass.Float32) -> None:
    index = cute.arch.block_idx()[0] * 64 + cute.arch.thread_idx()[0]
    y[index] = x[index] * a + y[index]


@cute.jit
def twice(x: cute.Tensor, y: cute.Tensor, a: cutlass.Float32, blocks: cutlass.Constexpr[int]) -> None:
    scaled_sum(x, y, a).launch(grid=(blocks, 1, 1), block=(64, 1, 1))
    scaled_sum(x, y, a).launch(grid=(blocks, 1, 1), block=(64, 1, 1))


def compiled(folder: Path, x: Any, y: Any, blocks: int = N // 64) -> Any:
    options = f"--gpu-arch sm_90a --keep-ptx --generate-line-info --dump-dir={folder}"
    return cute.compile(twice, x, y, 2.0, blocks, options=options)


@pytest.mark.parametrize("wrap", [lambda t: t, DeviceTensor], ids=["generic", "global"])
@pytest.mark.parametrize("schedule", ["eager", "lazy", "random"])
def test_every_launch_of_the_host_code_runs(
    schedule: str, wrap: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # --keep-ptx writes a file
    x, y = torch.randn(N), torch.ones(N)
    given = from_dlpack(wrap(x)), from_dlpack(wrap(y))
    reports = run(compiled(tmp_path, *given), *given, 2.0, schedule=schedule)
    assert [report.grid for report in reports] == [(N // 64, 1, 1)] * 2
    torch.testing.assert_close(y, 1 + 4 * x)


def test_a_fault_names_the_line_of_the_kernel(tmp_path: Path) -> None:
    room = torch.ones(8 * N)  # so that neither tensor lies right behind the other
    given = from_dlpack(room[2 * N : 3 * N]), from_dlpack(room[5 * N : 6 * N])
    with pytest.raises(EmulationError, match=r"out-of-range[\s\S]*test_front_door\.py:\d+"):
        run(compiled(tmp_path, *given, blocks=N // 64 + 1), *given, 2.0)


def test_a_function_without_ptx_is_refused() -> None:
    given = from_dlpack(torch.randn(N)), from_dlpack(torch.ones(N))
    bare = cute.compile(twice, *given, 2.0, 4, options="--gpu-arch sm_90a")
    with pytest.raises(ValueError, match="--keep-ptx"):
        run(bare, *given, 2.0)


@cute.kernel
def grows(x: cute.Tensor, registers: cutlass.Constexpr[int]) -> None:
    index = cute.arch.thread_idx()[0]
    if index < 128:
        cute.arch.setmaxregister_decrease(40)
    else:
        cute.arch.setmaxregister_increase(registers)
        x[index] = x[index] + 1.0


@cute.jit
def grown(x: cute.Tensor, registers: cutlass.Constexpr[int]) -> None:
    grows(x, registers).launch(grid=(1, 1, 1), block=(256, 1, 1), min_blocks_per_mp=1)


def test_setmaxnreg_starts_from_the_registers_of_the_cubin(tmp_path: Path) -> None:
    """For two warpgroups and one CTA the directives allow 255 registers; ptxas takes as many as setmaxnreg names."""
    x = torch.zeros(256)
    given = from_dlpack(DeviceTensor(x))
    options = f"--gpu-arch sm_90a --keep-ptx --keep-cubin --dump-dir={tmp_path}"
    compiled = cute.compile(grown, given, 232, options=options)
    (file,) = tmp_path.glob("*.cubin")
    told = resources.read(file)
    assert cubin.registers(file.read_bytes()) == {told.entry: told.registers}
    assert told.registers <= 232
    run(compiled, given)
    assert (x == (torch.arange(256) >= 128)).all()
