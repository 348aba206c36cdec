"""Mutation score of the checks; docs/mutation.md has the scores.

Every mutant of a kernel's PTX (mutants.py, arithmetic.py) is run on the emulator, on each problem under each schedule
that matters to it (subjects.py), until it is killed: until the emulator reports a fault or a warning, or the result is
wrong. Survivors are listed; those that equivalents.py explains do not count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
from collections import Counter
from itertools import chain
from pathlib import Path

from tests.mutation import tables, texts
from tests.mutation.equivalents import explanation
from tests.mutation.mutants import Mutant
from tests.mutation.subjects import SUBJECTS
from tests.mutation.verdicts import Task, judge_all, mutants_of, tasks_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--kernel",
        nargs="+",
        choices=[*SUBJECTS, "all"],
        default=["all"],
        help="whose mutants",
        metavar="NAME",
    )
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="write the kernels' PTX there; no more")
    parser.add_argument(
        "--cubins",
        type=Path,
        metavar="FOLDER",
        help="where --build wrote; without the DSL then (default: compile)",
    )
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where verdicts are kept as they come, and not sought again"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants with this in their name or place")
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="N mutants of each kernel, chosen at random, the same ones each time",
    )
    parser.add_argument(
        "--unexplained", action="store_true", help="take it that mutants survive that equivalents.py explains"
    )
    parser.add_argument(
        "--tables",
        action="store_true",
        help="print the tables of docs/mutation.md instead of a list a kernel",
    )
    options = parser.parse_args()
    kernels = list(SUBJECTS) if "all" in options.kernel else options.kernel
    if options.build:
        texts.write(options.build, kernels)
    if options.cubins:
        score(options.cubins, kernels, options)
    if not (options.build or options.cubins):
        with tempfile.TemporaryDirectory() as folder:
            texts.write(Path(folder), kernels)
            score(Path(folder), kernels, options)
    return 0


def score(folder: Path, kernels: list[str], options: argparse.Namespace) -> None:
    """Judge and report the mutants of kernels whose PTX is in the folder."""
    tasks = {kernel: sample(tasks_of(folder, kernel, options.only), options.sample) for kernel in kernels}
    assumed = {
        task: ""
        for kernel, (_, *mutated) in tasks.items()
        for task in mutated
        if options.unexplained and explanation(kernel, mutants_of(folder, kernel)[task.index])
    }
    to_judge = (task for task in chain(*tasks.values()) if task not in assumed)
    verdicts = assumed | judge_all(folder, to_judge, options.jobs, options.out)
    judged = {}
    for kernel, (as_it_is, *mutated) in tasks.items():
        if verdicts[as_it_is]:
            raise SystemExit(f"{kernel} as it is: {verdicts[as_it_is]}; its mutants prove nothing")
        of_kernel = mutants_of(folder, kernel)
        judged[kernel] = [(of_kernel[task.index], verdicts[task]) for task in mutated]
    if options.tables:
        print(*tables.scores(judged), "", *tables.survivors(judged), sep="\n")
    else:
        for kernel in kernels:
            report(kernel, judged[kernel])


def sample(tasks: list[Task], count: int | None) -> list[Task]:
    """The kernel as it is, and so many of its mutants."""
    if count is None or count >= len(tasks) - 1:
        return tasks
    return [tasks[0], *sorted(random.Random(0).sample(tasks[1:], count))]


def report(kernel: str, verdicts: list[tuple[Mutant, str]]) -> None:
    """What killed how many; the survivors, with their explanation if there is one; the score."""
    survivors = [mutant for mutant, how in verdicts if not how]
    killed, counted = len(verdicts) - len(survivors), len(verdicts)
    for kind, count in Counter(how for _, how in verdicts if how).most_common():
        print(f"{count:5d}  {kind}")
    for mutant in survivors:
        known = explanation(kernel, mutant)
        counted -= known is not None
        print(
            f"survives: {mutant.what} ({mutant.place}, {mutant.nth} of {mutant.count}; {mutant.source}, PTX line "
            f"{mutant.line}){f': equivalent, {known.why}' if known else ''}"
        )
    share = 100 * killed / max(1, counted)
    print(f"{kernel}: {killed} of {counted} mutants that are not equivalent are killed: {share:.1f} %")
