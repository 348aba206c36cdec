"""`run`, `verify` and `explain` as a user calls them, and the example of the README, on freshly built cubins."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cute_kernels
from cute_kernels.__main__ import main
from tests.building import Request, build
from tests.emulate.broken import changed

ROOT = Path(__file__).parents[2]
BF16 = ("sm100.gemm_bf16", "--m", "130", "--n", "72", "--k", "77", "--layout", "nn")
GEMM = ("sm100.gemm_blockscaled", "--m", "130", "--n", "72", "--k", "288")
DEQUANTIZE = ("sm80.nvfp4_dequantize", "--m", "7", "--k", "272")
GROUPED = (
    "sm100.gemm_blockscaled",
    "--m",
    "40",
    "--n",
    "72",
    "--k",
    "96",
    "--groups",
    "3",
    "--grouped",
    "masked",
)
EINSUM = (
    *("sm100.gemm_bf16", "--m", "20", "--n", "72", "--k", "77"),
    *("--einsum", "bmk,bnk->mn", "--batches", "9", "--d-dtype", "f32", "--accumulate"),
)
MXFP8_GROUPS = (
    *("sm100.gemm_blockscaled", "--m", "40", "--n", "80", "--k", "96", "--operands", "mxf8"),
    *("--groups", "3", "--d-dtype", "mxf8"),
)
W4A16 = ("--op", "w4a16_gemm_nt", "--m", "13", "--n", "72", "--k", "304")
EXPERTS = ("--op", "m_grouped_w4a16_gemm_nt_masked", *W4A16[2:], "--groups", "3")
REPACK = ("sm80.nvfp4_repack", "--m", "17", "--k", "1040")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cubins")
    for only in (
        "*128x32x256_bf16",
        "*128x32x256_bf16_accumulate",
        "*gemm_bf16_128x64x64_bf16_nn",
        "nvfp4_dequantize",
        "nvfp4_repack",
        "*mxf4_*by_sizes",
        "*mxf8_128x128x128_mxf8_by_indices",
        "*bf16_128x128x64_f32_batched",
        "*w4a16_bf16_64x16x512",
        "*w4a16_bf16_64x16x512_masked",
    ):
        assert not build(Request(out, ("sm_100a",), only), say=lambda line: None).failures
    return out


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command line chooses cubins for the whole process."""
    yield
    cute_kernels.set_cubins(None)


def run(*arguments: str) -> int:
    return main(list(arguments))


@pytest.mark.parametrize(
    "problem",
    [GEMM, (*GEMM, "--accumulate"), BF16, EINSUM, GROUPED, MXFP8_GROUPS, DEQUANTIZE, REPACK, W4A16, EXPERTS],
)
def test_verify_tries_every_schedule(
    built: Path, capsys: pytest.CaptureFixture[str], problem: tuple[str, ...]
) -> None:
    assert run("verify", *problem, "--cubins", str(built), "--seeds", "2") == 0
    said = capsys.readouterr().out
    for place in ("eager", "lazy", "random 0", "random 1"):
        assert re.search(rf"emulated sm_100a, {place} +\S+ +none +\S+ +ok$", said, re.M), said
    assert "4 of 4 runs are right" in said


def test_run_reports_one(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", *GEMM, "--device", "emulator", "--schedule", "lazy", "--cubins", str(built)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^gemm_nt mxf4 +130 x 72 x 288, bf16 +emulated sm_100a, lazy +\S+ +none", said, re.M)


def test_verify_names_a_fault_and_its_line(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "sm100_gemm_mxf4_128x32x256_bf16"
    broken = changed(built, tmp_path / "broken", name, "tcgen05.wait::ld.sync.aligned;", "")
    assert run("verify", *GEMM, "--cubins", str(broken), "--seeds", "1") == 1
    said = capsys.readouterr().out
    assert re.search(r"lazy +found +\S+ +FAULT$", said, re.M), said
    assert re.search(r"warp \d+.*\| (sm100|cute_kernels)/\S+\.py:\d+ \|", said), said
    assert "runs failed" in said


def test_verify_finds_a_wrong_result(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = changed(built, tmp_path / "broken", "sm80_nvfp4_dequantize", "mul.f32", "add.f32")
    assert run("verify", *DEQUANTIZE, "--cubins", str(broken), "--seeds", "1") == 1
    said = capsys.readouterr().out
    assert said.count("WRONG") == 3
    assert "3 of 3 runs failed" in said


def test_explain_ranks_the_configurations(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", *GEMM, "--cubins", str(built)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +sm100_gemm_mxf4_128x32x256_bf16 .* chosen", said, re.M), said
    assert "128x32x256_bf16_accumulate: accumulate is True" in said
    assert run("explain", "--op", "gemm_nt", *GEMM[1:], "--cubins", str(built)) == 0
    assert capsys.readouterr().out == said
    assert run("explain", *GROUPED, "--cubins", str(built)) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"3 groups by sizes, M=40 .*\n +sm100_gemm_mxf4_128x32x256_bf16_swap_ab_by_sizes .* chosen .*\n"
        r" +sm100_gemm_mxf4_128x128x256_bf16_by_sizes .* \+\d+ %",
        said,
    ), said
    assert run("explain", *EINSUM, "--cubins", str(built)) == 0
    said = capsys.readouterr().out
    assert re.search(r"5 batches of 2 x M=20 .*\n +sm100_gemm_bf16_128x128x64_f32_batched .* chosen", said), (
        said
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("sm100.gemm_blockscaled", "--m", "1", "--k", "32"), "n is missing"),
        ((*GROUPED, "--d-dtype", "f32"), "groups are of products to a BF16 or MXFP8 D"),
        ((*GROUPED, "--groups", "-1"), "there are -1 groups"),
        (("sm100.other", "--m", "1", "--k", "32"), "the kernel is 'sm100.other'; there are"),
        ((*GEMM[:-1], "48"), "a multiple of 32"),
        ((*GEMM, "--arch", "sm_80"), "has no kernel for sm_80"),
        ((*GEMM, "--d-dtype", "f32"), "no kernel in .* serves this call"),
    ],
)
def test_what_cannot_run_is_refused(
    built: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert run("run", *arguments, "--device", "emulator", "--cubins", str(built)) == 1
    said = capsys.readouterr()
    assert re.search(reason, said.err), said.err
    assert said.out == ""


def test_example_of_the_readme(built: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    program = (
        f"import cute_kernels\ncute_kernels.set_cubins({str(built)!r})\n{program}\nprint(tuple(d.shape))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout == "(300, 200)\n", result.stderr


def test_a_reader_that_has_seen_enough() -> None:
    """As `... list | head` does: the pipe is closed before what is printed."""
    command = [sys.executable, "-m", "cute_kernels", "list", "--arch", "sm_100a"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
