"""The sm80 suite without a GPU: its sizes, its options, and the gate before every number."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from perf import __main__ as command
from perf.peers import HUMMING, Humming, UnavailableError
from perf.suite import Selection
from perf.suites import sm80

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def problem() -> sm80.Problem:
    return sm80.draw(48, 80, 5, CPU)


def test_a_weight_takes_four_and_a_half_bits_an_element() -> None:
    assert sm80.packed_bytes(4096, 4096) == 4096 * 4096 * 9 // 16
    assert sm80.packed_bytes(17, 16) == 2 * 1152  # whole units


@pytest.mark.parametrize("shape", sm80.SHAPES)
@pytest.mark.parametrize("bytes_of", [sm80.packed_bytes, lambda n, k: 2 * n * k])
def test_copies_are_cold_and_graphs_hold_50_to_72_calls(
    shape: str, bytes_of: Callable[[int, int], int]
) -> None:
    nbytes = bytes_of(*sm80.extents(shape))
    copies = sm80.copies(nbytes)
    assert copies >= 2 and copies * nbytes >= 335e6
    assert 50 <= copies * -(-sm80.LAUNCHES // copies) <= 72


def test_the_reference_is_the_product_with_the_decoded_weight(problem: sm80.Problem) -> None:
    codes = torch.stack([problem.codes & 15, problem.codes >> 4], dim=-1).flatten(1).long()
    factors = problem.scales.double().repeat_interleave(16, dim=1) * problem.global_scale.double()
    weight = E2M1[codes] * factors
    torch.testing.assert_close(problem.wanted, problem.x.double() @ weight.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(problem.values.double(), weight, rtol=2**-8, atol=0)
    assert len(set(problem.scales.view(torch.uint8).unique().tolist())) > 50


def test_a_rounded_result_passes_and_others_do_not(problem: sm80.Problem) -> None:
    out = torch.empty(problem.wanted.shape, dtype=torch.bfloat16)

    def says(result: torch.Tensor, rows: int = 5) -> str:
        return sm80.verdict(lambda: out[:rows].copy_(result[:rows]), out, problem.wanted, sm80.TOLERANCE)

    assert says(problem.wanted) == ""
    off = problem.wanted.clone()
    off[2, 3] += 0.1 * off.norm() / off.numel() ** 0.5 + 0.02 * off[2, 3].abs()
    assert "1 elements are far off" in says(off)
    assert says(problem.wanted * 1.005).endswith("(at most 2.5e-03), 0 elements are far off")
    assert "nan" in says(problem.wanted, rows=4)  # an output that was not written


def test_what_is_wrong_or_missing_is_left_out(problem: sm80.Problem) -> None:
    def right(x: torch.Tensor, out: torch.Tensor) -> list[Callable[[], object]]:
        return [lambda: torch.mm(x, problem.values.T, out=out)]

    def wrong(x: torch.Tensor, out: torch.Tensor) -> list[Callable[[], object]]:
        return [lambda: torch.mm(x, 1.1 * problem.values.T, out=out)]

    def missing(x: torch.Tensor, out: torch.Tensor) -> list[Callable[[], object]]:
        raise UnavailableError("it does not compile")

    selection = Selection(100)
    by: dict[str, sm80.Maker] = {sm80.OURS: wrong, sm80.CUBLAS: right, HUMMING: missing}
    case = sm80.case_of("48x80", 3, problem, by, selection)
    assert list(case.contenders) == [sm80.OURS, sm80.CUBLAS]
    assert "far off" in case.check()
    assert {name: check() for name, check in case.peer_checks.items()} == {sm80.CUBLAS: ""}
    assert selection.notes == ["48x80 M=3: humming is left out: it does not compile"]
    assert case.flops == 2 * 3 * 48 * 80
    assert case.moved_bytes == 3 * 1152 + 2 * 3 * (48 + 80)

    alone = sm80.case_of("48x80", 5, problem, {sm80.CUBLAS: right}, Selection(100, peers_only=True))
    assert alone.check() == "" and alone.ours not in alone.contenders


def test_a_peer_that_is_not_installed_says_so(problem: sm80.Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "humming.layer", None)
    with pytest.raises(UnavailableError, match=r"humming\.layer"):
        Humming(problem.codes, problem.scales, problem.global_scale, 2, (1, 16))


def test_options_select_shapes_and_rows() -> None:
    given = ["run", "--suite", "sm80", "--shapes", "4096x14336,512x64", "--m", "1,16", "--peers-only"]
    options = command.parser().parse_args(given)
    assert options.shapes == ("4096x14336", "512x64")
    assert options.m == (1, 16)
    assert options.peers_only and not options.ours_only
    assert sm80.extents(options.shapes[0]) == (4096, 14336)


@pytest.mark.parametrize("option", [["--shapes", "4096"], ["--shapes", "0x16"], ["--m", "1,0"], ["--m", "a"]])
def test_options_that_mean_nothing_are_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parser().parse_args(["run", "--suite", "sm80", *option])
    assert "is not" in capsys.readouterr().err
