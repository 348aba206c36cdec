"""mma.sync, ldmatrix, stmatrix and movmatrix on the emulator against what an H200 gave for the same kernels.

tests/recorded/matrix_instructions.jsonl.gz, written by record_matrix_instructions.py. Data movement,
integers, f64 and sums of small integers are equal bit for bit. Elsewhere the tensor core drops bits below
the largest term of a sum, which the ISA leaves open: the bounds below are in units of that term.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cute_kernels.emulator import Device, mma_sync
from tests.recorded import matrix_cases

RECORD = Path(__file__).parents[1] / "recorded" / "matrix_instructions.jsonl.gz"
VALUES = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s32": np.int32}


def recorded() -> list[tuple[str, str, int, bytes]]:
    with gzip.open(RECORD, "rt") as file:
        return [
            (opcode, text, seed, base64.b64decode(output))
            for opcode, text, seed, output in map(json.loads, file.readlines()[1:])
        ]


CASES = recorded()


def emulate(opcode: str, text: str, seed: int) -> bytes:
    """The output of the kernel that recorded the case."""
    source = np.frombuffer(matrix_cases.case_input(opcode, text, seed), np.uint8).copy()
    result = np.full(matrix_cases.output_bytes(opcode, text), 0xA5, np.uint8)
    device = Device(arch="sm_90a", num_sms=1)
    for array in (source, result):
        device.register(array.ctypes.data, array.nbytes)
    params = [struct.pack("<Q", array.ctypes.data) for array in (source, result)]
    device.launch(matrix_cases.kernel(opcode, text), "kernel", (1, 1, 1), (32, 1, 1), (1, 1, 1), 0, params)
    return result.tobytes()


def largest_terms(mma: matrix_cases.Mma, seed: int) -> npt.NDArray[np.float64]:
    """The largest magnitude among C and the products of each element of D, in the order of D's registers."""
    form = mma_sync.form(("sync", "aligned", *mma.text.split(".")))
    data = matrix_cases.mma_input(mma, matrix_cases.SETS[seed % 4], seed)
    registers = list(np.frombuffer(data, np.uint32).reshape(-1, 32))
    count_a, count_b, _ = mma.registers
    a = mma_sync._decode(form, mma.a, registers[:count_a], form.m)
    b = mma_sync._decode(form, mma.b, registers[count_a : count_a + count_b], form.n)
    c = mma_sync.accumulator(form, registers[count_a + count_b :])
    with np.errstate(all="ignore"):
        largest = np.maximum(np.abs(a[:, None, :] * b[None]).max(axis=-1), np.abs(c))
        words = np.stack(list(mma_sync.encode(form, largest)))
    return words.view(VALUES[mma.c]).astype(np.float64)


def bound(mma: matrix_cases.Mma) -> float:
    if mma.c == "f32":
        return 2.0**-20
    # With f16 results sm_90 rounds sums of e4m3 products more than once.
    return 2.0**-10 if mma.a == "f16" else 2.0**-8


@pytest.mark.parametrize("case", CASES, ids=[f"{opcode}.{text}-{seed}" for opcode, text, seed, _ in CASES])
def test_case(case: tuple[str, str, int, bytes]) -> None:
    opcode, text, seed, output = case
    given = emulate(opcode, text, seed)
    if opcode != "mma":
        assert given == output
        return
    mma = next(m for m in matrix_cases.MMAS if m.text == text)
    got, wanted = (np.frombuffer(x, VALUES[mma.c]) for x in (given, output))
    if mma.c in ("s32", "f64") or matrix_cases.SETS[seed % 4] == "exact":
        np.testing.assert_array_equal(got, wanted)
        return
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    finite = np.isfinite(got) & np.isfinite(wanted)
    if (mma.a, mma.c) != ("e4m3", "f16"):  # which may overflow between two roundings
        np.testing.assert_array_equal(got[~finite], wanted[~finite])
    largest = largest_terms(mma, seed).reshape(-1)[finite]
    error = np.abs(got[finite].astype(np.float64) - wanted[finite].astype(np.float64))
    assert (error <= bound(mma) * largest).all()


def test_the_recording_is_complete() -> None:
    assert [case[:3] for case in CASES] == list(matrix_cases.cases())
