"""Records what memory, synchronisation, copies and exchanges do, on a machine with a GPU of sm_90.

    python -m tests.recorded.record_machine DIRECTORY

writes DIRECTORY/machine.jsonl.gz: a line that says on what GPU, driver and CUDA version, then a line a case of
machine_cases: [name, CRC-32 of its PTX, what came of it]:
    "out": `out` after the launch, in base64;
    "refused": the CUresult where the driver's compiler refuses the text, with what it says;
    "error": the CUresult of a launch that fails, -1 where it does not end.
"""

from __future__ import annotations

import base64
import ctypes
import gzip
import json
import os
import pathlib
import struct
import subprocess
import sys
import zlib
from typing import Any

from tests.recorded.cuda_driver import Driver, DriverError
from tests.recorded.machine_cases import Case, cases
from tests.recorded.machine_cases.kernel import SOURCE_BYTES

WORKERS = 8
PATIENCE = 20.0  # seconds after which a worker that finishes nothing is ended
SPOILT = 3  # exit status of a worker whose context an error has spoilt
ROOM = 1 << 16


def compile_log(driver: Driver, text: str) -> str:
    """What the driver's compiler says of a text."""
    log, module = ctypes.create_string_buffer(4096), ctypes.c_void_p()
    options = (ctypes.c_int * 2)(5, 6)  # CU_JIT_ERROR_LOG_BUFFER, its size
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), 4096)
    driver.library.cuModuleLoadDataEx(ctypes.byref(module), text.encode() + b"\0", 2, options, values)
    return log.value.decode(errors="replace").strip()


def outcome(driver: Driver, case: Case, source: int, result: int) -> dict[str, Any]:
    try:
        function = driver.kernel(driver.load(case.text), "kernel", case.shared)
    except DriverError as error:
        return {"refused": error.code, "log": compile_log(driver, case.text)[:600]}
    driver.upload(source, case.input)
    driver.upload(result, case.output)
    parameters = case.parameter_bytes
    if case.tensor_map:
        spec: list[Any] = list(case.tensor_map)
        spec[2] += source
        code, parameters = driver.encode_tiled(*spec)
        if code:
            return {"refused": code, "log": "cuTensorMapEncodeTiled"}
    try:
        driver.launch(
            function,
            case.threads,
            case.shared,
            [struct.pack("<Q", result), struct.pack("<Q", source), parameters],
            blocks=case.cluster,
        )
    except DriverError as error:
        return {"error": error.code}
    return {"out": base64.b64encode(driver.download(result, 4 * case.out_words)).decode()}


def work(first: int) -> None:
    """Runs every WORKERS-th case from `first` on; prints a line before and after each."""
    driver, todo = Driver(), list(cases())
    source, result = driver.allocate(SOURCE_BYTES), driver.allocate(ROOM)
    for n in range(first, len(todo), WORKERS):
        found = outcome(driver, todo[n], source, result)
        print(json.dumps([n, found]), flush=True)
        if "error" in found:
            os._exit(SPOILT)


def run_slice(first: int, total: int) -> dict[int, dict[str, Any]]:
    """The outcomes of a worker's cases; a case that never ends or breaks the context costs a new worker."""
    found: dict[int, dict[str, Any]] = {}
    while first < total:
        command = [sys.executable, "-m", "tests.recorded.record_machine", "", str(first)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        done = dict(json.loads(line) for line in text.splitlines())
        found |= done
        first = max(done, default=first - WORKERS) + WORKERS
        if process.returncode not in (0, SPOILT) and first < total:
            found[first] = {"error": -1}
            first += WORKERS
    return found


def main() -> None:
    if len(sys.argv) == 3:
        work(int(sys.argv[2]))
        return
    from concurrent.futures import ThreadPoolExecutor

    todo = list(cases())
    found: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for part in pool.map(lambda k: run_slice(k, len(todo)), range(WORKERS)):
            found |= part
    path = pathlib.Path(sys.argv[1]) / "machine.jsonl.gz"
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(json.dumps(Driver().versions()).encode() + b"\n")
        for n, case in enumerate(todo):
            line = [case.name, zlib.crc32(case.text.encode()), found[n]]
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    bad = [(todo[n].name, o) for n, o in sorted(found.items()) if "out" not in o]
    print(f"{path}: {len(todo)} cases, {len(bad)} without a result")
    for name, result in bad:
        print(name, result)


if __name__ == "__main__":
    main()
