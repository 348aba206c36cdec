"""A measurement as a markdown table and plots: times against the ceilings (roofline) and against the peers."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perf.suite import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e")


class ReportError(RuntimeError):
    """A report that cannot be drawn."""


def floor_us(row: dict[str, Any], ceilings: dict[str, float]) -> float:
    """The time that the ceilings of the same run allow: of the bytes or of the operations, whichever is longer."""
    memory = row["moved_bytes"] / ceilings[f"{row['bandwidth']}_tb_s"] / 1e6
    return max(memory, row["flops"] / ceilings[f"{rate(row)}_tflop_s"] / 1e6)


def rate(row: dict[str, Any]) -> str:
    """The ceiling of the operations; measurements from before there was a choice were held against cuBLAS."""
    return str(row.get("rate", "matmul"))


def right(measured: Result) -> list[dict[str, Any]]:
    """Rows that have times."""
    return [row for row in measured["results"] if not row["wrong"]]


def on_gpu(measured: Result) -> list[dict[str, Any]]:
    """Rows of times on the GPU."""
    return [row for row in right(measured) if row["mode"] != "host"]


def with_ours(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are not of peers alone."""
    return [row for row in rows if row["ours"] in row["times_us"]]


def markdown(measured: Result) -> str:
    """Environment, ceilings, and a table with a row for each case and mode.

    "of the ceiling": the time that the run's own ceilings allow over ours; "x PEER": the peer's time over ours.
    """
    peers = list(dict.fromkeys(n for row in right(measured) for n in row["times_us"] if n != row["ours"]))
    header = ["case", "mode", "us", "quartiles", "TB/s", "TFLOP/s", "of the ceiling"]
    header += [title for peer in peers for title in (f"{peer} us", f"x {peer}")]
    out = [f"# {measured['suite']} on {measured['environment']['gpu']}", ""]
    for part in ("environment", "ceilings", "protocol"):
        out += [f"- {key}: {value}" for key, value in measured[part].items()]
    out += [f"- {text}" for text in measured.get("notes", ())]
    out += ["", f"| {' | '.join(header)} |", f"| --- | --- |{' --: |' * (len(header) - 2)}"]
    for row in measured["results"]:
        if row["wrong"]:
            out.append(f"| {row['case']} | {row['mode']} | wrong: {row['wrong']} |{' |' * (len(header) - 3)}")
            continue
        cells = [row["case"], row["mode"], *own_cells(row, measured["ceilings"])]
        for peer in peers:
            cells += peer_cells(row, peer)
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def own_cells(row: dict[str, Any], ceilings: dict[str, float]) -> list[str]:
    """Our time and quartiles, bandwidth, rate, share of the ceiling; "-" for what there is not."""
    if not with_ours([row]):
        return ["-"] * 5
    ours = row["times_us"][row["ours"]]
    us = ours["median"]
    return [
        f"{us:.2f}",
        f"{ours['low']:.2f} .. {ours['high']:.2f}",
        f"{row['moved_bytes'] / us / 1e6:.3f}" if row["moved_bytes"] else "-",
        f"{row['flops'] / us / 1e6:.1f}" if row["flops"] else "-",
        f"{floor_us(row, ceilings) / us:.1%}" if row["moved_bytes"] else "-",
    ]


def peer_cells(row: dict[str, Any], peer: str) -> list[str]:
    """A peer's time, and how many times as long as ours it is."""
    if peer not in row["times_us"]:
        return ["wrong" if peer in row.get("wrong_peers", {}) else "-", "-"]
    us = row["times_us"][peer]["median"]
    ratio = f"{us / row['times_us'][row['ours']]['median']:.2f}" if with_ours([row]) else "-"
    return [f"{us:.2f}", ratio]


def write(measured: Result, folder: Path) -> list[Path]:
    """Write the table and the plots; return their paths.

    Raises ReportError where matplotlib is missing or nothing was measured.
    """
    try:
        import matplotlib
    except ImportError:
        raise ReportError("plots need matplotlib: pip install -e '.[perf]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not right(measured):
        raise ReportError("no case has a right result, so there is nothing to draw")
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{measured['suite']}_{measured['environment']['gpu'].replace(' ', '_')}"
    paths = [folder / f"{stem}.md"]
    text = markdown(measured)
    width = max(9.0, 0.2 * len(measured["results"]))
    plots: list[tuple[str, Callable[[Axes, Result], None]]] = []
    if on_gpu(measured):
        plots.append(("roofline", roofline))
    if with_ours(right(measured)):
        plots.append(("peers", ratios))
    for kind, draw in plots:
        figure, axes = pyplot.subplots(figsize=(width, 5.5), layout="constrained")
        draw(axes, measured)
        axes.set_title(f"{measured['suite']}, {measured['environment']['gpu']}")
        paths.append(folder / f"{stem}_{kind}.png")
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
        text += f"\n![{kind}]({paths[-1].name})\n"
    paths[0].write_text(text)
    return paths


def roofline(axes: Axes, measured: Result) -> None:
    """Rate over arithmetic intensity; for suites that compute nothing, bandwidth over bytes."""
    ceilings, rows = measured["ceilings"], on_gpu(measured)
    computes = any(row["flops"] for row in rows)
    points: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        computed = {n: t for n, t in row["times_us"].items() if n not in row.get("floors", ())}
        for name, times in computed.items():
            x, y = points.setdefault(f"{name}, {row['mode']}", ([], []))
            work = row["flops"] if computes else row["moved_bytes"]
            x.append(row["flops"] / row["moved_bytes"] if computes else row["moved_bytes"] / 1e6)
            y.append(work / times["median"] / 1e6)
    low = min(x for xs, _ in points.values() for x in xs) / 2
    high = max(x for xs, _ in points.values() for x in xs) * 2
    bandwidth = ceilings[f"{rows[0]['bandwidth']}_tb_s"]
    if computes:
        peak = ceilings[f"{rate(rows[0])}_tflop_s"]
        ridge = peak / bandwidth
        xs = sorted({low, min(max(low, ridge), high), high})
        axes.plot(
            xs,
            [min(peak, bandwidth * x) for x in xs],
            color="black",
            label=f"read bandwidth, {rate(rows[0])}",
        )
        axes.set_yscale("log")
        axes.set_xlabel("FLOP per byte that must move")
        axes.set_ylabel("TFLOP/s")
    else:
        axes.axhline(bandwidth, color="black", label=f"{rows[0]['bandwidth']} bandwidth")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("MB that must move")
        axes.set_ylabel("TB/s")
    for index, (label, (x, y)) in enumerate(points.items()):
        axes.scatter(
            x, y, s=24, label=label, color=COLOURS[index % len(COLOURS)], marker="os^Dv<>"[index // 5 % 7]
        )
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend()


def ratios(axes: Axes, measured: Result) -> None:
    """How many times ours is as fast as each peer, and which share of the ceiling it reaches; cold cases."""
    rows = with_ours(right(measured))
    rows = [row for row in rows if row["mode"] == "cold"] or rows
    series: dict[str, dict[float, float]] = {}
    for place, row in enumerate(rows):
        us = row["times_us"][row["ours"]]["median"]
        if row["moved_bytes"]:
            series.setdefault("ceiling", {})[place] = floor_us(row, measured["ceilings"]) / us
        for name, times in row["times_us"].items():
            if name != row["ours"]:
                series.setdefault(name, {})[place] = times["median"] / us
    floors = {"ceiling", *(name for row in rows for name in row.get("floors", ()))}
    for index, (name, values) in enumerate(series.items()):
        places = [place for at in values for place in broken_at(int(at), rows)]
        axes.plot(
            places,
            [values.get(place, nan) for place in places],
            marker="o",
            markersize=4,
            linestyle=":" if name in floors else "-",
            color=COLOURS[index % len(COLOURS)],
            label=f"to {name}",
        )
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=60, ha="right", fontsize=7)
    highest = max([1.0, *(value for values in series.values() for value in values.values())])
    axes.set_ylim(0, 1.15 * highest)  # leaves room for the legend
    axes.set_ylabel("its time over ours: above 1, ours is faster")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", ncols=len(series))


def broken_at(place: int, rows: list[dict[str, Any]]) -> list[float]:
    """A place of a line, after one without value where another weight begins."""
    weights = [row["case"].partition(" M=")[0] if " M=" in row["case"] else "" for row in rows]
    return [place - 0.5, place] if place and weights[place] != weights[place - 1] else [place]
