"""What a suite of measurements is, and running one: results as the JSON that `compare` and `report` read.

A suite plugs in as a module of perf.suites with two functions: `cases(l2_bytes, only) -> Iterator[Case]` gives the
cases whose names hold `only`, one at a time, so that one's tensors go before the next's come; `kernels() ->
list[dict]` says what ran.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from perf import suites, timing

FORMAT = 1
Result = dict[str, Any]
MODES = ("cold", "warm")


@dataclass(frozen=True)
class Case:
    """One problem.

    name: unique in the suite. ours, contenders: what is measured, and its peers, by name: the same launch on sets of
        tensors with the same sizes; `timing.sets_for` says how many.
    check: runs ours and returns "" where the result is right, else what is wrong.
    moved_bytes: that the problem must read and write. flops: that it must compute; 0: none to speak of.
    bandwidth: which ceiling its bytes are held against.
    """

    name: str
    ours: str
    contenders: Mapping[str, Sequence[timing.Action]]
    check: Callable[[], str]
    moved_bytes: int
    flops: int = 0
    bandwidth: Literal["read", "copy"] = "read"

    def __post_init__(self) -> None:
        assert self.ours in self.contenders, f"case {self.name}: '{self.ours}' is not among the contenders"
        assert self.moved_bytes > 0, f"case {self.name} moves nothing"


def names() -> list[str]:
    """All suites."""
    return sorted(module.name for module in pkgutil.iter_modules(suites.__path__))


def run(name: str, modes: Sequence[str], rounds: int, only: str, log: Callable[[str], None]) -> Result:
    """Measure a suite on the current CUDA device.

    modes: "cold": each launch finds its tensors out of L2; "warm": launches repeat on the same tensors, for cases
        that L2 holds.
    only: measure the cases whose names hold it.
    """
    suite = importlib.import_module(f"perf.suites.{name}")
    where = timing.environment()
    log(", ".join(f"{key} {value}" for key, value in where.items()))
    ceilings = timing.ceilings(rounds)
    torch.cuda.empty_cache()
    log(", ".join(f"{key} {value}" for key, value in ceilings.items()))
    results: list[Result] = []
    cases: Iterator[Case] = suite.cases(int(where["l2_bytes"]), only)
    for case in cases:
        fits = case.moved_bytes <= int(where["l2_bytes"])
        for row in measure(case, [mode for mode in modes if mode == "cold" or fits], rounds):
            results.append(row)
            log(line(row))
        del case
        torch.cuda.empty_cache()
    return {
        "format": FORMAT,
        "suite": name,
        "environment": where,
        "protocol": {
            "timer": "graph replay between events, contenders in turns, median and quartiles of the rounds",
            "rounds": rounds,
            "cold": f"sets of tensors in turns, together {timing.COLD_FACTOR} times L2",
        },
        "ceilings": ceilings,
        "kernels": suite.kernels(),
        "results": results,
    }


def measure(case: Case, modes: Sequence[str], rounds: int) -> Iterator[Result]:
    """Check and time one case; a wrong one has no times."""
    wrong = case.check()
    for mode in modes:
        times = {}
        if not wrong:
            chosen = {n: a if mode == "cold" else a[:1] for n, a in case.contenders.items()}
            times = timing.interleaved(chosen, rounds)
        yield {
            "case": case.name,
            "mode": mode,
            "ours": case.ours,
            "wrong": wrong,
            "moved_bytes": case.moved_bytes,
            "flops": case.flops,
            "bandwidth": case.bandwidth,
            "times_us": {n: {k: round(v, 3) for k, v in t._asdict().items()} for n, t in times.items()},
        }


def line(row: Result) -> str:
    """One result for the log."""
    if row["wrong"]:
        return f"{row['case']} {row['mode']}: WRONG: {row['wrong']}"
    times = ", ".join(f"{name} {t['median']:.2f} us" for name, t in row["times_us"].items())
    return f"{row['case']} {row['mode']}: {times}"
