"""PTX that nvcc makes of CUDA C++ (nvcc/kernels.cu, CUDA 13.0), launched as it is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cute_kernels.emulator import Device, EmulationError
from tests.instructions.kernels import SCHEDULES

PTX = Path(__file__).with_name("nvcc").joinpath("kernels.ptx").read_text()
RNG = np.random.default_rng(0)


def launch(
    name: str, threads: int, *given: Any, grid: int = 1, shared: int = 0, schedule: str = "random"
) -> list[str]:
    """Launches a kernel with arrays, numbers (int) and structures (bytes); gives its warnings."""
    device = Device("sm_90a", schedule=schedule)
    params = []
    for value in given:
        if isinstance(value, np.ndarray):
            device.register(value.ctypes.data, value.nbytes)
            params.append(value.ctypes.data.to_bytes(8, "little"))
        else:
            params.append(value if isinstance(value, bytes) else int(value).to_bytes(4, "little"))
    report = device.launch(PTX, name, (grid, 1, 1), (threads, 1, 1), dynamic_shared=shared, params=params)
    return report.warnings


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_grid_sum(schedule: str) -> None:
    x, out = RNG.integers(-9, 9, 1000).astype(np.float32), np.zeros(1, np.float32)
    assert not launch("grid_sum", 128, x, out, len(x), grid=3, shared=16, schedule=schedule)
    assert out[0] == x.sum()


def test_indexed() -> None:
    index, out = RNG.integers(0, 20, 64).astype(np.int32), np.zeros(64, np.float32)
    assert not launch("indexed", 64, index, out)
    assert (out == 2 * index + np.arange(64) + (index & 15)).all()


def test_groups() -> None:
    x, out = RNG.integers(0, 100, 64).astype(np.int32), np.zeros(64, np.int32)
    assert not launch("groups", 64, x, out)
    warps = x.reshape(2, 32)
    sums = np.repeat(x.reshape(4, 16).sum(1), 16)
    odd = np.repeat((warps & 1).sum(1), 32)
    alike = (warps[:, :, None] & 3 == warps[:, None, :] & 3).sum(2).ravel()
    assert (out == sums + 1000 * odd + 100000 * alike).all()


def test_halves() -> None:
    a = (RNG.integers(-8, 8, 64) / 4).astype(np.float16)
    out, total = np.zeros(64, np.float16), np.zeros(1, np.uint16)
    assert not launch("halves", 32, a, out, total)
    assert (out == a * a + a / 2).all()
    assert total[0] == 0x4200  # 32 in BF16


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_and_a_copy(schedule: str) -> None:
    out, x, copied = np.zeros(64, np.int32), np.arange(256, dtype=np.int32), np.zeros(256, np.int32)
    assert not launch("reversed_by_barrier", 64, out, schedule=schedule)
    assert (out == 63 - np.arange(64)).all()
    assert not launch("reversed_by_copy", 256, x, copied, schedule=schedule)
    assert (copied == 255 - x).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_word_that_is_handed_on(schedule: str) -> None:
    data, flag, out = np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    assert not launch("handed_on", 1, data, flag, out, grid=2, schedule=schedule)
    assert out[0] == 42


def test_a_switch() -> None:
    x, out = np.arange(64, dtype=np.int32), np.zeros(64, np.float32)
    assert not launch("switched", 64, struct.pack("<ifq", 3, 0.5, 4), x, out)
    leading = [32 - int(v).bit_length() for v in x]
    turned = [int(f"{v:032b}"[::-1], 2) >> 20 for v in x]
    cases = [x * 3, x ^ 77, x - 4, x * x, x << 3, ~x, x // 7, leading, turned]
    assert (out == np.choose(x % 9, np.array(cases)) * 0.5 + 7).all()


def test_a_failed_assertion() -> None:
    x, out = np.full(32, -1, np.int32), np.zeros(32, np.float32)
    with pytest.raises(EmulationError, match="assert") as caught:
        launch("switched", 32, struct.pack("<ifq", 3, 0.5, 4), x, out)
    assert caught.value.kind == "bad-launch"


def _power(x: float, k: int) -> float:
    y = 1.0
    for _ in range(k):
        if y > 1000:
            return -1.0
        y *= x
    return y


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_functions_that_are_called(schedule: str) -> None:
    x, k = RNG.integers(-8, 8, (64, 2)).astype(np.float32), np.array([2, 3, 5, 9], np.int32)
    out = np.zeros((64, 2), np.float32)
    assert not launch("called", 64, x, k, out, schedule=schedule)
    for i, (a, b) in enumerate(x):
        y = (_power(a, k[i & 3]), _power(b, k[i & 1]) + 0.5) if i % 3 != 1 else (0, 0)
        assert (out[i] == (y[0] + _power(2, i & 7), y[1])).all()


def test_functions_of_double_precision() -> None:
    x, out = np.concatenate([RNG.standard_normal(32), RNG.standard_normal(32) * 1e9]), np.zeros(64)
    assert not launch("doubles", 64, x, out)
    np.testing.assert_allclose(out, np.sin(x) + np.abs(x) ** 1.25, rtol=1e-14)


def test_a_function_that_calls_itself_is_refused() -> None:
    with pytest.raises(EmulationError, match=r"a call of .*fibonacci.* is not modelled") as caught:
        launch("recursive", 32, np.zeros(32, np.int64))
    assert caught.value.kind == "unknown-instruction"
