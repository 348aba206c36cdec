"""Reads layouts and constants out of the DSL, as a second witness beside the PTX ISA."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("cutlass.cute")
import cutlass
import cutlass.cute as cute

T = TypeVar("T")


def traced(body: Callable[..., T], *args: Any, arch: str = "sm_100a", **kwargs: Any) -> T:
    """What `body` returns when it runs inside a trace for `arch`, where the DSL's layout algebra works."""
    results: list[T] = []

    @cute.jit
    def host() -> None:
        results.append(body(*args, **kwargs))

    cute.compile(host, options=f"--gpu-arch {arch}")
    return results[0]


def constants(body: Callable[[], Sequence[Any]]) -> list[int]:
    """64-bit values that `body` computes in a kernel from constants, read from the PTX it compiles to."""
    counts: list[int] = []

    @cute.kernel
    def kernel(out: cute.Pointer) -> None:
        values = body()
        counts.append(len(values))
        tensor = cute.make_tensor(out, len(values))
        for i, value in enumerate(values):
            tensor[i] = cutlass.Int64(value)

    @cute.jit
    def host(out: cute.Pointer) -> None:
        kernel(out).launch(grid=(1, 1, 1), block=(1, 1, 1))

    pointer = cute.runtime.make_ptr(cutlass.Int64, 0, cute.AddressSpace.gmem, assumed_align=8)
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch sm_100a --keep-ptx --dump-dir={folder}"
        ptx = cute.compile(host, pointer, options=options).__ptx__
    stored: dict[int, int] = {}
    for offset, value in re.findall(r"st\.global\.b64\s+\[%rd\d+(?:\+(\d+))?\], (-?\d+);", ptx):
        stored[int(offset or 0) // 8] = int(value) & (1 << 64) - 1
    assert sorted(stored) == list(range(counts[0])), "a value did not fold to a constant"
    return [stored[i] for i in range(counts[0])]


def flat(tree: Any) -> tuple[int, ...]:
    """The integers of a nested tuple, left to right."""
    return sum((flat(item) for item in tree), ()) if isinstance(tree, tuple) else (int(tree),)


def offsets(shape: Any, stride: Any) -> npt.NDArray[np.int64]:
    """Offsets of a layout at the indices 0, 1, ... of its domain (first mode fastest)."""
    result = np.zeros(1, np.int64)
    for extent, step in zip(flat(shape), flat(stride), strict=True):
        result = (np.arange(extent)[:, None] * step + result[None, :]).reshape(-1)
    return result


def table(layout: Any, rank: int = 2) -> npt.NDArray[np.int64]:
    """Offsets of a layout with `rank` modes, indexed by a number for each mode."""
    modes = [offsets(layout.shape[i], layout.stride[i]) for i in range(rank)]
    result = modes[0]
    for mode in modes[1:]:
        result = result[..., None] + mode
    return result
