"""Runs kernels of other people on the emulator: `python -m tests.vendor --cutlass CHECKOUT --quack CHECKOUT`.

The CuTe DSL examples of a checkout of CUTLASS and the kernels of a checkout of QuACK (cases.py says which, and at which
sizes) are run unmodified, each in a process of its own (server.py, example.py). One is right when its own check passes
and it launched something. --results keeps what came out, a line of JSON a kernel, so that a run can be stopped and
taken up again. --table writes it, and what the emulator warned of, as Markdown: docs/vendor_kernels.md from its mark.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass

from tests.vendor.cases import REASONS, SECTIONS, Case, cutlass_cases, quack_cases
from tests.vendor.server import Server

MARK = "<!-- From here on written by python -m tests.vendor --table -->\n"

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
    ("behind its own wgmma.wait_group", "parts"),
    ("may still read its shared memory", "exit"),
    ("mbarrier.init of a live mbarrier", "init"),
    ("divides by 0", "zero"),
    ("had the warp been", "phase"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one example: `said` is empty when it is right, else the fault or error; `warned` holds words of
    WARNINGS. commit: of this project, with a + where files differ from it."""

    commit: str
    schedule: str
    name: str
    arch: str
    launches: int
    seconds: float
    said: str
    warned: tuple[str, ...]


class Runner:
    """Runs kernels one after the other, with a server for the architecture of the last one."""

    def __init__(self, commit: str, schedule: str, seconds: float) -> None:
        self.commit, self.schedule, self.seconds = commit, schedule, seconds
        self._server: Server | None = None

    def server(self, arch: str) -> Server:
        if self._server is not None and self._server.arch != arch:
            self.close()
        self._server = self._server or Server(arch, self.schedule)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def run(self, case: Case, root: pathlib.Path) -> Outcome:
        """Runs one kernel. root: the checkout."""
        script = case.script if case.quack else root.resolve() / case.script
        server, start = self.server(case.arch), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:  # where the DSL leaves its PTX
            arguments, path = [str(script), *case.arguments], str(root.resolve()) if case.quack else ""
            output, well = server.run(arguments, path, folder, self.seconds)
        took = round(time.perf_counter() - start, 1)
        return outcome(case, output, well, self.commit, self.schedule, took)


def outcome(case: Case, output: str, well: bool, commit: str, schedule: str, took: float) -> Outcome:
    """What an example's output and its end say."""
    launches = re.findall(r"^launches: (\d+)$", output, re.M)
    count = int(launches[-1]) if launches else 0
    said = ""
    if not well or not count:
        lines = [line for line in re.sub(r"\x1b\[\d*m", "", output).splitlines() if line.strip()]
        fault = [line for line in lines if re.search(r"EmulationError|^\S*(Error|Exception)", line)]
        said = (fault or lines or ["launched nothing"])[-1].strip()
        said = re.sub(r"^\S*errors\.EmulationError: ", "", said)[:160]
    return Outcome(commit, schedule, case.name, case.arch, count, took, said, warnings(output))


def warnings(output: str) -> tuple[str, ...]:
    """The words of WARNINGS for what example.py printed, or a warning itself where there is no word for it."""
    lines = re.findall(r"^emulator warns: (.*)$", output, re.M)
    words = (next((word for text, word in WARNINGS if text in line), line) for line in lines)
    return tuple(sorted(set(words)))


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown, a section for each of SECTIONS."""
    rows: dict[str, list[Outcome]] = {heading: [] for heading, _ in SECTIONS}
    for outcome in sorted(outcomes, key=lambda o: (o.name, o.arch)):
        rows[next(heading for heading, starts in SECTIONS if outcome.name.startswith(starts))].append(outcome)
    commits = ", ".join(sorted({outcome.commit for outcome in outcomes}))
    schedules = ", ".join(sorted({outcome.schedule for outcome in outcomes}))
    lines = [f"{_count(outcomes)} kernels are right, at commit {commits}, under the schedule {schedules}."]
    for heading, section in rows.items():
        if section:
            lines += ["", f"## {heading}: {_count(section)}", ""]
            lines += ["| kernel | arch | launches | result | warnings |", "| --- | --- | --: | --- | --- |"]
            lines += [
                f"| {o.name} | {o.arch} | {o.launches} | {_result(o)} | {', '.join(o.warned)} |"
                for o in section
            ]
    return "\n".join(lines) + "\n"


def _count(outcomes: list[Outcome]) -> str:
    return f"{sum(not outcome.said for outcome in outcomes)} of {len(outcomes)}"


def _result(outcome: Outcome) -> str:
    reason = REASONS.get(outcome.name.split()[0], outcome.said.replace("|", "\\|"))
    return reason if outcome.said else "right"


def current_commit() -> str:
    """This project's commit, with a + where a file of the emulator or of these tests differs from it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    what = ["git", "status", "--porcelain", "cute_kernels/emulator", "tests/vendor"]
    changed = subprocess.run(what, capture_output=True, text=True, check=True)
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read(results: pathlib.Path | None) -> dict[tuple[str, str], Outcome]:
    """The last outcome of each kernel for each architecture."""
    found = {}
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            fields = json.loads(line)
            outcome = Outcome(**{**fields, "warned": tuple(fields["warned"])})
            found[outcome.name, outcome.arch] = outcome
    return found


def run_all(
    cases: dict[Case, pathlib.Path], runners: list[Runner], results: pathlib.Path | None
) -> list[Outcome]:
    """Runs kernels side by side, as many as there are runners; cases: with their checkouts."""
    free: queue.SimpleQueue[Runner] = queue.SimpleQueue()
    for runner in runners:
        free.put(runner)

    def run(case: Case) -> Outcome:
        runner = free.get()
        try:
            return runner.run(case, cases[case])
        finally:
            free.put(runner)

    done = []
    with ThreadPoolExecutor(len(runners)) as pool:
        for future in as_completed([pool.submit(run, case) for case in cases]):
            o = future.result()
            done.append(o)
            warned = f" (warned: {', '.join(o.warned)})" if o.warned else ""
            print(f"{o.seconds:6.1f} s  {o.name}: {o.said or 'right'}{warned}", flush=True)
            if results is not None:
                with results.open("a") as file:
                    file.write(json.dumps(asdict(o)) + "\n")
    for runner in runners:
        runner.close()
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.vendor", description=__doc__)
    parser.add_argument("--cutlass", type=pathlib.Path, help="a checkout of CUTLASS")
    parser.add_argument(
        "--quack", type=pathlib.Path, help="a checkout of QuACK, whose dependencies are installed"
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--schedule", default="random", choices=("eager", "lazy", "random"))
    parser.add_argument("--seconds", type=float, default=90, help="after which a kernel is given up")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        help="a file of outcomes; kernels that it has for this commit are not run",
    )
    parser.add_argument("--table", type=pathlib.Path, help="where to write all outcomes as Markdown")
    options = parser.parse_args()
    cases = dict.fromkeys(cutlass_cases(options.cutlass), options.cutlass) if options.cutlass else {}
    cases |= dict.fromkeys(quack_cases(), options.quack) if options.quack else {}
    cases = {case: root for case, root in cases.items() if options.only in case.name}
    outcomes = read(options.results)
    if not (cases or outcomes):
        print("no kernels that match; give the root of a checkout with --cutlass or --quack", file=sys.stderr)
        return 2
    commit, schedule = current_commit(), options.schedule
    known = {key for key, o in outcomes.items() if (o.commit, o.schedule) == (commit, schedule)}
    todo = {c: root for c, root in cases.items() if commit.endswith("+") or (c.name, c.arch) not in known}
    runners = [Runner(commit, schedule, options.seconds) for _ in range(options.jobs)]
    outcomes |= {(o.name, o.arch): o for o in run_all(todo, runners, options.results)}
    chosen = [outcomes[case.name, case.arch] for case in cases] or list(outcomes.values())
    print(f"{_count(chosen)} kernels are right")
    if options.table:
        before = options.table.read_text().partition(MARK)[0] if options.table.exists() else ""
        options.table.write_text(f"{before}{MARK}\n{table(chosen)}")
    unexplained = [o.name for o in chosen if o.said and o.name.split()[0] not in REASONS]
    print("".join(f"not right, for no known reason: {name}\n" for name in unexplained), end="")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
