"""Comparing measurements, running the harness without a GPU, and reports."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perf import __main__ as command
from perf import suite, timing
from perf.compare import CompareError, compare
from perf.report import broken_at, floor_us, markdown, ratios, roofline, write

BASELINES = Path(__file__).parents[2] / "perf" / "baselines"


def times(median: float, spread: float = 0.01) -> dict[str, float]:
    return {"median": median, "low": median * (1 - spread / 2), "high": median * (1 + spread / 2)}


def measured(
    ours: float = 100.0, peer: float = 200.0, spread: float = 0.01, flops: int = 0
) -> dict[str, Any]:
    row = {
        "case": "1 x 2",
        "mode": "cold",
        "ours": "kernel",
        "wrong": "",
        "moved_bytes": 2 * 10**8,
        "flops": flops,
        "bandwidth": "read",
        "times_us": {"kernel": times(ours, spread), "peer": times(peer, spread)},
    }
    return {
        "format": 1,
        "suite": "a_suite",
        "environment": {"gpu": "a GPU"},
        "protocol": {},
        "ceilings": {"read_tb_s": 4.0, "copy_tb_s": 3.0, "matmul_tflop_s": 500.0},
        "kernels": [],
        "results": [row],
    }


@pytest.mark.parametrize(
    ("after", "spread", "slower"),
    [
        (101.9, 0.001, False),  # within the floor of 2 %
        (102.1, 0.001, True),
        (107.9, 0.04, False),  # within both spreads together
        (108.1, 0.04, True),
        (50.0, 0.001, False),
    ],
)
def test_slower_beyond_the_noise(after: float, spread: float, slower: bool) -> None:
    text, bad = compare(measured(100.0, spread=spread), measured(after, spread=spread))
    assert bool(bad) == slower
    assert ("SLOWER" in text) == slower
    assert ("faster" in text) == (after == 50.0)


def test_relative_to_a_peer_a_slower_machine_does_not_count() -> None:
    before, after = measured(100.0, 200.0), measured(110.0, 220.0)
    assert compare(before, after)[1]
    assert not compare(before, after, relative_to="peer")[1]
    assert compare(before, measured(100.0, 180.0), relative_to="peer")[1]
    with pytest.raises(CompareError, match="no contender 'nobody'"):
        compare(before, after, relative_to="nobody")


def test_a_wrong_result_fails_however_fast() -> None:
    after = measured(1.0)
    after["results"][0].update(wrong="3 elements differ", times_us={})
    assert compare(measured(), after)[1] == ["1 x 2 cold: wrong: 3 elements differ"]


def test_cases_that_one_side_lacks_are_shown() -> None:
    after = measured()
    after["results"][0]["mode"] = "warm"
    text, bad = compare(measured(), after)
    assert not bad
    assert "new" in text
    assert "not measured now" in text


@pytest.mark.parametrize("what", ["suite", "gpu"])
def test_unlike_measurements_are_refused(what: str) -> None:
    other = measured()
    if what == "suite":
        other["suite"] = "another"
    else:
        other["environment"]["gpu"] = "another"
    with pytest.raises(CompareError, match="are not compared"):
        compare(measured(), other)


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("before.json", "same.json", "slow.json", "junk.json")]
    for path, content in zip(paths, [measured(), measured(), measured(120.0), []], strict=True):
        path.write_text(json.dumps(content))
    assert [command.main(["compare", str(paths[0]), str(path)]) for path in paths[1:]] == [0, 1, 2]
    assert "no measurement" in capsys.readouterr().err


def test_the_ceiling_is_the_slower_of_bytes_and_operations() -> None:
    ceilings = measured()["ceilings"]
    row = measured()["results"][0]
    assert floor_us(row, ceilings) == pytest.approx(50.0)
    assert floor_us({**row, "bandwidth": "copy"}, ceilings) == pytest.approx(200 / 3)
    assert floor_us({**row, "flops": 5 * 10**10}, ceilings) == pytest.approx(100.0)
    by_mma_sync = {**row, "flops": 5 * 10**10, "rate": "mma_sync"}
    assert floor_us(by_mma_sync, {**ceilings, "mma_sync_tflop_s": 400.0}) == pytest.approx(125.0)


def test_the_table_has_rates_and_ratios() -> None:
    assert "| 1 x 2 | cold | 100.00 | 99.50 .. 100.50 | 2.000 | 100.0 | 50.0% | 200.00 | 2.00 |" in markdown(
        measured(flops=10**10)
    )


@pytest.mark.parametrize("flops", [0, 10**10])
def test_report_writes_a_table_and_plots(tmp_path: Path, flops: int) -> None:
    pytest.importorskip("matplotlib")
    source = tmp_path / "a.json"
    source.write_text(json.dumps(measured(flops=flops)))
    assert command.main(["report", str(source), "--out", str(tmp_path / "out")]) == 0
    images = sorted((tmp_path / "out").glob("*.png"))
    assert [image.stem.split("_")[-1] for image in images] == ["peers", "roofline"]
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
    (table,) = (tmp_path / "out").glob("*.md")
    assert all(image.name in table.read_text() for image in images)


def test_what_computes_nothing_is_a_bound_of_ours_and_has_no_rate() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    content = measured(flops=10**10)
    content["results"][0].update(floors=["peer"])
    figure, (left, right) = pyplot.subplots(ncols=2)
    roofline(left, content)
    ratios(right, content)
    assert [text.get_text() for text in left.get_legend().get_texts()][1:] == ["kernel, cold"]
    assert {line.get_label(): line.get_linestyle() for line in right.get_lines()}["to peer"] == ":"
    pyplot.close(figure)


def test_lines_of_two_weights_are_not_joined() -> None:
    rows = [{"case": f"{weight} M={m}"} for weight in ("1x2", "3x4") for m in (1, 2)]
    assert [broken_at(place, rows) for place in range(4)] == [[0], [1], [1.5, 2], [3]]
    assert [broken_at(place, [{"case": "1 x 2"}, {"case": "3 x 4"}]) for place in range(2)] == [[0], [1]]


def test_a_report_of_wrong_results_alone_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    content = measured()
    content["results"][0].update(wrong="all of it", times_us={})
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert command.main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path)]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_committed_baselines_can_be_compared() -> None:
    paths = [path for path in BASELINES.glob("*.json") if path.name != "static.json"]
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        assert content["suite"] in suite.names()
        assert compare(content, copy.deepcopy(content))[1] == []


def test_a_wrong_case_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timing,
        "interleaved",
        lambda contenders, rounds, launches: {n: timing.Times(1, 1, 1) for n in contenders},
    )
    right = suite.Case("a", "kernel", {"kernel": [int, int]}, lambda: "", moved_bytes=1)
    wrong = suite.Case("b", "kernel", {"kernel": [int, int]}, lambda: "2 differ", moved_bytes=1)
    assert [row["times_us"] for row in suite.measure(right, suite.MODES, 2)] == [
        {"kernel": {"median": 1, "low": 1, "high": 1}}
    ] * 2
    assert [(row["wrong"], row["times_us"]) for row in suite.measure(wrong, ["cold"], 2)] == [
        ("2 differ", {})
    ]


def test_a_wrong_peer_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timing, "on_host", lambda contenders, rounds: {n: timing.Times(1, 1, 1) for n in contenders}
    )
    case = suite.Case(
        "a",
        "kernel",
        {"kernel": [int], "good": [int], "bad": [int]},
        str,
        moved_bytes=0,
        peer_checks={"good": str, "bad": lambda: "7 differ"},
        timer="host",
    )
    (row,) = suite.measure(case, suite.modes_of(case, suite.MODES, 100), 2)
    assert row["mode"] == "host"
    assert list(row["times_us"]) == ["kernel", "good"]
    assert row["wrong_peers"] == {"bad": "7 differ"}
    assert "bad WRONG: 7 differ" in suite.line(row)


def test_what_l2_cannot_hold_is_not_measured_warm() -> None:
    case = suite.Case("a", "kernel", {"kernel": [int]}, str, moved_bytes=101)
    assert suite.modes_of(case, suite.MODES, 100) == ["cold"]
    assert suite.modes_of(case, suite.MODES, 101) == ["cold", "warm"]


def test_measurements_of_peers_alone_are_shown_and_not_compared(tmp_path: Path) -> None:
    alone = measured(flops=10**10)
    del alone["results"][0]["times_us"]["kernel"]
    for before, after in ((alone, measured()), (measured(), alone), (alone, alone)):
        assert compare(before, after)[1] == []
    assert "peers alone" in compare(measured(), alone)[0]
    assert "| 1 x 2 | cold | - | - | - | - | - | 200.00 | - |" in markdown(alone)
    pytest.importorskip("matplotlib")
    assert [path.suffix for path in write(alone, tmp_path)] == [".md", ".png"]


def test_host_costs_have_ratios_and_no_roofline(tmp_path: Path) -> None:
    content = measured_host(5.0)
    assert compare(content, measured_host(6.0))[1] == ["1 x 2 host: +20.0%, beyond the noise of 2.0%"]
    assert "| 1 x 2 | host | 5.00 | 4.97 .. 5.02 | - | - | - | 10.00 | 2.00 |" in markdown(content)
    pytest.importorskip("matplotlib")
    assert [path.stem.split("_")[-1] for path in write(content, tmp_path)[1:]] == ["peers"]


def measured_host(ours: float) -> dict[str, Any]:
    content = measured(ours, 10.0)
    content["results"][0].update(mode="host", moved_bytes=0)
    return content


def test_cold_sets_exceed_l2() -> None:
    for nbytes in (1, 1000, 10**6, 10**9):
        sets = timing.sets_for(nbytes, 60_000_000)
        assert sets >= 2
        assert sets == 2 or 180_000_000 <= sets * nbytes < 180_000_000 + nbytes


def test_a_run_that_is_cut_short_leaves_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(name: str, modes: Any, rounds: int, selection: suite.Selection, log: Any) -> Any:
        assert selection.l2_bytes == 7 and selection.m == (3,)
        yield measured()
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", cut_short)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(L2_cache_size=7))
    path = tmp_path / "new" / "now.json"
    with pytest.raises(KeyboardInterrupt):
        command.main(["run", "--suite", "sm80", "--m", "3", "--json", str(path)])
    assert json.loads(path.read_text()) == measured()


def test_run_without_suite_or_gpu_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["run", "--suite", "nonsense"]) == 2
    assert "nvfp4_dequantize" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main(["run", "--suite", "nvfp4_dequantize"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
