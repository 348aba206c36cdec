"""Records what mma.sync, ldmatrix, stmatrix and movmatrix give, on a machine with a GPU of sm_90.

    python -m tests.recorded.record_matrix_instructions DIRECTORY

writes DIRECTORY/matrix_instructions.jsonl.gz: a line that says on what GPU, driver and CUDA version, then a
line a case of matrix_cases.py: [opcode, modifiers, seed, output bytes in base64].
"""

from __future__ import annotations

import base64
import gzip
import json
import pathlib
import struct
import sys

from tests.recorded.cuda_driver import Driver
from tests.recorded.matrix_cases import case_input, cases, kernel, output_bytes

ROOM = 1 << 16


def main() -> None:
    driver = Driver()
    source, result = driver.allocate(ROOM), driver.allocate(ROOM)
    lines = [json.dumps(driver.versions())]
    for opcode, text, seed in cases():
        function = driver.kernel(driver.load(kernel(opcode, text)), "kernel", 0)
        driver.upload(source, case_input(opcode, text, seed))
        driver.upload(result, b"\xa5" * ROOM)
        driver.launch(function, 32, 0, [struct.pack("<Q", source), struct.pack("<Q", result)])
        output = driver.download(result, output_bytes(opcode, text))
        lines.append(json.dumps([opcode, text, seed, base64.b64encode(output).decode()]))
    path = pathlib.Path(sys.argv[1]) / "matrix_instructions.jsonl.gz"
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
    print(f"{path}: {len(lines) - 1} cases")


if __name__ == "__main__":
    main()
