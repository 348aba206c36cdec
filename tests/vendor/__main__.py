"""Runs kernels of other people on the emulator: `python -m tests.vendor --cutlass CHECKOUT --quack CHECKOUT`.

The CuTe DSL examples of a checkout of CUTLASS and the kernels of a checkout of QuACK (cases.py says which, and at which
sizes) are run unmodified, each in a process of its own (example.py). One is right when its own check passes and it
launched something. --table writes what came out, and what the emulator warned of, as Markdown.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.vendor.cases import Case, cutlass_cases, quack_cases

# What a warning says, and the word for it in the table.
WARNINGS = (
    ("after reads of it through the generic proxy", "refill"),
    ("no tcgen05.fence::after_thread_sync", "fence"),
    ("no tcgen05.wait::ld", "wait"),
    ("arrives on a barrier for reads", "lanes"),
    ("issue the same", "repeated"),
    ("all write the same value", "stores"),
    ("has waited for the last tcgen05.commit", "commit"),
    ("griddepcontrol.wait", "grids"),
    ("setmaxnreg", "registers"),
    ("of a request that failed", "queries"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one example: `said` is empty when it is right, else the fault or error; `warned` holds words of
    WARNINGS."""

    name: str
    arch: str
    launches: int
    seconds: float
    said: str
    warned: tuple[str, ...]


def attempt(case: Case, roots: dict[str, pathlib.Path | None], schedule: str, seconds: float) -> Outcome:
    """Runs one kernel. roots: the checkouts. seconds: after which it is given up."""
    start = time.perf_counter()
    quack = case.script.is_absolute()
    root = roots["quack" if quack else "cutlass"]
    assert root is not None
    script = case.script if quack else root.resolve() / case.script
    command = [sys.executable, "-m", "tests.vendor.example", str(script), *case.arguments]
    paths = [os.getcwd(), *([str(root.resolve())] if quack else []), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "CUTE_DSL_ARCH": case.arch,
        "VENDOR_SCHEDULE": schedule,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    with tempfile.TemporaryDirectory() as folder:  # where the DSL leaves its PTX
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=environment,
                cwd=folder,
                check=False,
            )
            output, failed = done.stdout + done.stderr, done.returncode != 0
        except subprocess.TimeoutExpired:
            output, failed = f"not done after {seconds:.0f} s", True
    launches = re.findall(r"^launches: (\d+)$", output, re.M)
    count = int(launches[-1]) if launches else 0
    said = ""
    if failed or not count:
        lines = [line for line in re.sub(r"\x1b\[\d*m", "", output).splitlines() if line.strip()]
        fault = [line for line in lines if re.search(r"EmulationError|^\S*(Error|Exception)", line)]
        said = (fault or lines or ["launched nothing"])[-1].strip()
        said = re.sub(r"^\S*errors\.EmulationError: ", "", said)[:160]
    name = f"QuACK {' '.join(case.arguments)}" if quack else case.name
    return Outcome(name, case.arch, count, time.perf_counter() - start, said, warnings(output))


def warnings(output: str) -> tuple[str, ...]:
    """The words of WARNINGS for what example.py printed, or a warning itself where there is no word for it."""
    lines = re.findall(r"^emulator warns: (.*)$", output, re.M)
    words = (next((word for text, word in WARNINGS if text in line), line) for line in lines)
    return tuple(sorted(set(words)))


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown."""
    rows = ["| kernel | arch | launches | result | warnings |", "| --- | --- | --: | --- | --- |"]
    for outcome in outcomes:
        result = "right" if not outcome.said else outcome.said.replace("|", "\\|")
        rows.append(
            f"| {outcome.name} | {outcome.arch} | {outcome.launches} | {result} | {', '.join(outcome.warned)} |"
        )
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vendor", description=__doc__)
    parser.add_argument("--cutlass", type=pathlib.Path, help="a checkout of CUTLASS")
    parser.add_argument(
        "--quack", type=pathlib.Path, help="a checkout of QuACK, whose dependencies are installed"
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--schedule", default="random", choices=("eager", "lazy", "random"))
    parser.add_argument("--seconds", type=float, default=90, help="after which a kernel is given up")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", type=pathlib.Path, help="where to write the outcomes as Markdown")
    options = parser.parse_args()
    roots = {"cutlass": options.cutlass, "quack": options.quack}
    cases = cutlass_cases(options.cutlass) if options.cutlass else []
    cases += quack_cases() if options.quack else []
    cases = [case for case in cases if options.only in case.name]
    if not cases:
        print("no kernels that match; give the root of a checkout with --cutlass or --quack", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda case: attempt(case, roots, options.schedule, options.seconds), cases):
            outcomes.append(outcome)
            warned = f" (warned: {', '.join(outcome.warned)})" if outcome.warned else ""
            print(f"{outcome.seconds:6.1f} s  {outcome.name}: {outcome.said or 'right'}{warned}", flush=True)
    right = sum(not outcome.said for outcome in outcomes)
    print(f"{right} of {len(outcomes)} kernels are right")
    if options.table:
        options.table.write_text(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
