"""What a suite of measurements is, and running one: results as the JSON that `compare` and `report` read.

A suite plugs in as a module of perf.suites with two functions: `cases(selection) -> Iterator[Case]` gives the cases
selected, one at a time, so that one's tensors go before the next's come; `kernels() -> list[dict]` says what ran.
A third, `ceilings(rounds) -> dict[str, float]`, adds to what is measured of the GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from perf import suites, timing

FORMAT = 1
Result = dict[str, Any]
MODES = ("cold", "warm")


@dataclass(frozen=True)
class Selection:
    """Which cases of a suite to measure.

    l2_bytes: of the GPU. only: that names must hold. shapes: N x K as "4096x14336", and m: rows of activations; of
    suites that have such, all if empty. peers_only: leave out what is ours; ours_only: leave out peers that compute
    the same.
    notes: what was left out, and why; the suite adds to it.
    """

    l2_bytes: int
    only: str = ""
    shapes: tuple[str, ...] = ()
    m: tuple[int, ...] = ()
    peers_only: bool = False
    ours_only: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One problem.

    name: unique in the suite. ours, contenders: what is measured, and its peers, by name: the same launch on sets of
        tensors with the same sizes; `timing.sets_for` says how many.
    check: runs ours and returns "" where the result is right, else what is wrong.
    moved_bytes: that the problem must read and write. flops: that it must compute; 0: none to speak of.
    bandwidth, rate: which ceilings its bytes and its operations are held against.
    floors: contenders that do only a part of the work, so that ours cannot be faster.
    peer_checks: what check is for ours, for peers by name; a wrong one is not timed.
    launches: that a graph holds at least.
    timer: what is measured, time on the GPU or CPU time of the calls. The latter needs no moved_bytes.
    """

    name: str
    ours: str
    contenders: Mapping[str, Sequence[timing.Action]]
    check: Callable[[], str]
    moved_bytes: int
    flops: int = 0
    bandwidth: Literal["read", "copy"] = "read"
    rate: Literal["matmul", "mma_sync"] = "matmul"
    floors: tuple[str, ...] = ()
    peer_checks: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    launches: int = timing.LAUNCHES
    timer: Literal["graph", "host"] = "graph"

    def __post_init__(self) -> None:
        assert self.contenders, f"case {self.name} has no contenders"
        assert self.moved_bytes > 0 or self.timer == "host", f"case {self.name} moves nothing"
        strangers = {*self.peer_checks, *self.floors} - self.contenders.keys()
        assert not strangers, f"case {self.name}: {strangers} are not among the contenders"


def names() -> list[str]:
    """All suites."""
    return sorted(module.name for module in pkgutil.iter_modules(suites.__path__))


def run(
    name: str, modes: Sequence[str], rounds: int, selection: Selection, log: Callable[[str], None]
) -> Iterator[Result]:
    """Measure a suite on the current CUDA device; yield the measurement so far after each result.

    modes: "cold": each launch finds its tensors out of L2; "warm": launches repeat on the same tensors, for cases
        that L2 holds.
    """
    suite = importlib.import_module(f"perf.suites.{name}")
    where = timing.environment()
    log(", ".join(f"{key} {value}" for key, value in where.items()))
    ceilings = timing.ceilings(rounds)
    if hasattr(suite, "ceilings"):
        ceilings |= suite.ceilings(rounds)
    torch.cuda.empty_cache()
    log(", ".join(f"{key} {value}" for key, value in ceilings.items()))
    results: list[Result] = []
    measured = {
        "format": FORMAT,
        "suite": name,
        "environment": where,
        "protocol": {
            "timer": "graph replay between events, contenders in turns, median and quartiles of the rounds",
            "host": f"CPU time of the calling thread, mean of {timing.HOST_CALLS} calls, contenders in turns likewise",
            "rounds": rounds,
            "cold": f"sets of tensors in turns, together at least {timing.COLD_FACTOR} times L2",
        },
        "ceilings": ceilings,
        "kernels": suite.kernels(),
        "notes": selection.notes,
        "results": results,
    }
    cases: Iterator[Case] = suite.cases(selection)
    for case in cases:
        for row in measure(case, modes_of(case, modes, selection.l2_bytes), rounds):
            results.append(row)
            log(line(row))
            yield measured
        del case
        torch.cuda.empty_cache()
    for note in selection.notes:
        log(note)


def modes_of(case: Case, modes: Sequence[str], l2_bytes: int) -> list[str]:
    """The modes that a case is measured in."""
    if case.timer == "host":
        return ["host"]
    return [mode for mode in modes if mode == "cold" or case.moved_bytes <= l2_bytes]


def measure(case: Case, modes: Sequence[str], rounds: int) -> Iterator[Result]:
    """Check and time one case; a wrong one has no times, and a wrong peer none either."""
    wrong = case.check()
    wrong_peers = {name: said for name, check in case.peer_checks.items() if (said := check())}
    right = {name: actions for name, actions in case.contenders.items() if name not in wrong_peers}
    for mode in modes:
        times = {}
        if not wrong and mode == "host":
            times = timing.on_host(right, rounds)
        elif not wrong:
            chosen = {n: a if mode == "cold" else a[:1] for n, a in right.items()}
            times = timing.interleaved(chosen, rounds, case.launches)
        yield {
            "case": case.name,
            "mode": mode,
            "ours": case.ours,
            "wrong": wrong,
            "wrong_peers": wrong_peers,
            "moved_bytes": case.moved_bytes,
            "flops": case.flops,
            "bandwidth": case.bandwidth,
            "rate": case.rate,
            "floors": list(case.floors),
            "times_us": {n: {k: round(v, 3) for k, v in t._asdict().items()} for n, t in times.items()},
        }


def line(row: Result) -> str:
    """One result for the log."""
    if row["wrong"]:
        return f"{row['case']} {row['mode']}: WRONG: {row['wrong']}"
    times = ", ".join(f"{name} {t['median']:.2f} us" for name, t in row["times_us"].items())
    wrong = "".join(f"; {name} WRONG: {said}" for name, said in row["wrong_peers"].items())
    return f"{row['case']} {row['mode']}: {times}{wrong}"
