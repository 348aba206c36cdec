"""NVFP4 weights times activations with operands by cp.async: the kernels of sm_80 and of those with less shared memory.

Grouped ones are in test_gemm_w4a16_grouped.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cute_kernels
import sm80
from cute_kernels import ops
from cute_kernels.emulator import EmulationError
from tests.building import Request, build
from tests.emulate.broken import rewritten
from tests.emulate.test_gemm_w4a16 import SCHEDULES, force, run
from tests.w4a16_cases import random_case

SMALL = "sm80_gemm_w4a16_bf16_64x8x512_cp_async_s5"


def _configurations() -> list[Any]:
    """All of sm_80 and, of the others, what has two stages there; FP16 but for one in the full matrix alone."""
    return [
        pytest.param(
            arch,
            variant,
            marks=pytest.mark.full if s.x_dtype == "f16" and s.tile_m != 16 else (),
            id=f"{arch}-{variant.name}",
        )
        for arch in ("sm_80", "sm_86")
        for variant in sm80.variants(arch)
        if variant.kernel == "gemm_w4a16" and (s := variant.shape).layout == "dense"
        if arch == "sm_80" or s.stages == 2
    ]


def compile_to(out: Path, arch: str, only: str) -> None:
    assert not build(Request(out, (arch,), only, packages=("sm80",)), say=lambda line: None).failures


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BF16 kernels of sm_80."""
    out = tmp_path_factory.mktemp("cubins")
    compile_to(out, "sm_80", "*_bf16_*[0-9]_cp_async_s?")
    return out


@pytest.fixture(autouse=True)
def cubins(built: Path) -> Iterator[None]:
    cute_kernels.set_cubins(built)
    ops._w4a16_requests.clear()
    yield
    cute_kernels.set_cubins(None)


@pytest.mark.parametrize(("arch", "variant"), _configurations())
def test_each_configuration(
    arch: str, variant: sm80.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tails in all dimensions, and shares that begin and end inside tiles; the ring goes round."""
    s = variant.shape
    if (arch, s.x_dtype) != ("sm_80", "bf16"):
        compile_to(tmp_path, arch, variant.name)
        cute_kernels.set_cubins(tmp_path)
    force(monkeypatch, variant.name)
    dtype = torch.bfloat16 if s.x_dtype == "bf16" else torch.float16
    case = random_case(s.tile_m + 3, s.tile_n + 21, s.tile_k * (s.stages + 1) // 3 + 16 & ~15, dtype)
    schedule = SCHEDULES[(s.tile_m // 8 + len(s.x_dtype)) % 3]
    assert run(case, num_sms=3, schedule=schedule, seed=len(variant.name), arch=arch) == ""


@pytest.mark.parametrize(
    "size",
    [(1, 64, 16), (3, 100, 2064), (8, 8, 272), (9, 1, 1040), (17, 192, 48), (33, 16, 1040), (64, 100, 256)],
    ids=str,
)
def test_sizes(size: tuple[int, int, int]) -> None:
    m, n, k = size
    schedule = SCHEDULES[(m + n + k // 16) % 3]
    assert run(random_case(m, n, k), schedule=schedule, seed=m, pad=(8, 3, 0)[m % 3], arch="sm_80") == ""


@pytest.mark.parametrize("num_sms", [1, 2, 5, 7, 13])
def test_shares(num_sms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of one CTA, of two, of many, and several tiles of one, whose copies run ahead into the next tile."""
    force(monkeypatch, SMALL)
    assert run(random_case(12, 72, 2576), num_sms=num_sms, seed=num_sms, arch="sm_80") == ""


def test_rows_of_x_that_lie_apart() -> None:
    wide = random_case(5, 40, 272)
    x = torch.full((5, 304), torch.nan, dtype=torch.bfloat16)
    x[:, :272] = wide.x
    assert run(wide._replace(x=x[:, :272]), arch="sm_80") == ""


WAIT = re.compile(r"cp\.async\.wait_group\s+(\d+);")


def wait_less(text: str) -> str:
    return WAIT.sub(lambda match: f"cp.async.wait_group {int(match[1]) + 1};", text)


def no_barrier(text: str) -> str:
    """Without the barrier behind the wait."""
    wait = WAIT.search(text)
    assert wait is not None
    at = text.index("bar.sync", wait.end())
    return text[:at] + text[text.index(";", at) + 1 :]


def read_behind_the_end(text: str) -> str:
    """Copies read all 16 bytes, whatever lies there."""
    return re.sub(r"(cp\.async\.cg\.shared\.global [^;]*, 16), %r\d+;", r"\1;", text)


@pytest.mark.parametrize("schedule", ["lazy", "random"])
@pytest.mark.parametrize("bug", [wait_less, no_barrier, read_behind_the_end])
def test_planted_bugs_are_found(
    bug: Callable[[str], str], schedule: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cute_kernels.set_cubins(rewritten(built, tmp_path / "broken", SMALL, bug))
    force(monkeypatch, SMALL)
    with pytest.raises(EmulationError):
        run(random_case(5, 72, 2576), num_sms=2, schedule=schedule, arch="sm_80")
