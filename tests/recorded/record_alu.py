"""Records what the per-lane instructions of alu_forms compute, on a machine with a GPU of sm_90.

    python -m tests.recorded.record_alu DIRECTORY [SALT]

writes DIRECTORY/alu.npz (alu_SALT.npz, with other inputs): "machine" says on what GPU, driver and CUDA version,
"names" lists the forms, and "results" holds, form after form and result after result, COUNT values (predicates as
bits) for alu_inputs.inputs. A form that the driver's compiler refuses ends the program.
"""

from __future__ import annotations

import json
import pathlib
import struct
import sys

import numpy as np

from tests.recorded.alu_forms import BITS, Form, declarations, forms, letter
from tests.recorded.alu_inputs import COUNT, inputs
from tests.recorded.cuda_driver import Driver

WORD = 8  # bytes of a source or a result in memory


def kernel_text(form: Form) -> str:
    """A kernel in which thread i takes the form's i-th inputs, columns of COUNT words, to its results."""
    loads, stores = [], []
    for i, kind in enumerate(form.sources):
        name, at = letter(kind), i * COUNT * WORD
        if name == "p":
            loads += [f"ld.global.u32 %word, [%in+{at}];", f"setp.ne.u32 %s{i}, %word, 0;"]
        else:
            loads.append(f"ld.global.b{BITS[name]} %s{i}, [%in+{at}];")
    for i, name in enumerate(form.results):
        at = i * COUNT * WORD
        if name == "p":
            stores += [f"selp.u32 %word, 1, 0, %d{i};", f"st.global.u32 [%out+{at}], %word;"]
        else:
            stores.append(f"st.global.b{BITS[name]} [%out+{at}], %d{i};")
    return "\n".join(
        [
            ".version 8.6",
            ".target sm_90a",
            ".address_size 64",
            ".visible .entry kernel(.param .u64 p_in, .param .u64 p_out) {",
            ".reg .b64 %in, %out, %at;",
            ".reg .b32 %thread, %word;",
            declarations(form),
            "ld.param.u64 %in, [p_in];",
            "ld.param.u64 %out, [p_out];",
            "mov.u32 %thread, %tid.x;",
            f"mul.wide.u32 %at, %thread, {WORD};",
            "add.u64 %in, %in, %at;",
            "add.u64 %out, %out, %at;",
            *loads,
            form.body,
            *stores,
            "ret;",
            "}",
        ]
    )


def main(directory: str, salt: int = 0) -> None:
    driver = Driver()
    columns = 8
    source, result = driver.allocate(columns * COUNT * WORD), driver.allocate(columns * COUNT * WORD)
    results: list[bytes] = []
    for form in forms():
        kernel = driver.kernel(driver.load(kernel_text(form)), "kernel", 0)
        driver.upload(source, np.concatenate(inputs(form.name, form.sources, salt)).tobytes())
        driver.upload(result, bytes(columns * COUNT * WORD))
        driver.launch(kernel, COUNT, 0, [struct.pack("<Q", source), struct.pack("<Q", result)])
        words = np.frombuffer(driver.download(result, columns * COUNT * WORD), np.uint64).reshape(
            columns, COUNT
        )
        for i, name in enumerate(form.results):
            dtype = np.dtype(f"u{max(BITS[name], 8) // 8}")
            results.append((np.packbits(words[i] != 0) if name == "p" else words[i].astype(dtype)).tobytes())
    np.savez_compressed(
        pathlib.Path(directory) / (f"alu_{salt}.npz" if salt else "alu.npz"),
        machine=np.array(json.dumps(driver.versions())),
        names=np.array([form.name for form in forms()]),
        results=np.frombuffer(b"".join(results), np.uint8),
    )
    print(f"{len(forms())} forms recorded")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
