"""A process that has loaded torch and the DSL, and forks for each example, whose time that mostly is.

The side that asks is `Server`; what it starts, `python -m tests.vendor.server`, reads requests from its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

OUTPUT = "output"  # the file, in a request's folder, that holds what the example printed


class Server:
    """Runs examples for one architecture, one after the other, each in a process of its own."""

    def __init__(self, arch: str, schedule: str) -> None:
        self.arch = arch
        environment = {
            **os.environ,
            "CUTE_DSL_ARCH": arch,
            "VENDOR_SCHEDULE": schedule,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH", "")))),
        }
        command = [sys.executable, "-m", "tests.vendor.server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, arguments: list[str], path: str, folder: str, seconds: float) -> tuple[str, bool]:
        """What an example printed, and whether it ended well. path: where it finds modules; "": nowhere else."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([arguments, path, folder, seconds]) + "\n")
        self._process.stdin.flush()
        ended = self._process.stdout.readline().strip()
        if ended == "late":
            return f"not done after {seconds:.0f} s", False
        return Path(folder, OUTPUT).read_text(errors="replace"), ended == "0"

    def close(self) -> None:
        self._process.communicate()


def serve() -> None:
    """Answers requests with the exit status of the example, or "late"."""
    from tests.vendor import example

    for line in sys.stdin:
        arguments, path, folder, seconds = json.loads(line)
        child = fork()
        if not child:
            with open(Path(folder, OUTPUT), "w") as file, open(os.devnull) as nothing:
                for stream, number in ((nothing, 0), (file, 1), (file, 2)):
                    os.dup2(stream.fileno(), number)
            os.chdir(folder)
            sys.path[:0] = [path] if path else []
            sys.argv = ["example", *arguments]
            try:
                example.main()
            except Exception:
                traceback.print_exc()
                sys.exit(1)
            sys.exit(0)
        print(end_of(child, seconds), flush=True)


def fork() -> int:
    """Forks, as os.fork does; whatever the child forks is of its process group."""
    child = os.fork()
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the other one was first, or it has ended
        os.setpgid(child, child)
    return child


def end_of(child: int, seconds: float) -> str:
    """Waits for a child's exit status; "late" where it took longer and was killed with all that it forked."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return str(os.waitstatus_to_exitcode(status))
            time.sleep(0.05)
    finally:  # interrupted, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "late"


if __name__ == "__main__":
    serve()
