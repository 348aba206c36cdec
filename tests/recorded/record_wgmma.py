"""Records what wgmma.mma_async gives, on a machine with a GPU of sm_90.

    python -m tests.recorded.record_wgmma DIRECTORY

writes DIRECTORY/wgmma.jsonl.gz: a line that says on what GPU, driver and CUDA version, then a line a case of
wgmma_cases.py: [name, SHA-256 of the output] for exact operands, [name, output bytes in base64] for others.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pathlib
import struct
import sys

from tests.recorded.cuda_driver import Driver
from tests.recorded.wgmma_cases import THREADS, case_input, cases, kernel

ROOM = 1 << 18


def main() -> None:
    driver = Driver()
    source, result = driver.allocate(ROOM), driver.allocate(ROOM)
    lines = [json.dumps(driver.versions())]
    for case in cases():
        function = driver.kernel(driver.load(kernel(case)), "kernel", 0)
        driver.upload(source, b"".join(part.tobytes() for part in case_input(case)))
        driver.upload(result, b"\xa5" * ROOM)
        driver.launch(function, THREADS, 0, [struct.pack("<Q", source), struct.pack("<Q", result)])
        output = driver.download(result, case.d_registers * THREADS * 4)
        exact = hashlib.sha256(output).hexdigest()
        lines.append(
            json.dumps([case.name, exact if case.kind == "exact" else base64.b64encode(output).decode()])
        )
    path = pathlib.Path(sys.argv[1]) / "wgmma.jsonl.gz"
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    print(f"{path}: {len(lines) - 1} cases")


if __name__ == "__main__":
    main()
