"""Mutation score of the SM100 GEMM's checks: `python -m tests.mutation [--jobs N] [--only TEXT] [--json FILE]`.

Every mutant of the kernel's PTX (mutants.py) is run on the emulator under each schedule, on a problem with tails,
several tiles a CTA and more K tiles than stages. It is killed when the emulator reports a fault or a warning, or when
the result is wrong. Survivors are listed; those that EQUIVALENT explains do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import sys
from collections import Counter

import sm100
from cute_kernels.build.variant import Variant
from cute_kernels.emulator import EmulationError, PtxError
from sm100.shape import Shape
from tests.emulate.direct import compile_ptx, gemm, relative_error
from tests.mutation.mutants import Mutant, mutants

SCHEDULES = ("eager", "lazy", "random")
PROBLEM = (200, 136, 1056)
TOLERANCE = 1e-5
STEP_LIMIT = 3_000_000

# Why a mutant is the same program as far as anybody can tell: the beginning of its name -> reason.
EQUIVALENT = {
    "drop griddepcontrol.launch_dependents": "the next grid starts later; a matter of speed alone",
    "drop tcgen05.relinquish_alloc_permit": "a promise not to allocate again; no later CTA waits for it here",
}


def variant() -> Variant:
    """Two stages, so that every barrier goes through several phases in a small problem."""
    shape = Shape(tile_n=64, stages=2, d_dtype="f32", accumulate=False)
    return dataclasses.replace(sm100.gemm_variant(shape), name="two_stages")


def verdict(mutant: Mutant) -> str:
    """How the mutant was killed, or "" if it survived."""
    for schedule in SCHEDULES:
        try:
            result, exact, report = gemm(variant(), mutant.text, *PROBLEM, schedule, step_limit=STEP_LIMIT)
        except EmulationError as fault:
            return fault.kind
        except PtxError:
            return "PTX refused"
        if report.warnings:
            return "warning"
        if relative_error(result, exact) >= TOLERANCE:
            return "wrong result"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the verdicts")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    options = parser.parse_args()
    chosen = [m for m in mutants(compile_ptx(variant())) if options.only in m.what]
    verdicts: list[tuple[Mutant, str]] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for mutant, how in zip(chosen, pool.imap(verdict, chosen), strict=True):
            verdicts.append((mutant, how))
            if sys.stderr.isatty():
                print(f"\r{len(verdicts)} of {len(chosen)}", end="", file=sys.stderr)
    return _report(verdicts, options.json)


def _report(verdicts: list[tuple[Mutant, str]], out: pathlib.Path | None) -> int:
    survivors = [mutant for mutant, how in verdicts if not how]
    explained = [m for m in survivors if m.what.startswith(tuple(EQUIVALENT))]
    counted = len(verdicts) - len(explained)
    killed = len(verdicts) - len(survivors)
    for kind, count in Counter(how for _, how in verdicts if how).most_common():
        print(f"{count:5d}  {kind}")
    for mutant in survivors:
        why = next(
            (f": equivalent, {why}" for name, why in EQUIVALENT.items() if mutant.what.startswith(name)), ""
        )
        print(f"survives: {mutant.what} (PTX line {mutant.line}, {mutant.source}){why}")
    print(
        f"{killed} of {counted} mutants that are not equivalent are killed: {100 * killed / max(1, counted):.1f} %"
    )
    if out:
        rows = [{"what": m.what, "line": m.line, "source": m.source, "killed by": how} for m, how in verdicts]
        out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0
