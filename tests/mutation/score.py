"""Mutation score of the checks: `python -m tests.mutation [--kernel NAME] [--jobs N] [--only TEXT] [--json FILE]`.

Every mutant of the kernel's PTX (mutants.py, arithmetic.py) is run on the emulator under each schedule that matters
to it (subjects.py). It is killed when the emulator reports a fault or a warning, or when the result is wrong.
Survivors are listed; those that equivalents.py explains do not count. docs/mutation.md has the scores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import sys
from collections import Counter
from functools import partial

from cute_kernels.emulator import EmulationError, PtxError
from tests.mutation.equivalents import reason
from tests.mutation.mutants import Mutant
from tests.mutation.subjects import SUBJECTS

Verdicts = list[tuple[Mutant, str]]


def verdict(kernel: str, mutant: Mutant) -> str:
    """How the mutant was killed, or "" if it survived."""
    subject = SUBJECTS[kernel]
    for schedule in subject.schedules:
        try:
            flaw = subject.flaw(mutant.text, schedule)
        except EmulationError as fault:
            return fault.kind
        except PtxError:
            return "PTX refused"
        if flaw:
            return flaw
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--kernel", choices=[*SUBJECTS, "all"], default="gemm", help="whose mutants")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the verdicts")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for kernel in SUBJECTS if options.kernel == "all" else [options.kernel]:
        verdicts = _judge(kernel, options.only, options.jobs)
        _report(kernel, verdicts)
        rows += [
            {"kernel": kernel, "what": m.what, "line": m.line, "source": m.source, "killed by": how}
            for m, how in verdicts
        ]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _judge(kernel: str, only: str, jobs: int) -> Verdicts:
    chosen = [m for m in SUBJECTS[kernel].mutants() if only in m.what]
    verdicts: Verdicts = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for mutant, how in zip(chosen, pool.imap(partial(verdict, kernel), chosen), strict=True):
            verdicts.append((mutant, how))
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)} of {len(chosen)}", end="", file=sys.stderr)
    return verdicts


def _report(kernel: str, verdicts: Verdicts) -> None:
    survivors = [mutant for mutant, how in verdicts if not how]
    killed = len(verdicts) - len(survivors)
    counted = len(verdicts) - sum(bool(reason(kernel, m)) for m in survivors)
    for kind, count in Counter(how for _, how in verdicts if how).most_common():
        print(f"{count:5d}  {kind}")
    for mutant in survivors:
        why = reason(kernel, mutant)
        print(
            f"survives: {mutant.what} ({mutant.place}, {mutant.nth} of {mutant.count}; {mutant.source}, PTX line "
            f"{mutant.line}){': equivalent, ' if why else ''}{why}"
        )
    share = 100 * killed / max(1, counted)
    print(f"{kernel}: {killed} of {counted} mutants that are not equivalent are killed: {share:.1f} %")
