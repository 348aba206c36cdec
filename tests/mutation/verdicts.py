"""Verdicts over mutants: given by many processes, and kept in a file as they come."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

from cute_kernels.emulator import EmulationError, PtxError
from tests.mutation import texts
from tests.mutation.mutants import Mutant
from tests.mutation.subjects import SUBJECTS, Launch

UNCHANGED = -1


@dataclass(frozen=True, order=True)
class Task:
    """Mutant `index` of a kernel, whose PTX has this SHA-256; or the kernel as it is, UNCHANGED."""

    kernel: str
    sha256: str
    index: int


Verdicts = dict[Task, str]  # how each mutant was killed, or "" if it survived


@lru_cache(maxsize=4)
def mutants_of(folder: Path, kernel: str) -> list[Mutant]:
    """All mutants of a kernel whose PTX is in the folder."""
    return SUBJECTS[kernel].mutants(texts.read(folder, kernel))


def tasks_of(folder: Path, kernel: str, only: str = "") -> list[Task]:
    """A kernel as it is, and its mutants whose name or place contains a text."""
    sha256 = hashlib.sha256(texts.read(folder, kernel).encode()).hexdigest()
    found = enumerate(mutants_of(folder, kernel))
    chosen = [i for i, mutant in found if only in f"{mutant.what} {mutant.place}"]
    return [Task(kernel, sha256, index) for index in (UNCHANGED, *chosen)]


@lru_cache(maxsize=4)
def _launches(kernel: str) -> list[Launch]:
    """What a kernel is judged by, in the order of trial."""
    return list(SUBJECTS[kernel].launches)


def judge(folder: Path, task: Task) -> tuple[Task, str]:
    """Run one launch after the other until one kills the mutant.

    That one comes first for the next mutant, which is often of the same kind; a verdict does not depend on the order,
    but for what it was that killed.
    """
    subject, text = SUBJECTS[task.kernel], texts.read(folder, task.kernel)
    if task.index != UNCHANGED:
        text = mutants_of(folder, task.kernel)[task.index].of(text)
    launches = _launches(task.kernel)
    for place, launch in enumerate(launches):
        try:
            flaw = subject.flaw(text, launch)
        except EmulationError as fault:
            flaw = fault.kind
        except PtxError:
            flaw = "PTX refused"
        if flaw:
            launches.insert(0, launches.pop(place))
            return task, flaw
    return task, ""


def judge_all(folder: Path, tasks: Iterable[Task], jobs: int, out: Path | None) -> Verdicts:
    """Judge what `out` has no verdict of yet, and add the new ones there, one JSON object a line."""
    verdicts = known(out)
    todo = [task for task in tasks if task not in verdicts]
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[threads] = "1"  # of the processes that are started now: each has a core to itself
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        results = pool.imap_unordered(partial(judge, folder), todo)
        for done, (task, how) in enumerate(results, 1):
            verdicts[task] = how
            if out:
                with out.open("a") as file:
                    file.write(json.dumps(_row(folder, task, how)) + "\n")
            if sys.stderr.isatty():
                print(f"\r{done} of {len(todo)}", end="", file=sys.stderr)
    return verdicts


def known(out: Path | None) -> Verdicts:
    """The verdicts in a file; none, where there is no file. A last line that is not whole is taken out of it."""
    if out is None or not out.exists():
        return {}
    text = out.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {Task(row["kernel"], row["sha256"], row["index"]): row["killed by"] for row in rows}


def _row(folder: Path, task: Task, how: str) -> dict[str, object]:
    if task.index == UNCHANGED:
        return {**asdict(task), "killed by": how}
    mutant = mutants_of(folder, task.kernel)[task.index]
    return {
        **asdict(task),
        "what": mutant.what,
        "place": mutant.place,
        "nth": mutant.nth,
        "of": mutant.count,
        "source": mutant.source,
        "line": mutant.line,
        "killed by": how,
    }
