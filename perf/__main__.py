"""The performance harness: python -m perf {static,bars,run,compare,report}. README, "You guard speed"."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cute_kernels.build.errors import BuildError
from cute_kernels.runtime.errors import KernelNotFoundError, ManifestError


def static(options: argparse.Namespace) -> int:
    from perf import static as figures

    version, old = figures.read_baseline(options.baseline)
    if not (options.check or options.write):
        print(figures.render(figures.read_all(options.cubins, only=options.only)))
        return 0
    built = figures.dsl_version(options.cubins)
    if options.write:  # reads all again, so that the figures are those of this harness
        read = figures.read_all(options.cubins)
        figures.write_baseline(options.baseline, built, read)
    else:
        if old and version != built:
            print(f"the baseline was made with DSL {version}, the cubins with {built}; look and use --write")
            return 1
        read = figures.read_all(options.cubins, old)
    findings = figures.compare_all(old, read)
    for finding in findings:
        print(f"{'WORSE ' if finding.worse else 'note  '} {finding.kernel}: {finding.text}")
    worse = sum(finding.worse for finding in findings)
    notes = len(findings) - worse
    print(f"{len(read)} cubins, {worse} figures worse than in {options.baseline}, {notes} notes")
    if options.write:
        print(f"wrote {options.baseline}")
        return 0
    if worse:
        print("make the kernel better, or accept the figures: python -m perf static --write")
    return 1 if worse else 0


def bars(options: argparse.Namespace) -> int:
    from perf import bars as peers
    from perf import static as figures

    if options.cubins is None:
        read = figures.read_baseline(options.baseline)[1]
    else:
        read = figures.read_all(options.cubins, only=options.only)
    print(peers.render(read, options.only, options.over))
    return 0


def run(options: argparse.Namespace) -> int:
    import torch

    from perf import suite

    if options.suite not in suite.names():
        print(f"no suite '{options.suite}'; there are {', '.join(suite.names())}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure; `python -m perf static` needs none", file=sys.stderr)
        return 2
    modes = suite.MODES if options.mode == "both" else (options.mode,)
    l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    selection = suite.Selection(
        l2_bytes, options.only, options.shapes, options.m, options.peers_only, options.ours_only
    )
    results: list[suite.Result] = []
    for measured in suite.run(options.suite, modes, options.rounds, selection, partial(print, flush=True)):
        results = measured["results"]
        if options.json is not None:  # after each result, for a run that is cut short
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(measured, indent=1) + "\n")
    if not results:
        print(f"'{options.suite}' has no case of this selection", file=sys.stderr)
        return 2
    return 1 if any(row["wrong"] for row in results) else 0


def compare(options: argparse.Namespace) -> int:
    from perf import compare as comparison

    try:
        old, new = comparison.read(options.before), comparison.read(options.after)
        text, bad = comparison.compare(old, new, options.floor, options.relative_to)
    except comparison.CompareError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    for line in bad:
        print(line)
    return 1 if bad else 0


def report(options: argparse.Namespace) -> int:
    from perf import compare as comparison
    from perf import report as drawing

    try:
        for path in drawing.write(comparison.read(options.measured), options.out):
            print(path)
    except (comparison.CompareError, drawing.ReportError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def shapes(text: str) -> tuple[str, ...]:
    """N x K of weights: "4096x14336,512x512"."""
    found = tuple(text.split(","))
    if not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape) for shape in found):
        raise argparse.ArgumentTypeError(f"'{text}' is not NxK, or several such with commas between")
    return found


def rows(text: str) -> tuple[int, ...]:
    """Numbers of rows: "1,16"."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number, or several with commas between")
    return tuple(map(int, text.split(",")))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    part = commands.add_parser("static", help="registers, spills, loops of every cubin; needs no GPU")
    part.add_argument("--check", action="store_true", help="fail where a figure is worse than its baseline")
    part.add_argument("--write", action="store_true", help="make the figures the baseline")
    part.add_argument("--only", default="", help="show kernels whose architecture and name hold this")
    folder = Path(os.environ.get("CUTE_KERNELS_CUBINS", "build"))
    part.add_argument("--cubins", type=Path, default=folder, help="folder that the build wrote")
    baseline = Path(__file__).parent / "baselines" / "static.json"
    part.add_argument("--baseline", type=Path, default=baseline)
    part.set_defaults(action=static)

    part = commands.add_parser("bars", help="the SM100 GEMMs' loops beside those of their peers")
    part.add_argument("--only", default="", help="show kernels whose names hold this")
    part.add_argument("--over", action="store_true", help="show those that are over a bar")
    part.add_argument("--cubins", type=Path, help="folder to read (default: the baseline's figures)")
    part.add_argument("--baseline", type=Path, default=baseline)
    part.set_defaults(action=bars)

    part = commands.add_parser("run", help="measure a suite on the GPU at hand")
    part.add_argument("--suite", required=True)
    part.add_argument("--json", type=Path, metavar="OUT", help="write the measurement to this file")
    part.add_argument(
        "--mode", choices=("cold", "warm", "both"), default="cold", help="whether L2 holds the inputs"
    )
    part.add_argument("--rounds", type=int, default=15, help="replays of each contender, in turns")
    part.add_argument("--only", default="", help="measure cases whose names hold this")
    part.add_argument(
        "--shapes", type=shapes, default=(), metavar="NxK,...", help="of weights (default: all)"
    )
    part.add_argument("--m", type=rows, default=(), metavar="M,...", help="rows (default: all of the suite)")
    sides = part.add_mutually_exclusive_group()
    sides.add_argument("--peers-only", action="store_true", help="leave out what is ours")
    sides.add_argument("--ours-only", action="store_true", help="leave out peers that compute the same")
    part.set_defaults(action=run)

    part = commands.add_parser("compare", help="what got slower from one measurement to the other")
    part.add_argument("before", type=Path)
    part.add_argument("after", type=Path)
    part.add_argument("--floor", type=float, default=0.02, help="change that is always noise (default: 0.02)")
    part.add_argument("--relative-to", metavar="CONTENDER", help="compare ratios to this contender's times")
    part.set_defaults(action=compare)

    part = commands.add_parser(
        "report", help="markdown table and plots of a measurement; needs the extra 'perf'"
    )
    part.add_argument("measured", type=Path)
    part.add_argument("--out", type=Path, required=True, metavar="DIR")
    part.set_defaults(action=report)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return int(options.action(options))
    except (BuildError, KernelNotFoundError, ManifestError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
