"""Trials: a problem run at a place, and what came of it. What `run` and `verify` do, and the demo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cute_kernels import runtime, table
from cute_kernels.emulator import EmulationError, PtxError
from cute_kernels.trial_problems import Outcome, Problem


@dataclass(frozen=True)
class Place:
    """Where a trial runs: on CUDA device 0, or on the emulator (arch not None)."""

    arch: str | None = None
    schedule: str = "random"
    seed: int = 0
    num_sms: int = 8

    def __str__(self) -> str:
        if self.arch is None:
            return torch.cuda.get_device_name()
        return f"emulated {self.arch}, {self.schedule}" + (
            f" {self.seed}" if self.schedule == "random" else ""
        )

    @property
    def device(self) -> str:
        return "cpu" if self.arch else "cuda"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, operations on tensors of `device` run there."""
        if self.arch is None:
            yield
        else:
            with runtime.emulate(self.arch, schedule=self.schedule, seed=self.seed, num_sms=self.num_sms):
                yield


@dataclass(frozen=True)
class Trial:
    """One run: outcome None where the emulator found a fault, which `hazard` then describes."""

    problem: Problem
    place: Place
    outcome: Outcome | None
    hazard: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.outcome is not None and self.outcome.right and self.outcome.contained

    @property
    def verdict(self) -> str:
        if self.outcome is None:
            return "FAULT"
        if not self.outcome.right:
            return "WRONG"
        return "ok" if self.outcome.contained else "WROTE OUTSIDE D"


def places(arch: str, seeds: int, num_sms: int = 8) -> list[tuple[Place, int]]:
    """Every schedule of the emulator, the random one under `seeds` seeds; each with a seed for operands."""
    drawn = [(Place(arch, "random", seed, num_sms), seed) for seed in range(seeds)]
    return [(Place(arch, "eager", 0, num_sms), 0), (Place(arch, "lazy", 0, num_sms), 0), *drawn]


def gpu_has(kernel: str) -> bool:
    """Whether torch sees a GPU that the cubins in use have a kernel family for; its package may go before."""
    if not torch.cuda.is_available():
        return False
    archs = runtime.backend_for(torch.device("cuda", torch.cuda.current_device())).archs
    return bool(runtime.library().find(kernel.rpartition(".")[2], archs))


def attempt(problem: Problem, place: Place, operand_seed: int = 0) -> Trial:
    """Run a problem once. Raises what the operation raises for arguments that it does not support."""
    run, judge = problem.prepare(place.device, operand_seed)
    start = time.perf_counter()
    try:
        with place.active():
            run()
            if place.arch is None:
                torch.cuda.synchronize()
    except (EmulationError, PtxError) as fault:
        return Trial(problem, place, None, str(fault), time.perf_counter() - start)
    return Trial(problem, place, judge(), "", time.perf_counter() - start)


def render(trials: Sequence[Trial]) -> str:
    """A table of trials. Hazards are what the emulator looks for; a GPU does not say."""
    header = ["operation", "shape", "device", "error", "hazards", "seconds", ""]
    return table.render(header, [cells(trial) for trial in trials])


def cells(trial: Trial) -> list[object]:
    """One trial's row."""
    hazards = "not checked" if trial.place.arch is None else "found" if trial.hazard else "none"
    return [
        trial.problem.operation,
        str(trial.problem),
        str(trial.place),
        f"{trial.outcome.error:.1e}" if trial.outcome else "",
        hazards,
        f"{trial.seconds:.2f}",
        trial.verdict,
    ]
