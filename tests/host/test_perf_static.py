"""The static check: what counts as worse, and that it fails."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cute_kernels.build.errors import BuildError
from perf import __main__ as command
from perf import static

KERNEL = "sm_100a a_kernel"
FIGURES: static.Figures = {
    "cubin_sha256": "0" * 64,
    "registers": 64,
    "spill_bytes": 0,
    "local_bytes": 0,
    "threads": 256,
    "shared_bytes": 1024,
    "ctas_per_sm": 4,
    "stages": 6,
    "loops": {
        "mma": {"instructions": 100, "MMA": 8, "uniform": 92},
        "tma load": {"instructions": 20, "TMA": 2, "int": 18},
        "control": {"instructions": 10, "int": 10},
    },
}


def changed(**values: Any) -> static.Figures:
    """The figures with some replaced; a loop by its name, with _ for a space."""
    figures = copy.deepcopy(FIGURES)
    for name, value in values.items():
        if isinstance(value, dict):
            figures["loops"][name.replace("_", " ")] = value
        else:
            figures[name] = value
    return figures


def worse(new: static.Figures) -> list[bool]:
    return [finding.worse for finding in static.compare(KERNEL, FIGURES, new)]


@pytest.mark.parametrize(
    "new",
    [
        changed(spill_bytes=8),
        changed(local_bytes=8),
        changed(ctas_per_sm=3),
        changed(stages=5),
        changed(stages=None),
        changed(mma={"instructions": 103, "MMA": 8, "uniform": 95}),
        changed(mma={"instructions": 206, "MMA": 16, "uniform": 190}),
        changed(mma={"instructions": 103, "MMA": 11, "uniform": 92}),
        changed(mma={"instructions": 60, "MMA": 4, "uniform": 56}),
        changed(tma_load={"instructions": 22, "TMA": 2, "int": 20}),
        changed(tma_load={"instructions": 30, "least": 22, "TMA": 2, "int": 28}),
    ],
)
def test_worse(new: static.Figures) -> None:
    assert worse(new) == [True]


@pytest.mark.parametrize(
    "new",
    [
        changed(registers=72),
        changed(shared_bytes=2048),
        changed(ctas_per_sm=5),
        changed(stages=7),
        changed(mma={"instructions": 102, "MMA": 8, "uniform": 94}),
        changed(mma={"instructions": 190, "MMA": 16, "uniform": 174}),
        changed(mma={"instructions": 51, "MMA": 4, "uniform": 47}),
        changed(tma_load={"instructions": 21, "TMA": 2, "int": 19}),
        changed(control={"instructions": 30, "int": 30}),
        changed(epilogue={"instructions": 30, "TMEM": 4}),
    ],
)
def test_noted(new: static.Figures) -> None:
    assert worse(new) == [False]


def test_equal_figures_give_no_finding() -> None:
    assert worse(changed(cubin_sha256="1" * 64)) == []


def test_a_loop_that_is_gone_is_worse_unless_one_of_its_kind_is_left() -> None:
    without = changed()
    del without["loops"]["mma"]
    assert worse(without) == [True]
    two = changed(mma_2={"instructions": 5, "MMA": 1})
    assert [f.worse for f in static.compare(KERNEL, two, FIGURES)] == [False]


def test_kernels_of_one_side_are_noted() -> None:
    found = static.compare_all({"sm_80 old": FIGURES}, {"sm_80 a": {}, "sm_80 b": {}})
    assert found == [
        static.Finding("sm_80", "2 kernels are not in the baseline yet", False),
        static.Finding("sm_80", "1 kernels are not built", False),
    ]


def entry(**values: Any) -> dict[str, Any]:
    base = {"arch": "sm_90a", "block": [128, 1, 1], "registers": 32, "dynamic_shared": 0, "static_shared": 0}
    return {**base, **values}


@pytest.mark.parametrize(
    ("given", "ctas"),
    [
        (entry(), 16),  # threads
        (entry(registers=129), 3),  # registers, given in steps of 8 a thread
        (entry(registers=128), 4),
        (entry(dynamic_shared=113 * 1024), 2),  # shared memory, with the 1 KiB that the system takes
        (entry(dynamic_shared=113 * 1024, static_shared=1025), 1),
        (entry(arch="sm_86", block=[32, 1, 1]), 16),  # CTAs
        (entry(arch="sm_86", block=[96, 1, 1], dynamic_shared=32768), 3),
    ],
)
def test_occupancy(given: dict[str, Any], ctas: int) -> None:
    assert static.occupancy(given) == ctas


@pytest.fixture
def cubins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest of one kernel, whose figures are FIGURES."""
    kernel = {"arch": "sm_100a", "name": "a_kernel", "cubin_sha256": "1" * 64, "dsl_version": "4.8.1"}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "kernels": [kernel]}))
    monkeypatch.setattr(static, "figures", lambda folder, entry: {**FIGURES, "cubin_sha256": "1" * 64})
    return tmp_path


def check(cubins: Path, *more: str) -> int:
    where = ["--cubins", str(cubins), "--baseline", str(cubins / "static.json")]
    return command.main(["static", *where, *more])


def test_check_fails_on_a_worse_figure_and_write_accepts_it(
    cubins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = changed(mma={"instructions": 90, "MMA": 8, "uniform": 82})
    static.write_baseline(cubins / "static.json", "4.8.1", {KERNEL: better})
    assert check(cubins, "--check") == 1
    assert "WORSE  sm_100a a_kernel: loop 'mma': instructions 90 -> 100" in capsys.readouterr().out
    assert check(cubins, "--write") == 0
    assert check(cubins, "--check") == 0
    assert static.read_baseline(cubins / "static.json")[1] == {KERNEL: {**FIGURES, "cubin_sha256": "1" * 64}}


def test_a_new_kernel_passes_with_a_note(cubins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(cubins, "--check") == 0
    assert "note   sm_100a: 1 kernels are not in the baseline yet" in capsys.readouterr().out


def test_another_assembler_is_not_compared(cubins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    static.write_baseline(cubins / "static.json", "4.8.0", {KERNEL: FIGURES})
    assert check(cubins, "--check") == 1
    assert "4.8.0" in capsys.readouterr().out


def test_an_unchanged_cubin_is_not_read_again(cubins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {KERNEL: {**FIGURES, "cubin_sha256": "1" * 64, "registers": 1}}
    assert static.read_all(cubins, known)[KERNEL]["registers"] == 1
    known[KERNEL]["cubin_sha256"] = "2" * 64
    assert static.read_all(cubins, known)[KERNEL]["registers"] == 64
    assert static.read_all(cubins)[KERNEL]["registers"] == 64
    assert static.read_all(cubins, {})[KERNEL] == {}


def test_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "--check") == 2
    assert "no kernels in" in capsys.readouterr().err


def test_only_what_is_asked_for_is_read(cubins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match="hold 'sm_90a'"):
        static.read_all(cubins, only="sm_90a")
    assert list(static.read_all(cubins, only=KERNEL.split(" ")[1])) == [KERNEL]


def test_a_baseline_of_another_format_is_refused(cubins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cubins / "static.json").write_text('{"format": 0}')
    assert check(cubins, "--check") == 2
    assert "has format 0" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_loop() -> None:
    figures = changed(epilogue={"instructions": 96, "tmem_columns": 64, "TMEM": 2}, stages=None)
    text = static.render({KERNEL: figures})
    _, _, *rows = (line.split() for line in text.splitlines())
    assert len(rows) == 4
    assert rows[0][:10] == ["sm_100a", "a_kernel", "64", "0", "1024", "4", "-", "mma", "100", "8.0%"]
    assert rows[3][:4] == ["epilogue", "96", "-", "48.0"]
