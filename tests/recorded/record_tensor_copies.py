"""Records what tensor copies do, on a machine with a GPU of sm_90 or newer.

    python -m tests.recorded.record_tensor_copies DIRECTORY

writes DIRECTORY/tensor_copies.jsonl.gz: a line that says on what GPU, driver and CUDA version, then one line a
copy: the case (see tensor_copy_cases.py) and what came of it:
    encode: the CUresult of cuTensorMapEncodeTiled, where it refuses;
    error: the CUresult of the launch, where it traps;
    signalled: bytes that a load took off its barrier;
    digest: of shared memory after a load, of global memory after a store or a reduction.
With a second directory, it also leaves there what is behind each digest: shared memory, or for stores and reductions
the positions that changed, uint32, and then their bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys
import time
from typing import Any

import numpy as np

from tests.recorded.cuda_driver import Driver, DriverError
from tests.recorded.tensor_copy_cases import cases
from tests.recorded.tensor_copy_content import MEMORY, MEMORY_SEED, POISON, REGION_SEED, content
from tests.recorded.tensor_copy_kernels import DYNAMIC_SHARED, REGION, kernel_name, kernels_ptx

WORKERS = 12
TRAPPED = 3  # exit status of a worker whose context a trap has spoilt


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def changes(before: bytes, after: bytes) -> bytes:
    where = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
    return where.astype(np.uint32).tobytes() + np.frombuffer(after, np.uint8)[where].tobytes()


class Recorder:
    """Device memory, the kernels, and one copy at a time."""

    def __init__(self) -> None:
        self.driver = Driver()
        self.module = self.driver.load(kernels_ptx())
        self.memory = self.driver.allocate(MEMORY)
        self.region = self.driver.allocate(REGION)
        self.signalled = self.driver.allocate(4)

    def run(self, case: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """What came of one case, and the bytes behind its digest. Raises DriverError where it traps."""
        spec, load = list(case["map"]), case["kind"] == "load"
        spec[2] += self.memory
        code, descriptor = self.driver.encode_tiled(*spec)
        if code:
            return {"encode": code}, b""
        number = int.from_bytes(descriptor, "little")
        for bit in case.get("flip", ()):
            number ^= 1 << bit
        before = content(case["content"], MEMORY, MEMORY_SEED).tobytes()
        self.driver.upload(self.memory, before)
        source = bytes([POISON]) * REGION if load else content(case["content"], REGION, REGION_SEED).tobytes()
        self.driver.upload(self.region, source)
        kernel = self.driver.kernel(self.module, kernel_name(case["kind"], spec[1]), DYNAMIC_SHARED)
        coordinates = (case["at"] + [0] * 5)[:5]
        parameters = [
            number.to_bytes(128, "little"),
            struct.pack("<Q", self.region),
            struct.pack("<Q", self.signalled),
            struct.pack("<I", case["smem"]),
            *(struct.pack("<i", c) for c in coordinates),
        ]
        self.driver.launch(kernel, 128, DYNAMIC_SHARED, parameters)
        if not load:
            data = self.driver.download(self.memory, MEMORY)
            return {"digest": digest(data)}, changes(before, data)
        data = self.driver.download(self.region, REGION)
        (signalled,) = struct.unpack("<i", self.driver.download(self.signalled, 4))
        return {"signalled": signalled, "digest": digest(data)}, data


def work(directory: pathlib.Path, full: pathlib.Path | None, first: int) -> None:
    """Runs every WORKERS-th case from `first` on, a line each; exits with TRAPPED after one that traps."""
    recorder, todo = Recorder(), cases()
    with open(directory / f"worker{first % WORKERS}", "a") as file:
        for n in range(first, len(todo), WORKERS):
            try:
                outcome, data = recorder.run(todo[n])
            except DriverError as error:
                outcome, data = {"error": error.code}, b""
            file.write(json.dumps([n, outcome]) + "\n")
            file.flush()
            if full is not None and data:
                (full / str(n)).write_bytes(data)
            if "error" in outcome:
                os._exit(TRAPPED)


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    arguments = sys.argv[1:3]
    if len(sys.argv) == 4:
        work(directory, pathlib.Path(sys.argv[2]) if sys.argv[2] else None, int(sys.argv[3]))
        return
    todo, started = cases(), time.time()

    def spawn(first: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.recorded.record_tensor_copies", *(arguments + [""])[:2]]
        return subprocess.Popen([*command, str(first)])

    live = {k: spawn(k) for k in range(min(WORKERS, len(todo)))}
    outcomes: dict[int, dict[str, Any]] = {}
    while live:
        time.sleep(0.05)
        for k, process in list(live.items()):
            if process.poll() is None:
                continue
            lines = (directory / f"worker{k}").read_text().splitlines()
            done = dict(json.loads(line) for line in lines)
            outcomes |= done
            following = max(done, default=k - WORKERS) + WORKERS
            if process.returncode not in (0, TRAPPED):
                raise SystemExit(f"worker {k} ended with {process.returncode} at case {following}")
            del live[k]
            if process.returncode and following < len(todo):
                live[k] = spawn(following)
    for k in range(WORKERS):
        (directory / f"worker{k}").unlink(missing_ok=True)
    path = directory / "tensor_copies.jsonl.gz"
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(json.dumps(Driver().versions()).encode() + b"\n")
        for n, case in enumerate(todo):
            file.write(json.dumps(case | outcomes[n], separators=(",", ":")).encode() + b"\n")
    trapped = sum("error" in o for o in outcomes.values())
    print(f"{path}: {len(todo)} copies, {trapped} trapped, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
