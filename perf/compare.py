"""Two measurements of a suite: what got slower beyond the noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cute_kernels import table
from perf.suite import FORMAT, Result

FLOOR = 0.02  # a change below it is noise, however quiet the measurements were


class CompareError(ValueError):
    """Two files that cannot be compared, or one that holds no measurement."""


def read(path: Path) -> Result:
    """A file that `python -m perf run --json` wrote."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CompareError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "results" not in content:
        raise CompareError(
            f"{path} is no measurement of format {FORMAT}; `python -m perf run --json` writes one"
        )
    return content


def spread(times: dict[str, float]) -> float:
    """Distance of the quartiles over the median."""
    return (times["high"] - times["low"]) / times["median"]


def threshold(before: dict[str, float], after: dict[str, float], floor: float) -> float:
    """The change of the median that is noise: both spreads together, or the floor."""
    return max(floor, spread(before) + spread(after))


def compare(
    old: Result, new: Result, floor: float = FLOOR, relative_to: str | None = None
) -> tuple[str, list[str]]:
    """A table of all cases that both measured, and what is wrong in the new one: slower cases, and wrong results.

    A case is slower when its median grew by more than `threshold`; its peers' times only stand for the state of the
    machine, and measurements of peers alone are not compared. relative_to: hold not times against each other but
    their ratios to this contender's, measured in turns with them: so a machine that runs slower as a whole does not
    count.

    Raises CompareError for two suites, or two GPUs.
    """
    for what, a, b in (
        ("suites", old["suite"], new["suite"]),
        ("GPUs", old["environment"]["gpu"], new["environment"]["gpu"]),
    ):
        if a != b:
            raise CompareError(f"measurements of two {what} are not compared: {a} and {b}")
    before = {(row["case"], row["mode"]): row for row in old["results"]}
    bad: list[str] = []
    rows: list[list[Any]] = []
    for row in new["results"]:
        label = f"{row['case']} {row['mode']}"
        if row["wrong"]:
            bad.append(f"{label}: wrong: {row['wrong']}")
            continue
        past = before.pop((row["case"], row["mode"]), None)
        if row["ours"] not in row["times_us"]:
            rows.append([row["case"], row["mode"], "-", "-", "-", "-", "peers alone"])
            continue
        if past is None or past["ours"] not in past["times_us"]:
            rows.append(
                [row["case"], row["mode"], "-", row["times_us"][row["ours"]]["median"], "-", "-", "new"]
            )
            continue
        a, b = past["times_us"][past["ours"]], row["times_us"][row["ours"]]
        limit, ratio = threshold(a, b, floor), b["median"] / a["median"]
        if relative_to is not None:
            if relative_to not in past["times_us"] or relative_to not in row["times_us"]:
                raise CompareError(f"{label} has no contender '{relative_to}': {', '.join(row['times_us'])}")
            c, d = past["times_us"][relative_to], row["times_us"][relative_to]
            limit, ratio = max(limit, threshold(c, d, floor)), ratio * c["median"] / d["median"]
        verdict = "SLOWER" if ratio > 1 + limit else "faster" if ratio < 1 / (1 + limit) else ""
        if verdict == "SLOWER":
            bad.append(f"{label}: {ratio - 1:+.1%}, beyond the noise of {limit:.1%}")
        rows.append(
            [row["case"], row["mode"], a["median"], b["median"], f"{ratio - 1:+.1%}", f"{limit:.1%}", verdict]
        )
    rows += [[case, mode, "-", "-", "-", "-", "not measured now"] for case, mode in before]
    header = ("case", "mode", "before us", "now us", "change", "noise", "")
    return table.render(header, rows), bad
