"""Every instruction form of the built kernels is covered: see tests/coverage.py."""

from __future__ import annotations

import os
import pathlib

import pytest

from tests import coverage
from tests.instructions.kernels import module

BUILT = pathlib.Path(os.environ.get("CUTE_KERNELS_CUBINS", "build"))


@pytest.mark.skipif(
    not any(BUILT.rglob("*.ptx")), reason="nothing is built; run python -m cute_kernels build"
)
def test_built_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main([str(BUILT)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("add.s32 %r5, %r0, 1;", 0),
        ("st.shared::cta.u32 [%r1], %r0;", 0),
        ("tcgen05.fence::after_thread_sync;", 0),
        ("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%r5}, [%r1];", 1),
        ("multimem.red.relaxed.sys.global.add.u32 [%d0], %r0;", 1),
    ],
)
def test_status(line: str, status: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kernel.ptx").write_text(module(line))
    assert coverage.main([str(tmp_path)]) == status
    assert ("NOTHING" in capsys.readouterr().out) == bool(status)


def test_spellings_that_mean_the_same() -> None:
    assert coverage.canonical("ld.shared::cta.u32") == coverage.canonical("ld.shared.b32")
    assert coverage.canonical("ld.global.s8") != coverage.canonical("ld.global.u8")
    assert coverage.canonical("min.s32") != coverage.canonical("min.u32")
    assert coverage.canonical("add.s32") == coverage.canonical("add.u32")
    assert coverage.canonical("add.s64") != coverage.canonical("add.u32")


def test_witnesses_exist() -> None:
    for tests in coverage.WITNESSED.values():
        for name in tests.split():
            assert (coverage.TESTS / "instructions" / name).exists(), name
