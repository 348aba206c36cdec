"""Runs NVIDIA's examples of the CuTe DSL on the emulator: `python -m tests.vendor --cutlass CHECKOUT [--only TEXT]`.

CHECKOUT is a checkout of CUTLASS, whose examples/python/CuTeDSL/experimental/primitives are run one by one, unmodified,
each in a process of its own (example.py). An example is right when its own check passes and it launched something.
--table writes what came out as Markdown.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

EXAMPLES = pathlib.Path("examples/python/CuTeDSL/experimental/primitives")
SECONDS = 240


@dataclass(frozen=True)
class Outcome:
    """What came of one example: `said` is empty when it is right, else the fault or error."""

    name: str
    launches: int
    seconds: float
    said: str


def attempt(root: pathlib.Path, script: pathlib.Path, schedule: str) -> Outcome:
    """Runs one example."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tests.vendor.example", str(script)]
    environment = {**os.environ, "VENDOR_SCHEDULE": schedule, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
        )
        output, failed = done.stdout + done.stderr, done.returncode != 0
    except subprocess.TimeoutExpired:
        output, failed = f"not done after {SECONDS} s", True
    launches = re.findall(r"^launches: (\d+)$", output, re.M)
    count = int(launches[-1]) if launches else 0
    said = ""
    if failed or not count:
        lines = [line for line in re.sub(r"\x1b\[\d*m", "", output).splitlines() if line.strip()]
        fault = [line for line in lines if re.search(r"\[[a-z0-9-]+\] |Error|error", line)]
        said = (fault or lines or ["launched nothing"])[-1].strip()[:200]
    return Outcome(script.relative_to(root).as_posix(), count, time.perf_counter() - start, said)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown."""
    rows = ["| example | launches | result |", "| --- | --: | --- |"]
    for outcome in outcomes:
        result = "right" if not outcome.said else outcome.said.replace("|", "\\|")
        rows.append(f"| {outcome.name} | {outcome.launches} | {result} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vendor", description=__doc__)
    parser.add_argument("--cutlass", type=pathlib.Path, required=True, help="a checkout of CUTLASS")
    parser.add_argument("--only", default="", help="examples whose path contains this")
    parser.add_argument("--schedule", default="random", choices=("eager", "lazy", "random"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--table", type=pathlib.Path, help="where to write the outcomes as Markdown")
    options = parser.parse_args()
    root = options.cutlass / EXAMPLES
    scripts = sorted(path for path in root.rglob("*.py") if options.only in path.as_posix())
    if not scripts:
        print(f"{root} holds no examples that match; give the root of a checkout of CUTLASS", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda script: attempt(root, script, options.schedule), scripts):
            outcomes.append(outcome)
            print(f"{outcome.seconds:6.1f} s  {outcome.name}: {outcome.said or 'right'}", flush=True)
    right = sum(not outcome.said for outcome in outcomes)
    print(f"{right} of {len(outcomes)} examples are right")
    if options.table:
        options.table.write_text(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
